import asyncio
import re
import time
from typing import Any

import pytest

from relay import units
from relay.config import Config
from relay.control.commands import COMMANDS, read_params
from relay.control.failures import CommandError
from relay.control.live import LiveBalance
from relay.control.operations import Operations
from relay.policy import keys, pricing
from relay.records import CALL_RECORD_FIELDS
from relay.storage import Store
from tests.support.live import FakeLive

Run = Any


@pytest.fixture
def run(operations: Operations) -> Run:
    async def run(name: str, /, **fields: Any) -> dict[str, Any]:
        command = COMMANDS[name]
        return await operations.run(command, read_params(command, fields))

    return run


def call_record(**values: Any) -> tuple[Any, ...]:
    now_ms = time.time_ns() // 1_000_000
    number = values.pop("id", units.call_id(now_ms, values.pop("counter", 0)))
    base = dict.fromkeys(CALL_RECORD_FIELDS, 0) | {
        "id": number, "path": "/v1/chat/completions", "model": "gpt-4o", "upstream_model": "gpt-4o", "channel": "main",
        "attempts": 1, "status": 200, "error_code": None, "usage_source": "upstream", "rate_card": "card",
        "latency_us": 1500, "first_byte_us": None, "source_ip": "203.0.113.9", "user_agent": "x/1",
        "organisation_id": None, "day": units.day_of(now_ms // 1000),
    }  # fmt: skip
    return tuple((base | values).values())


async def test_an_account_is_created_shown_and_changed(run: Run, live: FakeLive):
    made = await run("account create", email=" Ann@Example.com", organisation="Acme")
    assert made["id"] == "acct_1"
    assert made["email"] == "ann@example.com"
    assert (made["plan"], made["status"], made["organisation"]) == ("free", "active", "Acme")
    assert (made["balance"], made["held"], made["available"]) == ("0", "0", "0")
    assert made.pop("warnings") == []
    assert await run("account show", id="acct_1") == made
    changed = await run("account set", id="acct_1", plan="paid", rpm=0, daily_limit="2.5", organisation=None)
    assert (changed["plan"], changed["organisation"]) == ("paid", None)
    assert changed["limits"]["rpm"] == 0
    assert changed["limits"]["daily_limit"] == "2.5"
    assert changed["limits"]["tpm"] is None
    back = await run("account set", id="acct_1", rpm=None)
    assert back["limits"]["rpm"] is None
    assert back["limits"]["daily_limit"] == "2.5"
    assert live.told == [("account", 1), ("account", 1)]


async def test_terms_W01_one_account_per_normalised_address(run: Run):
    await run("account create", email="ann@example.com")
    with pytest.raises(CommandError, match="already") as caught:
        await run("account create", email="ANN@EXAMPLE.COM ")
    assert caught.value.code == "conflict"
    await run("account create", email="bob@example.com")
    with pytest.raises(CommandError, match="already"):
        await run("account set", id="acct_2", email="Ann@example.com")
    await run("account set", id="acct_2", email="Bob@Example.com")


async def test_organisations_are_found_by_name(run: Run):
    first = await run("account create", email="a@example.com", organisation="Acme")
    second = await run("account create", email="b@example.com", organisation="Acme")
    assert first["organisation_id"] == second["organisation_id"]
    await run("account create", email="c@example.com")
    listed = await run("account list", organisation="Acme")
    assert [row["email"] for row in listed["accounts"]] == ["a@example.com", "b@example.com"]


async def test_the_limits_of_an_organisation(run: Run, live: FakeLive):
    account = await run("account create", email="a@example.com", organisation="Acme")
    number = account["organisation_id"]
    changed = await run("organisation set", id=number, monthly_limit="500", name="Acme Ltd")
    assert changed["limits"]["monthly_limit"] == "500"
    assert await run("organisation show", id=number) == changed
    assert (await run("organisation list"))["organisations"] == [changed]
    assert (await run("account show", id="acct_1"))["organisation"] == "Acme Ltd"
    assert live.told == [("organisation", 1)]
    with pytest.raises(CommandError, match="no such organisation"):
        await run("organisation show", id="org_9")


async def test_accounts_are_listed_in_pages(run: Run):
    for name in "abc":
        await run("account create", email=f"{name}@example.com")
    page = await run("account list", limit=2)
    assert [row["id"] for row in page["accounts"]] == ["acct_1", "acct_2"]
    rest = await run("account list", limit=2, after=page["next"])
    assert [row["id"] for row in rest["accounts"]] == ["acct_3"]
    assert rest["next"] is None


async def test_the_status_of_an_account(run: Run, live: FakeLive):
    await run("account create", email="a@example.com")
    assert (await run("account freeze", id="acct_1", reason="review"))["status"] == "frozen"
    with pytest.raises(CommandError, match="frozen") as caught:
        await run("account freeze", id="acct_1")
    assert caught.value.code == "conflict"
    assert (await run("account unfreeze", id="acct_1"))["status"] == "active"
    assert (await run("account ban", id="acct_1"))["status"] == "banned"
    with pytest.raises(CommandError, match="banned"):
        await run("key create", id="acct_1")
    with pytest.raises(CommandError, match="banned"):
        await run("credit add", id="acct_1", amount="1")
    assert (await run("account reopen", id="acct_1"))["status"] == "active"
    closed = await run("account close", id="acct_1")
    assert closed["status"] == "closed"
    assert closed["closed"] is not None
    assert live.told == [("account", 1)] * 5
    events = (await run("events"))["events"]
    assert [event["code"] for event in events if event["code"] == "account_freeze"] == ["account_freeze"]
    assert next(event for event in events if event["code"] == "account_freeze")["detail"] == "review"


@pytest.mark.parametrize(
    "amount", ["", "0", "0.0", "-1", "+1", "1e3", "NaN", "inf", "1.0000000001", "1,5", " 1", "1_000", "٣", "1" * 30]
)
async def test_amounts_that_are_none(run: Run, amount: str):
    await run("account create", email="a@example.com")
    with pytest.raises(CommandError) as caught:
        await run("credit add", id="acct_1", amount=amount)
    assert caught.value.code == "invalid"
    assert caught.value.field == "amount"
    assert (await run("account show", id="acct_1"))["balance"] == "0"


async def test_credits_are_added_once_per_idempotency_key(run: Run, live: FakeLive):
    await run("account create", email="a@example.com")
    first = await run("credit add", id="acct_1", amount="12.500000001", idempotency_key="order 7")
    assert first["balance"] == "12.500000001"
    again = await run("credit add", id="acct_1", amount="12.500000001", idempotency_key="order 7")
    assert again["entry_id"] == first["entry_id"]
    assert again["balance"] == "12.500000001"
    assert live.told == [("moving", 1), ("added", 12_500_000_001), ("moved", 1), ("moving", 1), ("moved", 1)]
    with pytest.raises(CommandError) as caught:
        await run("credit add", id="acct_1", amount="13", idempotency_key="order 7")
    assert caught.value.code == "conflict"


async def test_a_refund_takes_from_the_live_balance_first(run: Run, live: FakeLive):
    await run("account create", email="a@example.com")
    await run("credit add", id="acct_1", amount="10")
    live.balances[1] = LiveBalance(3 * 10**9, 7 * 10**9)
    with pytest.raises(CommandError, match="held") as caught:
        await run("credit refund", id="acct_1", amount="4", reason="asked")
    assert caught.value.code == "conflict"
    assert live.balances[1].available_nano == 3 * 10**9
    done = await run("credit refund", id="acct_1", amount="2", reason="asked", idempotency_key="r1")
    assert (done["balance"], done["held"], done["available"]) == ("8", "7", "1")
    assert done["amount"] == "-2"
    await run("credit refund", id="acct_1", amount="1", reason="asked", idempotency_key="r2")
    assert live.balances[1].available_nano == 0
    live.balances[1] = LiveBalance(5 * 10**9, 2 * 10**9)
    repeated = await run("credit refund", id="acct_1", amount="2", reason="asked", idempotency_key="r1")
    assert repeated["entry_id"] == done["entry_id"]
    assert live.balances[1].available_nano == 5 * 10**9


async def test_a_refund_that_the_store_refuses_is_given_back(run: Run, live: FakeLive):
    await run("account create", email="a@example.com")
    await run("credit add", id="acct_1", amount="10", kind="trial")
    live.balances[1] = LiveBalance(10 * 10**9, 0)
    with pytest.raises(CommandError) as caught:
        await run("credit refund", id="acct_1", amount="4", reason="only purchased credits are refunded")
    assert caught.value.code == "conflict"
    assert live.balances[1].available_nano == 10 * 10**9


async def test_only_an_adjustment_may_take(run: Run):
    await run("account create", email="a@example.com")
    await run("credit add", id="acct_1", amount="10")
    for kind in ("purchased", "subscription", "trial"):
        with pytest.raises(CommandError):
            await run("credit add", id="acct_1", amount="-1", kind=kind)
    taken = await run("credit add", id="acct_1", amount="-1", kind="adjustment", reason="mistake")
    assert taken["balance"] == "9"
    with pytest.raises(CommandError) as caught:
        await run("credit add", id="acct_1", amount="-9.1", kind="adjustment")
    assert caught.value.code == "conflict"


async def test_the_ledger_of_an_account(run: Run):
    await run("account create", email="a@example.com")
    await run("credit add", id="acct_1", amount="10", reason="top-up")
    await run("credit add", id="acct_1", amount="1", kind="trial", expires="2099-01-01")
    await run("credit refund", id="acct_1", amount="4", reason="asked")
    ledger = await run("ledger show", id="acct_1")
    assert [(entry["kind"], entry["amount"], entry["reason"]) for entry in ledger["entries"]] == [
        ("purchased", "10", "top-up"),
        ("trial", "1", ""),
        ("refund", "-4", "asked"),
    ]
    assert ledger["balance"] == "7"
    assert {lot["kind"]: lot["remaining"] for lot in ledger["lots"]} == {"trial": "1", "purchased": "6"}
    assert {lot["kind"]: lot["expires"] for lot in ledger["lots"]} == {
        "trial": "2099-01-01T00:00:00.000Z",
        "purchased": None,
    }
    verified = await run("ledger verify")
    assert verified == {"ok": True, "differences": [], "set_aside": [], "unchecked": [], "seal": verified["seal"]}
    assert verified["seal"]["number"] == 4  # of the empty store, and of each of these


async def test_a_key_shows_its_secret_only_when_made(run: Run, store: Store, operations: Operations):
    await run("account create", email="a@example.com")
    made = await run(
        "key create", id="acct_1", name="ci", description="build", scopes=["chat", "embeddings"], models=["gpt-4o"],
        allow_ips=["203.0.113.0/24", "2001:db8::1"], rpm=5, tpm=0, concurrency=2, daily_limit="1.5",
        monthly_limit="20", tokens_per_call={"*": 4000}, expires="2099-01-01",
    )  # fmt: skip
    secret = made.pop("secret")
    public_id = keys.parse_secret(secret)
    assert public_id is not None
    assert made["allow_ips"] == ["203.0.113.0/24", "2001:db8::1/128"]
    assert made["limits"] == {
        "rpm": 5, "tpm": 0, "concurrency": 2, "daily_limit": "1.5", "monthly_limit": "20",
        "tokens_per_call": {"*": 4000},
    }  # fmt: skip
    loaded = await store.find_credential(public_id)
    assert loaded is not None
    assert loaded.credential.digest == keys.digest(operations._pepper.value, secret)
    for document in (made, await run("key show", id="key_1"), await run("key list", id="acct_1"), await run("events")):
        assert secret[16:-4] not in str(document)
        assert not re.search(r"sk-\w+-", str(document))
    assert made["prefix"] == made["credentials"][0]["prefix"] == f"sk-{public_id}"
    assert made["credentials"][0]["last4"] == secret[-4:]


async def test_a_key_is_changed_and_restrictions_go_away(run: Run, live: FakeLive):
    await run("account create", email="a@example.com")
    await run("key create", id="acct_1", name="ci", scopes=["chat"], rpm=5, expires="2099-01-01")
    changed = await run("key set", id="key_1", scopes=None, rpm=None, expires=None, name="cd", models=["gpt-5"])
    assert (changed["name"], changed["scopes"], changed["models"]) == ("cd", None, ["gpt-5"])
    assert changed["limits"]["rpm"] is None
    assert changed["expires"] is None
    assert live.told == [("key", 1)]


async def test_a_key_has_its_own_way_with_clients_that_leave(run: Run, live: FakeLive):
    await run("account create", email="a@example.com")
    assert (await run("key create", id="acct_1"))["on_disconnect"] is None
    assert (await run("key create", id="acct_1", on_disconnect="drain"))["on_disconnect"] == "drain"
    assert (await run("key set", id="key_1", on_disconnect="cancel"))["on_disconnect"] == "cancel"
    assert (await run("key set", id="key_1", name="x"))["on_disconnect"] == "cancel"
    assert (await run("key set", id="key_1", on_disconnect=None))["on_disconnect"] is None
    assert live.told == [("key", 1)] * 3


async def test_a_key_rotates_with_an_overlap_of_choice(run: Run, live: FakeLive):
    await run("account create", email="a@example.com")
    first = await run("key create", id="acct_1")
    second = await run("key rotate", id="key_1", overlap_seconds=3600)
    assert second["secret"] != first["secret"]
    assert [row["last4"] for row in second["credentials"]] == [first["secret"][-4:], second["secret"][-4:]]
    assert second["credentials"][0]["expires"] == second["old_secrets_end"]
    assert second["credentials"][1]["expires"] is None
    third = await run("key rotate", id="key_1")
    assert [row["last4"] for row in third["credentials"]] == [third["secret"][-4:]]
    assert live.told == [("key", 1), ("key", 1)]


async def test_the_status_of_a_key(run: Run, live: FakeLive):
    await run("account create", email="a@example.com")
    await run("key create", id="acct_1")
    assert (await run("key suspend", id="key_1"))["status"] == "suspended"
    assert (await run("key resume", id="key_1"))["status"] == "active"
    revoked = await run("key revoke", id="key_1", reason="leaked")
    assert revoked["status"] == "revoked"
    assert revoked["credentials"] == []
    for name in ("key resume", "key revoke", "key rotate", "key set"):
        with pytest.raises(CommandError, match="revoked") as caught:
            await run(name, id="key_1")
        assert caught.value.code == "conflict"
    assert live.told == [("key", 1)] * 3


@pytest.mark.parametrize(
    ("name", "fields", "field"),
    [
        ("account create", {"email": "nobody"}, "email"),
        ("account create", {"email": "b@example.com", "plan": "gold"}, "plan"),
        ("account create", {"email": "b@example.com", "organisation": "a\x1b[31m"}, "organisation"),
        ("account set", {"id": "acct_1", "rpm": -1}, "rpm"),
        ("account set", {"id": "acct_1", "daily_limit": "-1"}, "daily_limit"),
        ("account set", {"id": "acct_1", "daily_limit": "1e3"}, "daily_limit"),
        ("account freeze", {"id": "acct_1", "reason": "two\nlines"}, "reason"),
        ("account list", {"limit": 0}, "limit"),
        ("account list", {"status": "gone"}, "status"),
        ("account show", {"id": "acct_01"}, "id"),
        ("account show", {"id": "key_1"}, "id"),
        ("credit add", {"id": "acct_1", "amount": "1", "kind": "gift"}, "kind"),
        ("credit add", {"id": "acct_1", "amount": "1", "expires": "2001-01-01"}, "expires"),
        ("credit add", {"id": "acct_1", "amount": "1", "idempotency_key": ""}, "idempotency_key"),
        ("credit refund", {"id": "acct_1", "amount": "1", "reason": " "}, "reason"),
        ("key create", {"id": "acct_1", "scopes": ["everything"]}, "scopes"),
        ("key create", {"id": "acct_1", "models": [""]}, "models"),
        ("key create", {"id": "acct_1", "models": ["g*-4o"]}, "models"),
        ("key create", {"id": "acct_1", "allow_ips": ["10.0.0.1/8"]}, "allow_ips"),
        ("key create", {"id": "acct_1", "allow_ips": ["localhost"]}, "allow_ips"),
        ("key create", {"id": "acct_1", "allow_ips": ["10.0.0.0/8"] * 201}, "allow_ips"),
        ("key create", {"id": "acct_1", "expires": "soon"}, "expires"),
        ("key create", {"id": "acct_1", "on_disconnect": "stop"}, "on_disconnect"),
        ("key create", {"id": "acct_1", "name": "n" * 101}, "name"),
        ("key create", {"id": "acct_1", "tokens_per_call": {"*": -1}}, "tokens_per_call"),
        ("key rotate", {"id": "key_1", "overlap_seconds": -1}, "overlap_seconds"),
        ("calls", {"since": "yesterday"}, "since"),
        ("calls", {"status": "99"}, "status"),
        ("calls", {"before": "call_1"}, "before"),
        ("calls", {"limit": 1001}, "limit"),
        ("backup", {"path": "relative.db"}, "path"),
    ],
)
async def test_values_that_cannot_be_right(run: Run, name: str, fields: dict[str, Any], field: str):
    await run("account create", email="a@example.com")
    await run("key create", id="acct_1")
    with pytest.raises(CommandError) as caught:
        await run(name, **fields)
    assert caught.value.code == "invalid"
    assert caught.value.field == field
    assert "\n" not in caught.value.message


@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("account show", {"id": "acct_9"}),
        ("account ban", {"id": "acct_9"}),
        ("account list", {"organisation": "none"}),
        ("credit add", {"id": "acct_9", "amount": "1"}),
        ("credit refund", {"id": "acct_9", "amount": "1", "reason": "r"}),
        ("key create", {"id": "acct_9"}),
        ("key list", {"id": "acct_9"}),
        ("key show", {"id": "key_9"}),
        ("key rotate", {"id": "key_9"}),
        ("calls", {"account": "acct_9"}),
        ("calls", {"key": "key_9"}),
        ("ledger show", {"id": "acct_9"}),
    ],
)
async def test_what_does_not_exist(run: Run, name: str, fields: dict[str, Any]):
    with pytest.raises(CommandError, match="no such") as caught:
        await run(name, **fields)
    assert caught.value.code == "not_found"


async def test_calls_are_listed_with_the_whole_record(run: Run, store: Store, config: Config):
    await run("account create", email="a@example.com")
    await run("credit add", id="acct_1", amount="1")
    await run("key create", id="acct_1")
    [(card, body)] = pricing.rate_cards(config).items()
    await store.put_rate_card(card, body)
    assert (await run("rates show"))["rate_card"] == card
    store.append_calls([
        call_record(counter=1, account_id=1, key_id=1, cost_nano=14_875, input_tokens=7, rate_card=card),
        call_record(counter=2, account_id=1, key_id=1, status=429, error_code="rate_limit_requests", rate_card=None),
        call_record(counter=3, account_id=1, key_id=1, stream=1, first_byte_us=250, rate_card=card),
    ])  # fmt: skip
    found = (await run("calls", account="acct_1"))["calls"]
    assert [row["stream"] for row in found] == [True, False, False]
    assert list(found[2]) == [
        "id", "time", "account_id", "organisation_id", "key_id", "path", "model", "upstream_model", "channel",
        "attempts", "stream", "status", "error_code", "input_tokens", "output_tokens", "cache_read_tokens",
        "cache_write_tokens", "images", "video_seconds", "web_searches", "usage_source", "cost", "rate_card",
        "latency_ms", "first_byte_ms", "source_ip", "user_agent",
    ]  # fmt: skip
    assert found[2]["cost"] == "0.000014875"
    assert found[2]["latency_ms"] == 1.5
    assert found[2]["error_code"] is None
    assert [row["id"] for row in (await run("calls", status="429"))["calls"]] == [found[1]["id"]]
    assert [row["id"] for row in (await run("calls", status="rate_limit_requests"))["calls"]] == [found[1]["id"]]
    assert (await run("calls", since="1h"))["calls"] == found
    assert (await run("calls", until="1h"))["calls"] == []
    page = await run("calls", limit=2)
    assert (await run("calls", limit=2, before=page["next"]))["calls"] == found[2:]
    assert (await run("account show", id="acct_1"))["balance"] == "0.999985125"
    assert (await run("ledger verify"))["ok"]


async def test_verify_says_which_call_has_another_cost_than_its_card(run: Run, store: Store, config: Config):
    await run("account create", email="a@example.com")
    await run("credit add", id="acct_1", amount="1")
    [(card, body)] = pricing.rate_cards(config).items()
    await store.put_rate_card(card, body)
    store.append_calls([
        call_record(id=units.call_id(time.time_ns() // 1_000_000, 1), account_id=1, cost_nano=1, rate_card=card),
        call_record(id=units.call_id(time.time_ns() // 1_000_000, 2), account_id=1, model="unknown", rate_card=card),
    ])  # fmt: skip
    verified = await run("ledger verify")
    assert verified["ok"] is False
    first, second = verified["differences"]
    assert first["subject"] == (await run("calls"))["calls"][1]["id"]
    assert (first["what"], first["expected"], first["found"]) == ("cost", "0", "0.000000001")
    assert second["expected"] == "a rate card with this model"


async def test_rates_and_their_check(run: Run):
    shown = await run("rates show")
    assert shown["discount"] == "0.85"
    assert shown["rates"][0]["model"] == "gpt-4o"
    assert shown["rates"][0]["input"] == "2.5"
    check = await run("rates check")
    assert check["ok"] is False
    assert "gpt-unheard-of" in check["errors"][0]
    assert any("other: cache_read" in line for line in check["warnings"])
    assert any("other: it has a rate and no channel" in line for line in check["warnings"])


async def test_terms_are_those_of_the_configuration(run: Run):
    terms = await run("terms")
    assert terms["plans"]["free"]["rpm"] == 20
    assert terms["plans"]["paid"]["concurrency"] == 50
    assert terms["retention"]["calls_days"] == 30
    assert terms["most_in_one_minute"] == "2 x rpm - 1"


async def test_a_backup_is_made_beside_the_running_store(run: Run, tmp_path: Any):
    await run("account create", email="a@example.com")
    path = tmp_path / "copy.db"
    assert (await run("backup", path=str(path)))["bytes"] == path.stat().st_size
    with pytest.raises(CommandError):
        await run("backup", path=str(path))


async def test_the_running_relay_is_asked(run: Run, live: FakeLive):
    assert (await run("status"))["running"] is True
    assert (await run("reload"))["reloaded"] is True
    live.config_is_broken = True
    with pytest.raises(CommandError, match=r"server\.listen"):
        await run("reload")
    assert (await run("drain"))["draining"] is True
    assert live.drained


async def test_without_a_relay_there_is_nothing_to_drain(store: Store, operations: Operations):
    alone = Operations(store, None, operations.config, operations._pepper)
    for name in ("status", "reload", "drain"):
        with pytest.raises(CommandError, match="no relay is running"):
            await alone.run(COMMANDS[name], read_params(COMMANDS[name], {}))


async def test_changes_at_the_same_time_do_not_lose_each_other(run: Run):
    await run("account create", email="a@example.com")
    await asyncio.gather(
        run("account set", id="acct_1", rpm=1),
        run("account set", id="acct_1", tpm=2),
        run("account set", id="acct_1", concurrency=3),
    )
    limits = (await run("account show", id="acct_1"))["limits"]
    assert (limits["rpm"], limits["tpm"], limits["concurrency"]) == (1, 2, 3)


async def test_fifty_at_once_make_one_account(run: Run):
    results = await asyncio.gather(
        *(run("account create", email="a@example.com") for _ in range(50)), return_exceptions=True
    )
    assert sum(isinstance(result, dict) for result in results) == 1


@pytest.mark.parametrize(
    ("acts", "status"), [(["freeze"], "frozen"), (["freeze", "ban"], "banned"), (["close"], "closed")]
)
async def test_finding_newcomer_36_an_account_says_why_it_is_not_active(run: Run, acts: list[str], status: str) -> None:
    await run("account create", email="a@example.com")
    assert "status_reason" not in await run("account show", id="acct_1")
    for act in acts:
        await run(f"account {act}", id="acct_1", reason=f"because of {act}")
    shown = await run("account show", id="acct_1")
    assert (shown["status"], shown["status_reason"]) == (status, f"because of {acts[-1]}")
    assert shown["status_by"] == "operator"
    assert shown["status_since"].endswith("Z")
