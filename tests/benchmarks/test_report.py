"""Medians, verdicts and the written reports."""

from pathlib import Path

import pytest

from benchmarks import page, report
from benchmarks.runner import Sample, ScenarioResult
from benchmarks.scenarios import SCENARIOS, find
from benchmarks.stats import pairwise, summarize, verdict


def test_summary() -> None:
    summary = summarize([3.0, 1.0, 2.0])
    assert summary is not None
    assert (summary.median, summary.low, summary.high) == (2.0, 1.0, 3.0)
    assert summary.noisy
    assert summarize([]) is None
    five = summarize([1.0, 2.0, 3.0, 4.0, 100.0])
    assert five is not None
    assert (five.median, five.low, five.high) == (3.0, 2.0, 4.0)


def test_pairs_are_compared_round_by_round() -> None:
    assert pairwise([2.0, 40.0], [1.0, 20.0], "ratio") == [2.0, 2.0]
    assert pairwise([2.0, 40.0], [1.0, 20.0], "difference") == [1.0, 20.0]


@pytest.mark.parametrize(
    ("numbers", "expected"),
    [
        ([1.0, 1.1, 1.2], "met"),
        ([1.6, 1.7, 1.8], "missed"),
        ([1.4, 1.5, 1.6], "inconclusive"),
        ([1.0, 1.0], "inconclusive"),
        ([], "inconclusive"),
    ],
)
def test_verdict(numbers: list[float], expected: str) -> None:
    assert verdict(summarize(numbers), 1.5) == expected


def sample(number: int, cpu: float, wrong: list[str] | None = None) -> Sample:
    histogram = {"count": 10, **dict.fromkeys(page.CURVE, 100.0)}
    raw = dict.fromkeys(("latency_us", "first_byte_us", "lateness_us", "gap_us"), histogram)
    figures = {"cpu_us_per_call": cpu, "calls_per_second": 1000.0, "latency_p50_us": 90.0, "foreign_share": 0.2}
    return Sample(number, figures, wrong or [], [], raw)


def result(wrong: list[str] | None = None) -> ScenarioResult:
    found = ScenarioResult("json-small", "small", {})
    found.samples["nginx"] = [sample(i, 20.0 + i) for i in range(3)]
    found.samples["relay"] = [sample(i, 22.0 + i, wrong) for i in range(3)]
    return found


MACHINE = {
    "time": "t",
    "commit": "c",
    "cpu": "x",
    "cpus": 2,
    "kernel": "k",
    "python": "p",
    "nginx": "n",
    "packages": {},
}


def test_bars_are_judged_and_a_wrong_result_is_not() -> None:
    scenario = find("json-small")
    assert [j.verdict for j in report.judge(scenario, result())] == ["met"]
    assert [j.verdict for j in report.judge(scenario, result(["bytes differ"]))] == ["wrong result"]


def test_a_bar_against_another_scenario_of_the_run() -> None:
    burst, paced, before, now = find("burst"), find("paced"), result(), result()
    for samples, us in ((before.samples["relay"], 30.0), (now.samples["relay"], 9.0)):
        for one in samples:
            one.figures["cpu_us_per_event"] = us
    assert paced.name not in now.earlier
    assert report.judge(burst, now) == []  # nothing to hold it against
    now.earlier[paced.name] = before
    assert [(j.verdict, round(j.summary.median, 2)) for j in report.judge(burst, now) if j.summary] == [("met", 0.3)]
    for one in now.samples["relay"]:
        one.figures["cpu_us_per_event"] = 11.0
    assert [j.verdict for j in report.judge(burst, now)] == ["missed"]


def test_terminal_and_page(tmp_path: Path) -> None:
    scenario = find("json-small")
    text = report.terminal(scenario, result())
    assert "relay" in text
    assert "1.10" in text  # 23 / 21, the median of the rounds' ratios
    assert "other programs used up to 20%" in text
    page.write_page(tmp_path / "r.html", MACHINE, [(scenario, result(["bytes <differ>"]))])
    html = (tmp_path / "r.html").read_text()
    assert html.count("<svg") == 2
    assert "bytes &lt;differ&gt;" in html


def test_results_are_read_again(tmp_path: Path) -> None:
    scenario = find("json-small")
    before = result(["bytes differ"])
    report.write_json(tmp_path / "r.json", report.document(MACHINE, [(scenario, before)]))
    machine, done = report.read_json(tmp_path / "r.json")
    assert machine == MACHINE
    assert done[0][0] is scenario
    assert done[0][1].all_wrong == before.all_wrong
    assert report.table(scenario, done[0][1]) == report.table(scenario, before)


def test_times_on_a_shared_core_get_no_verdict() -> None:
    half_load = find("half-load")
    shared = result()
    assert {j.verdict for j in report.judge(half_load, shared) if j.bar.figure == "latency_p50_us"} == {
        "inconclusive (other programs on the proxy's core)"
    }
    for samples in shared.samples.values():
        for one in samples:
            one.figures["foreign_share"] = 0.01
    assert {j.verdict for j in report.judge(half_load, shared) if j.bar.figure == "latency_p50_us"} == {"met"}


def test_docs_keep_what_is_not_generated(tmp_path: Path) -> None:
    file = tmp_path / "performance.md"
    begin, end = report.marks("full")
    file.write_text(f"before\n{begin}\nold\n{end}\nafter\n")
    report.write_docs(file, "full", MACHINE, [(find("json-small"), result())], "make bench")
    text = file.read_text()
    assert text.startswith("before\n")
    assert text.endswith("after\n")
    assert "old" not in text
    assert "| relay | 23.0 (22.0-24.0) |" in text
    with pytest.raises(ValueError, match="results are wrong"):
        report.write_docs(file, "full", MACHINE, [(find("json-small"), result(["x"]))], "make bench")


def test_every_figure_shown_has_a_heading() -> None:
    for scenario in SCENARIOS:
        assert all(figure in report.SHOWN for figure in scenario.figures)
        assert all(bar.figure in report.SHOWN for bar in scenario.bars)


def test_relay_is_compared_with_what_it_was(tmp_path: Path) -> None:
    found = result()
    found.samples["relay-before"] = [sample(i, 11.0 + i / 2) for i in range(3)]
    rows = report.table(find("json-small"), found)
    assert rows[0][-2:] == ["x nginx", "x relay-before"]
    assert [row[-1] for row in rows[1:]] == ["", "2.000", ""]
    document = tmp_path / "page.md"
    document.write_text("\n".join(report.marks("here")))
    report.write_docs(document, "here", MACHINE, [(find("json-small"), found)], "x")
    assert "| CPU/call x nginx | CPU/call x relay-before |" in document.read_text()


def test_finding_newcomer_38_bars_have_units_and_the_page_a_summary(tmp_path: Path) -> None:
    summary = summarize([9.0, 5.0, 14.0])
    late = report.Judged(find("half-load").bars[0], summary, "met")
    assert late.text() == "p50 at most nginx + 0.15 ms: 0.009 ms (0.005 to 0.014): met"
    memory = report.Judged(find("streams-5000").bars[1], summarize([15360.0, 15360.0, 15360.0]), "met")
    assert memory.text() == "at most 24 KiB per open stream above idle: 15.0 KiB (15.0 to 15.0): met"

    page.write_page(tmp_path / "report.html", MACHINE, [(find("json-small"), result())])
    text = (tmp_path / "report.html").read_text()
    assert text.index("<h2>Summary</h2>") < text.index("CPU per call at most") < text.index('<h2 id="json-small">')
    assert all(f"<b>{word}</b>" in text for word in ("direct", "naive", "late"))
    assert 'text-anchor="end">99.99 %' in text


def test_finding_newcomer_38_what_is_wrong_is_said_once(tmp_path: Path) -> None:
    found = report.remarks(result(["failed calls: 3 x status; statuses {'429': 3}"]))
    assert [text for text in found if text.startswith("WRONG")] == [
        "WRONG: relay, rounds 0, 1, 2: failed calls: 3 x status; statuses {'429': 3}"
    ]
    assert report.merged(["relay: the books differ"]) == ["relay: the books differ"]
