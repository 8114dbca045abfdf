"""Turns results into a terminal table, a JSON document and the table of docs/performance.md."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from .runner import Sample, ScenarioResult
from .scenarios import Bar, Scenario, find
from .stats import ROUNDS_MIN, Summary, pairwise, summarize, verdict

REFERENCES = ("nginx", "relay-before")
FOREIGN_SHARE_MAX = 0.1  # of the proxy's core used by other programs; above it, no verdict on times

ROUND = re.compile(r"([\w-]+), round (\d+): (.*)", re.DOTALL)

# figure → heading, divisor, decimals
SHOWN: dict[str, tuple[str, float, int]] = {
    "cpu_us_per_call": ("CPU/call us", 1, 1),
    "cpu_us_per_event": ("CPU/event us", 1, 1),
    "calls_per_second": ("calls/s", 1, 0),
    "events_per_second": ("events/s", 1, 0),
    "memory_bytes_per_stream": ("KiB/stream", 1024, 1),
    "ready_seconds": ("ready s", 1, 2),
    "memory_bytes": ("memory MiB", 1024 * 1024, 1),
}
for _name, _heading in (("latency", "total"), ("first_byte", "first byte"), ("gap", "gap"), ("lateness", "late")):
    for _percentile in ("p50", "p90", "p99", "p99.9"):
        SHOWN[f"{_name}_{_percentile}_us"] = (f"{_heading} {_percentile} ms", 1000, 3)


@dataclass(frozen=True)
class Judged:
    """A bar with what came of it."""

    bar: Bar
    summary: Summary | None
    verdict: str

    def text(self) -> str:
        if self.summary is None:
            return f"{self.bar.about}: not measured"
        form, divisor, unit = self._unit()
        numbers = [form.format(x / divisor) for x in (self.summary.median, self.summary.low, self.summary.high)]
        return f"{self.bar.about}: {numbers[0]}{unit} ({numbers[1]} to {numbers[2]}): {self.verdict}"

    def _unit(self) -> tuple[str, float, str]:
        """How its numbers are written: format, divisor, unit. A ratio has none."""
        if self.bar.kind == "ratio":
            return "{:.2f}", 1, ""
        figure = self.bar.figure
        if figure.startswith("memory"):
            return "{:.1f}", 1024, " KiB"
        if figure.startswith("cpu_us"):
            return "{:.1f}", 1, " us"
        return ("{:.3f}", 1000, " ms") if figure.endswith("_us") else ("{:.2f}", 1, " s")


def values(samples: Sequence[Sample], figure: str) -> list[float]:
    """One figure over the rounds, in their order."""
    return [sample.figures[figure] for sample in samples if figure in sample.figures]


def judge(scenario: Scenario, result: ScenarioResult) -> list[Judged]:
    """Every bar of the scenario. Wrong results leave nothing to judge."""
    judged = []
    for bar in scenario.bars:
        other = result.earlier.get(bar.scenario) if bar.scenario else result
        if bar.of not in result.samples or other is None:
            continue
        if bar.kind != "absolute" and bar.against not in other.samples:
            continue
        ours = values(result.samples[bar.of], bar.figure)
        if bar.kind == "absolute":
            compared = ours
        else:
            compared = pairwise(ours, values(other.samples[bar.against], bar.figure), bar.kind)
        summary = summarize(compared)
        text = verdict(summary, bar.limit)
        if result.all_wrong or other.all_wrong:
            text = "wrong result"
        elif not bar.figure.startswith(("cpu", "memory")) and _disturbed(result, bar):
            text = "inconclusive (other programs on the proxy's core)"
        judged.append(Judged(bar, summary, text))
    return judged


def _disturbed(result: ScenarioResult, bar: Bar) -> bool:
    """Whether times say more about the machine than about the proxies: its core was shared in the middle round."""
    shares = [summarize([s.foreign_share for s in result.samples.get(name, [])]) for name in {bar.of, bar.against}]
    return any(share is not None and share.median > FOREIGN_SHARE_MAX for share in shares)


def show(figure: str, summary: Summary | None) -> str:
    """`12.3 (11.9-12.8)`, with `~` where the spread is large."""
    if summary is None:
        return ""
    _, divisor, decimals = SHOWN[figure]
    median, low, high = (f"{x / divisor:,.{decimals}f}" for x in (summary.median, summary.low, summary.high))
    return f"{'~' if summary.noisy else ''}{median} ({low}-{high})" if len(summary.values) > 1 else median


def _references(result: ScenarioResult) -> list[str]:
    """Contenders to which the others are compared: nginx, and what relay was before."""
    return [name for name in REFERENCES if name in result.samples] or [REFERENCES[0]]


def _ratio(result: ScenarioResult, name: str, figure: str, reference: str) -> Summary | None:
    if reference not in result.samples or name == reference or (reference != REFERENCES[0] and name != "relay"):
        return None
    return summarize(pairwise(values(result.samples[name], figure), values(result.samples[reference], figure), "ratio"))


def table(scenario: Scenario, result: ScenarioResult) -> list[list[str]]:
    """Rows of text, heading first: a column per figure, and the ratios of the first one to nginx and relay-before."""
    figures = [f for f in scenario.figures if any(values(s, f) for s in result.samples.values())]
    main = figures[0] if figures else ""
    references = _references(result)
    rows = [["", *(SHOWN[f][0] for f in figures), *(f"x {reference}" for reference in references)]]
    for name, samples in result.samples.items():
        ratios = [_ratio(result, name, main, reference) for reference in references]
        rows.append(
            [
                name,
                *(show(f, summarize(values(samples, f))) for f in figures),
                *(f"{ratio.median:.3f}" if ratio else "" for ratio in ratios),
            ]
        )
    return rows


def _load_core_full(sample: Sample) -> bool:
    return sample.figures.get("load_core_share", 0) > 0.97 and sample.figures.get("proxy_cpu_share", 1) < 0.9


def remarks(result: ScenarioResult) -> list[str]:
    """What a reader has to know: disturbance, a full load core, contenders left out, wrong results."""
    found = []
    rounds = max((len(samples) for samples in result.samples.values()), default=0)
    if 0 < rounds < ROUNDS_MIN:
        found.append(f"{rounds} round(s): no verdict below {ROUNDS_MIN}")
    for name, samples in result.samples.items():
        disturbed = [s for s in samples if s.foreign_share > 0.05]
        if disturbed:
            worst = max(s.foreign_share for s in disturbed)
            where = f"the proxy's core in {len(disturbed)} round(s)"
            found.append(f"{name}: other programs used up to {worst:.0%} of {where}")
        if name != "direct" and any(_load_core_full(s) for s in samples):
            found.append(f"{name}: the load's core was full before the proxy's, so calls/s is not its limit")
        texts = [note for s in samples for note in s.notes]
        found += [f"{name}: {text}, in {texts.count(text)} round(s)" for text in dict.fromkeys(texts)]
    found += [f"{name}: left out: {reason}" for name, reason in result.unavailable.items()]
    found += [f"WRONG: {text}" for text in merged(result.all_wrong)]
    return found


def summary(done: Sequence[tuple[Scenario, ScenarioResult]]) -> list[tuple[str, str]]:
    """Each bar of the run in one line, with its verdict's first word, those that are not met first."""
    lines = []
    for scenario, result in done:
        lines += [
            (judged.verdict.split()[0], f"{scenario.name}: {judged.text()}") for judged in judge(scenario, result)
        ]
        lines += [("wrong", f"{scenario.name}: {text}") for text in merged(result.all_wrong)]
    order = ("wrong", "missed", "inconclusive", "met")
    return sorted(lines, key=lambda line: order.index(line[0]))


def merged(texts: Sequence[str]) -> list[str]:
    """What went wrong in several rounds alike ("relay, round 2: text") becomes one line."""
    rounds: dict[tuple[str, str], list[str]] = {}
    for text in texts:
        found = ROUND.fullmatch(text)
        key, number = ((found[1], found[3]), found[2]) if found else ((text, ""), "")
        rounds.setdefault(key, []).append(number)
    return [
        f"{name}, round{'s' * (len(numbers) > 1)} {', '.join(numbers)}: {what}" if numbers[0] else name
        for (name, what), numbers in rounds.items()
    ]


def print_table(rows: Sequence[Sequence[str]]) -> str:
    """Columns aligned, numbers to the right."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = []
    for row in rows:
        cells = [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
        lines.append("  " + "  ".join(cells).rstrip())
    return "\n".join(lines)


def terminal(scenario: Scenario, result: ScenarioResult) -> str:
    lines = [f"\n{scenario.name}: {scenario.about}", print_table(table(scenario, result))]
    lines += [f"  - {judged.text()}" for judged in judge(scenario, result)]
    lines += [f"  ! {remark}" for remark in remarks(result)]
    return "\n".join(lines)


def document(machine: dict[str, Any], done: Sequence[tuple[Scenario, ScenarioResult]]) -> dict[str, Any]:
    """Everything measured, raw, and what was concluded."""
    scenarios = []
    for scenario, result in done:
        scenarios.append(
            {
                "name": scenario.name,
                "about": scenario.about,
                "load": result.load,
                "right": not result.all_wrong,
                "wrong": result.all_wrong,
                "unavailable": result.unavailable,
                "bars": [
                    {**asdict(j.bar), "verdict": j.verdict, "measured": asdict(j.summary) if j.summary else None}
                    for j in judge(scenario, result)
                ],
                "contenders": {name: [asdict(s) for s in samples] for name, samples in result.samples.items()},
            }
        )
    return {"format": 1, "machine": machine, "scenarios": scenarios}


def write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=1) + "\n")


def read_json(path: Path) -> tuple[dict[str, Any], list[tuple[Scenario, ScenarioResult]]]:
    """What `write_json` wrote: machine and results, to report them again. ValueError if it is something else."""
    content = json.loads(path.read_text())
    if content.get("format") != 1:
        raise ValueError(f"{path}: not a result file of this version")
    done: list[tuple[Scenario, ScenarioResult]] = []
    for item in content["scenarios"]:
        result = ScenarioResult(item["name"], item["about"], item["load"], unavailable=item["unavailable"])
        result.earlier = {before.scenario: before for _, before in done}
        for name, samples in item["contenders"].items():
            result.samples[name] = [Sample(**{**sample, "wrong": []}) for sample in samples]
        for text in item["wrong"]:  # those of single rounds are among them
            name, _, what = text.partition(": ")
            result.wrong.setdefault(name, []).append(what)
        done.append((find(item["name"]), result))
    return content["machine"], done


def marks(section: str) -> tuple[str, str]:
    """What stands before and after a generated section of a page."""
    return f"<!-- begin {section}: written by benchmarks -->", f"<!-- end {section} -->"


def write_docs(
    path: Path, section: str, machine: dict[str, Any], done: Sequence[tuple[Scenario, ScenarioResult]], command: str
) -> None:
    """Replaces the section of the page. ValueError if it is missing or a result is wrong."""
    wrong = [text for _, result in done for text in result.all_wrong]
    if wrong:
        raise ValueError(f"{path} is left as it is, because results are wrong: {wrong[0]}")
    nginx = str(machine.get("nginx", "")).removeprefix("nginx version: ")
    packages = ", ".join(f"{name} {version}" for name, version in machine["packages"].items())
    parts = [
        f"Measured {machine['time']} at commit {machine['commit']} by `{command}`: {machine['cpu']}, "
        f"{machine['cpus']} CPUs, Linux {machine['kernel']}, Python {machine['python']}, {nginx}, {packages}.",
        "Median of the rounds, quartiles in parentheses (extremes below five rounds); "
        "`~`: the quartiles lie more than 25 % apart.",
        "",
    ]
    for scenario, result in done:
        figures = [f for f in scenario.figures if any(values(s, f) for s in result.samples.values())]
        parts += [f"**{scenario.name}**: {scenario.about}", ""]
        headings = [SHOWN[f][0] for f in figures]
        key = "cpu_us_per_call"
        headings += [f"CPU/call x {reference}" for reference in _references(result)]
        parts.append("| | " + " | ".join(headings) + " |")
        parts.append("|---" + "|---:" * len(headings) + "|")
        for name, samples in result.samples.items():
            cells = [show(f, summarize(values(samples, f))) for f in figures]
            for reference in _references(result):
                ratio = _ratio(result, name, key, reference)
                cells.append(f"{ratio.median:.2f} ({ratio.low:.2f}-{ratio.high:.2f})" if ratio else "")
            parts.append(f"| {name} | " + " | ".join(cells) + " |")
        parts.append("")
        parts += [f"- {judged.text()}" for judged in judge(scenario, result)]
        parts += [f"- Note: {remark}" for remark in remarks(result)]
        parts.append("")
    write_section(path, section, parts)


def write_section(path: Path, section: str, lines: Sequence[str]) -> None:
    """Replaces a generated section of a page. ValueError if it is not there."""
    page = path.read_text()
    begin, end = marks(section)
    if page.count(begin) != 1 or page.count(end) != 1:
        raise ValueError(f"{path}: there is no generated section {section!r}")
    before, _, rest = page.partition(begin)
    after = rest.partition(end)[2]
    path.write_text(before + "\n".join([begin, "", *lines, end]) + after)
