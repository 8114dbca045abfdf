import pytest

from relay.control.emails import normalise


@pytest.mark.parametrize(
    ("given", "normal"),
    [
        ("ann@example.com", "ann@example.com"),
        ("  Ann@Example.COM \n", "ann@example.com"),
        ("ann@example.com.", "ann@example.com"),
        ("ann+tag@example.com", "ann+tag@example.com"),
        ("ａｎｎ@example.com", "ann@example.com"),
        ("jörg@münchen.de", "jörg@xn--mnchen-3ya.de"),
        ("JO\u0308RG@MÜNCHEN.de", "jörg@xn--mnchen-3ya.de"),
        ("a@xn--mnchen-3ya.de", "a@xn--mnchen-3ya.de"),
        ("ﬁn@example.com", "fin@example.com"),
    ],
)
def test_addresses_of_one_person_have_one_form(given: str, normal: str):
    assert normalise(given) == normal
    assert normalise(normal) == normal


@pytest.mark.parametrize(
    "given",
    [
        "", "@", "ann", "ann@", "@example.com", "ann@localhost", "a b@example.com", "ann@exa mple.com",
        "ann@@example.com",
        "ann@example..com", ".ann@example.com", "ann.@example.com", "a..b@example.com", "ann@-example.com",
        "ann@127.0.0.1", "a" * 65 + "@example.com", "a@" + "b" * 250 + ".com", "ann\x00@example.com",
        "ann\u202e@example.com", "<ann@example.com>", "ann,bob@example.com", "ann@example.com,bob@example.com",
    ],
)  # fmt: skip
def test_other_texts_are_refused(given: str):
    with pytest.raises(ValueError, match="e-mail address"):
        normalise(given)
