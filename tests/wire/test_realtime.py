"""What is read of a realtime session's messages."""

import base64
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.wire.realtime import Meter, parse_query, with_model


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
