"""The money of one realtime session in plain Python: what relay/fastpath/session.pxi must agree with.

A session is a stream whose usage adds up: reports of finished responses, and a count of the one that is not finished.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from tests.support.money_oracle import CallOracle, clamp

TOKENS = (
    "input", "output", "cache_read", "audio_input", "audio_output", "image_input",
    "audio_cache_read", "image_cache_read",
)  # fmt: skip


@dataclass
class SessionOracle:
    call: CallOracle
    finished: dict[str, int] = field(default_factory=lambda: dict.fromkeys(TOKENS, 0))
    counted: dict[str, int] = field(default_factory=dict)
    reports: int = 0
    estimated: bool = False

    def report(self, usage: dict[str, int], *, estimated: bool, wall: int) -> str:
        """A response has ended. "" or why the session has to end."""
        for name in ("input", "output", "cache_read"):
            self.finished[name] = clamp(self.finished[name] + clamp(usage.get(name, 0)))
        # Sound and pictures are among the rest and never more than that.
        for name, room in (("audio_input", "input"), ("audio_output", "output"), ("image_input", "input")):
            most = self.finished[room] - (self.finished["audio_input"] if name == "image_input" else 0)
            self.finished[name] = min(most, self.finished[name] + clamp(usage.get(name, 0)))
        for name in ("audio_cache_read", "image_cache_read"):
            most = self.finished["cache_read"] - (name == "image_cache_read") * self.finished["audio_cache_read"]
            self.finished[name] = min(most, self.finished[name] + clamp(usage.get(name, 0)))
        self.counted = {}
        self.reports += 1
        self.estimated |= estimated
        return self._covered(wall)

    def count(self, usage: dict[str, int], *, wall: int) -> str:
        """So much of a response has come. "" or why the session has to end."""
        self.counted = {name: clamp(n) for name, n in usage.items()}
        for name, of in (("audio_input", "input"), ("audio_output", "output")):
            self.counted[name] = min(self.counted[name], self.counted[of])
        return self._covered(wall)

    def used(self) -> dict[str, int]:
        return {name: clamp(n + self.counted.get(name, 0)) for name, n in self.finished.items()}

    def _covered(self, wall: int) -> str:
        used = self.used()
        self.call.correct_prompt({name: used[name] for name in ("input", "cache_read")})
        return self.call.grow(used["output"] + 1, wall)

    @property
    def source(self) -> str:
        """Where the usage comes from; "none": nothing has been used."""
        if any(self.counted.values()) or self.estimated:
            return "estimated"
        return "upstream" if self.reports else "none"

    def end(self, now: int, wall: int, *, forwarded: bool) -> dict[str, Any]:
        """The one ending, as its record tells it."""
        used = self.used()
        source = self.source
        cost = written_off = 0
        if source == "none":
            self.call.release(now, forwarded=forwarded)
        else:
            cost, written_off = self.call.settle(used, now, wall)
        return {
            "input_tokens": used["input"],
            "output_tokens": used["output"],
            "cache_read_tokens": used["cache_read"],
            "usage_source": source,
            "cost_nano": cost,
            "write_off_nano": written_off,
        }
