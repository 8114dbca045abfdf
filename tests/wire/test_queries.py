"""What of a query goes on, and what a realtime session's query may say."""

import pytest

from relay.wire import queries, realtime
from relay.wire.endpoints import ENDPOINTS

BY_NAME = {endpoint.name: endpoint for endpoint in ENDPOINTS}


@pytest.mark.parametrize("query", ["m%6fdel=x&model=y", "model=y&m%6Fdel=x", "model=x&model=x", "intent=a&int%65nt=b"])
def test_finding_wire_L9_a_parameter_twice_is_refused(query: str):
    with pytest.raises(queries.QueryError):
        queries.read(BY_NAME["realtime"], query.encode())


@pytest.mark.parametrize(
    "more",
    ["Model=dear", "MODEL=dear", "model[]=dear", "model%5B%5D=dear", "Intent=transcription", "x=y", "model%00=a"],
)
def test_finding_wire_L9_look_alikes_do_not_go_on(more: str):
    for query in (f"model=m&{more}", f"{more}&model=m"):
        _, rest = queries.read(BY_NAME["realtime"], query.encode())
        assert rest == b"model=m"
        assert realtime.parse_query(rest.decode()) == "m"


def test_finding_wire_L9_kinds_of_sessions_without_a_report_are_known_in_any_writing():
    for query in (b"model=m&intent=transcription", b"model=m&int%65nt=transcription", b"model=m&call_id=c"):
        _, rest = queries.read(BY_NAME["realtime"], query)
        assert realtime.parse_query(rest.decode()) is None


@pytest.mark.parametrize("name", ["chat", "completions", "responses", "embeddings", "image", "moderations"])
def test_finding_wire_L8_a_query_chooses_no_model_and_no_version(name: str):
    """A channel's own query says which version: nothing of the client's stands in front of it."""
    found = [endpoint for endpoint in ENDPOINTS if endpoint.name.startswith(name)]
    assert found
    for endpoint in found:
        for query in (b"model=dear", b"stream=true", b"api-version=2020-01-01", b"m%6fdel=dear&api%2Dversion=1"):
            _, rest = queries.read(endpoint, query)
            assert b"dear" not in rest
            assert b"version" not in rest
            assert endpoint.name == "response_get" or rest == b""


@pytest.mark.parametrize("value", [True, False, "5", 1.5, -3, [], {}])
@pytest.mark.parametrize(
    "place",
    [
        ("input_tokens",), ("output_tokens",), ("input_token_details", "cached_tokens"),
        ("input_token_details", "audio_tokens"), ("output_token_details", "audio_tokens"),
        ("input_token_details", "cached_tokens_details", "audio_tokens"),
    ],
)  # fmt: skip
def test_finding_wire_L9_what_is_no_count_is_not_counted(place: tuple[str, ...], value: object):
    """A side of a realtime report with a value that is no number of tokens is counted here."""
    usage = {"input_tokens": 20, "output_tokens": 10}
    holder = usage
    for name in place[:-1]:
        holder = holder.setdefault(name, {})
    holder[place[-1]] = value
    meter = realtime.Meter()
    meter.sent(
        '{"type":"conversation.item.create","item":{"content":[{"type":"input_text","text":"%s"}]}}' % ("a " * 200)
    )
    meter.received('{"type":"response.created"}')
    meter.received('{"type":"response.output_text.delta","delta":"%s"}' % ("a " * 20))
    report = {"type": "response.done", "response": {"usage": usage}}
    charged = meter.received(realtime.orjson.dumps(report).decode())
    assert charged is not None
    assert charged["estimated"]
    assert meter.doubts
