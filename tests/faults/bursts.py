"""Many calls at one instant on a balance for few of them."""

import asyncio
import json
from collections import Counter
from pathlib import Path

from relay import _fastpath
from relay.policy.tokenizers import table_for
from tests.functional.raw_upstream import Exchange, Gate, RawUpstream, Step
from tests.functional.relay_process import Customer, RelayProcess, eventually, nano
from tests.functional.setting import config_text, cost_nano
from tests.support import http1
from tests.support.rawclient import RawClient
from tests.support.stored import assert_books_agree

BURST = 50
COVERED = 5
NO_BALANCE = 402
MODEL = "raw-chat"
PROMPT = "Who is the first of us? #raw burst#"
BODY = json.dumps(
    {"model": MODEL, "max_completion_tokens": 50, "messages": [{"role": "user", "content": PROMPT}]}
).encode()
# The upstream counts the prompt as the relay does, so that the relay goes on estimating, and holding, the same.
PROMPT_TOKENS = _fastpath.scan_request(0, BODY, table_for(MODEL))["prompt_tokens"]
USAGE = {"prompt_tokens": PROMPT_TOKENS, "completion_tokens": 7, "total_tokens": PROMPT_TOKENS + 7}
COST = cost_nano(MODEL, PROMPT_TOKENS, 7)
ANSWER = http1.response_bytes(
    json.dumps({"id": "x", "object": "chat.completion", "choices": [], "usage": USAGE}).encode(),
    headers={"content-type": "application/json"},
)


def credits(amount_nano: int) -> str:
    return f"{amount_nano // 10**9}.{amount_nano % 10**9:09}"


def request(customer: Customer) -> bytes:
    headers = {"Authorization": f"Bearer {customer.secret}", "Content-Type": "application/json"}
    return http1.request_bytes("POST", "/v1/chat/completions", headers, BODY)


def play(upstream: RawUpstream, *steps: Step) -> Exchange:
    exchange = upstream.exchanges["burst"] = Exchange(steps)
    return exchange


async def burst_rounds(folder: Path, rounds: int) -> None:
    async with RawUpstream() as upstream:
        relay = RelayProcess(folder, config_text("http://127.0.0.1:9", upstream.base_url))
        try:
            await relay.start()
            rich = await relay.customer()
            hold = await _hold_nano(upstream, rich)
            for number in range(rounds):
                await _round(upstream, relay, hold, warm=number % 2 == 1)
            assert (await relay.command("ledger verify"))["ok"]
            assert relay.faults == []
            assert await relay.stop() == 0
            assert_books_agree(relay.data_dir)
        finally:
            await relay.kill()


async def _hold_nano(upstream: RawUpstream, customer: Customer) -> int:
    """What one such call holds while it is under way."""
    gate = asyncio.Event()
    play(upstream, Gate(gate), ANSWER)
    async with await RawClient.connect("127.0.0.1", customer.relay.port) as client:
        await client.send(request(customer))
        found: list[int] = []

        async def held() -> bool:
            found[:] = [nano((await customer.money())["held"])]
            return found[0] > 0

        await eventually(held)
        gate.set()
        assert (await client.response()).status == 200
    return found[0]


async def _round(upstream: RawUpstream, relay: RelayProcess, hold: int, *, warm: bool) -> None:
    """The upstream answers nobody before everybody is admitted or refused, so that no hold comes back in between."""
    balance = COVERED * hold + hold - 1
    customer = await relay.customer(credits(balance + (COST if warm else 0)))
    if warm:
        play(upstream, ANSWER)
        async with await RawClient.connect("127.0.0.1", relay.port) as client:
            await client.send(request(customer))
            assert (await client.response()).status == 200
    gate = asyncio.Event()
    exchange = play(upstream, Gate(gate), ANSWER)
    clients = [await RawClient.connect("127.0.0.1", relay.port) for _ in range(BURST)]
    try:
        for client in clients:
            assert client.transport is not None
            client.transport.write(request(customer))
        refused = [client for client in clients if client is not None]

        async def decided() -> bool:
            await asyncio.sleep(0)
            refused[:] = [client for client in clients if client.received]
            return len(refused) + len(exchange.requests) >= BURST

        await eventually(decided)
        assert len(exchange.requests) == COVERED
        money = await customer.money()
        assert nano(money["held"]) == COVERED * hold
        assert 0 <= nano(money["available"]) < hold
        gate.set()
        answers = [(await client.response()).status for client in clients]
    finally:
        for client in clients:
            await client.close()
    assert Counter(answers) == {200: COVERED, NO_BALANCE: BURST - COVERED}
    assert await customer.settled_nano() == balance - COVERED * COST
