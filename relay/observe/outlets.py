"""Access log and spans, as the configuration in force has them."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from relay.config import Observe
from relay.config_values import ConfigError, Fault
from relay.observe.access_log import AccessLog
from relay.observe.outlet import Outlet, Sink
from relay.observe.spans import Spans, SpansUnavailable
from relay.records import C_ID, CallRecord


def _fault(name: str, error: OSError | SpansUnavailable) -> Fault:
    if isinstance(error, SpansUnavailable):
        expected = "the packages of the extra `otel` (pip install '/path/to/checkout[otel]'), or empty text"
        return Fault(f"observe.{name}", expected, "no such packages")
    return Fault(f"observe.{name}", "a file that can be written", error.strerror or type(error).__name__)


class Outlets:
    """What is sent where. Its methods belong to the event loop; none waits but `close`."""

    def __init__(self) -> None:
        self._outlets: dict[str, tuple[str, Outlet]] = {}  # name -> (target, outlet)
        self._dropped: dict[str, int] = {}  # by outlets that are no more

    def use(self, observe: Observe, file: str) -> None:
        """Puts a configuration into force; what stays the same begins anew (a log file that was moved away).

        Raises ConfigError, and then nothing has changed. `file` is the configuration's, for the message.
        """
        fresh: dict[str, tuple[str, Outlet]] = {}
        makers: tuple[tuple[str, str, Callable[[str], Sink]], ...] = (
            ("access_log", observe.access_log, AccessLog),
            ("spans", observe.spans, Spans),
        )
        sinks: dict[str, Sink] = {}
        for name, target, make in makers:
            if not target or self._outlets.get(name, ("",))[0] == target:
                continue
            try:
                sinks[name] = make(target)
            except (OSError, SpansUnavailable) as error:
                for sink in sinks.values():
                    sink.close()
                raise ConfigError(file, [_fault(name, error)]) from None
        for name, target, _ in makers:
            if name in sinks:
                fresh[name] = (target, Outlet(name, sinks[name]))
            elif target:
                fresh[name] = self._outlets[name]
                fresh[name][1].reopen()
        for name, (_, outlet) in self._outlets.items():
            if fresh.get(name, ("", None))[1] is not outlet:
                outlet.finish()
                self._dropped[name] = self._dropped.get(name, 0) + outlet.dropped
        self._outlets = fresh

    def put(self, records: list[CallRecord], traceparents: Mapping[int, bytes] | None = None) -> None:
        """Records of ended calls. `traceparents`: what callers sent of their own traces, by call; for spans alone."""
        parents = traceparents or {}
        for name, (_, outlet) in self._outlets.items():
            outlet.put([(record, parents.get(record[C_ID])) for record in records] if name == "spans" else records)

    def dropped(self) -> Mapping[str, int]:
        """Records that were not taken in time, by name; of what is or was in use."""
        counts = dict(self._dropped)
        for name, (_, outlet) in self._outlets.items():
            counts[name] = counts.get(name, 0) + outlet.dropped
        return counts

    def close(self) -> None:
        """Writes what waits, for a bounded time."""
        for _, outlet in self._outlets.values():
            outlet.finish()
        for _, outlet in self._outlets.values():
            outlet.join()
