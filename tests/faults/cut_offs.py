"""Streams that outrun a small balance: cut at an event's end, with the dialect's error event, at most one too late."""

import asyncio
import random
import re
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from relay.simulator import Running
from tests.faults.books import rows
from tests.faults.bursts import credits
from tests.faults.traffic import CHAT, DIALECTS, GEMINI, MESSAGES, RESPONSES, Call, Dialect, make_call, words
from tests.functional.relay_process import RelayProcess
from tests.functional.setting import PRICES, config_text
from tests.support.stored import assert_books_agree

INPUT, OUTPUT = 0, 1  # places in PRICES
NOWHERE = "http://127.0.0.1:9"
EVENT_TOKENS_MAX = 8  # of one word, by the relay's count
PROMPT_TOKENS_MAX = 100  # what the relay may have held for the prompt above what the upstream reports of it
# The last event of a stream that was cut, as each dialect writes an error.
ERROR_EVENTS = {
    CHAT: rb'data: \{"error": ?\{',
    RESPONSES: rb"event: error\r?\ndata: \{",
    MESSAGES: rb'event: error\r?\ndata: \{"type": ?"error"',
    GEMINI: rb'data: \{"error": ?\{',
}


@dataclass
class CutOffs:
    folder: Path
    simulator: Running
    rng: random.Random
    cut: Counter[str] = field(default_factory=Counter)  # streams, by dialect
    written_off_tokens_max: float = 0.0  # the largest overshoot

    async def run(self, runs: int, *, at_once: int = 1) -> None:
        """So many in each dialect."""
        relay = RelayProcess(self.folder, config_text(self.simulator.base_url, NOWHERE))
        calls: list[Call] = []
        try:
            await relay.start()
            left = [dialect for _ in range(runs) for dialect in DIALECTS]

            async def worker() -> None:
                while left:
                    calls.append(await self._cut(relay, left.pop()))

            async with asyncio.TaskGroup() as group:
                for _ in range(at_once):
                    group.create_task(worker())
            assert (await relay.command("ledger verify"))["ok"]
            assert relay.faults == []
            assert await relay.stop() == 0
            balances = assert_books_agree(relay.data_dir)
            for call in calls:
                self.cut[call.dialect.name] += 1
                self.written_off_tokens_max = max(
                    self.written_off_tokens_max, check_cut(relay.data_dir, call, balances)
                )
        finally:
            await relay.kill()

    async def _cut(self, relay: RelayProcess, dialect: Dialect) -> Call:
        """The balance pays for the prompt and some words."""
        token_nano = price_nano(dialect, OUTPUT)
        customer = await relay.customer(credits(token_nano * self.rng.randint(60, 400)))
        said = words(dialect, 700, self.rng.randrange(40))
        pace = self.rng.choice(("", "pace_ms=1", "pack=5", "split=100"))
        return await make_call(customer, dialect, stream=True, directives=f"{said} {pace}", output_limit=5000)


def price_nano(dialect: Dialect, kind: int) -> int:
    """Price of a token."""
    whole, _, part = PRICES[dialect.model][kind].partition(".")
    return int(whole + part.ljust(3, "0"))


def check_cut(data_dir: Path, call: Call, balances: dict[int, int]) -> float:
    """Returns by how many tokens it went beyond the balance."""
    (record,) = rows(data_dir, "SELECT * FROM call_records WHERE id = ?", call.record_id)
    what = f"{call.dialect.name} {record} {call.body[-300:]!r}"
    assert call.status == 200, what
    assert record["error_code"] == "balance_exhausted", what
    last = re.split(rb"\r?\n\r?\n", call.body.rstrip())[-1]
    assert re.match(ERROR_EVENTS[call.dialect], last), what
    written_off = sum(
        row["amount_nano"]
        for row in rows(data_dir, "SELECT * FROM entries WHERE kind = 'write_off' AND call_id = ?", call.record_id)
    )
    event_nano = EVENT_TOKENS_MAX * price_nano(call.dialect, OUTPUT)
    assert written_off <= event_nano, what
    # What is left would not have paid for another event.
    assert balances[record["account_id"]] <= event_nano + PROMPT_TOKENS_MAX * price_nano(call.dialect, INPUT), what
    found = call.dialect.tap(call.body, True)
    assert record["output_tokens"] == max(found["delivered_tokens"], found["output_tokens"]), what
    return written_off / price_nano(call.dialect, OUTPUT)
