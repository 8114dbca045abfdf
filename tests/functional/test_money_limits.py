"""The largest amounts there are, through a whole relay: a call that costs millions, a balance that cannot grow."""

import json
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from relay.control.failures import CommandError
from tests.functional.raw_upstream import RawUpstream
from tests.functional.relay_process import RelayProcess, nano
from tests.functional.setting import config_text
from tests.functional.test_money import ask, chat
from tests.support.http1 import STREAM_HEAD, chunk_bytes, response_bytes

pytestmark = pytest.mark.asyncio(loop_scope="session")

MOST = 10_000_000  # credits that one call can cost
RICH = "1000000000"


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def dear(tmp_path_factory: pytest.TempPathFactory, raw: RawUpstream) -> AsyncIterator[RelayProcess]:
    """A relay at which a token of output costs 100 credits: an operator's slip of the pen."""
    text = config_text("http://127.0.0.1:9", raw.base_url).replace("[billing]\n", '[billing]\ndiscount = "100"\n', 1)
    text = text.replace(
        'model = "raw-chat"\ninput = "1"\noutput = "2"', 'model = "raw-chat"\ninput = "1"\noutput = "1000000"'
    )
    relay = RelayProcess(tmp_path_factory.mktemp("dear"), text)
    await relay.start()
    yield relay
    await relay.kill()


@pytest.mark.parametrize("stream", [False, True])
async def test_finding_money_C1_one_charge_above_the_most(dear: RelayProcess, raw: RawUpstream, stream: bool):
    """180,000 tokens of output, which the balance covers: 18 million credits by the card. Killed, it starts again."""
    usage = b'"usage":{"prompt_tokens":8,"completion_tokens":180000}'
    words = json.dumps("word " * 180_000).encode()
    if stream:
        event = b'data: {"choices":[{"delta":{"content":%b}}]}\n\n' % words
        answer = STREAM_HEAD + chunk_bytes(event + b'data: {"choices":[],%b}\n\ndata: [DONE]\n\n' % usage, end=True)
    else:
        answer = response_bytes(b'{"choices":[{"message":{"content":%b}}],%b}' % (words, usage))
    customer = await dear.customer(RICH)
    text, _ = raw.script(answer)
    assert (await ask(customer, chat(text, max_tokens=180_000, stream=stream))).status == 200
    record = await customer.call()
    assert (record["cost"], record["error_code"], record["output_tokens"]) == (str(MOST), None, 180_000)
    assert nano((await customer.money())["balance"]) == (10**9 - MOST) * 10**9
    await dear.kill()
    await dear.start()
    assert (await dear.command("ledger verify"))["ok"]
    text, _ = raw.script(response_bytes(b'{"choices":[],"usage":{"prompt_tokens":8,"completion_tokens":0}}'))
    assert (await ask(customer, chat(text, max_tokens=1))).status == 200


@pytest.mark.parametrize("in_memory", [False, True])
async def test_finding_money_M5_a_balance_that_would_be_too_large(
    dear: RelayProcess, raw: RawUpstream, in_memory: bool
):
    customer = await dear.customer(RICH)
    answer = response_bytes(b'{"choices":[],"usage":{"prompt_tokens":8,"completion_tokens":0}}')

    async def serves() -> bool:
        text, _ = raw.script(answer)
        return (await ask(customer, chat(text, max_tokens=1))).status == 200

    if in_memory:
        assert await serves()
    await dear.command("credit add", id=customer.account, amount="999999999")
    with pytest.raises(CommandError, match="expected at most 2000000000") as caught:
        await dear.command("credit add", id=customer.account, amount=RICH)
    assert caught.value.code == "conflict"
    status, _, error = await dear.cli("credit", "add", customer.account, RICH)
    assert (status, error.count("\n")) == (1, 1)
    assert await serves()
    shown = await customer.money()
    assert 1_999_999_998 * 10**9 < nano(shown["balance"]) < 2 * 10**18
    assert (await dear.command("ledger verify"))["ok"]
    assert not dear.faults
