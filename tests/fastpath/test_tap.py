"""The usage tap against every provider's answers, at every cut, and against its oracle."""

import itertools
import json
from collections import Counter

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from relay._fastpath import tap
from relay.policy.tokenizers import table_for
from tests.support import tap_oracle
from tests.support.answers import ANSWERS as COMMON
from tests.support.answers import HELLO, Answer, chunk, finish, message_delta, sse
from tests.support.provider_answers import ANSWERS as PROVIDERS
from tests.support.tap_oracle import (
    CHAT,
    GENERATE,
    IMAGES,
    JSON,
    JSON_ARRAY,
    JSON_LINES,
    MESSAGES,
    RERANK,
    RESPONSES,
    SSE,
    TRANSCRIPTION,
    USAGE_MAX,
)

TABLE = table_for("gpt-4o")
DIMENSIONS = (
    "input_tokens",
    "output_tokens",
    "cache_read_tokens",
    "cache_write_tokens",
    "cache_write_1h_tokens",
    "images",
    "video_seconds",
    "web_searches",
)
ANSWERS = COMMON + PROVIDERS
CASES = pytest.mark.parametrize("answer", ANSWERS, ids=[answer.name for answer in ANSWERS])


def found(format, kind, chunks, **options):
    """What the tap finds, without what depends on the cuts."""
    result = tap(format, kind, chunks, TABLE, **options)
    del result["boundaries"], result["pieces"]
    return result


def test_names_differ():
    assert not [name for name, times in Counter(answer.name for answer in ANSWERS).items() if times > 1]


@CASES
def test_bill(answer: Answer):
    expected = {**dict.fromkeys(DIMENSIONS, 0), **answer.expected}
    result = found(answer.format, answer.kind, [answer.body])
    assert {name: result[name] for name in expected} == expected


@CASES
def test_oracle(answer: Answer):
    result = found(answer.format, answer.kind, [answer.body])
    expected = tap_oracle.read(answer.format, answer.kind, answer.body, TABLE)
    if answer.name == "not utf-8, control characters":  # the standard library has no such text to count
        for name in ("text", "counted_tokens", "delivered_tokens"):
            del result[name], expected[name]
    if answer.name == "garbage between":  # what is read of a broken event is overlaid too
        assert result["text"] == expected["text"]
    assert result == expected


@CASES
def test_every_cut(answer: Answer):
    whole = found(answer.format, answer.kind, [answer.body])
    for cut in range(len(answer.body) + 1):
        assert found(answer.format, answer.kind, [answer.body[:cut], answer.body[cut:]]) == whole, cut
    assert found(answer.format, answer.kind, [answer.body[i : i + 1] for i in range(len(answer.body))]) == whole


@CASES
def test_by_event(answer: Answer):
    """Event by event nothing else is found, and every piece but the last ends with an event."""
    whole = found(answer.format, answer.kind, [answer.body])
    step = 7
    pieces_of = [[answer.body], [answer.body[i : i + step] for i in range(0, len(answer.body), step)]]
    for chunks in pieces_of:
        result = tap(answer.format, answer.kind, chunks, TABLE, by_event=True)
        pieces = result.pop("pieces")
        del result["boundaries"]
        assert result == whole
        assert sum(size for size, _, _ in pieces) == len(answer.body)
        if answer.kind == SSE and len(chunks) == 1:
            assert all(ended for _, ended, _ in pieces[:-1])


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_usage_event_is_told_apart(end):
    """Taking out the pieces marked `usage only` leaves exactly the other events, however the stream was cut."""
    without = sse(*HELLO, finish(), end=end)
    tail = f"data: [DONE]{end}{end}".encode()
    extra = sse({"choices": [], "usage": {"prompt_tokens": 1, "completion_tokens": 1}}, end=end)
    body = without + extra + tail
    for cut in range(len(body) + 1):
        left, pending, at = b"", b"", 0
        result = tap(CHAT, SSE, [body[:cut], body[cut:]], TABLE, by_event=True)
        for size, ended, usage_only in result["pieces"]:
            pending += body[at : at + size]
            at += size
            if ended:
                left += b"" if usage_only else pending
                pending = b""
        assert left + pending == without + tail, cut


def test_not_every_event_without_choices_is_the_usage_event():
    for event in (
        {"choices": [], "usage": None},
        {"choices": []},
        {"usage": {"prompt_tokens": 1}},
        {"choices": [{"index": 0, "delta": {}}], "usage": {"prompt_tokens": 1}},
        {"choices": [], "usage": [1]},
        {"choices": [], "prompt_filter_results": []},
        {"choices": [], "x_groq": {"usage": {"prompt_tokens": 1}}},
    ):
        assert [p[2] for p in tap(CHAT, SSE, [sse(event)], TABLE, by_event=True)["pieces"]] == [False]


def test_boundaries():
    body = sse(HELLO[1])
    for kind, text, at_boundary in [
        (SSE, b"", True),
        (SSE, body, True),
        (SSE, body + b": note\n", True),
        (SSE, body + b": note", False),
        (SSE, body[:-1], False),
        (SSE, body + b"d", False),
        (SSE, body + b"event: x\n", False),
        (SSE, body[:-1] + b"\r\n", True),
        (JSON, b" \n", True),
        (JSON, b"{", False),
        (JSON, b"{}", True),
        (JSON_ARRAY, b"[", True),
        (JSON_ARRAY, b'[{"candidates":[]}', True),
        (JSON_ARRAY, b'[{"candidates":[]},\r\n', True),
        (JSON_ARRAY, b'[{"candidates":[]}, {"a"', False),
        (JSON_ARRAY, b"[{}]", True),
    ]:
        for chunks in ([text], [text[i : i + 1] for i in range(len(text))]):
            assert tap(CHAT, kind, chunks, TABLE)["boundaries"][-1:] == ([at_boundary] if chunks else []), text


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("0", 0),
        ("-0", 0),
        ("-1", None),
        ("-99999999999999999999999999", None),
        ("12.0", 12),
        ("12.000", 12),
        ("12.5", None),
        ("1e3", None),
        ("1E400", None),
        ("12.0e0", None),
        ("1099511627776", USAGE_MAX),
        ("1099511627777", USAGE_MAX),
        ("9223372036854775807", USAGE_MAX),
        ("18446744073709551616", USAGE_MAX),
        ("9" * 400, USAGE_MAX),
        ('"7"', None),
        ("true", None),
        ("null", None),
        ("[7]", None),
        ('{"a":7}', None),
        ("NaN", None),
        ("Infinity", None),
    ],
)
def test_numbers(text, value):
    """Whatever stands for a number, what comes out is within bounds, and the last good value holds."""
    for format, name, dimension, template in [
        (CHAT, "completion_tokens", "output_tokens", '{"usage":{%s},"choices":[]}'),
        (CHAT, "prompt_tokens", "input_tokens", '{"usage":{%s},"choices":[]}'),
        (RESPONSES, "output_tokens", "output_tokens", '{"response":{"usage":{%s}}}'),
        (MESSAGES, "cache_read_input_tokens", "cache_read_tokens", '{"usage":{%s}}'),
        (GENERATE, "thoughtsTokenCount", "output_tokens", '{"usageMetadata":{%s}}'),
    ]:
        event = "data: " + template % f'"{name}":{text}' + "\n\n"
        result = found(format, SSE, [event.encode()])
        assert (result["usage_seen"], result[dimension]) == (value is not None, value or 0)
        event = "data: " + template % f'"{name}":5' + "\n\n" + event
        assert found(format, SSE, [event.encode()])[dimension] == (
            5 if value is None else max(value, 5)
        )  # it never falls


def test_sums_stay_in_bounds():
    huge = dict.fromkeys(("input_tokens", "output_tokens", "cache_read_input_tokens"), 10**30)
    huge["cache_creation_input_tokens"] = 10**30
    usage = {**huge, "iterations": [{"type": "compaction", **huge}] * 50}
    result = found(MESSAGES, SSE, [sse(message_delta(usage))])
    assert result["input_tokens"] == result["output_tokens"] == result["cache_read_tokens"] == USAGE_MAX
    result = found(
        GENERATE,
        JSON,
        [
            json.dumps(
                {
                    "usageMetadata": dict.fromkeys(
                        ("promptTokenCount", "candidatesTokenCount", "thoughtsTokenCount", "toolUsePromptTokenCount"),
                        10**30,
                    )
                }
            ).encode()
        ],
    )
    assert result["input_tokens"] == result["output_tokens"] == USAGE_MAX


def test_parts_never_exceed_the_prompt():
    usage = {"prompt_tokens": 10, "prompt_tokens_details": {"cached_tokens": 8, "cache_write_tokens": 8}}
    result = found(CHAT, JSON, [json.dumps({"usage": usage}).encode()])
    assert (result["input_tokens"], result["cache_read_tokens"], result["cache_write_tokens"]) == (0, 8, 2)


def test_one_event_of_many_megabytes():
    for answer in (
        sse({"choices": [], "image": "iVBOR" * 1_000_000, "usage": {"prompt_tokens": 3, "completion_tokens": 2}}),
        sse({"choices": [{"delta": {"content": "word " * 500_000}}]}, {"choices": [], "usage": {"prompt_tokens": 3}}),
    ):
        assert found(CHAT, SSE, [answer[i : i + 65536] for i in range(0, len(answer), 65536)])["input_tokens"] == 3


def test_carriage_returns_only_is_not_quadratic():
    body = sse(HELLO[1], end="\r") * 20_000
    assert found(CHAT, SSE, [body])["events"] == 20_000


def test_deep_documents_do_not_hide_usage():
    """Deeper than any place that is read, the machine only checks brackets; past its last bit it gives up."""
    for depth, seen in ((300, True), (900, True), (5000, False)):
        body = b'data: {"x":' + b'{"a":[' * (depth // 2) + b"]}" * (depth // 2) + b',"usage":{"prompt_tokens":3}}\n\n'
        assert found(CHAT, SSE, [body])["usage_seen"] is seen
        assert found(CHAT, SSE, [body + b'data: {"usage":{"prompt_tokens":3}}\n\n'])["input_tokens"] == 3


VALUES = st.one_of(
    st.none(),
    st.integers(-5, 10**14),
    st.floats(allow_nan=False, allow_infinity=False),
    st.booleans(),
    st.text(max_size=3),
    st.just([]),
)


def usage_of(*names: str) -> st.SearchStrategy[dict[str, object]]:
    return st.dictionaries(st.sampled_from(names), VALUES, max_size=6)


SERVICES = st.sampled_from(
    [None, "default", "flex", "priority", "fast", "batch", "ON_DEMAND_FLEX", "ON_DEMAND_PRIORITY"]
)
OPENAI = st.fixed_dictionaries(
    {},
    optional={
        **dict.fromkeys(("prompt_tokens", "completion_tokens", "total_tokens", "cached_tokens"), VALUES),
        **dict.fromkeys(("prompt_cache_hit_tokens", "prompt_cache_miss_tokens", "num_search_queries"), VALUES),
        "prompt_tokens_details": usage_of("cached_tokens", "cache_write_tokens", "audio_tokens", "image_tokens"),
        "completion_tokens_details": usage_of("reasoning_tokens", "audio_tokens", "image_tokens"),
    },
)
TEXTS = st.text(max_size=12).filter(lambda text: not any(0xD800 <= ord(c) < 0xE000 for c in text))
THOUGHTS = st.lists(st.fixed_dictionaries({}, optional={"text": TEXTS, "summary": TEXTS, "data": TEXTS}), max_size=2)
DELTAS = st.fixed_dictionaries(
    {},
    optional={
        "content": TEXTS,
        "reasoning": st.one_of(st.none(), TEXTS),
        "reasoning_content": TEXTS,
        "reasoning_details": THOUGHTS,
    },
)
CHUNKS = st.fixed_dictionaries(
    {
        "choices": st.lists(
            st.fixed_dictionaries(
                {"index": st.integers(0, 9), "delta": DELTAS},
                optional={"usage": OPENAI, "finish_reason": st.sampled_from([None, "stop"])},
            ).map(lambda choice: {"index": choice["index"], **choice}),  # first, as every provider writes it
            max_size=2,
        )
    },
    optional={
        "usage": st.one_of(st.none(), OPENAI),
        "x_groq": st.fixed_dictionaries({"usage": OPENAI}),
        "service_tier": SERVICES,
    },
)
ANTHROPIC_USAGE = st.fixed_dictionaries(
    {},
    optional={
        **dict.fromkeys(("input_tokens", "output_tokens", "cache_read_input_tokens"), VALUES),
        "cache_creation_input_tokens": VALUES,
        "cache_creation": usage_of("ephemeral_5m_input_tokens", "ephemeral_1h_input_tokens"),
        "server_tool_use": usage_of("web_search_requests"),
        "service_tier": SERVICES,
        "speed": st.sampled_from([None, "standard", "fast"]),
        "iterations": st.lists(
            st.fixed_dictionaries(
                {"type": st.sampled_from(["compaction", "message"])},
                optional=dict.fromkeys(("input_tokens", "output_tokens", "cache_creation_input_tokens"), VALUES),
            ),
            max_size=3,
        ),
    },
)
ANTHROPIC = st.one_of(
    st.fixed_dictionaries(
        {"type": st.just("message_start"), "message": st.fixed_dictionaries({"usage": ANTHROPIC_USAGE})}
    ),
    st.fixed_dictionaries({"type": st.just("message_delta"), "usage": ANTHROPIC_USAGE}),
    st.fixed_dictionaries({"type": st.just("content_block_delta"), "delta": st.fixed_dictionaries({"text": TEXTS})}),
    st.sampled_from([{"type": "ping"}, {"type": "message_stop"}, {"type": "error", "error": {}}]),
)
DETAILS = st.lists(
    st.fixed_dictionaries({"modality": st.sampled_from(["TEXT", "IMAGE", "AUDIO"]), "tokenCount": VALUES}), max_size=3
)
GEMINI = st.fixed_dictionaries(
    {},
    optional={
        "usageMetadata": st.fixed_dictionaries(
            {},
            optional={
                **dict.fromkeys(("promptTokenCount", "candidatesTokenCount", "thoughtsTokenCount"), VALUES),
                **dict.fromkeys(("cachedContentTokenCount", "toolUsePromptTokenCount", "totalTokenCount"), VALUES),
                "promptTokensDetails": DETAILS,
                "candidatesTokensDetails": DETAILS,
                "serviceTier": SERVICES,
                "trafficType": SERVICES,
            },
        ),
        "candidates": st.lists(
            st.fixed_dictionaries(
                {
                    "content": st.fixed_dictionaries(
                        {"parts": st.lists(st.fixed_dictionaries({"text": TEXTS}), max_size=2)}
                    )
                },
                optional={"finishReason": st.sampled_from(["STOP", None])},
            ),
            max_size=2,
        ),
    },
)


ITEMS = st.lists(
    st.one_of(
        st.fixed_dictionaries(
            {"type": st.just("web_search_call")},
            optional={
                "action": st.fixed_dictionaries({"type": st.sampled_from(["search", "open_page", "find_in_page"])})
            },
        ),
        st.fixed_dictionaries({"type": st.just("image_generation_call"), "result": st.just("QUJD")}),
        st.fixed_dictionaries(
            {"type": st.just("message"), "content": st.lists(st.fixed_dictionaries({"text": TEXTS}), max_size=2)}
        ),
        st.fixed_dictionaries({"type": st.just("function_call"), "name": TEXTS, "arguments": TEXTS}),
    ),
    max_size=3,
)
RESPONSE = st.fixed_dictionaries(
    {},
    optional={"id": st.sampled_from(["resp_1", "resp_2"]), "usage": OPENAI, "service_tier": SERVICES, "output": ITEMS},
)
RESPONSE_EVENTS = st.one_of(
    st.tuples(
        st.sampled_from(["response.output_text.delta", "response.output_audio.delta"]), TEXTS, st.integers(0, 10**14)
    ).map(
        lambda event: dict(zip(("type", "delta", "sequence_number"), event, strict=True))  # in this order
    ),
    ITEMS.filter(bool).map(lambda items: {"type": "response.output_item.done", "item": items[0]}),
    st.fixed_dictionaries(
        {"type": st.sampled_from(["response.created", "response.completed", "response.failed"]), "response": RESPONSE}
    ),
)
PICTURES = st.fixed_dictionaries(
    {}, optional={"usage": OPENAI, "data": st.lists(st.just({"b64_json": "QUJD"}), max_size=3), "created": st.just(1)}
)
PICTURE_EVENTS = st.fixed_dictionaries(
    {"type": st.sampled_from(["image_generation.partial_image", "image_generation.completed", "image_edit.completed"])},
    optional={"usage": OPENAI},
)
SMALL = st.integers(0, 300)
SECONDS = st.one_of(VALUES, st.sampled_from([1.5, 2.0, 0, 3600.001]))
TRANSCRIPT = st.fixed_dictionaries(
    {"text": TEXTS},
    optional={
        "duration": SECONDS,
        "usage": st.one_of(OPENAI, st.fixed_dictionaries({"seconds": SECONDS}, optional={"input_tokens": SMALL})),
    },
)


def ranking(tokens: object, searches: object) -> dict[str, object]:
    return {"usage": {"prompt_tokens": tokens}, "meta": {"billed_units": {"search_units": searches}}}


RANKING = st.one_of(st.builds(ranking, SMALL, SMALL), st.builds(ranking, VALUES, VALUES))
PICTURE_PART = {"inlineData": {"mimeType": "image/png", "data": "QUJD"}}


def picture(event: dict[str, object], output: int, of_pictures: int) -> dict[str, object]:
    usage = {
        "candidatesTokenCount": output,
        "candidatesTokensDetails": [{"modality": "IMAGE", "tokenCount": of_pictures}],
    }
    candidates = [{"content": {"parts": [PICTURE_PART]}}, *event.get("candidates", [])]
    return event | {"usageMetadata": event.get("usageMetadata", {}) | usage, "candidates": candidates}


GEMINI_PICTURES = st.builds(picture, GEMINI, SMALL, SMALL)


def started(searches: int) -> dict[str, object]:
    usage = {"server_tool_use": {"web_search_requests": searches}}
    return {"type": "message_start", "message": {"usage": usage}}


@settings(max_examples=200, deadline=None)
@example(stream=(MESSAGES, [started(1), started(0)]), ascii=True, end="\n", cuts=[])  # what is cumulative never falls
@given(
    stream=st.one_of(
        st.tuples(st.just(CHAT), st.lists(CHUNKS, max_size=5)),
        st.tuples(st.just(RESPONSES), st.lists(RESPONSE_EVENTS, max_size=5)),
        st.tuples(st.just(IMAGES), st.lists(PICTURE_EVENTS, max_size=3)),
        st.tuples(st.just(MESSAGES), st.lists(ANTHROPIC, max_size=6)),
        st.tuples(st.just(GENERATE), st.lists(st.one_of(GEMINI, GEMINI_PICTURES), max_size=5)),
    ),
    ascii=st.booleans(),
    end=st.sampled_from(["\n", "\r\n", "\r"]),
    cuts=st.lists(st.integers(0, 4000), max_size=12),
)
def test_any_stream(stream, ascii, end, cuts):
    format, events = stream
    body = "".join(f"data: {json.dumps(event, ensure_ascii=ascii)}{end}{end}" for event in events).encode()
    edges = sorted({min(cut, len(body)) for cut in cuts} | {0, len(body)})
    chunks = [body[a:b] for a, b in itertools.pairwise(edges)]
    result = found(format, SSE, chunks)
    assert result == tap_oracle.read(format, SSE, body, TABLE)
    assert all(0 <= result[name] <= USAGE_MAX for name in DIMENSIONS)


def test_sound_and_pictures_of_an_answer_are_never_more_than_its_output():
    """An answer with pictures that does not say how much of it they are: what is not sound."""
    usage = {"prompt_tokens": 1, "completion_tokens": 5, "completion_tokens_details": {"audio_tokens": 2}}
    body = json.dumps({"usage": usage}).encode()
    result = found(IMAGES, JSON, [body])
    assert (result["output_tokens"], result["audio_output_tokens"], result["image_output_tokens"]) == (5, 2, 3)


@pytest.mark.parametrize(
    ("format", "documents"),
    [
        (IMAGES, PICTURES),
        (TRANSCRIPTION, TRANSCRIPT),
        (RERANK, RANKING),
        (RESPONSES, RESPONSE),
        (GENERATE, st.one_of(GEMINI, GEMINI_PICTURES)),
    ],
    ids=["images", "transcription", "rerank", "responses", "generate"],
)
@settings(deadline=None)
@given(data=st.data(), cuts=st.lists(st.integers(0, 1000), max_size=6))
def test_any_document(format, documents, data, cuts):
    body = json.dumps(data.draw(documents)).encode()
    edges = sorted({min(cut, len(body)) for cut in cuts} | {0, len(body)})
    chunks = [body[a:b] for a, b in itertools.pairwise(edges)]
    assert found(format, JSON, chunks) == tap_oracle.read(format, JSON, body, TABLE)


def test_finding_money_L7_thoughts_in_reasoning_details_count_once():
    """OpenRouter tells a thought under up to three names in one event."""
    details = [{"type": "reasoning.text", "text": "one two three"}, {"type": "reasoning.summary", "summary": " four"}]

    def counted(*deltas: dict[str, object]) -> int:
        return found(CHAT, SSE, [sse(*[chunk(delta) for delta in deltas])])["text"]

    alone = counted({"reasoning_details": details})
    assert alone == counted({"reasoning": "one two three four"}) > 0
    assert counted({"reasoning": "one two three four", "reasoning_details": details}) == alone
    assert counted({"reasoning_content": "one two three four", "reasoning": "one two three four"}) == alone
    assert counted({"reasoning": None, "reasoning_details": details}) == alone
    # Each event by itself: providers change the name, but not within one.
    assert counted({"reasoning": "one two three"}, {"reasoning_content": " four"}) == alone
    message = {"choices": [{"message": {"content": None, "reasoning_details": details}}]}
    assert found(CHAT, JSON, [json.dumps(message).encode()])["text"] == alone


def test_usage_of_a_chunk_is_kept_when_the_next_one_is_broken():
    body = sse(chunk(usage={"prompt_tokens": 3, "completion_tokens": 1}), 'data: {"usage":{"completion_tokens":\n\n')
    assert found(CHAT, SSE, [body])["output_tokens"] == 1


def test_what_gemini_has_delivered_is_its_last_report_and_our_count_behind_it():
    def event(text: str, **usage: int) -> bytes:
        document = {"candidates": [{"content": {"parts": [{"text": text}]}}]}
        if usage:
            document["usageMetadata"] = usage
        return b"data: " + json.dumps(document).encode() + b"\r\n\r\n"

    def delivered(*events: bytes) -> int:
        return tap(GENERATE, SSE, list(events), TABLE)["delivered_tokens"]

    first = event("one two three", promptTokenCount=5)
    second = event(" four five", promptTokenCount=5, candidatesTokenCount=40, thoughtsTokenCount=60)
    third = event(" six seven eight", promptTokenCount=5)
    counted = delivered(first)
    assert counted == tap(GENERATE, SSE, [first], TABLE)["counted_tokens"] > 0
    assert delivered(first, second) == 100
    assert 100 < delivered(first, second, third) == 100 + delivered(third)
    assert delivered(first, second, third, second) == 100
    # Of an event that is not whole, its text counts and its report does not yet.
    assert delivered(first, second[:-2]) <= 100 + delivered(event(" four five"))
    # No other format reports so: there the whole is our own count.
    chunk = b'data: {"choices":[{"delta":{"content":"a b"}}],"usage":{"prompt_tokens":9,"completion_tokens":400}}\n\n'
    found = tap(0, SSE, [chunk], TABLE)
    assert found["delivered_tokens"] == found["counted_tokens"] < 10


def test_elements_and_documents_end_like_events():
    """Braces in texts end nothing; what is found does not depend on the cuts."""
    elements = [
        json.dumps({"candidates": [{"content": {"parts": [{"text": f'{{"}}{number} \\" }}'}]}}], "x": {}})
        for number in range(4)
    ]
    elements[-1] = elements[-1][:-1] + ',"usageMetadata":{"promptTokenCount":5,"candidatesTokenCount":9}}'
    for kind, body in (
        (JSON_ARRAY, "[" + ",\r\n".join(elements) + "]\r\n"),
        (JSON_LINES, "\n".join(elements) + "\n\n"),
        (JSON_LINES, "".join(elements)),
        (JSON_LINES, "\ufeff " + elements[-1]),
    ):
        data = body.encode()
        whole = found(GENERATE, kind, [data])
        assert whole["events"] == body.count('"candidates"')
        assert whole["terminal_seen"]
        assert (whole["input_tokens"], whole["output_tokens"]) == (5, 9)
        for cut in range(len(data) + 1):
            result = tap(GENERATE, kind, [data[:cut], data[cut:]], TABLE, by_event=True)
            at, pending, ends = 0, b"", []
            for size, ended, _ in result.pop("pieces"):
                pending += data[at : at + size]
                at += size
                if ended:
                    ends.append(pending.decode().lstrip("\ufeff[, \r\n"))
                    pending = b""
            assert ends == elements[-len(ends) :], cut
            assert len(ends) == whole["events"]
            del result["boundaries"]
            assert result == whole


def test_documents_of_every_dialect_as_lines():
    """One document is read as ever where several might come."""
    for answer in ANSWERS:
        if answer.kind == JSON:
            expected = found(answer.format, JSON, [answer.body])
            assert found(answer.format, JSON_LINES, [answer.body]) == expected, answer.name
            assert found(answer.format, JSON_LINES, [answer.body], by_event=True) == expected, answer.name
