"""The request scanner: fields, faults, what counts as prompt; at every cut and against its oracle."""

import json
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from relay._fastpath import count_text, scan_request
from relay.policy.tokenizers import table_for
from tests.support import request_oracle
from tests.support.request_bodies import REQUESTS, TOOL
from tests.support.tap_oracle import (
    CHAT,
    COMPLETIONS,
    COUNT_TOKENS,
    EMBEDDINGS,
    GEMINI_COUNT,
    GEMINI_EMBED,
    GENERATE,
    IMAGES,
    MESSAGES,
    MODERATIONS,
    OTHER,
    RERANK,
    RESPONSES,
    SPEECH,
)

TABLE = table_for("gpt-4o")


def scan(format, body, cuts=()):
    return scan_request(format, body if isinstance(body, bytes) else json.dumps(body).encode(), TABLE, cuts)


def fault(format, body):
    result = scan(format, body)
    return result["error"], result["error_param"]


def tokens(*texts):
    """Counted text, each on its own."""
    return sum(count_text(TABLE, text.encode()) for text in texts)


@pytest.mark.parametrize(("format", "body", "expected"), REQUESTS, ids=range(len(REQUESTS)))
def test_request(format, body, expected):
    for ascii in (True, False):
        for layout in ({}, {"indent": 2}, {"separators": (",", ":")}):
            text = json.dumps(body, ensure_ascii=ascii, **layout).encode()
            result = scan(format, text)
            assert not result["error"]
            assert {name: result[name] for name in expected} == expected
            oracle = request_oracle.scan(format, text, TABLE)
            assert not oracle.faults
            assert result["text"] == oracle.units
            assert result["web_search"] == oracle.web_search
            if format not in (GENERATE,):
                assert result["output_limit"] == oracle.output_limit
                assert result["choices"] == oracle.choices
            assert result["prompt_tokens"] == oracle.prompt_tokens()
            assert (result["model"], result["stream"], result["include_usage"]) == (
                oracle.model,
                oracle.stream,
                oracle.include_usage,
            )


@pytest.mark.parametrize(("format", "body", "expected"), REQUESTS, ids=range(len(REQUESTS)))
def test_every_cut(format, body, expected):
    for ascii in (True, False):
        text = json.dumps(body, ensure_ascii=ascii).encode()
        whole = scan(format, text)
        for cut in range(len(text) + 1):
            assert scan(format, text, (cut,)) == whole
        assert scan(format, text, tuple(range(len(text)))) == whole


def test_offsets():
    """The spans are those of the raw values, so a name or an option can be replaced in place."""
    body = b' { "a" : [ ] , "model" :  "gp\\u0074\\/4\xc3\xb6" , "stream_options" : { "x" : {} } }'
    result = scan(CHAT, body)
    start, end = result["model_span"]
    assert body[start:end] == b'"gp\\u0074\\/4\xc3\xb6"'
    assert result["model"] == "gpt/4ö".encode()
    start, end = result["stream_options_span"]
    assert body[start:end] == b'{ "x" : {} }'
    assert body[: result["object_start"]] == b" {"
    assert result["include_usage"] == -1
    assert not result["object_empty"]
    body = b'{"stream_options":null ,"model":"x"}'
    start, end = scan(CHAT, body)["stream_options_span"]
    assert body[start:end] == b"null"
    assert scan(CHAT, b'{"model":"x"}')["stream_options_span"] == (-1, -1)
    empty = scan(GENERATE, b" {  } ")
    assert (empty["object_start"], empty["object_empty"], empty["model_span"]) == (2, True, (-1, -1))


NUMBERS = ["1", "0", "-1", "1.0", "1e3", "99999999999999999999", "2147483648", '"1"', "true", "[1]", "{}"]


@pytest.mark.parametrize("number", NUMBERS)
@pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens", "n"])
def test_limits(name, number):
    good = {"1": True, "0": name != "n"}.get(number, False)
    body = f'{{"model":"x","{name}":{number}}}'.encode()
    wanted = "" if good else "invalid_value" if number.lstrip("-").isdigit() else "invalid_type"
    assert fault(CHAT, body) == (wanted, None if good else name.encode())
    assert fault(OTHER, body) == ("", None)


def test_largest_limit_counts():
    assert scan(CHAT, {"model": "x", "max_tokens": 7, "max_completion_tokens": 5})["output_limit"] == 7
    assert scan(CHAT, {"model": "x", "max_tokens": None})["output_limit"] == -1
    assert scan(CHAT, {"model": "x", "max_tokens": 2147483647})["output_limit"] == 2147483647
    assert fault(CHAT, {"model": "x", "n": 129}) == ("invalid_value", b"n")


@pytest.mark.parametrize(
    ("format", "body", "expected"),
    [
        (CHAT, {"model": 7}, ("invalid_type", b"model")),
        (CHAT, {"model": ["x"]}, ("invalid_type", b"model")),
        (CHAT, {"model": {}}, ("invalid_type", b"model")),
        (CHAT, {"model": ""}, ("invalid_value", b"model")),
        (CHAT, {"model": "x" * 256}, ("", None)),
        (CHAT, {"model": "x" * 257}, ("invalid_value", b"model")),
        (CHAT, {"model": "ö" * 129}, ("invalid_value", b"model")),
        (CHAT, {"model": None}, ("missing_model", b"model")),
        (CHAT, {}, ("missing_model", b"model")),
        (CHAT, {"model": "x", "stream": "true"}, ("invalid_type", b"stream")),
        (CHAT, {"model": "x", "stream": 1}, ("invalid_type", b"stream")),
        (CHAT, {"model": "x", "stream": None}, ("", None)),
        (CHAT, {"model": "x", "stream_options": []}, ("invalid_type", b"stream_options")),
        (CHAT, {"model": "x", "stream_options": {"include_usage": 1}}, ("invalid_type", b"include_usage")),
        (CHAT, {"model": "x", "stream_options": {"include_usage": None}}, ("", None)),
        (CHAT, {"model": "x", "messages": {}}, ("invalid_type", b"messages")),
        (CHAT, {"model": "x", "messages": "hi"}, ("invalid_type", b"messages")),
        (CHAT, {"model": "x", "messages": None}, ("", None)),
        (RESPONSES, {"model": "x", "background": "yes"}, ("invalid_type", b"background")),
        (MESSAGES, {"model": "x", "max_tokens": "7"}, ("invalid_type", b"max_tokens")),
        (GENERATE, {"generationConfig": {"maxOutputTokens": "seven"}}, ("invalid_type", b"maxOutputTokens")),
        (GENERATE, {"generationConfig": {"maxOutputTokens": 7.5}}, ("invalid_type", b"maxOutputTokens")),
        (GENERATE, {"generationConfig": {"maxOutputTokens": ""}}, ("invalid_type", b"maxOutputTokens")),
        (GENERATE, {"generationConfig": {"maxOutputTokens": "99999999999"}}, ("invalid_value", b"maxOutputTokens")),
        (GENERATE, {"generationConfig": {"candidateCount": "0"}}, ("invalid_value", b"candidateCount")),
        (GENERATE, {"generationConfig": []}, ("invalid_type", b"generationConfig")),
        (GENERATE, {"generationConfig": {"candidateCount": 0}}, ("invalid_value", b"candidateCount")),
        (GENERATE, {}, ("", None)),
        (MODERATIONS, {"input": "x"}, ("", None)),
        (OTHER, {}, ("", None)),
        (IMAGES, {"prompt": "x"}, ("missing_model", b"model")),
        (SPEECH, {"input": "x"}, ("missing_model", b"model")),
        (RERANK, {"query": "x"}, ("missing_model", b"model")),
        (CHAT, b"[]", ("invalid_type", None)),
        (CHAT, b"{", ("malformed_json", None)),
        (CHAT, b"", ("malformed_json", None)),
        (CHAT, b'{"model":1,', ("invalid_type", b"model")),
    ],
)
def test_faults(format, body, expected):
    assert fault(format, body) == expected


@pytest.mark.parametrize(
    ("body", "name"),
    [
        (b'{"model":"a","model":"b"}', b"model"),
        (b'{"model":"a","model":"a"}', b"model"),
        (b'{"model":"a","mod\\u0065l":"b"}', b"model"),
        (b'{"\\u006dodel":"a","\\u006Dodel":"b"}', b"model"),
        (b'{"model":"a","Model":"b"}', b"model"),
        (b'{"MODEL":"a","model":"b"}', b"model"),
        (b'{"model":null,"model":"b"}', b"model"),
        ('{"model":"a","stream":true,"ſtream":false}'.encode(), b"stream"),
        (b'{"model":"a","max_to\\u212aens":1,"max_tokens":2}', b"max_tokens"),
        (b'{"model":"a","stream":false,"x":{"stream":1},"stream":true}', b"stream"),
        (b'{"model":"a","max_tokens":1,"max_tokens":99999}', b"max_tokens"),
        (b'{"model":"a","messages":[],"messages":[]}', b"messages"),
        (b'{"model":"a","messages":[{"content":"x","content":"y"}]}', b"content"),
        (b'{"model":"a","stream_options":{"include_usage":true,"include_usage":false}}', b"include_usage"),
    ],
)
def test_repeated_keys(body, name):
    assert fault(CHAT, body) == ("duplicate_key", name)
    for cut in range(len(body)):
        assert scan(CHAT, body, (cut,))["error"] == "duplicate_key"


def test_two_spellings_are_one_key():
    body = b'{"generationConfig":{"maxOutputTokens":1},"generation_config":{"maxOutputTokens":9}}'
    assert fault(GENERATE, body) == ("duplicate_key", b"generation_config")
    assert scan(GENERATE, b'{"generation_config":{"max_output_tokens":9}}')["output_limit"] == 9


def test_repeated_keys_elsewhere_pass():
    """What the relay does not read is the upstream's matter."""
    assert not scan(CHAT, b'{"model":"a","x":1,"x":2,"metadata":{"model":1,"model":2}}')["error"]
    assert not scan(CHAT, b'{"model":"a","tools":[{"function":{"a":1,"a":2}}]}')["error"]
    assert not scan(CHAT, b'{"model":"a","messages":[{"content":"x"},{"content":"y"}]}')["error"]
    assert not scan(OTHER, b'{"messages":1,"messages":2}')["error"]


@pytest.mark.parametrize(
    ("format", "body", "name"),
    [
        (CHAT, '{"model":"a","Stream":true}', b"stream"),
        (CHAT, '{"N":128,"model":"a"}', b"n"),
        (CHAT, '{"model":"a","MAX_TOKENS":1000000}', b"max_tokens"),
        (CHAT, '{"model":"a","\\u0053tream":true}', b"stream"),
        (CHAT, '{"model":"a","ſtream":true}', b"stream"),
        (CHAT, '{"model":"a","max_toKens":1}', b"max_tokens"),
        (CHAT, '{"model":"a","Messages":[]}', b"messages"),
        (CHAT, '{"model":"a","stream_options":{"Include_Usage":false}}', b"include_usage"),
        (RESPONSES, '{"model":"a","Background":true}', b"background"),
        (RESPONSES, '{"model":"a","Previous_Response_Id":"x"}', b"previous_response_id"),
        (MESSAGES, '{"model":"a","Speed":"fast"}', b"speed"),
        (GENERATE, '{"generationConfig":{"MaxOutputTokens":1}}', b"maxOutputTokens"),
        (GENERATE, '{"GenerationConfig":{}}', b"generationConfig"),
    ],
)
def test_finding_wire_L7_a_key_in_other_letters(format, body, name):
    """Go's and .NET's servers read it; here it would not be counted."""
    raw = body.encode()
    for cut in range(0, len(raw), 3):
        assert scan(format, raw, (cut,))["error"] == "misspelt_key"
    assert fault(format, raw) == ("misspelt_key", name)


@pytest.mark.parametrize("limit", ["100", "100.0", '"100"', "100.000", '"0100"'])
def test_finding_clients_F23_numbers_of_proto_json(limit):
    body = b'{"generationConfig":{"maxOutputTokens":%b,"candidateCount":"2"}}' % limit.encode()
    for cut in range(len(body)):
        found = scan(GENERATE, body, (cut,))
        assert (found["error"], found["output_limit"], found["choices"]) == ("", 100, 2)
    assert fault(MESSAGES, b'{"model":"x","max_tokens":%b}' % limit.encode())[0] == (
        "" if limit == "100" else "invalid_type"
    )


def test_another_case_alone_is_not_the_key():
    assert fault(CHAT, b'{"Model":"a"}') == ("missing_model", b"model")
    assert scan(CHAT, '{"model":"a","ſtream":true,"é":1,"ſ":2}'.encode())["stream"] == -1


def test_the_first_fault_stays():
    for cut in range(20):
        assert scan(CHAT, b'{"model":1,"stream":7}}}', (cut,))["error_param"] == b"model"


def test_text_that_counts():
    long = "The quick brown fox. " * 20
    chat = {"model": "x", "messages": [{"role": "user", "content": long}]}
    assert scan(CHAT, chat)["text"] == tokens(long)
    assert scan(CHAT, {**chat, "unknown": long, "metadata": {"a": long}, "user": long})["text"] == tokens(long)
    # a count does not depend on how a text is written
    escaped = "".join(f"\\u{ord(c):04x}" for c in long)
    assert scan(CHAT, json.dumps(chat).replace(long, escaped).encode())["text"] == tokens(long)
    assert scan(CHAT, {"model": "x", "messages": [{"content": [long, long]}]})["text"] == 2 * tokens(long)
    assert scan(RERANK, {"model": "x", "query": "a b", "documents": ["c d", {"text": "e"}]})["text"] == tokens(
        "a b", "c d", "e"
    )
    assert scan(IMAGES, {"model": "x", "prompt": long, "n": 3})["choices"] == 3
    assert scan(SPEECH, {"model": "x", "input": long})["text"] == tokens(long)
    assert scan(MODERATIONS, {"input": [long]})["text"] == tokens(long)


def test_tools_count_as_compact_json():
    compact = json.dumps(TOOL, separators=(",", ":"), ensure_ascii=False).replace("\\n", "\n").replace('\\"', '"')
    for layout in ({}, {"indent": 4}):
        body = json.dumps({"model": "x", "tools": [TOOL]}, **layout).encode()
        assert scan(CHAT, body)["text"] == tokens(compact)


def test_encrypted_content_counts_by_its_length():
    body = {"model": "x", "input": [{"type": "reasoning", "encrypted_content": "QUJD" * 400, "summary": []}]}
    assert scan(RESPONSES, body)["text"] == 0
    assert scan(RESPONSES, body)["prompt_tokens"] == 3 + 4 + 300


@pytest.mark.parametrize(
    ("format", "extra", "wanted"),
    [
        (CHAT, {"web_search_options": {}}, True),
        (CHAT, {"web_search_options": None}, False),
        (CHAT, {"plugins": [{"id": "web", "max_results": 1}]}, True),
        (CHAT, {"plugins": [{"id": "other"}]}, False),
        (CHAT, {"search_parameters": {"mode": "auto"}}, False),  # billed by its sources: for Python to judge
        (CHAT, {"enable_search": True}, True),
        (RESPONSES, {"tools": [{"type": "web_search"}]}, True),
        (RESPONSES, {"tools": [{"type": "web_search_preview_2025_03_11"}]}, True),
        (RESPONSES, {"tools": [{"type": "function", "name": "web_search"}]}, False),
        (RESPONSES, {"tools": [{"type": "function", "parameters": {"type": "web_search"}}]}, False),
        (MESSAGES, {"tools": [{"name": "web_search", "type": "web_search_20260101"}]}, True),
        (GENERATE, {"tools": [{"google_search": {}}]}, True),
        (GENERATE, {"tools": [{"googleSearchRetrieval": {"a": 1}}]}, True),
        (GENERATE, {"tools": {"googleSearch": {}}}, True),
        (GENERATE, {"tools": [{"codeExecution": {}}]}, False),
    ],
)
def test_web_search(format, extra, wanted):
    assert scan(format, {"model": "x", **extra})["web_search"] is wanted


@pytest.mark.parametrize(
    "extra",
    [{"previous_response_id": "r"}, {"conversation": "c"}, {"conversation": {"id": "c"}}, {"prompt": {"id": "p"}}],
)
def test_stored_context(extra):
    assert scan(RESPONSES, {"model": "x", **extra})["stored_context"]
    assert not scan(RESPONSES, {"model": "x", **dict.fromkeys(extra)})["stored_context"]
    assert scan(GENERATE, {"cachedContent": "cachedContents/1"})["stored_context"]
    raw = json.dumps(extra.get("previous_response_id")).encode()
    text = raw if raw.startswith(b'"') else None
    given = extra.get("previous_response_id") is not None
    assert scan(RESPONSES, {"model": "x", **extra})["stored_names"] == ("conversation" in extra, given, text)


TEXTS = st.text(max_size=15)
PARTS = st.fixed_dictionaries(
    {"type": st.sampled_from(["text", "tool_result", "x"])},
    optional={
        "text": TEXTS,
        "content": st.one_of(TEXTS, st.lists(st.fixed_dictionaries({"text": TEXTS}), max_size=2)),
        "input": st.dictionaries(TEXTS, st.one_of(TEXTS, st.integers(), st.none()), max_size=2),
        "cache_control": st.just({"type": "ephemeral"}),
    },
)
MESSAGE = st.fixed_dictionaries(
    {"role": st.sampled_from(["user", "assistant"])},
    optional={"content": st.one_of(st.none(), TEXTS, st.lists(PARTS, max_size=3)), "name": TEXTS},
)
JUNK = st.one_of(st.none(), st.booleans(), st.integers(-3, 10**12), TEXTS, st.just([]), st.just({}), st.just(1.5))
BODIES = st.fixed_dictionaries(
    {},
    optional={
        "model": st.one_of(TEXTS, JUNK),
        "messages": st.one_of(st.lists(MESSAGE, max_size=4), st.sampled_from([None, {}, "x", 3])),
        "system": st.one_of(TEXTS, st.lists(PARTS, max_size=2)),
        "stream": JUNK,
        "max_tokens": JUNK,
        "max_completion_tokens": JUNK,
        "n": JUNK,
        "stream_options": st.one_of(JUNK, st.fixed_dictionaries({}, optional={"include_usage": JUNK})),
        "tools": st.lists(st.dictionaries(st.sampled_from(["type", "name", "a"]), TEXTS, max_size=3), max_size=2),
        "service_tier": st.sampled_from(["priority", "auto"]),
        "speed": st.sampled_from(["fast", "standard"]),
        "inference_geo": st.sampled_from(["us", "global", None]),
        "other": JUNK,
    },
)


# Mostly right, so that most bodies are read to their end.
LIMITS = st.one_of(*[st.integers(1, 100)] * 6, JUNK)
FLAGS = st.one_of(*[st.booleans()] * 6, JUNK)
TIERS = st.sampled_from([None, "priority", "fast", "flex", "auto", 3])
TOOLS = st.lists(st.dictionaries(st.sampled_from(["type", "name", "a"]), TEXTS, max_size=3), max_size=2)
STORED = st.one_of(st.none(), st.just("id"), st.just({"id": "x"}))
ITEM = st.fixed_dictionaries(
    {},
    optional={
        "type": st.sampled_from(["message", "function_call", "function_call_output", "reasoning"]),
        "content": st.one_of(TEXTS, st.lists(PARTS, max_size=2)),
        "arguments": TEXTS,
        "output": TEXTS,
        "summary": st.lists(st.fixed_dictionaries({"text": TEXTS}), max_size=2),
        "call_id": TEXTS,
    },
)
RESPONSE = st.fixed_dictionaries(
    {"model": st.just("m")},
    optional={
        "input": st.one_of(TEXTS, st.lists(ITEM, max_size=3)),
        "instructions": TEXTS,
        "stream": FLAGS,
        "max_output_tokens": LIMITS,
        "background": FLAGS,
        "service_tier": TIERS,
        "tools": TOOLS,
        "previous_response_id": STORED,
        "conversation": STORED,
        "prompt": st.fixed_dictionaries({}, optional={"id": STORED}),
        "metadata": st.just({"input": "not this"}),
    },
)
IDS = st.lists(st.integers(0, 10**6), max_size=4)
PROMPTS = st.one_of(TEXTS, st.lists(TEXTS, max_size=3), IDS, st.lists(IDS, max_size=2))
COMPLETION = st.fixed_dictionaries(
    {"model": st.just("m")},
    optional={
        "prompt": PROMPTS,
        "suffix": TEXTS,
        "max_tokens": LIMITS,
        "n": LIMITS,
        "best_of": LIMITS,
        "stream": FLAGS,
    },
)
EMBEDDING = st.fixed_dictionaries({"model": st.just("m")}, optional={"input": PROMPTS, "dimensions": JUNK})
CALLED = st.fixed_dictionaries(
    {"name": TEXTS}, optional={"args": st.dictionaries(TEXTS, st.one_of(TEXTS, JUNK), max_size=2)}
)
TURN = st.fixed_dictionaries(
    {
        "parts": st.lists(
            st.one_of(st.fixed_dictionaries({"text": TEXTS}), st.builds(lambda c: {"functionCall": c}, CALLED)),
            max_size=3,
        )
    },
    optional={"role": TEXTS},
)
GENERATION = st.fixed_dictionaries(
    {},
    optional={
        "contents": st.one_of(TURN, st.lists(TURN, max_size=3)),
        "systemInstruction": TURN,
        "tools": st.lists(st.sampled_from([{"googleSearch": {}}, {"codeExecution": {}}]), max_size=2),
        "generationConfig": st.one_of(
            st.none(),
            st.fixed_dictionaries(
                {},
                optional={
                    "maxOutputTokens": LIMITS,
                    "candidateCount": LIMITS,
                    "responseSchema": st.just({"type": "STRING"}),
                },
            ),
        ),
        "serviceTier": TIERS,
    },
)
EMBED = st.fixed_dictionaries(
    {}, optional={"content": TURN, "requests": st.lists(st.fixed_dictionaries({"content": TURN}), max_size=3)}
)
RANKING = st.fixed_dictionaries(
    {"model": st.just("m")},
    optional={
        "query": TEXTS,
        "documents": st.lists(st.one_of(TEXTS, st.fixed_dictionaries({"text": TEXTS})), max_size=3),
    },
)
PICTURE = st.fixed_dictionaries(
    {"model": st.just("m")}, optional={"prompt": TEXTS, "n": LIMITS, "stream": FLAGS, "size": TEXTS}
)
SPOKEN = st.fixed_dictionaries(
    {"model": st.just("m")}, optional={"input": TEXTS, "instructions": TEXTS, "voice": TEXTS}
)
JUDGED = st.fixed_dictionaries(
    {}, optional={"input": st.one_of(TEXTS, st.lists(TEXTS, max_size=3), st.lists(PARTS, max_size=2))}
)
DOCUMENTS = {
    CHAT: BODIES,
    MESSAGES: BODIES,
    COUNT_TOKENS: BODIES,
    RESPONSES: RESPONSE,
    COMPLETIONS: COMPLETION,
    EMBEDDINGS: EMBEDDING,
    GENERATE: GENERATION,
    GEMINI_COUNT: GENERATION,
    GEMINI_EMBED: EMBED,
    RERANK: RANKING,
    IMAGES: PICTURE,
    SPEECH: SPOKEN,
    MODERATIONS: JUDGED,
}


@settings(deadline=None)
@given(data=st.data(), ascii=st.booleans(), indent=st.sampled_from([None, 1]))
def test_the_edit_that_asks_for_usage(data, ascii, indent):
    """It sets `include_usage` and changes nothing else."""
    document = data.draw(DOCUMENTS[CHAT])
    body = json.dumps(document, ensure_ascii=ascii, indent=indent).encode("utf-8", "surrogatepass")
    result = scan(CHAT, body)
    if result["error"]:
        return
    start, end, put = result["usage_request"]
    expected = {**document, "stream_options": {**(document.get("stream_options") or {}), "include_usage": True}}
    assert json.loads((body[:start] + put + body[end:]).decode("utf-8", "surrogatepass")) == expected


@pytest.mark.parametrize("format", DOCUMENTS)
@settings(deadline=None)
@given(data=st.data(), ascii=st.booleans(), cuts=st.lists(st.integers(0, 500), max_size=8))
def test_any_request(format, data, ascii, cuts):
    body = json.dumps(data.draw(DOCUMENTS[format]), ensure_ascii=ascii).encode("utf-8", "surrogatepass")
    result = scan(format, body, tuple(sorted(min(cut, len(body)) for cut in cuts)))
    oracle = request_oracle.scan(format, body, TABLE)
    if oracle.faults:
        assert (result["error"], result["error_param"]) in oracle.faults
        return
    assert not result["error"]
    assert result["text"] == oracle.units
    assert result["prompt_tokens"] == oracle.prompt_tokens()
    names = (
        "model",
        "stream",
        "output_limit",
        "choices",
        "include_usage",
        "web_search",
        "background",
        "priority",
        "geo",
    )
    for name in names:
        assert result[name] == getattr(oracle, name), name
    if format == RESPONSES:
        assert result["stored_context"] == oracle.stored_context


def test_a_body_in_small_pieces_costs_no_more_than_linear():
    text = "word " * 200_000
    body = json.dumps({"model": "x", "messages": [{"content": text}], "x": "y" * 500_000}).encode()
    whole = scan(CHAT, body)
    assert whole["text"] == tokens(text)
    rng = random.Random(1)
    assert scan(CHAT, body, tuple(sorted(rng.randrange(len(body)) for _ in range(20_000)))) == whole


LONG = "x" * 5000


@pytest.mark.parametrize(
    ("format", "body", "begins"),
    [
        (CHAT, {"model": "m", "messages": [{"role": "user", "content": LONG}]}, b'{"role"'),
        (CHAT, {"model": "m", "messages": [{"role": "user", "content": "short"}]}, None),
        (CHAT, {"messages": [{"content": LONG}], "tools": [{"name": LONG}]}, b'[{"name"'),
        (CHAT, {"messages": [{"content": LONG}], "tools": [{"name": "short"}]}, b'{"content"'),
        (CHAT, {"tools": [{"name": "short"}], "messages": [{"content": LONG}]}, b'[{"name"'),
        (RESPONSES, {"input": LONG, "instructions": "short"}, b'"xxx'),
        (RESPONSES, {"instructions": LONG, "input": "short"}, b'"xxx'),
        (RESPONSES, {"input": [{"role": "user", "content": LONG}]}, b'{"role"'),
        # The order of Anthropic's SDK: messages before system.
        (MESSAGES, {"messages": [{"content": LONG}], "system": LONG}, b'"xxx'),
        (MESSAGES, {"messages": [{"content": LONG}], "system": [{"text": LONG}]}, b'[{"text"'),
        (MESSAGES, {"messages": [{"content": LONG}], "system": "short"}, b'{"content"'),
        (GENERATE, {"contents": [{"parts": [{"text": LONG}]}]}, b'{"parts"'),
        (GENERATE, {"contents": {"parts": [{"text": LONG}]}}, b'{"parts"'),
    ],
)
def test_where_a_cached_prompt_begins(format: int, body: dict, begins: bytes | None):
    """Tools, then instructions, then messages; the same wherever the body is cut."""
    data = json.dumps(body, separators=(",", ":")).encode()
    found = scan_request(format, data, TABLE)["prefix_start"]
    if begins is None:
        assert found == -1
    else:
        assert data[found:].startswith(begins), data[found : found + 20]
        assert len(data) - found >= 4096
    for cut in (1, 17, 30, found if found > 0 else 5, len(data) // 2):
        assert scan_request(format, data, TABLE, (cut,))["prefix_start"] == found


@pytest.mark.parametrize(
    ("tier", "dearer"),
    [
        ("priority", True),
        ("fast", True),
        ("PRIORITY", True),
        ("default", False),
        ("flex", False),
        ("auto", False),
        (3, False),
    ],
)
def test_the_dearer_service_is_seen(tier: object, dearer: bool):
    for format in (CHAT, RESPONSES):
        assert scan(format, {"model": "x", "service_tier": tier})["priority"] is dearer
    assert scan(GENERATE, {"serviceTier": tier})["priority"] is dearer
    assert scan(MESSAGES, {"model": "x", "speed": tier})["priority"] is dearer
    assert not scan(CHAT, {"model": "x", "messages": [{"role": "user", "service_tier": "priority"}]})["priority"]


@pytest.mark.parametrize(
    ("geo", "named"), [("us", True), ("eu", True), ("", True), ("global", False), (None, False), (3, False)]
)
def test_a_place_of_inference_is_seen(geo: object, named: bool):
    assert scan(MESSAGES, {"model": "x", "inference_geo": geo})["geo"] is named
    assert not scan(CHAT, {"model": "x", "inference_geo": geo})["geo"]
    assert not scan(MESSAGES, {"model": "x", "metadata": {"inference_geo": geo}})["geo"]
