"""What is read of a realtime session's messages."""

import base64
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.wire.realtime import Meter, parse_query, with_model, without_operator


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("model=gpt-realtime", "gpt-realtime"),
        ("model=a%2Fb", "a/b"),
        ("", ""),
        ("intent=transcription", None),
        ("model=a&call_id=rtc_1", None),
    ],
)
def test_parse_query(query: str, expected: str | None) -> None:
    assert parse_query(query) == expected


def test_with_model() -> None:
    assert with_model("a/b") == "model=a%2Fb"


def message(kind: str, **more: Any) -> str:
    return json.dumps({"type": kind, **more})


USAGE = {
    "input_tokens": 200,
    "output_tokens": 100,
    "input_token_details": {
        "audio_tokens": 80,
        "image_tokens": 9,
        "cached_tokens": 64,
        "cached_tokens_details": {"audio_tokens": 4, "image_tokens": 2},
    },
    "output_token_details": {"audio_tokens": 60},
}


def test_what_a_response_reports() -> None:
    meter = Meter()
    assert meter.received(message("response.created", response={})) is None
    assert meter.in_response
    assert meter.received(message("response.done", response={"usage": USAGE})) == {
        "input_tokens": 136,
        "output_tokens": 100,
        "cache_read_tokens": 64,
        "audio_input_tokens": 76,
        "image_input_tokens": 7,
        "audio_output_tokens": 60,
        "audio_cache_read_tokens": 4,
        "image_cache_read_tokens": 2,
    }
    assert not meter.in_response


def test_what_is_counted_within_a_response() -> None:
    """A second of sound: twenty tokens of the model's, ten of the user's."""
    meter = Meter()
    second = base64.b64encode(bytes(48_000)).decode()
    meter.sent(message("input_audio_buffer.append", audio=second))
    meter.received(message("response.created", response={}))
    assert meter.prompt_tokens == 10
    meter.received(message("response.output_audio.delta", delta=second))
    assert meter.output_tokens == 21
    meter.received(message("response.output_text.delta", delta="x" * 400))
    assert meter.output_tokens == 121
    done = meter.received(message("response.done", response={"usage": None}))
    sound = {"audio_input_tokens": 10, "audio_output_tokens": 20}
    assert meter.counted() == {"prompt_tokens": 10, "output_tokens": 121, **sound}
    assert done == {"input_tokens": 10, "output_tokens": 121, "estimated": True, **sound}


def test_the_prompt_of_the_next_response_has_what_came_before() -> None:
    meter = Meter()
    meter.received(message("response.created", response={}))
    meter.received(message("response.done", response={"usage": USAGE}))
    meter.received(message("response.created", response={}))
    assert meter.prompt_tokens == 300


@pytest.mark.parametrize(
    "session", [{"output_audio_format": "g711_ulaw"}, {"audio": {"output": {"format": {"type": "audio/pcmu"}}}}]
)
def test_telephone_sound_has_fewer_bytes(session: dict[str, Any]) -> None:
    meter = Meter()
    meter.received(message("session.updated", session=session))
    meter.received(message("response.created", response={}))
    meter.received(message("response.audio.delta", delta=base64.b64encode(bytes(8_000)).decode()))
    assert meter.output_tokens == 21


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(list(USAGE)), inner, max_size=3),
    max_leaves=8,
)
KINDS = st.sampled_from(["response.created", "response.done", "session.created", "response.audio.delta", "error"])


@given(st.lists(st.tuples(KINDS | JSON, JSON), max_size=5), st.text(max_size=20))
def test_nothing_that_a_provider_sends_is_a_fault(messages: list[Any], text: str) -> None:
    meter = Meter()
    meter.received(text)
    meter.sent(text)
    for kind, value in messages:
        event = json.dumps(
            {"type": kind, "response": {"usage": value}, "session": value, "delta": value, "audio": value}
        )
        found = meter.received(event)
        meter.sent(event)
        assert found is None or all(type(n) in (int, bool) and n >= 0 for n in found.values())
        assert meter.output_tokens >= 0


def after(usage: object, *deltas: str) -> tuple[dict[str, Any], list[Any]]:
    """What a response with that report is charged for, and what the operator hears of it."""
    meter = Meter()
    meter.sent(message("conversation.item.create", item={"content": [{"type": "input_text", "text": "Hello" * 20}]}))
    meter.received(message("response.created", response={}))
    for delta in deltas:
        meter.received(message("response.output_text.delta", delta=delta))
    done = meter.received(message("response.done", response={"usage": usage}))
    assert done is not None
    return done, meter.doubts


@pytest.mark.parametrize(
    "usage",
    [
        {"input_tokens": 2**40, "output_tokens": 2**40},
        {"input_tokens": 10**9, "output_tokens": -1},
        {"input_tokens": 0, "output_tokens": 0},
        {"input_tokens": True, "output_tokens": "12"},
        {"input_tokens": 1.5, "output_tokens": [1]},
        {"input_tokens": -1, "output_tokens": 2**63},
        {"output_tokens": 10**9},
        {},
    ],
    ids=str,
)
def test_finding_money_H1_reports_of_sessions(usage: dict[str, Any]) -> None:
    done, doubts = after(usage, "x" * 400)
    assert done.pop("estimated")
    assert 20 < done["input_tokens"] < 100
    assert done["output_tokens"] == 101  # four bytes a token, and the one under way
    assert not doubts if usage == {} else {dimension for dimension, *_ in doubts} >= {"input_tokens"}


def test_finding_money_H4_a_session_that_reports_its_prompt_alone() -> None:
    done, doubts = after({"input_tokens": 30}, "x" * 400)
    assert done["input_tokens"] == 30
    assert (done["output_tokens"], done["estimated"]) == (101, True)
    assert doubts == [("output_tokens", "missing", 0, 101)]


def test_whole_numbers_of_any_kind_count() -> None:
    done, doubts = after({"input_tokens": 30.0, "output_tokens": 90.0}, "x" * 400)
    assert (done["input_tokens"], done["output_tokens"]) == (30, 90)
    assert "estimated" not in done
    assert not doubts


@given(
    value=st.one_of(
        st.integers(-(2**70), 2**70),
        st.just(10**400),
        st.floats(allow_nan=False, allow_infinity=False),
        st.text(),
        st.booleans(),
        st.lists(st.integers()),
    ),
    place=st.sampled_from(["input_tokens", "output_tokens", "cached_tokens", "audio_tokens"]),
)
def test_any_report_of_a_session_is_charged_within_its_bound(value: object, place: str) -> None:
    details = {"cached_tokens": 4, "audio_tokens": 3} | (
        {place: value} if place in ("cached_tokens", "audio_tokens") else {}
    )
    usage = {"input_tokens": 30, "output_tokens": 90, "input_token_details": details}
    done, _ = after(usage | ({place: value} if place in usage else {}), "x" * 400)
    assert 0 < done["input_tokens"] + done["cache_read_tokens"] < 20_000
    assert 0 < done["output_tokens"] <= 65_536
    assert 0 <= done["audio_input_tokens"] <= done["input_tokens"]


def test_finding_money_M1_an_event_about_the_operators_account_is_told_without_its_words():
    quota = {"type": "insufficient_quota", "code": "insufficient_quota", "message": "org-SECRET has no credits"}
    limit = {
        "type": "tokens",
        "code": "rate_limit_exceeded",
        "message": "Rate limit reached in organization org-SECRET",
    }
    details = {"type": "failed", "error": quota}
    for event, expected in (
        ({"type": "error", "event_id": "e", "error": quota}, "upstream_account"),
        ({"type": "response.done", "response": {"id": "r", "status": "failed", "status_details": details}},
         "upstream_account"),
        ({"type": "error", "error": limit}, "upstream_unavailable"),
    ):  # fmt: skip
        changed = without_operator(json.dumps(event))
        assert changed is not None
        assert changed[1] == expected
        assert "SECRET" not in changed[0]
        told = json.loads(changed[0])
        error = told["error"] if told["type"] == "error" else told["response"]["status_details"]["error"]
        assert error["code"] == expected
        assert told["type"] == event["type"]
    for passes in (
        {"type": "error", "error": {"type": "invalid_request_error", "code": "invalid_value", "message": "account"}},
        {"type": "response.done", "response": {"status": "completed", "status_details": None}},
        {"type": "response.output_text.delta", "delta": '{"error": "insufficient_quota"}'},
        {"type": "error", "error": None}, {"type": "error", "error": []}, {"error": "x"}, ["error"],
    ):  # fmt: skip
        assert without_operator(json.dumps(passes)) is None
    assert without_operator('{"error"') is None


@pytest.mark.parametrize("odd", ["1e400", '"\\ud800"', "1" + "0" * 400])
def test_finding_money_M1_an_account_error_beside_what_orjson_does_not_read(odd: str):
    error = '{"message":"You exceeded your current quota, please check your plan. SECRET","code":"insufficient_quota"}'
    changed = without_operator(f'{{"type":"error","error":{error},"x":{odd}}}')
    assert changed is not None
    assert (changed[1], "SECRET" in changed[0]) == ("upstream_account", False)


def test_half_of_a_character_in_a_delta_or_a_transcript_is_counted() -> None:
    """Two escapes of JSON that make one character may come in two deltas; neither is UTF-8 by itself."""
    meter = Meter()
    assert meter.received('{"type": "response.created"}') is None
    for half in ("\ud83d", "\ude00"):
        assert meter.received(json.dumps({"type": "response.output_text.delta", "delta": half})) is None
    transcript = {"type": "conversation.item.input_audio_transcription.completed", "transcript": "\ud83d"}
    assert meter.received(json.dumps(transcript)) is None
    assert meter.heard


@pytest.mark.parametrize(
    "text",
    [
        '{"type":"conversation.item.input_audio_transcription.failed","error":%s}',
        '{"type":"mcp_list_tools.failed","error":%s}',
        '{"type":"x","error":%s}',
        '{"type":"error","code":"billing_not_active","message":"Your account is not active, SECRET"}',
        '{"type":"response.done","response":{"status":"failed","error":%s}}',
        '{"type":"response.done","response":{"status_details":{"type":"failed","reason":"SECRET","error":%s}}}',
        '\ufeff{"type":"error","error":%s}',
        '{"type":"error","error":%s',
        "Your credit balance is too low to call this model, SECRET",
    ],
)
def test_errors_about_the_account_in_other_events(text: str):
    text = text.replace("%s", '{"code":"billing_not_active","message":"Your account is not active, SECRET"}')
    changed = without_operator(text)
    assert changed is not None
    assert changed[1] in ("upstream_account", "upstream_error")
    assert "SECRET" not in changed[0]
    assert "billing" not in changed[0]
    assert json.loads(changed[0])
