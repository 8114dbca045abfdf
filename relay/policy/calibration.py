"""How far token estimates are off per model and channel, learnt from the answers that carry usage.

Prompts and outputs are kept apart: what a chat template adds to a prompt and what hidden reasoning adds to an output
are different things. Model names must come from the catalogue: that bounds the number of entries.
"""

from collections.abc import Iterable
from typing import NamedTuple

from relay._fastpath import Calibration

CalibrationRow = tuple[str, str, int, int, int, int]
"""Model, channel, then estimated and actual tokens of prompts, estimated and actual tokens of outputs."""


class CalibrationPair(NamedTuple):
    """The live calibrations of one model on one channel; the hot path holds on to these objects."""

    prompt: Calibration
    output: Calibration


class Calibrations:
    """All calibrations of the relay, and their form in the store: rows of text and integers."""

    def __init__(self) -> None:
        self._pairs: dict[tuple[str, str], CalibrationPair] = {}

    def pair(self, model: str, channel: str) -> CalibrationPair:
        """The calibrations for a model (upstream name) on a channel; neutral ones when it is new."""
        pair = self._pairs.get((model, channel))
        if pair is None:
            pair = self._pairs[model, channel] = CalibrationPair(Calibration(), Calibration())
        return pair

    def export(self) -> list[CalibrationRow]:
        """Everything learnt so far, in a stable order."""
        return [
            (model, channel, *pair.prompt.export(), *pair.output.export())
            for (model, channel), pair in sorted(self._pairs.items())
        ]

    def load(self, rows: Iterable[CalibrationRow]) -> None:
        """Take up rows from `export`. ValueError at the first that cannot be one; those before it are loaded."""
        for model, channel, prompt_estimated, prompt_actual, output_estimated, output_actual in rows:
            pair = self.pair(model, channel)
            pair.prompt.load(prompt_estimated, prompt_actual)
            pair.output.load(output_estimated, output_actual)
