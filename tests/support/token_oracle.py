"""The token automaton and the calibration again in plain Python: what relay._fastpath must agree with."""

import struct
from collections.abc import Iterable
from fractions import Fraction

TOKEN_UNIT = 4096


class Automaton:
    """A packed token table, read without relay."""

    def __init__(self, packed: bytes) -> None:
        assert packed[:4] == b"RTK1"
        classes, states = struct.unpack_from("<HH", packed, 4)
        self.class_of = packed[8:264]
        steps = classes * states
        self.targets = struct.unpack_from(f"<{steps}H", packed, 264)
        self.weights = struct.unpack_from(f"<{steps}H", packed, 264 + 2 * steps)
        self.class_count = classes

    def count(self, pieces: Iterable[bytes]) -> int:
        """In 1/TOKEN_UNIT token."""
        state = total = 0
        for piece in pieces:
            for byte in piece:
                step = state * self.class_count + self.class_of[byte]
                total += self.weights[step]
                state = self.targets[step]
        return total


class CalibrationOracle:
    prior, sample_max, window = 1024, 1 << 14, 1 << 18

    def __init__(self, permille: int = 1000) -> None:
        self.estimated = self.prior
        self.actual = self.prior * permille // 1000

    def observe(self, estimated: int, actual: int) -> None:
        if estimated <= 0 or actual <= 0:
            return
        estimated = min(estimated, 1 << 40)
        actual = min(max(actual, -(-estimated // 2)), 3 * estimated)
        if estimated > self.sample_max:
            actual = actual * self.sample_max // estimated
            estimated = self.sample_max
        self.estimated += estimated
        self.actual += actual
        if self.estimated > self.window:
            self.estimated //= 2
            self.actual //= 2

    def apply(self, estimated: int) -> int:
        estimated = min(max(estimated, 0), 1 << 40)
        ratio = (self.actual << 16) // self.estimated
        ratio = min(max(ratio, 1 << 15), 3 << 16)
        return -(-estimated * ratio >> 16)

    @property
    def ratio(self) -> Fraction:
        return Fraction(self.actual, self.estimated)
