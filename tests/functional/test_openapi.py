"""The OpenAPI documents of a real relay hold: generated requests find no 5xx and no answer that they do not allow."""

import asyncio
import json
import traceback
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import pytest_asyncio

from relay.control import answers
from relay.control.commands import COMMANDS
from relay.simulator import Running
from tests.functional.raw_upstream import RawUpstream
from tests.functional.relay_process import RelayProcess
from tests.functional.setting import OPERATOR_TOKEN, config_text
from tests.functional.test_metrics import chat, get, send
from tests.support.openapi_cases import explore, fetch

pytestmark = pytest.mark.asyncio(loop_scope="session")

EXAMPLES = 12


@pytest_asyncio.fixture(loop_scope="session")
async def own(simulator: Running, raw: RawUpstream, tmp_path: Path) -> AsyncIterator[RelayProcess]:
    relay = RelayProcess(tmp_path, config_text(simulator.base_url, raw.base_url))
    await relay.start()
    yield relay
    await relay.kill()
    assert relay.faults == []


async def filled(relay: RelayProcess) -> str:
    """A customer's secret; accounts, keys, an organisation, calls and events are there."""
    customer = await relay.customer(organisation="Example")
    other = await relay.customer(rpm=1)
    for _ in range(3):
        await send(relay.port, customer.secret, "/v1/chat/completions", chat("gpt-4o"))
        await send(relay.port, other.secret, "/v1/chat/completions", chat("gpt-4o"))
    await relay.calls()
    return customer.secret


async def test_the_customers_document_holds(own: RelayProcess):
    secret = await filled(own)
    document = await asyncio.to_thread(fetch, own.base_url, "/relay/v1/openapi.json", "")
    assert set(document["paths"]) == {f"/relay/v1/{name}" for name in ("balance", "limits", "calls", "usage", "rates")}
    seen = await asyncio.to_thread(explore, document, own.base_url, secret, examples=3 * EXAMPLES)
    for path in document["paths"]:
        assert seen[f"GET {path}", 200] > 0, path
    assert seen["GET /relay/v1/calls", 400] > 0
    refused = await asyncio.to_thread(explore, document, own.base_url, "nobody", examples=2)
    assert {status for _, status in refused} == {401}


async def test_an_answer_that_the_document_does_not_allow_is_found(own: RelayProcess):
    customer = await own.customer()
    document = await asyncio.to_thread(fetch, own.base_url, "/relay/v1/openapi.json", "")
    balance = document["components"]["schemas"]["CustomerBalance"]
    del balance["properties"]["available"]
    balance["required"].remove("available")
    with pytest.raises(BaseExceptionGroup) as caught:
        await asyncio.to_thread(explore, document, own.base_url, customer.secret, examples=1)
    assert "available" in "".join(traceback.format_exception(caught.value))
    del document["paths"]["/relay/v1/balance"]["get"]["responses"]["401"]
    with pytest.raises(BaseExceptionGroup) as caught:
        await asyncio.to_thread(explore, document, own.base_url, "nobody", examples=1)
    assert "401" in "".join(traceback.format_exception(caught.value))


async def test_the_operators_document_holds(own: RelayProcess):
    await filled(own)
    assert (await asyncio.to_thread(get, own.port, "/admin/v1/openapi.json"))[0] == 401
    document = await asyncio.to_thread(fetch, own.base_url, "/admin/v1/openapi.json", OPERATOR_TOKEN)
    operations = {(method, path) for path, item in document["paths"].items() for method in item}
    assert operations == {
        (command.method.lower(), f"/admin/v1{command.path}") for command in COMMANDS.values() if not command.local
    }
    assert set(answers.OF_COMMAND) == set(COMMANDS)
    seen = await asyncio.to_thread(explore, document, own.base_url, OPERATOR_TOKEN, examples=EXAMPLES)
    assert (await own.command("ledger verify"))["ok"]
    answered = {label for label, status in seen if status == 200}
    labels = {f"{method.upper()} {path}" for method, path in operations}
    # Hardly ever right by chance: the text of a file of rates, and what it made; the id of a call.
    unlikely = {"POST /admin/v1/drain", "POST /admin/v1/rates/schedule", "POST /admin/v1/rates/schedule/{id}/withdraw"}
    unlikely.add("GET /admin/v1/calls/{id}")
    assert answered >= labels - unlikely - {label for label in labels if label.startswith("POST /admin/v1/")}
    assert len(answered) >= 20
    refused = await asyncio.to_thread(explore, document, own.base_url, "nobody", examples=1)
    assert {status for _, status in refused} == {401}


async def test_answers_that_chance_does_not_find(own: RelayProcess):
    """Changes that need several right values, each against its type."""
    customer = await own.customer()
    rates = '[[rates]]\nmodel = "gpt-4o"\ninput = 1\noutput = 2\n'
    account, key = customer.account, customer.key
    for name, fields in (
        ("rates schedule", {"rates": rates, "effective": "2099-01-01"}),
        ("rates show", {}),
        ("rates withdraw", {"id": "sched_1"}),
        ("account create", {"email": "new@example.com", "organisation": "New"}),
        ("account set", {"id": account, "plan": "paid"}),
        ("organisation list", {}),
        ("credit add", {"id": account, "amount": "5"}),
        ("credit refund", {"id": account, "amount": "1", "reason": "r"}),
        ("key create", {"id": account, "description": "d"}),
        ("key rotate", {"id": key, "overlap_seconds": 60}),
        ("key suspend", {"id": key}),
        ("key resume", {"id": key}),
        ("key revoke", {"id": key}),
        *((f"account {act}", {"id": account}) for act in ("freeze", "unfreeze", "close", "reopen", "ban")),
        ("channel list", {}),
        ("channel test", {"id": "sim-openai"}),
        ("channel off", {"id": "sim-openai", "message": "m"}),
        ("channel on", {"id": "sim-openai"}),
        ("channel wake", {"id": "sim-openai"}),
        ("backup", {"path": str(own.folder / "copy.db")}),
        ("reload", {}),
        ("status", {}),
        ("terms", {}),
        ("events", {}),
        ("drain", {}),
    ):
        answer: Any = await own.command(name, **fields)
        msgspec.json.decode(json.dumps(answer), type=answers.OF_COMMAND[name])
    assert await own.wait() == 0


async def test_other_methods_say_which_there_are(own: RelayProcess):
    status = await send(own.port, "nobody", "/relay/v1/balance", {})
    assert status == 405
    for path, allowed in (("/admin/v1/keys/key_1", 405), ("/admin/v1/nothing", 404)):
        assert await send(own.port, OPERATOR_TOKEN, path, {}) == allowed
        assert await send(own.port, "nobody", path, {}) == 401
