"""Forms that name a second model, or a field that other servers read under its own name."""

import pytest

from relay._fastpath import ERROR_CODES
from relay.policy import tokenizers
from relay.proxy import forms
from relay.wire.endpoints import F_IMAGES

TABLE = tokenizers.table_for("gpt-image-1")


def form(*names: str) -> bytes:
    parts = [f'Content-Disposition: form-data; name="{name}"\r\n\r\n1'.encode() for name in names]
    return b"".join(b"--b\r\n" + part + b"\r\n" for part in parts) + b"--b--\r\n"


def read(*names: str) -> forms.Form:
    return forms.read("/v1/images/edits", F_IMAGES, b"multipart/form-data; boundary=b", form(*names), TABLE)


@pytest.mark.parametrize("name", ["Model", "MODEL", "model[]", "model ", "\ufeffmodel", "'model'", "N", "Stream"])
@pytest.mark.parametrize("first", [True, False])
def test_names_that_others_read_as_ours(name: str, first: bool):
    found = read(*((name, "model") if first else ("model", name)))
    assert ERROR_CODES[found.code] == "invalid_value"
    assert found.param in ("model", "n", "stream")


@pytest.mark.parametrize("name", ["models", "models[]", "fallbacks", "Fallbacks"])
def test_finding_wire_M1_fields_that_reach_another_model(name: str):
    found = read("model", name)
    assert (ERROR_CODES[found.code], found.param) == ("invalid_value", name.lower().removesuffix("[]"))


def test_other_fields_pass():
    assert read("model", "image[]", "timestamp_granularities[]", "size", "include[]").code == 0
