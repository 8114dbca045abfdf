"""Who has an Idempotency-Key while several ask for it, over a real store."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from relay import units
from relay.proxy.idempotency import IdempotencyKeys
from relay.proxy.sidecalls import RefusedError
from relay.records import MS_PER_DAY, first_call_id
from relay.storage import Store
from relay.storage.rows import KeyClaim
from tests.support.stored import NOON_MS

NOW = first_call_id(NOON_MS)


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[Store]:
    opened = await Store.open(tmp_path / "data", now_ms=lambda: NOON_MS)
    yield opened
    await opened.close()


@pytest.fixture
def keys(store: Store, monkeypatch: pytest.MonkeyPatch) -> IdempotencyKeys:
    monkeypatch.setattr("relay.proxy.idempotency.time.time_ns", lambda: NOON_MS * 1_000_000)
    return IdempotencyKeys(store, b"pepper")


def take(
    keys: IdempotencyKeys, number: int, body: bytes | None = b"body", key: bytes = b"key", account: int = 1
) -> Any:
    return keys.take(account, key, NOW + number, "/v1/videos", body)


async def bound(keys: IdempotencyKeys, store: Store, number: int) -> KeyClaim:
    claim: KeyClaim = await take(keys, number)
    async with keys.binding(claim):
        await store.objects.bind_key(claim)
    return claim


def says(error: object, number: int, words: str = "") -> bool:
    return isinstance(error, RefusedError) and error.param == units.call_text(NOW + number) + words


async def test_all_are_told_of_the_first(keys: IdempotencyKeys, store: Store):
    claim = await bound(keys, store, 1)
    keys.let_go(claim)
    found = await asyncio.gather(*(take(keys, number) for number in range(2, 9)), return_exceptions=True)
    assert all(says(error, 1) for error in found), found
    with pytest.raises(RefusedError) as caught:
        await take(keys, 9, b"another")
    assert says(caught.value, 1, " with another body")
    with pytest.raises(RefusedError) as caught:
        await take(keys, 9, None)
    assert says(caught.value, 1)
    await take(keys, 10, key=b"other")
    await take(keys, 11, account=2)
    await store.objects.free_key(claim)
    assert (await take(keys, 12)).call_id == NOW + 12


async def test_one_of_many_has_it(keys: IdempotencyKeys):
    found = await asyncio.gather(*(take(keys, number) for number in range(1, 9)), return_exceptions=True)
    assert [isinstance(one, KeyClaim) for one in found] == [True] + [False] * 7
    assert all(says(error, 1) for error in found[1:])


async def test_who_leaves_while_the_store_is_asked_passes_it_on(keys: IdempotencyKeys):
    first, second, third = (asyncio.ensure_future(take(keys, number)) for number in (1, 2, 3))
    await asyncio.sleep(0)
    first.cancel()
    found = await asyncio.gather(first, second, third, return_exceptions=True)
    assert isinstance(found[0], asyncio.CancelledError)
    assert isinstance(found[1], KeyClaim)
    assert says(found[2], 2)
    keys.let_go(found[1])
    assert isinstance(await take(keys, 4), KeyClaim)


async def test_who_leaves_while_it_is_bound_keeps_it(keys: IdempotencyKeys, store: Store):
    claim = await take(keys, 1)
    async with keys.binding(claim):
        keys.let_go(claim)
        with pytest.raises(RefusedError) as caught:
            await take(keys, 2)
        await store.objects.bind_key(claim)
    assert says(caught.value, 1)
    with pytest.raises(RefusedError) as caught:
        await take(keys, 3)
    assert says(caught.value, 1)


async def test_who_left_before_has_lost_it(keys: IdempotencyKeys, store: Store):
    claim = await take(keys, 1)
    keys.let_go(claim)
    other = await take(keys, 2)
    with pytest.raises(RefusedError) as caught:
        async with keys.binding(claim):
            raise AssertionError("not reached")
    assert says(caught.value, 2)
    async with keys.binding(other):
        await store.objects.bind_key(other)
    with pytest.raises(RefusedError) as caught:  # what only the store knows
        async with keys.binding(claim):
            await store.objects.bind_key(claim)
    assert says(caught.value, 2)
    assert isinstance(await take(keys, 3, key=b"other"), KeyClaim)


async def test_a_key_is_kept_for_a_day(keys: IdempotencyKeys, store: Store, monkeypatch: pytest.MonkeyPatch):
    keys.let_go(await bound(keys, store, 1))
    for later_ms, kept in ((MS_PER_DAY, True), (MS_PER_DAY + 1, False)):
        now = NOON_MS + later_ms
        monkeypatch.setattr("relay.proxy.idempotency.time.time_ns", lambda now=now: now * 1_000_000)
        if kept:
            with pytest.raises(RefusedError):
                await take(keys, 2)
        else:
            await take(keys, 2)


@pytest.mark.parametrize("key", [b"", b"x" * 256])
async def test_what_is_no_key(keys: IdempotencyKeys, key: bytes):
    with pytest.raises(RefusedError) as caught:
        await take(keys, 1, key=key)
    assert (caught.value.code, caught.value.param) == ("invalid_value", "idempotency-key")
