from relay import _fastpath
from relay.errors import ERRORS


def test_every_code_of_the_hot_path_has_an_entry():
    assert set(ERRORS) == set(_fastpath.ERROR_CODES) - {""}
    assert len(set(_fastpath.ERROR_CODES)) == len(_fastpath.ERROR_CODES)


def test_entries_are_consistent():
    for name, kind in ERRORS.items():
        assert 400 <= kind.status <= 599, name
        assert kind.message.endswith("."), name
        assert "sk-..." in kind.message or "sk-" not in kind.message, name
        if kind.fault == "upstream":
            assert kind.status >= 500, name
            assert not kind.final, name
        if kind.status in (400, 401, 402, 403, 404, 413, 415):
            assert kind.final, f"{name}: repeating the same request cannot help"


def test_the_tree_in_the_docstring_is_complete():
    import relay.errors

    words = set(relay.errors.__doc__.replace("*", " ").split())
    assert set(ERRORS) <= words
