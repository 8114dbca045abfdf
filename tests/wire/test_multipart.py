"""Forms: what is found in them, and what is refused because two readers could take it in two ways."""

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.wire.multipart import FormError, Part, boundary_of, parse, part_head, texts

BOUNDARY = b"xYz"


def form(*parts: tuple[str, bytes], boundary: bytes = BOUNDARY) -> bytes:
    """`parts`: what stands behind `form-data`, and the bytes."""
    body = b"".join(
        b"--%b\r\nContent-Disposition: form-data%b\r\n\r\n%b\r\n" % (boundary, head.encode(), data)
        for head, data in parts
    )
    return body + b"--%b--\r\n" % boundary


@pytest.mark.parametrize(
    ("text", "boundary"),
    [
        (b"multipart/form-data; boundary=abc", b"abc"),
        (b"Multipart/Form-Data;boundary=abc", b"abc"),
        (b'multipart/form-data; boundary="a b:c"', b"a b:c"),
        (b"multipart/form-data; boundary=----WebKitFormBoundaryX", b"----WebKitFormBoundaryX"),
        (b"multipart/form-data", None),
        (b"multipart/form-data; boundary=", None),
        (b"multipart/form-data; boundary=" + b"a" * 71, None),
        (b"multipart/form-data; boundary=a; boundary=b", None),
        (b"multipart/form-data; charset=utf-8; boundary=b", None),
        (b"multipart/mixed; boundary=abc", None),
        (b"application/json", None),
        (b"", None),
    ],
)
def test_boundary(text: bytes, boundary: bytes | None):
    assert boundary_of(text) == boundary


def test_parts():
    body = form(
        ('; name="model"', b"whisper-1"), ('; name="file"; filename="a.wav"', b"RIFF\r\n--xY\r\n"), ("; name=n", b"")
    )
    model, file, empty = parse(BOUNDARY, body)
    assert (model.name, model.filename, body[model.start : model.end]) == ("model", None, b"whisper-1")
    assert (file.name, file.filename, body[file.start : file.end]) == ("file", "a.wav", b"RIFF\r\n--xY\r\n")
    assert (empty.name, body[empty.start : empty.end]) == ("n", b"")
    assert texts([model, empty], body, frozenset({"model", "n"})) == {"model": model, "n": empty}


@given(
    st.lists(st.tuples(st.sampled_from(["model", "file", "prompt", "n"]), st.booleans(), st.binary(max_size=200))),
    st.from_regex(rb"[A-Za-z0-9'()+_./:=?-]{1,40}", fullmatch=True),
)
def test_what_was_put_together_comes_apart(given_parts: list[tuple[str, bool, bytes]], boundary: bytes):
    if any(b"--" + boundary in data for _, _, data in given_parts):
        return
    heads = [(f'; name="{name}"' + '; filename="x"' * is_file, data) for name, is_file, data in given_parts]
    body = form(*heads, boundary=boundary)
    if not heads:
        assert parse(boundary, b"--" + boundary + b"--") == []
        return
    found = parse(boundary, body)
    assert [(p.name, p.filename is not None, body[p.start : p.end]) for p in found] == given_parts


@given(st.binary(max_size=300))
def test_anything_is_read_or_refused(data: bytes):
    for body in (data, b"--xYz\r\n" + data, b"--xYz\r\nContent-Disposition: form-data; name=a\r\n\r\n" + data):
        with contextlib.suppress(FormError):
            parse(BOUNDARY, body)


ONE = ('; name="model"', b"m")
BAD_BODIES = {
    "empty": b"",
    "preamble": b"hello\r\n" + form(ONE),
    "leading line end": b"\r\n" + form(ONE),
    "epilogue": form(ONE) + b"more",
    "never ended": form(ONE)[:-6],
    "no blank line": b"--xYz\r\nContent-Disposition: form-data; name=a\r\n--xYz--",
    "bare line feeds": form(ONE).replace(b"\r\n", b"\n"),
    "boundary that goes on": form(('; name="a"', b"x\r\n--xYzz\r\ny")),
    "blanks behind a boundary": form(ONE).replace(b"--xYz\r\n", b"--xYz \r\n", 1),
    "folded field": form(ONE).replace(b"form-data;", b"form-data;\r\n "),
    "no disposition": b"--xYz\r\nContent-Type: text/plain\r\n\r\nx\r\n--xYz--\r\n",
    "two dispositions": form(('; name="a"\r\nContent-Disposition: form-data; name="b"', b"x")),
    "two names": form(('; name="a"; name="model"', b"x")),
    "a quote in a file's name": form(('; name="a"; filename="x\\"; name="model"', b"x")),
    "a backslash in a name": form(('; name="mod\\el"', b"x")),
    "no name": form(('; filename="x"', b"x")),
    # wire M2: werkzeug, formidable and others find `name=model` in these
    **{
        f"finding wire M2: {head}": form((head, b"x"))
        for head in (
            "; name=\"x\"; name*=utf-8''model", '; name*0="mo"; name*1="del"', "; name*=utf-8''model",
            '; x="a;name=model"; name="y"', '; name="y"; filename="a; name=model"',
            "; name=\"f\"; filename*=UTF-8''x.txt",
        )
    },
    **{
        f"finding wire M2: a boundary after {before!r}": form(
            ('; name="file"; filename="a"',
             b"data" + before + b'--xYz\nContent-Disposition: form-data; name="model"\n\nDEAR' + before + b"--xYz")
        )
        for before in (b"\n", b"\r", b"", b" ", b"\n\r")
    },
    "finding wire M2: a boundary in a head": form(('; name="--xYz"', b"x")),
    "base64": form(('; name="a"\r\nContent-Transfer-Encoding: base64', b"eA==")),
    "too many parts": form(*[ONE] * 300),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD_BODIES)
def test_refused(name: str):
    with pytest.raises(FormError):
        parse(BOUNDARY, BAD_BODIES[name])


def test_fields_that_are_read_come_once_and_are_no_files():
    body = form(ONE, ONE)
    with pytest.raises(FormError):
        texts(parse(BOUNDARY, body), body, frozenset({"model"}))
    body = form(('; name="model"; filename="m"', b"x"))
    with pytest.raises(FormError):
        texts(parse(BOUNDARY, body), body, frozenset({"model"}))
    assert texts([Part("other", None, 0, 1)] * 2, b"x", frozenset({"model"})) == {}


def test_names_as_clients_write_them():
    assert part_head(b'content-disposition: form-data; name="file"; filename="C:\\a.txt"\r\nContent-Type: a/b') == (
        "file",
        "C:\\a.txt",
    )
    assert part_head('Content-Disposition: form-data; name="файл"; filename="a;b.txt"'.encode()) == ("файл", "a;b.txt")
