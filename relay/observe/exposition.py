"""Prometheus' text format, version 0.0.4."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_ESCAPES = str.maketrans({"\\": r"\\", '"': r"\"", "\n": r"\n"})


class Page:
    """One answer to a scrape, written family by family."""

    def __init__(self) -> None:
        self._lines: list[str] = []

    def family(self, name: str, kind: str, help_text: str, samples: Iterable[tuple[Mapping[str, str], object]]) -> None:
        """One metric with its samples: (labels, value). A family without samples is announced all the same."""
        self._head(name, kind, help_text)
        self._lines += [f"{name}{_labels(labels)} {value}" for labels, value in samples]

    def single(self, name: str, kind: str, help_text: str, value: object) -> None:
        """A metric without labels."""
        self.family(name, kind, help_text, [({}, value)])

    def histograms(
        self,
        name: str,
        help_text: str,
        bounds: Sequence[str],
        samples: Iterable[tuple[Mapping[str, str], Sequence[int], object]],
    ) -> None:
        """Samples: (labels, counts by bound and above all, sum). The counts are not cumulated."""
        self._head(name, "histogram", help_text)
        for labels, counts, total in samples:
            count = 0
            for bound, more in zip((*bounds, "+Inf"), counts, strict=True):
                count += more
                self._lines.append(f"{name}_bucket{_labels({**labels, 'le': bound})} {count}")
            self._lines.append(f"{name}_sum{_labels(labels)} {total}")
            self._lines.append(f"{name}_count{_labels(labels)} {count}")

    def _head(self, name: str, kind: str, help_text: str) -> None:
        self._lines.append(f"# HELP {name} {help_text}")
        self._lines.append(f"# TYPE {name} {kind}")

    def body(self) -> bytes:
        """The whole page."""
        return ("\n".join(self._lines) + "\n").encode()


def _labels(labels: Mapping[str, str]) -> str:
    if not labels:
        return ""
    return "{" + ",".join(f'{name}="{value.translate(_ESCAPES)}"' for name, value in labels.items()) + "}"
