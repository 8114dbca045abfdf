"""Commands take an id, an e-mail address, a name or a key's beginning where one thing is meant."""

import re
from typing import Any

import pytest

from relay.control.commands import COMMANDS, read_params
from relay.control.failures import CommandError
from relay.control.operations import Operations

Run = Any


@pytest.fixture
def run(operations: Operations) -> Run:
    async def run(name: str, /, **fields: Any) -> dict[str, Any]:
        command = COMMANDS[name]
        return await operations.run(command, read_params(command, fields))

    return run


@pytest.fixture
async def secret(run: Run) -> str:
    await run("account create", email="ada@example.com", organisation="Acme")
    await run("account create", email="bob@example.com")
    made = await run("key create", id="ada@example.com", name="laptop")
    await run("key create", id="acct_2", name="server")
    await run("key create", id="acct_1", name="server")
    return str(made["secret"])


async def test_finding_newcomer_16_accounts_by_address(run: Run, secret: str):
    for text in ("acct_1", "ada@example.com", " Ada@EXAMPLE.com"):
        assert (await run("account show", id=text))["id"] == "acct_1"
    assert (await run("credit add", id="bob@example.com", amount="5"))["account_id"] == "acct_2"
    assert (await run("ledger show", id="bob@example.com"))["account_id"] == "acct_2"
    assert len((await run("key list", id="ada@example.com"))["keys"]) == 2
    assert (await run("account freeze", id="ada@example.com"))["status"] == "frozen"
    assert (await run("usage", account="ada@example.com"))["usage"] == []
    assert (await run("calls", account="ada@example.com"))["calls"] == []


async def test_finding_newcomer_16_keys_by_name_and_beginning(run: Run, secret: str):
    beginning = secret[:15]
    for text in ("key_1", "laptop", beginning, beginning + "-", secret):
        assert (await run("key show", id=text))["id"] == "key_1"
    assert (await run("key list", id="acct_1"))["keys"][0]["prefix"] == beginning
    with pytest.raises(CommandError, match="several keys have this name: key_2, key_3; name one by its id"):
        await run("key revoke", id="server")
    assert (await run("key suspend", id=beginning))["status"] == "suspended"


async def test_finding_newcomer_16_organisations_by_name(run: Run, secret: str):
    for text in ("org_1", "Acme"):
        assert (await run("organisation show", id=text))["id"] == "org_1"
        assert [row["id"] for row in (await run("account list", organisation=text))["accounts"]] == ["acct_1"]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("account show", "nobody@example.com", "no such account nobody@example.com"),
        ("account show", "ada", "id: expected an id such as acct_1, or an e-mail address"),
        ("account show", "acct_9", "no such account acct_9"),
        ("account show", "key_1", "expected an id such as acct_1"),
        ("key show", "desktop", "no such key of this name"),
        ("key show", "key_9", "no such key key_9"),
        ("key show", "sk-000000000000", "no such key that begins with sk-000000000000"),
        ("key show", "sk-short", "id: expected the beginning of a secret"),
        ("organisation show", "Umbrella", "no such organisation of this name"),
    ],
)
async def test_finding_newcomer_16_what_is_not_there_is_said(run: Run, secret: str, name: str, text: str, message: str):
    with pytest.raises(CommandError, match=re.escape(message)):
        await run(name, id=text)


async def test_a_secret_that_is_not_known_is_not_repeated(run: Run, secret: str):
    unknown = "sk-" + "0" * 12 + "-" + "SECRETSECRETSECRETSECRETSECRETSECRET"
    with pytest.raises(CommandError) as caught:
        await run("key show", id=unknown)
    assert "SECRET" not in caught.value.message


async def test_finding_newcomer_16_a_taken_address_says_whose_it_is(run: Run, secret: str):
    with pytest.raises(CommandError, match="already that of account acct_1"):
        await run("account create", email="ADA@example.com")


async def test_finding_newcomer_15_limits_are_shown_as_in_force(run: Run, secret: str):
    await run("account set", id="acct_1", tpm=5000, daily_limit="2")
    await run("key set", id="key_1", rpm=7, tokens_per_call={"gpt-4o": 100})
    account, key = await run("account show", id="acct_1"), await run("key show", id="key_1")
    assert (account["in_force"]["rpm"], account["in_force"]["tpm"]) == (20, 5000)
    assert account["in_force"]["daily_limit"] == "2"
    assert account["limits"]["rpm"] is None
    assert (key["in_force"]["rpm"], key["in_force"]["tpm"], key["in_force"]["daily_limit"]) == (7, 5000, "2")
    assert key["in_force"]["tokens_per_call"] == {"gpt-4o": 100}
    assert key["spent"] == {"daily": "0", "monthly": "0"}
