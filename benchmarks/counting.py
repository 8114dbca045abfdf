"""Speed of the token counter: raw text, and chat bodies around the same text.

    python -m benchmarks.counting

Each text is one passage repeated up to a megabyte: the automaton has no branches that could learn it, and its tables
are as warm as in a busy relay. Best of the runs, in MB/s of the bytes given; the bars hold for the slowest text.
"""

from __future__ import annotations

import argparse
import base64
import json
import random
import sys
import time
from collections.abc import Callable
from pathlib import Path

from relay._fastpath import TokenTable, count_text, scan_request
from relay.policy.tokenizers import table_of
from relay.wire.endpoints import F_CHAT

TEXT_BYTES = 1_000_000
RAW_MB_PER_SECOND, BODY_MB_PER_SECOND = 400, 250
PASSAGES = {
    "English": "A river that is asked for too much gives less each year; the old bridge has seen both. ",
    "Russian": "Река, у которой просят слишком много, с каждым годом отдаёт меньше; старый мост видел и то и другое. ",
    "Greek": "Ένα ποτάμι από το οποίο ζητούν πάρα πολλά δίνει κάθε χρόνο λιγότερα· η παλιά γέφυρα τα έχει δει όλα. ",
    "Arabic": "النهر الذي يُطلب منه الكثير يعطي أقل كل عام، والجسر القديم رأى هذا وذاك وبقي صامتًا. ",
    "Hindi": "जिस नदी से बहुत अधिक माँगा जाता है वह हर साल कम देती है; पुराने पुल ने दोनों देखे हैं। ",
    "Thai": "แม่น้ำที่ถูกขอมากเกินไปจะให้น้อยลงทุกปี สะพานเก่าเห็นมาทั้งสองอย่างและเงียบไว้ ",
    "Korean": "너무 많은 것을 요구받는 강은 해마다 덜 내어 준다. 오래된 다리는 둘 다 보았고 말이 없다. ",
    "Japanese": "求められすぎる川は年ごとに少なくしか与えない。古い橋はそのどちらも見てきて、黙っている。",
    "Chinese": "被索取太多的河流一年比一年给得少；老桥两样都见过，却不说话。",
    "emoji": "Done 🎉 next 🚀👩‍💻 and then ☕️😀 again. ",
    "JSON": '{"id": 4711, "name": "bridge", "spans": [12.5, 18.0, 12.5], "open": true, "note": null}\n',
    "log": "2026-11-21T03:55:45.123Z INFO relay call=0192f3a4 status=200 tokens=1234 took_ms=812.3\n",
}


def texts() -> dict[str, str]:
    """By name; code is this package's own, base64 comes from a fixed seed."""
    found = {name: passage * (TEXT_BYTES // len(passage.encode()) + 1) for name, passage in PASSAGES.items()}
    code = "".join(path.read_text(encoding="utf-8") for path in sorted(Path(__file__).parent.glob("*.py")))
    found["code"] = code * (TEXT_BYTES // len(code.encode()) + 1)
    found["base64"] = base64.b64encode(random.Random(1).randbytes(TEXT_BYTES * 3 // 4)).decode()
    return found


def fastest(job: Callable[[], object], size_bytes: int, runs: int) -> float:
    """MB/s of the fastest run."""
    best_ns = 1 << 62
    for _ in range(runs):
        before_ns = time.perf_counter_ns()
        job()
        best_ns = min(best_ns, time.perf_counter_ns() - before_ns)
    return size_bytes / best_ns * 1000


def body_of(text: str) -> bytes:
    """A chat body whose one message is the text, in UTF-8 as the official SDKs send it."""
    message = {"model": "gpt-4o", "messages": [{"role": "user", "content": text}]}
    return json.dumps(message, ensure_ascii=False).encode()


def measure(table: TokenTable, runs: int) -> list[tuple[str, float, float]]:
    """Per text: name, MB/s of the raw text, MB/s of the body."""
    rows = []
    for name, text in texts().items():
        raw, body = text.encode(), body_of(text)

        def count(raw: bytes = raw) -> object:
            return count_text(table, raw)

        def scan(body: bytes = body) -> object:
            return scan_request(F_CHAT, body, table)

        rows.append((name, fastest(count, len(raw), runs), fastest(scan, len(body), runs)))
    return rows


def main() -> int:
    """Exit status 1 where a text is slower than wanted."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--family", default="o200k", help="token table (default o200k)")
    parser.add_argument("--runs", type=int, default=40, help="runs of each text (default 40)")
    options = parser.parse_args()
    rows = measure(table_of(options.family), options.runs)
    print(f"{'MB/s':<10} {'raw':>6} {'body':>6}")
    for name, raw, body in rows:
        print(f"{name:<10} {raw:6.0f} {body:6.0f}")
    slowest_raw, slowest_body = min(raw for _, raw, _ in rows), min(body for _, _, body in rows)
    print(f"slowest: raw {slowest_raw:.0f} (wanted {RAW_MB_PER_SECOND}), body {slowest_body:.0f}", end="")
    print(f" (wanted {BODY_MB_PER_SECOND})")
    return 0 if slowest_raw >= RAW_MB_PER_SECOND and slowest_body >= BODY_MB_PER_SECOND else 1


if __name__ == "__main__":
    sys.exit(main())
