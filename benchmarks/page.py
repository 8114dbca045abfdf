"""One self-contained HTML page: tables and inline SVG plots, no script, nothing fetched."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

from .report import SHOWN, judge, remarks, summary, table, values
from .runner import ScenarioResult
from .scenarios import Scenario
from .stats import summarize

COLOURS = ("#5b6470", "#0b7a75", "#c2571a", "#3d55cc", "#8a3ffc", "#a8326e", "#7a6a00")
CURVE = ("p1", "p5", "p10", "p25", "p50", "p75", "p90", "p95", "p99", "p99.5", "p99.9", "p99.99")
STYLE = """
body{font:15px/1.5 system-ui,sans-serif;max-width:1080px;margin:2em auto;padding:0 1em;color:#1c2026;background:#fff}
table{border-collapse:collapse;margin:.8em 0;font-variant-numeric:tabular-nums}
td,th{padding:.25em .8em;text-align:right;
border-bottom:1px solid #dfe3e8}td:first-child,th:first-child{text-align:left}h2{margin-top:2.2em}.met{color:#0a6b3d}
.missed,.wrong{color:#b3261e;font-weight:600}.inconclusive{color:#7a5c00}.plots{display:flex;flex-wrap:wrap;gap:1em}
svg text{font:12px system-ui,sans-serif;fill:#1c2026}small{color:#5b6470}.scroll{overflow-x:auto}
@media(prefers-color-scheme:dark){
body{background:#14171b;color:#e6e9ee}svg text{fill:#e6e9ee}td,th{border-color:#353b44}
.met{color:#5fd39a}.missed,.wrong{color:#ff8a80}.inconclusive{color:#e5c55c}small{color:#9aa4b1}}
"""

WORDS = """\
<p><small><b>direct</b>: the load client speaks to the simulated upstream with nothing in between. <b>naive</b>:
a proxy of aiohttp's server and client as one writes it first. <b>late</b>: an event's arrival at the client
after the time for which the upstream had scheduled it. <b>first byte</b>: of the answer's body, from when the
call was due. <b>total</b>: until the answer's last byte. <b>met</b>: the upper quartile keeps the bar.
<b>inconclusive</b>: the rounds differ too much to tell, or other programs used the machine.</small></p>"""


def _bars(result: ScenarioResult, figure: str) -> str:
    """One bar per contender, a line from quartile to quartile, a dot per round."""
    heading, divisor, decimals = SHOWN[figure]
    rows = [(i, name, values(s, figure)) for i, (name, s) in enumerate(result.samples.items())]
    rows = [row for row in rows if row[2]]
    if not rows:
        return ""
    width, left, line = 500, 100, 30
    top = max(max(numbers) for _, _, numbers in rows) or 1.0
    scale = (width - left - 90) / top
    height = line * len(rows) + 34
    parts = [f'<svg width="{width}" height="{height}" role="img" aria-label="{escape(heading)}">']
    parts.append(f'<text x="0" y="14" font-weight="600">{escape(heading)}</text>')
    for row, (i, name, numbers) in enumerate(rows):
        y = 26 + row * line
        summary = summarize(numbers)
        assert summary is not None
        colour = COLOURS[i % len(COLOURS)]
        parts.append(f'<text x="0" y="{y + 15}">{escape(name)}</text>')
        bar = max(summary.median * scale, 1)
        parts.append(f'<rect x="{left}" y="{y}" width="{bar:.1f}" height="20" fill="{colour}" opacity=".75"/>')
        x1, x2 = left + summary.low * scale, left + summary.high * scale
        parts.append(f'<path d="M{x1:.1f} {y + 10}H{x2:.1f}" stroke="currentColor" stroke-width="2"/>')
        parts += [f'<circle cx="{left + n * scale:.1f}" cy="{y + 10}" r="2.2" fill="currentColor"/>' for n in numbers]
        label = f"{summary.median / divisor:,.{decimals}f}"
        x = left + max(numbers) * scale + 6
        parts.append(f'<text x="{x:.1f}" y="{y + 15}">{label}</text>')
    return "".join(parts) + "</svg>"


def _curve(result: ScenarioResult, histogram: str, heading: str) -> str:
    """Percentiles (x: distance from 100 %, logarithmic) against time (y, logarithmic), median over the rounds."""
    lines: list[tuple[int, str, list[tuple[float, float]]]] = []
    for i, (name, samples) in enumerate(result.samples.items()):
        points = []
        for name_of in CURVE:
            numbers = [s.raw[histogram][name_of] for s in samples if s.raw[histogram]["count"]]
            summary = summarize([n for n in numbers if n > 0])
            if summary:
                points.append((float(name_of[1:]), summary.median))
        if len(points) > 2:
            lines.append((i, name, points))
    if not lines:
        return ""
    width, height, left, bottom = 500, 260, 60, 40
    low = min(y for _, _, points in lines for _, y in points)
    high = max(y for _, _, points in lines for _, y in points)
    low_log, high_log = math.floor(math.log10(low)), math.ceil(math.log10(high) + 1e-9)

    def x_of(percentile: float) -> float:
        return left + (2 - math.log10(100 - percentile)) / 4 * (width - left - 10)

    def y_of(us: float) -> float:
        return height - bottom - (math.log10(us) - low_log) / max(high_log - low_log, 1) * (height - bottom - 34)

    parts = [f'<svg width="{width}" height="{height}" role="img" aria-label="{escape(heading)}">']
    parts.append(f'<text x="0" y="14" font-weight="600">{escape(heading)}</text>')
    for exponent in range(low_log, high_log + 1):
        y = y_of(10.0**exponent)
        us = 10.0**exponent
        label = f"{us / 1e6:g} s" if us >= 1e6 else f"{us / 1e3:g} ms" if us >= 1e3 else f"{us:g} us"
        parts.append(f'<path d="M{left} {y:.1f}H{width - 10}" stroke="#8a93a0" stroke-width=".5"/>')
        parts.append(f'<text x="{left - 6}" y="{y + 4:.1f}" text-anchor="end">{label}</text>')
    for percentile in (50.0, 90.0, 99.0, 99.9, 99.99):
        x = x_of(percentile)
        parts.append(f'<path d="M{x:.1f} 30V{height - bottom}" stroke="#8a93a0" stroke-width=".5"/>')
        anchor = "end" if percentile == 99.99 else "middle"  # at the edge
        parts.append(f'<text x="{x:.1f}" y="{height - bottom + 16}" text-anchor="{anchor}">{percentile:g} %</text>')
    for place, (i, name, points) in enumerate(lines):
        colour = COLOURS[i % len(COLOURS)]
        path = " ".join(f"{x_of(p):.1f},{y_of(us):.1f}" for p, us in points)
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
        x = left + place * 95
        parts.append(f'<rect x="{x}" y="{height - 14}" width="12" height="4" fill="{colour}"/>')
        parts.append(f'<text x="{x + 16}" y="{height - 8}">{escape(name)}</text>')
    return "".join(parts) + "</svg>"


def _table(scenario: Scenario, result: ScenarioResult) -> str:
    heading, *rows = table(scenario, result)
    head = "".join(f"<th>{escape(cell)}</th>" for cell in heading)
    body = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f'<div class="scroll"><table><tr>{head}</tr>{body}</table></div>'


def write_page(path: Path, machine: dict[str, Any], done: Sequence[tuple[Scenario, ScenarioResult]]) -> None:
    """Writes the page. README.md tells how to read it."""
    packages = ", ".join(f"{name} {version}" for name, version in machine["packages"].items())
    parts = [
        '<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">',
        f"<title>relay benchmarks {escape(machine['time'])}</title><style>{STYLE}</style><h1>relay benchmarks</h1>",
        f"<p>{escape(machine['time'])}, commit {escape(str(machine['commit']))}<br>",
        f"{escape(machine['cpu'])}, {machine['cpus']} CPUs, Linux {escape(machine['kernel'])}, "
        f"Python {escape(machine['python'])}, {escape(str(machine['nginx']))}, {escape(packages)}</p>",
        "<p><small>Bars: median of the rounds; line: quartiles (extremes below five rounds); dots: rounds. "
        "~ marks figures whose quartiles lie more than 25 % apart.</small></p>",
    ]
    parts.append("<h2>Summary</h2><ul>")
    for verdict, text in summary(done):
        parts.append(f'<li class="{verdict}">{escape(text)}</li>')
    parts.append(f"</ul>{WORDS}")
    for scenario, result in done:
        parts.append(f'<h2 id="{escape(scenario.name)}">{escape(scenario.name)}</h2><p>{escape(scenario.about)}</p>')
        parts.append(_table(scenario, result))
        parts.append("<ul>")
        for judged in judge(scenario, result):
            parts.append(f'<li class="{judged.verdict.split()[0]}">{escape(judged.text())}</li>')
        for remark in remarks(result):
            kind = "wrong" if remark.startswith("WRONG") else ""
            parts.append(f'<li class="{kind}"><small>{escape(remark)}</small></li>')
        parts.append('</ul><div class="plots">')
        parts.append(_bars(result, scenario.figures[0]))
        if scenario.case.stream:
            parts.append(_curve(result, "lateness_us", "lateness of events"))
            parts.append(_curve(result, "first_byte_us", "time to first byte"))
        else:
            parts.append(_curve(result, "latency_us", "time of a call"))
        parts.append("</div>")
    path.write_text("\n".join(parts) + "\n")
