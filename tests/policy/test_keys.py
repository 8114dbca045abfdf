import hashlib
import hmac
import zlib

import pytest

from relay.policy import keys

BASE62 = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"


def test_a_secret_has_the_shape_that_is_promised():
    secret = keys.make_secret()
    prefix, public_id, rest = secret.split("-")
    assert prefix == "sk"
    assert len(public_id) == 12
    assert public_id == public_id.lower()
    assert public_id.isalnum()
    assert len(rest) == 32 + 6
    assert rest.isalnum()
    value = 0
    for character in secret[-6:]:
        value = value * 62 + BASE62.index(character)
    assert value == zlib.crc32(secret[:-6].encode())


def test_secrets_differ():
    assert len({keys.make_secret() for _ in range(200)}) == 200


def test_the_public_id_is_read_from_text_and_bytes():
    secret = keys.make_secret()
    assert keys.parse_secret(secret) == keys.parse_secret(secret.encode()) == secret[3:15]


def test_every_changed_character_is_noticed():
    secret = keys.make_secret()
    for place in range(3, len(secret)):
        other = "1" if secret[place] != "1" else "2"
        assert keys.parse_secret(secret[:place] + other + secret[place + 1 :]) is None


def test_other_shapes_are_no_keys():
    secret = keys.make_secret()
    for text in (
        "",
        "sk-",
        secret[:-1],
        secret + "a",
        " " + secret,
        secret + "\n",
        secret.upper(),
        "é" * 53,
        "sk-" * 20000,
    ):
        assert keys.parse_secret(text) is None


def test_the_digest_is_an_hmac_of_the_whole_secret():
    secret = keys.make_secret()
    assert keys.digest(b"p" * 32, secret) == hmac.new(b"p" * 32, secret.encode(), hashlib.sha256).digest()
    assert keys.digest(b"p" * 32, secret) != keys.digest(b"q" * 32, secret)


def test_what_is_shown_of_a_secret_is_not_enough_to_use_it():
    secret = keys.make_secret()
    shown = keys.masked(secret[3:15], secret[-4:])
    assert secret[15:-4] not in shown
    assert keys.parse_secret(shown) is None


@pytest.mark.parametrize(
    ("models", "allowed"),
    [
        (["gpt-4o", "later"], {"gpt-4o", "later"}),
        (["gpt-*"], {"gpt-4o", "gpt-5"}),
        (["*"], {"gpt-4o", "gpt-5", "o3"}),
        (["o3", "gpt-5*", "nothing-*"], {"o3", "gpt-5"}),
    ],
)
def test_models_that_a_list_allows(models: list[str], allowed: set[str]):
    assert keys.allowed_models(models, ["gpt-4o", "gpt-5", "o3"]) == allowed
