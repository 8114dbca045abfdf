"""Fits the token tables of the relay and measures them. Not installed; docs/tokens.md says how to run it.

    python tools/fit_corpora.py SOURCES chunks.jsonl
    python tools/fit_tokens.py chunks.jsonl VOCABULARIES --write

Counts every chunk exactly with each family's own tokenizer, turns it into the numbers of times each transition of the
automaton is taken, and finds the weights that bring the estimates closest to the exact counts: least squares on the
relative error, no weight below zero, and each weight drawn towards that of a coarser group of transitions, so that a
transition seldom seen weighs what similar ones do.
"""

import argparse
import json
import struct
import sys
import time
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import fit_families
import fit_shape
import numpy as np
from scipy import sparse
from scipy.optimize import minimize

UNIT = 4096
WEIGHT_STEP = 32  # weights are multiples of this: the files compress better, nothing measurable is lost
RARE = 30  # a transition taken less often in training weighs what is usual for its class
WEIGHT_MAX = 8 * UNIT
SCRIPTS = {
    **dict.fromkeys(("ru", "uk", "bg"), "Cyrillic"),
    "el": "Greek",
    **dict.fromkeys(("ar", "fa", "ug"), "Arabic"),
    "he": "Hebrew",
    **dict.fromkeys(("hi", "mr", "ne"), "Devanagari"),
    "th": "Thai",
    "ko": "Hangul",
    "ja": "Kana and Han",
    "zh": "Han",
    **dict.fromkeys(("ta", "te", "kn", "gu", "pa", "bn", "ml", "si"), "other Indic"),
    "emoji": "emoji",
    **dict.fromkeys(("km", "my", "ka", "hy", "am", "dz"), "other scripts"),
}
PULL = {"class": 1e-3, "pair": 0.03, "place": 0.03, "full": 0.1}  # strength of the pull towards the coarser fit


def features(texts: Sequence[str]) -> Any:
    """Row per text, column per transition: how often it is taken."""
    states, transitions = fit_shape.states()
    width = len(fit_shape.CLASSES)
    assert len(states) * width <= 65535, len(states) * width
    row_of = [target * width for target in transitions]
    classes = bytes(fit_shape.CLASS_OF_BYTE)
    data: list[Any] = []
    columns: list[Any] = []
    starts = [0]
    for text in texts:
        at = 0
        taken = []
        for cls in text.encode().translate(classes):
            taken.append(at + cls)
            at = row_of[at + cls]
        column, count = np.unique(np.array(taken, np.int32), return_counts=True)
        columns.append(column)
        data.append(count)
        starts.append(starts[-1] + len(column))
    return sparse.csr_matrix(
        (np.concatenate(data).astype(np.float64), np.concatenate(columns), starts), (len(texts), len(states) * width)
    )


def grouping(key: Callable[[fit_shape.State, str], object]) -> Any:
    """Number of the group of each transition."""
    numbers: dict[object, int] = {}
    states, _ = fit_shape.states()
    return np.array([numbers.setdefault(key(s, c), len(numbers)) for s in states for c in fit_shape.CLASSES])


def _pair(state: fit_shape.State, cls: str) -> object:
    """Without the position: for words the two letters, for anything else the kind of state and the class."""
    if state[0] == "word":
        return ("word", state[2], cls)
    if state[0] == "lead":
        return (state[0], state[1], state[3] if len(state) > 3 else "", cls)
    if state[0] == "second":
        return (*state[:3], cls)
    return (*state[:2], cls) if state[0] in ("punctuation", "indic", "cjk", "kana", "mixed") else (state[0], cls)


def _place(state: fit_shape.State, cls: str) -> object:
    """With the position, but for words without the letters."""
    if state[0] == "word":
        return ("word", state[1], "letter" if len(cls) == 1 and cls.isalpha() else cls)
    with_place = ("space", "newline", "digits", "upper", "cyrillic", "greek", "hebrew", "arabic")
    return (state, cls) if state[0] in with_place else _pair(state, cls)


STAGES = (("class", lambda s, c: c), ("pair", _pair), ("place", _place), ("full", lambda s, c: (s, c)))


def solve(matrix: Any, wanted: Any, pull: float, low: Any) -> Any:
    """min |matrix x - wanted|^2 + pull * |scaled x|^2 with x >= low."""
    scale = np.sqrt(np.asarray(matrix.multiply(matrix).sum(axis=0)).ravel())
    used = scale > 0
    inner = matrix[:, used]
    norm = scale[used]
    # Scaled variables: a column seen often has a large norm and is held less by the same pull.
    z_scale = 1 / np.sqrt(norm)
    inner = inner @ sparse.diags(z_scale)
    inner_t = inner.T.tocsr()

    def loss(z: Any) -> tuple[float, Any]:
        residual = inner @ z - wanted
        return float(residual @ residual + pull * (z @ z)), 2 * (inner_t @ residual + pull * z)

    bounds = [(b, None) for b in (low[used] / z_scale)]
    result = minimize(
        loss,
        np.maximum(0, low[used] / z_scale),
        jac=True,
        method="L-BFGS-B",
        bounds=bounds,
        options={"maxiter": 250, "maxcor": 20},
    )
    x = np.zeros(len(scale))
    x[used] = result.x * z_scale
    return x


def importance(rows: Sequence[dict[str, str]]) -> Any:
    """Of each chunk: classes with few chunks count for more, and random characters for less, than their number."""
    classes = [class_of(row) for row in rows]
    counts = {name: classes.count(name) for name in set(classes)}
    usual = len(rows) / len(counts)
    weight = {name: min(max((usual / count) ** 0.5, 0.5), 3.0) for name, count in counts.items()}
    weight["random characters"] = 0.5
    return np.array([weight[name] for name in classes])


def fit(matrix: Any, exact: Any, row_importance: Any) -> Any:
    """Weight of each transition, in tokens."""
    row_weight = row_importance / np.maximum(exact, 20.0)
    scaled = sparse.diags(row_weight) @ matrix
    wanted = exact * row_weight
    weights = np.zeros(matrix.shape[1])
    for name, key in STAGES:
        group = grouping(key)
        count = group.max() + 1
        gather = sparse.csr_matrix((np.ones(len(group)), (np.arange(len(group)), group)), (len(group), count))
        # The step of a group may not push the smallest weight in it below zero.
        low = np.full(count, np.inf)
        seen = np.asarray(matrix.sum(axis=0)).ravel() > 0
        np.minimum.at(low, group[seen], weights[seen])
        low[np.isinf(low)] = 0
        move = solve((scaled @ gather).tocsr(), wanted - scaled @ weights, PULL[name], -low)
        weights = np.maximum(weights + move[group], 0)
    return _usual_where_rare(weights, np.asarray(matrix.sum(axis=0)).ravel())


def _usual_where_rare(weights: Any, taken: Any) -> Any:
    table = weights.reshape(-1, len(fit_shape.CLASSES)).copy()
    counts = taken.reshape(table.shape)
    for cls in range(table.shape[1]):
        known = table[:, cls][counts[:, cls] >= RARE]
        table[:, cls][counts[:, cls] < RARE] = np.median(known) if len(known) else 0
    return table.ravel()


def pack(weights: Any) -> bytes:
    states, transitions = fit_shape.states()
    whole = np.clip(np.round(weights * UNIT / WEIGHT_STEP) * WEIGHT_STEP, 0, WEIGHT_MAX).astype("<u2")
    head = b"RTK1" + struct.pack("<HH", len(fit_shape.CLASSES), len(states)) + bytes(fit_shape.CLASS_OF_BYTE)
    return head + np.array(transitions, "<u2").tobytes() + whole.tobytes()


def class_of(row: dict[str, str]) -> str:
    """The class of text by which accuracy is told: the script of natural text, else the kind."""
    if row["kind"] != "natural":
        return row["kind"]
    return SCRIPTS.get(row["corpus"].split("-")[0], "Latin")


def summary(errors: Any) -> str:
    size = np.abs(errors)
    return f"{100 * errors.mean():+.1f} / {100 * size.mean():.1f} / {100 * np.percentile(size, 95):.1f}"


def report(rows: Sequence[dict[str, str]], errors: dict[str, Any], by: Callable[[dict[str, str]], str]) -> str:
    """Markdown: bias / mean error / 95th percentile in percent, on test chunks of 800 characters and more."""
    tested = [i for i, row in enumerate(rows) if row["part"] == "test" and len(row["text"]) >= 800]
    names = list(dict.fromkeys(by(rows[i]) for i in tested))
    lines = [f"| text | chunks | {' | '.join(errors)} |", "|---" * (len(errors) + 2) + "|"]
    for name in [*names, "all"]:
        chosen = [i for i in tested if name in ("all", by(rows[i]))]
        cells = " | ".join(summary(error[chosen]) for error in errors.values())
        lines.append(f"| {name} | {len(chosen)} | {cells} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("chunks", type=Path)
    parser.add_argument("vocabularies", type=Path)
    parser.add_argument("--family", action="append", help="only this family; may be repeated")
    parser.add_argument("--write", action="store_true", help="write relay/data/tokens-<family>.bin")
    parser.add_argument("--measure", action="store_true", help="measure the tables in relay/data, fit nothing")
    parser.add_argument("--corpora", action="store_true", help="tell the accuracy by corpus, not by class of text")
    arguments = parser.parse_args()
    rows = [json.loads(line) for line in arguments.chunks.open()]
    texts = [row["text"] for row in rows]
    train = np.array([row["part"] == "train" for row in rows])
    weight = importance([row for row in rows if row["part"] == "train"])
    matrix = features(texts)
    count_of = fit_families.counters(arguments.vocabularies)
    data = Path(__file__).parent.parent / "relay" / "data"
    errors: dict[str, Any] = {}
    for family in arguments.family or [*fit_families.FAMILIES]:
        began = time.monotonic()
        exact = fit_families.exact_counts(family, rows, count_of)
        if arguments.measure:
            packed = zlib.decompress((data / f"tokens-{family}.bin").read_bytes())
        else:
            packed = pack(fit(matrix[train], exact[train], weight))
        whole = np.frombuffer(packed[-2 * matrix.shape[1] :], "<u2") / UNIT
        errors[family] = (matrix @ whole - exact) / exact
        compressed = zlib.compress(packed, 9)
        print(f"{family}: {time.monotonic() - began:.1f} s, {len(compressed)} bytes", file=sys.stderr)
        if arguments.write and not arguments.measure:
            (data / f"tokens-{family}.bin").write_bytes(compressed)
    # The targets of the Claude families are made up, so theirs is a table apart.
    for made_up in (False, True):
        some = {f: e for f, e in errors.items() if (f in fit_families.CLAUDE_FACTORS) == made_up}
        if some:
            print(report(rows, some, (lambda row: row["corpus"]) if arguments.corpora else class_of) + "\n")


if __name__ == "__main__":
    main()
