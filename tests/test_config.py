import contextlib
import os
import pickle
import re
import tomllib
import typing
from decimal import Decimal
from ipaddress import ip_network
from pathlib import Path

import msgspec
import pytest
from cryptography.hazmat.primitives import serialization
from hypothesis import given
from hypothesis import strategies as st

from relay import config, rate_files
from relay.config import Config, ConfigError, Secret, load, parse
from relay.config_values import (
    BadValueError,
    Converter,
    Listen,
    is_model_name,
    parse_base_url,
    parse_listen,
    parse_origin,
)
from relay.policy import schedule
from relay.storage.rows import ScheduledRatesRow
from tests.support.certificates import make_certificates

ROOT = Path(__file__).parents[1]

CHANNEL = """
[[channels]]
name = "a"
api = "openai"
base_url = "https://api.example.com/v1"
api_keys = ["env:RELAY_TEST_KEY"]
models = ["m"]
"""
RATE = """
[[rates]]
model = "m"
input = 1
output = 2
"""


@pytest.fixture(autouse=True)
def _key(monkeypatch):
    monkeypatch.setenv("RELAY_TEST_KEY", "sk-upstream-secret")


def faults(text: str) -> dict[str, tuple[str, str]]:
    """Key -> (expected, got) of everything wrong with a file."""
    with pytest.raises(ConfigError) as caught:
        parse(text)
    assert str(caught.value).startswith("config.toml: ")
    assert "\n" not in str(caught.value)
    assert len({fault.key for fault in caught.value.faults}) == len(caught.value.faults)
    return {fault.key: (fault.expected, fault.got) for fault in caught.value.faults}


# --- the file, the structs and the docs say the same

SECTIONS = {
    "server": config.Server,
    "admin": config.Admin,
    "timeouts": config.Timeouts,
    "plans.NAME": config.Plan,
    "billing": config.Billing,
    "routing": config.Routing,
    "limits": config.Limits,
    "retention": config.Retention,
    "observe": config.Observe,
    "jobs": config.Jobs,
    "channels": config.Channel,
    "channels.timeouts": config.ChannelTimeouts,
    "rates": config.Rate,
    "rates.tiers": config.RateTier,
}


def shipped(*, uncommented: bool) -> str:
    text = (ROOT / "config.toml").read_text()
    return re.sub(r"^#(?=\[|[a-z_0-9]+ = )", "", text, flags=re.MULTILINE) if uncommented else text


def test_the_shipped_file_is_the_defaults():
    text = shipped(uncommented=False)
    assert msgspec.structs.replace(parse(text), file="") == msgspec.structs.replace(parse("", file=""), file="")


def test_the_shipped_file_has_every_key_at_its_default(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-x")
    text = shipped(uncommented=True)
    document = tomllib.loads(text)
    assert set(document) == {name.split(".")[0] for name in SECTIONS}
    plans = document.pop("plans")
    tables = {
        **{
            name: document[name]
            for name in ("server", "admin", "timeouts", "billing", "routing", "limits", "retention", "observe", "jobs")
        },
        "channels": document["channels"][0],
        "channels.timeouts": document["channels"][0]["timeouts"],
        "rates": document["rates"][0],
        "rates.tiers": document["rates"][0]["tiers"][0],
        "plans.NAME": plans["free"],
    }
    for name, table in tables.items():
        assert set(table) == set(SECTIONS[name].__struct_fields__), name
    assert set(plans["paid"]) == set(plans["free"])
    loaded = parse(text)
    [channel] = loaded.channels
    for field in msgspec.structs.fields(config.Channel):
        if not field.required and field.name != "timeouts":
            default = field.default if field.default_factory is msgspec.NODEFAULT else field.default_factory()
            assert getattr(channel, field.name) == default, field.name
    for field in config.ChannelTimeouts.__struct_fields__:
        assert getattr(channel.timeouts, field) == getattr(loaded.timeouts, field)


def documented() -> dict[str, dict[str, str]]:
    sections: dict[str, dict[str, str]] = {}
    for line in (ROOT / "docs" / "configuration.md").read_text().splitlines():
        if heading := re.fullmatch(r"##+ (.*)", line):
            rows = sections.setdefault(heading[1].strip("[]"), {})
        elif row := re.fullmatch(r"\| `([a-z_0-9]+)` \| (.*?) \| .* \|", line):
            rows[row[1]] = row[2]
    return {name: rows for name, rows in sections.items() if rows}


def test_the_docs_have_every_key_with_its_default():
    pages = documented()
    assert set(pages) == set(SECTIONS)
    for name, struct in SECTIONS.items():
        rows = pages[name]
        assert list(rows) == list(struct.__struct_fields__), name
        hints = typing.get_type_hints(struct, include_extras=True)
        for field in msgspec.structs.fields(struct):
            text = rows[field.name]
            if field.required:
                assert text == "required", field.name
            elif text.startswith("as "):
                assert field.default in (None, config.UNSET_PRICE), field.name
            else:
                raw = tomllib.loads(f"x = {text.strip('`')}", parse_float=Decimal)["x"]
                default = field.default_factory() if field.default is msgspec.NODEFAULT else field.default
                converter = Converter(resolve_secrets=True)
                assert converter.value(hints[field.name], raw, field.name) == default, field.name
                assert not converter.faults


# --- values


def test_defaults_without_a_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert load().file == "(built-in defaults)"
    (tmp_path / "config.toml").write_text("[server]\nlisten = '[::1]:80'")
    assert load().server.listen == Listen(host="::1", port=80)


def test_plans_that_always_exist_keep_what_a_file_does_not_write():
    plans = parse("[plans.free]\nrpm = 7\n[plans.gold]\ntpm = 9").plans
    assert (plans["free"].rpm, plans["free"].concurrency) == (7, 5)
    assert (plans["paid"].rpm, plans["paid"].concurrency) == (200, 50)
    assert (plans["gold"].rpm, plans["gold"].tpm, plans["gold"].concurrency) == (0, 9, 0)


def test_models_as_a_list_and_as_a_table():
    assert parse(CHANNEL).channels[0].models == {"m": "m"}
    table = CHANNEL.replace('["m"]', '{ fast = "m-1", "a/b:c" = "d" }')
    loaded = parse(table)
    assert loaded.channels[0].models == {"fast": "m-1", "a/b:c": "d"}
    assert loaded.models == ("a/b:c", "fast")
    assert loaded.unpriced_models == ("a/b:c", "fast")
    assert parse(CHANNEL + RATE).unpriced_models == ()


def test_tokens_per_call_as_a_number_and_as_a_table():
    plans = parse('[plans.a]\ntokens_per_call = 5\n[plans.b]\ntokens_per_call = { "*" = 9, "gpt-4o" = 0 }').plans
    assert plans["a"].tokens_per_call == {"*": 5}
    assert plans["b"].tokens_per_call == {"*": 9, "gpt-4o": 0}


def test_decimals_are_exact_as_numbers_and_as_text():
    texts = ["0.1", "2.675", "1000000", "0.000000001", "123456.123456789"]
    for text in texts:
        for written in (text, f'"{text}"'):
            assert parse(RATE.replace("input = 1", f"input = {written}")).rates[0].input == Decimal(text)
    assert parse(RATE.replace("input = 1", "input = 1e-9")).rates[0].input == Decimal("0.000000001")


@given(st.integers(0, 10**15))
def test_every_price_in_range_reads_back(nano):
    text = f"{nano // 10**9}.{nano % 10**9:09d}"
    assert parse(RATE.replace("input = 1", f"input = {text}")).rates[0].input * 10**9 == nano


def test_cache_prices_fall_back_to_a_dearer_neighbour():
    rate = parse(RATE).rates[0]
    assert (rate.cache_read, rate.cache_write, rate.cache_write_1h) == (1, 1, 1)
    rate = parse(RATE + "cache_read = 0\ncache_write = 1.25").rates[0]
    assert (rate.cache_read, rate.cache_write, rate.cache_write_1h) == (0, Decimal("1.25"), Decimal("1.25"))


def test_addresses_and_networks():
    server = parse('[server]\ntrusted_proxies = ["10.0.0.0/8", "::1"]').server
    assert server.trusted_proxies == (ip_network("10.0.0.0/8"), ip_network("::1/128"))


@pytest.mark.parametrize(
    ("text", "listen"),
    [
        ("127.0.0.1:8787", Listen(host="127.0.0.1", port=8787)),
        ("[::1]:0", Listen(host="::1", port=0)),
        ("localhost:80", Listen(host="localhost", port=80)),
        ("unix:run/relay.sock", Listen(unix_path="run/relay.sock")),
    ],
)
def test_listen(text, listen):
    assert parse_listen(text) == listen
    assert str(listen) == text


@pytest.mark.parametrize(
    ("text", "origin"),
    [
        ("*", "*"),
        ("https://chat.example.com", "https://chat.example.com"),
        ("HTTPS://Chat.Example.com:443", "https://chat.example.com"),
        ("http://localhost:3000", "http://localhost:3000"),
        ("http://[::1]:80", "http://[::1]"),
        ("app://desktop", "app://desktop"),
        ("chrome-extension://abcdefghijklmnop", "chrome-extension://abcdefghijklmnop"),
    ],
)
def test_origins(text, origin):
    assert parse_origin(text) == origin


@pytest.mark.parametrize(
    "value",
    [
        *("", "null", "chat.example.com", "https://chat.example.com/", "https://u@chat.example.com", "https://a?b"),
        *(
            "https://*.example.com",
            "https://",
            "https://a:0",
            "https://a:x",
            "https://a:",
            "https://ä.de",
            "https://a b",
        ),
        *("https://a\r\nx: y", 80, None, ["https://a"]),
    ],
)
def test_not_an_origin(value):
    with pytest.raises(BadValueError):
        parse_origin(value)


@pytest.mark.parametrize(
    "value",
    [
        *("", ":80", "80", "127.0.0.1", "127.0.0.1:", "127.0.0.1:x", "127.0.0.1:65536", "127.0.0.1:-1", "::1:80"),
        *(
            "[::1]",
            "[x]:80",
            "[127.0.0.1]:80",
            "a b:80",
            "a/b:80",
            "unix:",
            "unix:" + "x" * 108,
            "h:٣",
            80,
            None,
            ["a"],
        ),
    ],
)
def test_not_a_listen_address(value):
    with pytest.raises(BadValueError):
        parse_listen(value)


@pytest.mark.parametrize(
    ("text", "url"),
    [
        ("https://api.openai.com/v1", "https://api.openai.com/v1"),
        ("https://API.OpenAI.com/v1/", "https://api.openai.com/v1"),
        ("http://127.0.0.1:8000", "http://127.0.0.1:8000"),
        ("http://[::1]:8000/", "http://[::1]:8000"),
        ("https://h.example/a-b/c_d/v1.5", "https://h.example/a-b/c_d/v1.5"),
        ("https://h.example/openai/deployments/{model}", "https://h.example/openai/deployments/{model}"),
    ],
)
def test_base_url(text, url):
    assert parse_base_url(text) == url


@pytest.mark.parametrize(
    "text",
    [
        *("", "api.openai.com/v1", "ftp://h/", "https:/h", "https:h", "https://", "https://h?x=1", "https://h?"),
        *(
            "https://h/v1#x",
            "https://h/{model}x",
            "https://h/{name}",
            "https://{model}/v1",
            "https://h#",
            "https://u@h/",
            "https://u:p@h/",
            "https://h:0/",
            "https://h:x/",
            "https://h:/",
        ),
        *("https://h:65536", "https://h h/", "https://h/a b", "https://h/\n", "https://h\\x", "https://h/../x"),
        *("https://h/a//b", "https://h/%2e", "https://hé.example", "https://-h/", "https://[::1", "https://[x]/", 5),
    ],
)
def test_not_a_base_url(text):
    with pytest.raises(BadValueError):
        parse_base_url(text)


@pytest.mark.parametrize("name", ["gpt-4o", "a/b", "@cf/meta/llama-3", "llama3:8b", "a.b-c:0", "x" * 200])
def test_model_names(name):
    assert is_model_name(name)


@pytest.mark.parametrize(
    "name", ["", "/a", "a/", "a//b", "a/../b", "..", ".a", "a/.b", "a b", "a%b", 'a"', "é", "x" * 201]
)
def test_not_model_names(name):
    assert not is_model_name(name)


# --- faults


@pytest.mark.parametrize(
    ("text", "key", "expected", "got"),
    [
        # unknown keys
        ("[sever]\n", "sever", "server", "did you mean server?"),
        ("[server]\nlisen = 1", "server.lisen", "listen", "an unknown key; did you mean listen?"),
        ("[server]\nzzz = 1", "server.zzz", "listen", "an unknown key"),
        ("warnings = []", "warnings", "server", "an unknown key"),
        ("file = ''", "file", "server", "an unknown key"),
        (CHANNEL + "colour = 1", "channels[0].colour", "weight", "an unknown key"),
        # wrong types
        ("server = 1", "server", "a table", "a whole number"),
        ("plans = 1", "plans", "a table", "a whole number"),
        ("[plans]\nfree = 1", "plans.free", "a table", "a whole number"),
        ("[channels]\n", "channels", "[[channels]]", "a table"),
        ("channels = [1]", "channels[0]", "a table", "a whole number"),
        ("[server]\nlisten = 1", "server.listen", "HOST:PORT", "a whole number"),
        ("[server]\ndata_dir = 1979-05-27", "server.data_dir", "text", "a date or time"),
        ("[server]\ntrusted_proxies = '::1'", "server.trusted_proxies", "a list", "text"),
        ("[server]\nconnections_max = 1.0", "server.connections_max", "a whole number", "a decimal number"),
        ("[server]\nconnections_max = true", "server.connections_max", "a whole number", "true or false"),
        ("[retention]\nsource_ip = 1", "retention.source_ip", "true or false", "a whole number"),
        ("[timeouts]\nconnect_seconds = '5'", "timeouts.connect_seconds", "a number", "text"),
        ("[timeouts]\nconnect_seconds = nan", "timeouts.connect_seconds", "a number", "a decimal number"),
        (CHANNEL + "tags = ['A b']", "channels[0].tags[0]", "a name", "text"),
        (CHANNEL.replace('["m"]', "[1]"), "channels[0].models[0]", "a model name", "a whole number"),
        (CHANNEL.replace('["m"]', '["m", "m"]'), "channels[0].models[1]", "each model once", "m a second time"),
        (CHANNEL.replace('["m"]', "[]"), "channels[0].models", "not empty", "a list"),
        (CHANNEL.replace('["m"]', "{ a = 1 }"), "channels[0].models.a", "a model name", "a whole number"),
        # out of range
        ("[server]\nconnections_max = 0", "server.connections_max", "from 1 to", "0"),
        ("[server]\nbody_bytes_max = -1", "server.body_bytes_max", "from 1024 to", "-1"),
        ("[timeouts]\nconnect_seconds = 0", "timeouts.connect_seconds", "above 0 to", "0"),
        ("[timeouts]\nconnect_seconds = -0.5", "timeouts.connect_seconds", "above 0 to", "-0.5"),
        ("[plans.a]\nrpm = -1", "plans.a.rpm", "from 0 to", "-1"),
        ("[plans.a]\ntokens_per_call = -1", "plans.a.tokens_per_call", "a number of tokens", "-1"),
        ("[plans.a]\ntokens_per_call = { m = 'x' }", "plans.a.tokens_per_call.m", "tokens", "text"),
        ("[plans.'A b']\n", "plans.A b", "a name", "text"),
        ("[billing]\ndiscount = 0", "billing.discount", "a factor above 0", "0"),
        ("[billing]\nlow_balance = -1.5", "billing.low_balance", "an amount of credits", "the negative number -1.5"),
        ("[billing]\nlow_balance = inf", "billing.low_balance", "an amount of credits", "not finite"),
        ("[billing]\nlow_balance = '1e3'", "billing.low_balance", "an amount of credits", "text"),
        ("[billing]\ncredit_name = ''", "billing.credit_name", "text of 1 to 32", "text of 0"),
        ("[billing]\non_disconnect = 'stop'", "billing.on_disconnect", '"cancel" or "drain"', "other text"),
        ("[billing]\nno_balance_status_openai = 403", "billing.no_balance_status_openai", "402 or 429", "403"),
        ("[billing]\nno_balance_status_openai = true", "billing.no_balance_status_openai", "402 or 429", "true or"),
        ("[billing]\nunpriced = 'free'", "billing.unpriced", '"refuse"', "other text"),
        (RATE.replace("input = 1", "input = -1"), "rates[0].input", "a price", "the negative number -1"),
        (RATE.replace("input = 1", "input = 0.0000000001"), "rates[0].input", "at most 9 decimal", "more places"),
        (RATE.replace("input = 1", "input = 1000000.1"), "rates[0].input", "at most 1000000", "a larger number"),
        (RATE.replace("input = 1", "input = 1e999999"), "rates[0].input", "at most 1000000", "a larger number"),
        (RATE.replace("input = 1", "input = true"), "rates[0].input", "a price", "true or false"),
        ("[server]\ntrusted_proxies = ['10.0.0.1/8']", "server.trusted_proxies[0]", "such as 10.0.0.0/8", "text"),
        ("[server]\ntrusted_proxies = ['x']", "server.trusted_proxies[0]", "an address or network", "text"),
        (CHANNEL.replace("openai", "opnai", 1), "channels[0].api", '"openai" or "anthropic"', "other text"),
        # missing
        ("[[channels]]\nname = 'x'", "channels[0].base_url", "no default", "nothing"),
        (RATE.replace("output = 2", ""), "rates[0].output", "no default", "nothing"),
        # contradictions name both keys
        ("[server]\ntls_key = 'x'", "server.tls_certificate", "server.tls_key is set", "nothing"),
        ("[server]\ntls_certificate = 'x'", "server.tls_key", "server.tls_certificate is set", "nothing"),
        ("[server]\nwaiting_bytes_max = 1024", "server.waiting_bytes_max", "server.body_bytes_max (33554432)", "1024"),
        ("[server]\nupload_bytes_max = 1024", "server.upload_bytes_max", "server.body_bytes_max (33554432)", "1024"),
        (
            "[billing]\nhold_slice_tokens = 5000",
            "billing.hold_slice_tokens",
            "billing.hold_output_tokens (4096)",
            "5000",
        ),
        (
            "[plans.a]\ndaily_credits = 2\nmonthly_credits = 1",
            "plans.a.daily_credits",
            "plans.a.monthly_credits (1)",
            "2",
        ),
        (CHANNEL + CHANNEL, "channels[1].name", "channels[0] has it already", "a again"),
        (
            "[routing]\nbreaker_open_seconds = 61",
            "routing.breaker_open_seconds",
            "at most routing.breaker_open_seconds_max (60)",
            "61",
        ),
        (
            "[routing]\nkey_rest_seconds = 601",
            "routing.key_rest_seconds",
            "at most routing.key_rest_seconds_max (600)",
            "601",
        ),
        (
            "[routing]\nkey_rest_seconds_max = 60",
            "routing.key_rest_refused_seconds",
            "at most routing.key_rest_seconds_max (60)",
            "300",
        ),
        (
            CHANNEL + CHANNEL.replace('"a"', '"b"') + "tags = ['b', 'a']",
            "channels[1].tags[1]",
            "a tag that is not the name of another channel",
            "a",
        ),
        (
            "".join(CHANNEL.replace('"a"', f'"a{number}"') for number in range(65)),
            "channels[64].models",
            "at most 64 channels of one dialect",
            "another one for m",
        ),
        (RATE + RATE, "rates[1].model", "rates[0] has it already", "m again"),
        (
            CHANNEL.replace("openai", "gemini").replace("/v1", "") + "ask_usage = 'strip'",
            "channels[0].ask_usage",
            "channels[0].api",
            '"strip"',
        ),
        (CHANNEL.replace('"openai"', '"anthropic"'), "channels[0].base_url", "without /v1", "ends in /v1"),
        (
            CHANNEL.replace('"openai"', '"gemini"').replace("/v1", "/{model}"),
            "channels[0].base_url",
            "without {model}",
            'api = "gemini"',
        ),
        (CHANNEL + "key_header = 'api key'", "channels[0].key_header", "the name of a header", "text"),
        (CHANNEL + "set_headers = { Host = 'x' }", "channels[0].set_headers.Host", "the name of a header", "host"),
        (CHANNEL + "set_headers = { x-api-key = 'x' }", "channels[0].set_headers.x-api-key", "api_keys", "x-api-key"),
        (CHANNEL + "set_headers = { 'a:b' = 'x' }", "channels[0].set_headers.a:b", "the name of a header", "text"),
        (
            CHANNEL + 'set_headers = { x-title = "a\\r\\nb" }',
            "channels[0].set_headers.x-title",
            "a secret",
            "not ASCII",
        ),
        (CHANNEL + "set_headers = { x-title = '' }", "channels[0].set_headers.x-title", "drop_headers", "empty text"),
        (
            CHANNEL + "drop_headers = ['content-length']",
            "channels[0].drop_headers[0]",
            "the name of a header",
            "content",
        ),
        (CHANNEL + "key_header = 'x-k'\ndrop_headers = ['X-K']", "channels[0].set_headers", "key_header", "x-k"),
        (CHANNEL + "set_headers = { A = 'x', a = 'y' }", "channels[0].set_headers.a", "each name once", "again"),
        (CHANNEL + "proxy = 'proxy.example:3128'", "channels[0].proxy", "http://proxy.example:3128", "scheme"),
        (CHANNEL + "proxy = 'http://proxy.example'", "channels[0].proxy", "http://proxy.example:3128", "port"),
        (CHANNEL + "key_header = 'Host'", "channels[0].key_header", "the name of a header", "host"),
        (CHANNEL + "query = '?api-version=1'", "channels[0].query", "without the question mark", "text"),
        (CHANNEL + "query = 'a=b c'", "channels[0].query", "without the question mark", "text"),
        (
            CHANNEL.replace("/v1", "/v1/chat/completions"),
            "channels[0].base_url",
            "without /chat/completions",
            "ends in",
        ),
        ("[server]\nlisten = 'unix:./data/relay.sock'", "server.listen", "server.data_dir", "the same path"),
        (
            CHANNEL.replace("https://api.example.com", "http://localhost:8787"),
            "channels[0].base_url",
            "server.listen is 127.0.0.1:8787",
            "the same address",
        ),
        # secrets
        (CHANNEL.replace("RELAY_TEST_KEY", "RELAY_TEST_NONE"), "channels[0].api_keys[0]", "RELAY_TEST_NONE", "not set"),
        (CHANNEL.replace("env:RELAY_TEST_KEY", "env:a b"), "channels[0].api_keys[0]", "name of an environment", "text"),
        (CHANNEL.replace("env:RELAY_TEST_KEY", "file:/nowhere/x"), "channels[0].api_keys[0]", "/nowhere/x", "No such"),
        (CHANNEL.replace("env:RELAY_TEST_KEY", ""), "channels[0].api_keys[0]", "a secret", "empty text"),
        (CHANNEL.replace('"env:RELAY_TEST_KEY"', "5"), "channels[0].api_keys[0]", "a secret", "a whole number"),
        ("[admin]\ntoken = 'short'", "admin.token", "at least 16 characters", "a shorter secret"),
        # not TOML
        ("[server\n", "", "", "not TOML: Expected ']' at the end of a table declaration (at line 1"),
        ("[server]\nlisten = '1'\nlisten = '2'\n", "", "", "not TOML: Cannot overwrite a value (at line 3"),
    ],
)
def test_fault(text, key, expected, got):
    found = faults(text)
    assert key in found
    assert expected in found[key][0]
    assert got in found[key][1]


def test_all_faults_are_reported_at_once():
    found = faults(
        "[server]\nlisten = 1\nx = 2\n[billing]\ndiscount = 0\n[[rates]]\nmodel = 'm'\n" + CHANNEL + "weight = 0"
    )
    assert set(found) == {
        "server.listen",
        "server.x",
        "billing.discount",
        "rates[0].input",
        "rates[0].output",
        "channels[0].weight",
    }


def test_the_error_is_one_line_and_has_the_others_as_lines():
    with pytest.raises(ConfigError) as caught:
        parse("a = 1\nb = 2", file="x.toml")
    assert str(caught.value).endswith("(and 1 more)")
    assert [line.split(":")[1] for line in caught.value.lines] == [" a", " b"]


def test_a_key_is_shown_safe_for_a_terminal():
    assert not any("\x1b" in key for key in faults('"\\u001b[2J" = 1'))


def test_files_that_cannot_be_read(tmp_path):
    with pytest.raises(ConfigError, match=r"none\.toml: the file cannot be read: No such file"):
        load(tmp_path / "none.toml")
    with pytest.raises(ConfigError, match="the file cannot be read: Is a directory"):
        load(tmp_path)
    (tmp_path / "latin.toml").write_bytes(b"# \xe9")
    with pytest.raises(ConfigError, match="not UTF-8 text: byte 2"):
        load(tmp_path / "latin.toml")


def test_tls_files_must_be_readable(tmp_path):
    (tmp_path / "cert").write_text("x")
    text = f"[server]\ntls_certificate = '{tmp_path}/cert'\ntls_key = '{tmp_path}/key'"
    assert set(faults(text)) == {"server.tls_key"}
    assert parse(text, resolve_secrets=False).server.tls_key


def test_tls_files_must_be_a_certificate_and_its_key(tmp_path):
    """What OpenSSL says of them names neither the file nor the key of the configuration."""
    made = make_certificates(tmp_path)
    (tmp_path / "other").mkdir()
    other = make_certificates(tmp_path / "other")
    (tmp_path / "locked").write_bytes(
        serialization.load_pem_private_key(made.key.read_bytes(), None).private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.BestAvailableEncryption(b"x")
        )
    )
    (tmp_path / "text").write_text("no certificate")

    def text(certificate, key):
        return f"[server]\ntls_certificate = '{certificate}'\ntls_key = '{key}'"

    assert parse(text(made.certificate, made.key)).server.tls_key
    assert faults(text(tmp_path / "text", made.key))["server.tls_certificate"][1] == "a file without one"
    assert faults(text(made.certificate, other.key))["server.tls_key"][1] == "the key of another certificate"
    for unusable in ("text", "locked"):
        found = faults(text(made.certificate, tmp_path / unusable))["server.tls_key"][1]
        assert found.startswith("a file without such a key")


# --- secrets


def test_where_secrets_come_from(tmp_path):
    assert parse(CHANNEL).channels[0].api_keys[0].reveal() == "sk-upstream-secret"
    (tmp_path / "key").write_text("  sk-from-file\n")
    [secret] = parse(CHANNEL.replace("env:RELAY_TEST_KEY", f"file:{tmp_path}/key")).channels[0].api_keys
    assert secret.reveal() == "sk-from-file"
    loaded = parse(CHANNEL.replace("env:RELAY_TEST_KEY", "sk-literal"))
    assert loaded.channels[0].api_keys[0].reveal() == "sk-literal"
    assert any(line.startswith("channels[0].api_keys[0]: the secret stands in the file") for line in loaded.warnings)
    assert not any("api_keys" in line for line in parse(CHANNEL).warnings)


@pytest.mark.parametrize("written", ["$OPENAI_API_KEY", "${OPENAI_API_KEY}", "ENV:OPENAI_API_KEY", "File:key"])
def test_what_is_almost_a_reference_is_no_secret(written):
    """It would go to the provider as it stands, and every call would be refused there."""
    found = faults(CHANNEL.replace("env:RELAY_TEST_KEY", written))["channels[0].api_keys[0]"]
    assert '"env:NAME"' in found[0]
    assert "shell's variable" in found[1]


def test_references_stay_unread_for_commands_that_need_no_secret(monkeypatch):
    monkeypatch.delenv("RELAY_TEST_KEY")
    [secret] = parse(CHANNEL, resolve_secrets=False).channels[0].api_keys
    assert not secret
    assert secret.source == "env:RELAY_TEST_KEY"


@pytest.mark.parametrize("value", ["two words", "line\nbreak", "tab\t", "umlaut-é", "nul\x00"])
def test_a_secret_that_could_not_stand_in_a_header_is_refused_unseen(tmp_path, value):
    (tmp_path / "key").write_text(value + "x")
    with pytest.raises(ConfigError) as caught:
        parse(CHANNEL.replace("env:RELAY_TEST_KEY", f"file:{tmp_path}/key"))
    assert value not in str(caught.value)


SECRET = "sk-CANARY-0123456789"


def test_a_secret_never_shows():
    secret = Secret(SECRET, "env:X")
    shown = [
        repr(secret),
        str(secret),
        f"{secret}",
        f"{secret!r:>40}",
        repr([secret]),
        repr({1: secret}),
    ]
    assert not any("CANARY" in text for text in shown)
    with pytest.raises(TypeError):
        pickle.dumps(secret)
    with pytest.raises((TypeError, NotImplementedError)):
        msgspec.json.encode(secret)
    loaded = parse(CHANNEL.replace("env:RELAY_TEST_KEY", SECRET) + f"[admin]\ntoken = '{SECRET}'")
    assert "CANARY" not in repr(loaded)
    assert "CANARY" not in "".join(loaded.warnings)


@pytest.mark.parametrize(
    "key", ["name", "api", "base_url", "models", "weight", "tags", "ask_usage", "timeouts", "nokey"]
)
def test_a_secret_in_the_wrong_place_is_not_quoted(key):
    lines = [line for line in CHANNEL.splitlines() if not line.startswith(key + " ")]
    with pytest.raises(ConfigError) as caught:
        parse("\n".join([*lines, f"{key} = '{SECRET} '"]))
    assert "CANARY" not in "".join(caught.value.lines)


def test_nor_is_one_that_breaks_the_syntax():
    for text in (f"token = {SECRET}", f"[admin]\ntoken = '{SECRET}", f'token = "{SECRET}\\q"', f"token = '{SECRET}' x"):
        with pytest.raises(ConfigError) as caught:
            parse(text)
        assert "CANARY" not in str(caught.value)


# --- warnings


def test_warnings():
    text = """
    [server]
    listen = "0.0.0.0:80"
    trusted_proxies = ["0.0.0.0/0"]
    [[channels]]
    name = "a"
    api = "openai"
    base_url = "http://api.openai.com"
    api_keys = ["env:RELAY_TEST_KEY"]
    models = ["x", "m"]
    [[channels]]
    name = "b"
    api = "openai"
    base_url = "https://api.example.com/v1"
    api_keys = ["env:RELAY_TEST_KEY", "env:RELAY_TEST_KEY"]
    models = ["m"]
    [routing]
    attempts_max = 1
    [[rates]]
    model = "m"
    input = 1
    output = 1
    [[rates]]
    model = "unserved"
    input = 1
    output = 1
    """
    lines = parse(text).warnings
    for start in (
        "server.listen: other machines",
        "server.trusted_proxies[0]: trusts everyone",
        "channels[0].base_url: http sends",
        "channels[0].base_url: OpenAI's base URL has /v1",
        "channels[1].api_keys: the same key twice",
        "routing.attempts_max: with 1 no other channel",
        "rates: no rate for x: calls are refused",
        "rates: no channel serves unserved",
    ):
        assert any(line.startswith(start) for line in lines), start
    assert len(lines) == 8
    assert any("channels: none are configured" in line for line in parse("").warnings)
    assert parse(CHANNEL + RATE).warnings == ()


# --- whatever is written

DOCUMENTS = st.recursive(
    st.one_of(st.booleans(), st.integers(-(10**13), 10**13), st.decimals(), st.text(max_size=8), st.dates()),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(
            st.sampled_from(
                [
                    *(*Config.__struct_fields__, *config.Channel.__struct_fields__, *config.Plan.__struct_fields__),
                    *(*config.Rate.__struct_fields__, *config.Server.__struct_fields__, "free", "x"),
                ]
            ),
            inner,
            max_size=4,
        ),
    ),
    max_leaves=12,
)


@given(DOCUMENTS)
def test_the_walk_never_fails_without_a_fault(document):
    converter = Converter(resolve_secrets=False)
    tables = converter.table(config.Tables, document)
    assert tables is not None or converter.faults


@given(st.text(max_size=30))
def test_any_text_is_read_or_refused(text):
    with contextlib.suppress(ConfigError):
        parse(text)


def test_nothing_is_left_open(tmp_path):
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(20):
        parse(CHANNEL)
    assert len(os.listdir("/proc/self/fd")) == before


def test_finding_newcomer_17_faults_of_all_kinds_come_at_once(tmp_path, monkeypatch):
    """Types, secrets that are not at hand, rules between keys, duplicates, places that cannot be written."""
    monkeypatch.delenv("RELAY_TEST_KEY")
    (tmp_path / "file").write_text("")
    found = faults(
        f"""
        [server]
        drain_seconds = "long"
        data_dir = "{tmp_path}/file"
        tls_key = "/nowhere/key.pem"
        [observe]
        access_log = "{tmp_path}/missing/calls.jsonl"
        {CHANNEL}
        ask_usage = "sometimes"
        {CHANNEL}
        {RATE}
        {RATE}
        """
    )
    assert set(found) == {
        "server.drain_seconds", "server.data_dir", "server.tls_certificate", "observe.access_log",
        "channels[0].api_keys[0]", "channels[0].ask_usage", "channels[1].api_keys[0]", "channels[1].name",
        "rates[1].model",
    }  # fmt: skip
    assert found["server.data_dir"] == ("a directory", f"{tmp_path}/file, which is not one")


def test_a_rule_says_nothing_about_a_key_that_is_at_fault():
    assert set(faults("[server]\nwaiting_bytes_max = 'many'\nbody_bytes_max = 2147483648")) <= {
        "server.waiting_bytes_max", "server.body_bytes_max", "server.upload_bytes_max",
    }  # fmt: skip


def test_finding_newcomer_10_the_data_directory_of_a_broken_file(tmp_path):
    file = tmp_path / "config.toml"
    for text, expected in (
        ('[server]\nlisten = \ndata_dir = "/srv/relay" # here', "/srv/relay"),
        ("[[channels]]\ndata_dir = 'no'\n[server]\n  data_dir='x'\n[broken", "x"),
        ("[server\ndata_dir = 'x'", "data"),
        ("", "data"),
    ):
        file.write_text(text)
        assert config.data_dir_of(file) == expected
    assert config.data_dir_of(tmp_path / "none") == ""


def test_finding_newcomer_9_keys_that_need_a_restart():
    old = parse("")
    new = parse("[server]\nlisten = '127.0.0.1:9'\ncalls_max = 64\ndrain_seconds = 1")
    assert config.changed_for_restart(old, new) == [
        "server.listen: changed, takes effect at a restart", "server.calls_max: changed, takes effect at a restart",
    ]  # fmt: skip
    assert config.changed_for_restart(old, old) == []
    for key in config.RESTART_KEYS:
        section, _, name = key.partition(".")
        assert hasattr(getattr(old, section), name), key


def test_finding_newcomer_5_secrets_of_the_environment_are_named():
    assert config.secrets_of_the_environment(parse(CHANNEL + RATE)) == ["env:RELAY_TEST_KEY"]
    assert config.secrets_of_the_environment(parse("")) == []


PATTERNS = """
[billing]
default_rates = {shipped}
[[channels]]
name = "a"
api = "openai"
base_url = "http://127.0.0.1:1/v1"
api_keys = []
models = {models}
[[channels]]
name = "b"
api = "openai"
base_url = "http://127.0.0.1:2/v1"
api_keys = []
models = ["my-first"]
[[rates]]
model = "my-first"
input = 1
output = 1
[[rates]]
model = "my-second"
input = 1
output = 1
[[rates]]
model = "other/one"
input = 1
output = 1
"""


def patterns(models: str, shipped: str = "false"):
    return parse(PATTERNS.format(models=models, shipped=shipped))


@pytest.mark.parametrize(
    ("models", "served"),
    [
        ('["my-*"]', {"my-first": "my-first", "my-second": "my-second"}),
        ('["*"]', {"my-first": "my-first", "my-second": "my-second", "other/one": "other/one"}),
        ('["other/*", "my-first"]', {"other/one": "other/one", "my-first": "my-first"}),
        ('["my-s*", "unpriced"]', {"my-second": "my-second", "unpriced": "unpriced"}),
        ('{ "my-*" = "my-*", "my-first" = "theirs" }', {"my-first": "theirs", "my-second": "my-second"}),
    ],
)
def test_patterns_stand_for_models_with_a_price(models, served):
    config = patterns(models)
    assert config.channels[0].models == served
    assert config.channels[1].models == {"my-first": "my-first"}


def test_patterns_match_the_shipped_card_too():
    config = patterns('["gpt-4o*", "my-first"]', "true")
    served = config.channels[0].models
    assert {"gpt-4o", "gpt-4o-mini", "my-first"} <= served.keys()
    assert not [name for name in served if not name.startswith(("gpt-4o", "my-first"))]
    assert not set(config.unpriced_models)
    assert (
        "computer-use-preview" not in patterns('["*"]', "true").channels[0].models
    )  # retired before the card was made


def test_a_pattern_that_matches_nothing_is_told():
    config = patterns('["nothing-*", "my-first"]')
    assert "channels[0].models: no model with a price begins as nothing-* does" in config.warnings


def test_a_price_that_is_scheduled_brings_its_model_to_the_channels_that_match():
    config = patterns('["my-*"]')
    rates = rate_files.parse('[[rates]]\nmodel = "my-third"\ninput = 1\noutput = 2\n', file="x")
    row = ScheduledRatesRow(id=1, body=rate_files.stored(rates), effective_ms=5, announced_ms=1, withdrawn_ms=0)
    assert "my-third" in schedule.in_force(config, [row], 5).channels[0].models
    assert "my-third" not in schedule.in_force(config, [row], 4).channels[0].models


@pytest.mark.parametrize(
    "models", ['["a*b"]', '["**"]', '["my-*", "my-*"]', '{ "my-*" = "x" }', '{ "x" = "my-*" }', '["../*"]']
)
def test_what_is_no_pattern(models):
    with pytest.raises(ConfigError):
        patterns(models)


@pytest.mark.parametrize(
    ("table", "key", "expected"),
    [
        ('{ "my-first" = "my-first" }', "my-first", "another model"),
        ('{ "my-first" = "nobodys" }', "my-first", "another model"),
        ('{ "nobodys" = "my-first" }', "nobodys", "a model of this channel"),
    ],
)
def test_fallback_models_that_cannot_be_meant(table, key, expected):
    text = PATTERNS.format(models=f'["my-*"]\nfallback_models = {table}', shipped="false")
    found = faults(text)
    assert expected in found[f"channels[0].fallback_models.{key}"][0]
