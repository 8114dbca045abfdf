"""/metrics of a real relay, as Prometheus reads it: its figures are those of the call records."""

import asyncio
import http.client
import json
from collections import defaultdict
from collections.abc import AsyncIterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from prometheus_client.parser import text_string_to_metric_families

from relay.simulator import Running
from tests.functional.raw_upstream import RawUpstream
from tests.functional.relay_process import RelayProcess, eventually
from tests.functional.setting import OPERATOR_TOKEN, config_text
from tests.functional.test_streaming import payload
from tests.support.rawclient import RawClient
from tests.support.waiting import until

pytestmark = pytest.mark.asyncio(loop_scope="session")

Samples = dict[str, dict[tuple[tuple[str, str], ...], float]]


def get(port: int, path: str, secret: str | None = None) -> tuple[int, str, str]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    try:
        connection.request("GET", path, headers={"Authorization": f"Bearer {secret}"} if secret else {})
        answer = connection.getresponse()
        return answer.status, answer.getheader("Content-Type", ""), answer.read().decode()
    finally:
        connection.close()


async def scrape(port: int, secret: str | None = OPERATOR_TOKEN) -> Samples:
    """Samples by name and labels."""
    status, content_type, text = await asyncio.to_thread(get, port, "/metrics", secret)
    assert status == 200
    assert content_type.startswith("text/plain; version=0.0.4")
    found: Samples = defaultdict(dict)
    for family in text_string_to_metric_families(text):
        assert family.documentation, family.name
        assert family.type != "unknown", family.name
        for sample in family.samples:
            labels = tuple(sorted(sample.labels.items()))
            assert labels not in found[sample.name], f"{sample.name} twice"
            found[sample.name][labels] = sample.value
    return found


def one(samples: Samples, metric: str, **labels: str) -> float:
    return samples[metric].get(tuple(sorted(labels.items())), 0.0)


async def send(port: int, secret: str, path: str, body: dict[str, Any]) -> int:
    def request() -> int:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
        try:
            connection.request(
                "POST",
                path,
                json.dumps(body),
                {"Authorization": f"Bearer {secret}", "Content-Type": "application/json"},
            )
            answer = connection.getresponse()
            answer.read()
            return answer.status
        finally:
            connection.close()

    return await asyncio.to_thread(request)


def chat(model: str, text: str = "Hello", **more: Any) -> dict[str, Any]:
    return {"model": model, "max_tokens": 40, "messages": [{"role": "user", "content": text}], **more}


@pytest_asyncio.fixture(loop_scope="session")
async def own(simulator: Running, raw: RawUpstream, tmp_path: Path) -> AsyncIterator[RelayProcess]:
    """A relay of the test's own with a listener for metrics."""
    text = config_text(simulator.base_url, raw.base_url)
    text = text.replace("[observe]\n", '[observe]\nmetrics_listen = "127.0.0.1:0"\n')
    relay = RelayProcess(tmp_path, text)
    await relay.start()
    yield relay
    await relay.kill()
    assert relay.faults == []


async def test_figures_are_those_of_the_call_records(own: RelayProcess):
    customer = await own.customer()
    limited = await own.customer(rpm=1)
    poor = await own.customer("0")
    everything = [
        (customer, "/v1/chat/completions", chat("gpt-4o")),
        (customer, "/v1/chat/completions", chat("gpt-4o", stream=True)),
        (customer, "/v1/messages", chat("claude-sonnet-5", stream=True)),
        (customer, "/v1beta/models/gemini-2.5-flash:generateContent", {"contents": [{"parts": [{"text": "Hello"}]}]}),
        (customer, "/v1/images/generations", {"model": "dall-e-3", "prompt": "A cat", "n": 2}),
        (customer, "/v1/chat/completions", chat("gpt-failover")),
        (customer, "/v1/chat/completions", chat("gpt-down")),
        (customer, "/v1/chat/completions", chat("gpt-4o", "#sim error=500#")),
        (customer, "/v1/chat/completions", chat("no-such-model")),
        (limited, "/v1/chat/completions", chat("gpt-4o")),
        (limited, "/v1/chat/completions", chat("gpt-4o")),
        (poor, "/v1/chat/completions", chat("gpt-4o")),
    ]
    statuses = [await send(own.port, who.secret, path, body) for who, path, body in everything]
    assert {200, 402, 404, 429, 503} <= set(statuses)
    assert await send(own.port, "sk-nobody", "/v1/chat/completions", chat("gpt-4o")) == 401
    samples = await scrape(own.port)
    records = await own.calls()
    assert len(records) == len(everything)

    ended: dict[tuple[str, ...], int] = defaultdict(int)
    sums: dict[tuple[str, str, str], Decimal] = defaultdict(Decimal)
    by_route: dict[tuple[str, str], list[dict[str, Any]]] = defaultdict(list)
    for row in records:
        model, channel = row["model"] or "", row["channel"] or ""
        ended[row["path"], model, channel, str(row["status"]), row["error_code"] or ""] += 1
        if channel:
            by_route[model, channel].append(row)
        for kind in ("input", "output", "cache_read", "cache_write"):
            sums[model, channel, kind] += row[f"{kind}_tokens"]
        sums[model, channel, "image"] += row["images"]
        sums[model, channel, "cost"] += Decimal(row["cost"])
    named = ("path", "model", "channel", "status", "error")
    assert samples["relay_calls_total"] == {
        tuple(sorted(zip(named, values, strict=True))): count for values, count in ended.items()
    }
    for (model, channel, kind), value in sums.items():
        at = {"model": model, "channel": channel}
        if kind == "cost":
            assert one(samples, "relay_cost_credits_total", **at) == pytest.approx(float(value))
        elif kind == "image":
            assert one(samples, "relay_pieces_total", kind="image", **at) == value
        else:
            assert one(samples, "relay_tokens_total", kind=kind, **at) == value
    assert sum(samples["relay_cost_credits_total"].values()) > 0
    assert sums["dall-e-3", "sim-media", "image"] == 2
    assert len(by_route) >= 5
    for (model, channel), rows in by_route.items():
        at = {"model": model, "channel": channel}
        for name, field in (("relay_call_seconds", "latency_ms"), ("relay_first_byte_seconds", "first_byte_ms")):
            values = [row[field] / 1000 for row in rows if row[field] is not None]
            assert one(samples, f"{name}_count", **at) == len(values)
            assert one(samples, f"{name}_sum", **at) == pytest.approx(sum(values), abs=1e-6)
            assert one(samples, f"{name}_bucket", le="0.5", **at) == sum(value <= 0.5 for value in values)
        sources = [
            one(samples, "relay_usage_total", source=source, **at) for source in ("upstream", "estimated", "none")
        ]
        assert sum(sources) == len(rows)
    assert one(samples, "relay_limit_refusals_total", error="rate_limit_requests", scope="key") == 1
    assert one(samples, "relay_unknown_refusals_total", error="invalid_key") == 1
    assert one(samples, "relay_retried_attempts_total", model="gpt-failover", channel="after-down") == 1
    assert one(samples, "relay_channel_failures_total", channel="down") >= 2
    assert one(samples, "relay_channel_connects_total", channel="sim-openai") >= 1
    assert one(samples, "relay_channel_keys", channel="sim-openai") == 1
    states = {state: one(samples, "relay_channel_breaker_state", channel="sim-openai", state=state)
              for state in ("closed", "open", "half_open")}  # fmt: skip
    assert states == {"closed": 1, "open": 0, "half_open": 0}
    assert one(samples, "relay_channel_breaker_reason", channel="down", reason="upstream_unavailable") == 1
    assert len(samples["relay_channel_breaker_reason"]) == 1
    assert one(samples, "relay_store_writable") == 1
    assert one(samples, "relay_faults_total") == 0
    assert one(samples, "process_resident_memory_bytes") > 10_000_000
    assert one(samples, "process_start_time_seconds") > 1.7e9
    # Nothing of customers: their figures are in the store.
    _, _, text = await asyncio.to_thread(get, own.port, "/metrics", OPERATOR_TOKEN)
    assert "acct_" not in text
    assert "key_1" not in text


async def test_what_is_open_shows(own: RelayProcess, raw: RawUpstream):
    customer = await own.customer()
    text = "#sim events=2000 pace_ms=50#"
    body = json.dumps(chat("gpt-4o", text, stream=True) | {"max_tokens": 100_000}).encode()
    client = await RawClient.connect("127.0.0.1", own.port)
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: relay\r\nAuthorization: Bearer {customer.secret}\r\n"
    await client.send(head.encode() + b"Content-Length: %d\r\n\r\n" % len(body) + body)
    await client.until(lambda: b"data:" in payload(client.received))
    samples = await scrape(own.port)
    assert one(samples, "relay_open_calls") == 1
    assert one(samples, "relay_open_connections") >= 2  # the stream's, and the scrape's own
    assert one(samples, "relay_journal_slots_used") >= 1
    assert one(samples, "relay_channel_in_flight", channel="sim-openai") == 1
    assert samples["relay_calls_total"] == {}
    await client.close()

    async def ended() -> bool:
        seen = await scrape(own.port)
        return one(seen, "relay_open_calls") == 0 and one(seen, "relay_journal_slots_used") == 0

    await eventually(ended, what="the call to end and to be committed")
    samples = await scrape(own.port)
    [labels] = samples["relay_calls_total"]
    assert dict(labels)["status"] == "499"
    assert one(samples, "relay_store_pending") == 0
    assert one(samples, "relay_store_lag_seconds") == 0


async def test_the_listener_for_metrics_serves_nothing_else(own: RelayProcess):
    await until(lambda: any("metrics on 127.0.0.1:" in line for line in own.log), what="the listener")
    [line] = [line for line in own.log if "metrics on" in line]
    port = int(line.rpartition(":")[2])
    samples = await scrape(port, secret=None)
    assert one(samples, "relay_open_calls") == 0
    for path in ("/", "/admin/v1/status", "/healthz", "/v1/models"):
        status, _, _ = await asyncio.to_thread(get, port, path, OPERATOR_TOKEN)
        assert status == 404
    # On the other listener it is the operator's.
    customer = await own.customer()
    for secret in (None, customer.secret, "nonsense"):
        status, _, _ = await asyncio.to_thread(get, own.port, "/metrics", secret)
        assert status == 401


async def test_a_listener_that_cannot_be_had_stops_the_start(own: RelayProcess, tmp_path: Path):
    line = next(line for line in own.log if "metrics on" in line)
    address = line.rpartition(" ")[2]
    folder = tmp_path / "second"
    folder.mkdir()
    second = RelayProcess(folder, own.config.replace('metrics_listen = "127.0.0.1:0"', f'metrics_listen = "{address}"'))
    with pytest.raises(AssertionError):
        await second.start()
    assert second.exit_status == 1
    assert any("observe.metrics_listen: cannot listen on" in line for line in second.log)
