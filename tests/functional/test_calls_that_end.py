"""What ends a call in flight: its key's expiry, its secret's rotation, a bound on reading on; and how much may wait for
a client that does not read."""

import asyncio
import json
import socket
import time
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import pytest_asyncio

from relay.simulator import Running
from tests.functional.raw_upstream import Gate, RawUpstream
from tests.functional.relay_process import Customer, RelayProcess, eventually
from tests.functional.setting import config_text
from tests.functional.streams import CHAT, GEMINI, MESSAGES, RESPONSES, Sample, head
from tests.functional.test_streaming import payload
from tests.support.http1 import STREAM_HEAD, chunk_bytes
from tests.support.rawclient import RawClient

pytestmark = pytest.mark.asyncio(loop_scope="session")
SAMPLES = (CHAT, RESPONSES, MESSAGES, GEMINI)


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def draining(
    tmp_path_factory: pytest.TempPathFactory, raw: RawUpstream, simulator: Running
) -> AsyncIterator[RelayProcess]:
    """A relay that reads on for 300 tokens when a client has gone."""
    text = config_text(simulator.base_url, raw.base_url)
    bounds = '[billing]\non_disconnect = "drain"\ndisconnect_tokens_max = 300\n'
    relay = RelayProcess(tmp_path_factory.mktemp("draining"), text.replace("[billing]\n", bounds, 1))
    await relay.start()
    yield relay
    await relay.kill()
    assert relay.faults == []


async def open_stream(customer: Customer, raw: RawUpstream, sample: Sample) -> RawClient:
    first = sample.events[0]
    text, _ = raw.script(head(sample, "chunked", 0), chunk_bytes(first), Gate(asyncio.Event()))
    client = await RawClient.connect("127.0.0.1", customer.relay.port)
    await client.send(sample.request_bytes(customer.secret, text))
    await client.until(lambda: payload(client.received) == first)
    return client


async def was_cut(client: RawClient, sample: Sample) -> None:
    await client.until(lambda: client.eof or client.lost, 20.0)
    assert b"error" in payload(client.received)[len(sample.events[0]) :]
    await client.close()


def rotated(customer: Customer, made: dict[str, Any]) -> Customer:
    return Customer(customer.relay, customer.account, customer.key, made["secret"])


async def test_finding_money_L7_the_expiry_of_a_key_ends_its_streams(relay: RelayProcess, raw: RawUpstream):
    """In every dialect; another key of the account goes on."""
    ends = datetime.now(UTC) + timedelta(seconds=4)
    customer = await relay.customer(expires=ends.isoformat())
    other = await relay.another_key(customer)
    kept = await open_stream(other, raw, CHAT)
    clients = [(await open_stream(customer, raw, sample), sample) for sample in SAMPLES]
    assert time.time() < ends.timestamp()
    for client, sample in clients:
        await was_cut(client, sample)
    assert time.time() >= ends.timestamp()
    assert {record["error_code"] for record in await customer.calls(4)} == {"key_expired"}
    assert not kept.eof
    await kept.close()


@pytest.mark.parametrize("overlap", [0, 3])
async def test_finding_money_L7_rotation_ends_the_old_secrets_streams(
    relay: RelayProcess, raw: RawUpstream, overlap: int
):
    """At once, or at the end of the overlap; those of the new secret go on."""
    customer = await relay.customer()
    clients = [(await open_stream(customer, raw, sample), sample) for sample in SAMPLES]
    began = time.time()
    made = await relay.command("key rotate", id=customer.key, overlap_seconds=overlap)
    kept = await open_stream(rotated(customer, made), raw, CHAT)
    for client, sample in clients:
        await was_cut(client, sample)
    assert time.time() - began >= overlap
    assert {record["error_code"] for record in await customer.calls(4)} == {"key_expired"}
    assert not kept.eof
    await kept.close()


@pytest.mark.parametrize("reads", ["one read", "an event at a time"])
async def test_finding_money_L3_reading_on_has_a_bound_that_holds(draining: RelayProcess, raw: RawUpstream, reads: str):
    """A fast upstream sends 2,000 tokens after its client has gone: at the most 300 of them are charged."""
    customer = await draining.customer()
    gate = asyncio.Event()
    event = b'data: {"choices":[{"delta":{"content":" word"}}]}\n\n'
    rest = [chunk_bytes(event * 2000)] if reads == "one read" else [chunk_bytes(event) for _ in range(2000)]
    text, _ = raw.script(STREAM_HEAD, chunk_bytes(event * 10), Gate(gate), *rest)
    client = await RawClient.connect("127.0.0.1", draining.port)
    await client.send(CHAT.request_bytes(customer.secret, text))
    await client.until(lambda: payload(client.received) == event * 10)
    await client.close()
    await asyncio.sleep(0.1)
    gate.set()
    record = await customer.call()
    assert (record["error_code"], record["usage_source"]) == ("client_gone", "estimated")
    assert 10 + 290 <= record["output_tokens"] <= 10 + 300


async def test_finding_money_L4_no_more_than_is_said_waits_for_a_client(relay: RelayProcess, raw: RawUpstream):
    """A client that takes nothing of a fast stream: what its own system took aside, 256 KiB wait for it here."""
    customer = await relay.customer("1000")
    event = b'data: {"choices":[{"delta":{"content":"' + b" word" * 200 + b'"}}]}\n\n'
    text, _ = raw.script(STREAM_HEAD, *[chunk_bytes(event * 20) for _ in range(600)])
    body = {"model": "raw-chat", "stream": True, "messages": [{"role": "user", "content": text}]}
    data = json.dumps(body).encode()
    with socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 16_384)
        client.setblocking(False)
        loop = asyncio.get_running_loop()
        await loop.sock_connect(client, ("127.0.0.1", relay.port))
        lines = f"POST /v1/chat/completions HTTP/1.1\r\nHost: relay\r\nAuthorization: Bearer {customer.secret}\r\n"
        lines += f"Content-Type: application/json\r\nContent-Length: {len(data)}\r\n\r\n"
        await loop.sock_sendall(client, lines.encode() + data)

        async def stalled() -> bool:
            return (await relay.calls(key=customer.key)) != []

        await eventually(stalled, 20.0)  # write_stall_seconds
    record = await customer.call()
    assert record["error_code"] == "client_stalled"
    delivered = record["output_tokens"] * 5  # bytes of text; an event has a few more
    assert delivered < 16_384 * 4 + 256 * 1024, delivered
