"""Coverage-guided fuzzing of what reads bytes of strangers in the compiled module; `make fuzz` builds it and runs this.

    python tools/fuzz.py all --seconds 600        every target after the other, in processes of their own
    python tools/fuzz.py scan_request INPUT       one input again (what a finding left behind)

Needs the module built with RELAY_BUILD=fuzz and atheris. Three things count as findings: a sanitizer's report, an
exception, and a result that differs from plain Python's or from the result for the same bytes cut into other pieces.
The corpus stays in build/fuzz-corpus and grows from run to run; findings go to build/fuzz-findings.
"""

import argparse
import itertools
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

OUT = Path(os.environ.get("FUZZ_OUT", "build"))
INPUT_BYTES_MAX = 4096

from relay import _fastpath  # noqa: E402
from relay._fastpath import decode_chunked, parse_request_head, parse_response_head, scan_request, tap  # noqa: E402
from relay.policy.tokenizers import table_for  # noqa: E402
from tests.support import http_oracle, json_oracle, request_oracle, tap_oracle  # noqa: E402
from tests.support.answers import ANSWERS  # noqa: E402
from tests.support.http1 import chunk_bytes  # noqa: E402
from tests.support.request_bodies import NAMED, REQUESTS  # noqa: E402

TABLE = table_for("claude")
FORMATS = tap_oracle.OTHER + 1
WITH_ORACLE = request_oracle.NAME_FILES  # formats whose bodies have an oracle that holds for any document
# Where pieces have a price, tokens reported beside them are not charged.
FIELDS = http_oracle.field_table()


def pieces(data: bytes, how: int) -> list[bytes]:
    """`data` cut in one of 256 ways: pieces of one size, or two cuts. Copies, so that reading past one is seen."""
    size = len(data)
    if how < 128:
        edges = sorted({*range(how % 8, size, 1 + how // 8), 0, size})
    else:
        edges = sorted({0, size * (how - 128) // 128, size * (how * 7 % 128) // 128, size})
    return [bytes(bytearray(data[a:b])) for a, b in itertools.pairwise(edges)]


def request_head(data: bytes) -> None:
    dialect, block = data[0] % 3, data[1:]
    head = parse_request_head(block, dialect, FIELDS)
    assert (None if head["odd"] else head) == http_oracle.request_head(block, dialect)


def response_head(data: bytes) -> None:
    assert parse_response_head(data, FIELDS) == http_oracle.response_head(data)


def chunked(data: bytes) -> None:
    how, data = data[0], data[1:]
    whole = decode_chunked([data])
    assert decode_chunked(pieces(data, how)) == whole, "the cuts matter"
    rule = http_oracle.chunked(data)
    assert (whole[1] == "end") == (rule is not None)
    assert rule is None or (whole[0], whole[2]) == rule


def repeats(value: Any) -> bool:
    """Whether an object in a document has a key twice."""
    if isinstance(value, json_oracle.Pairs):
        return len({name for name, _ in value}) < len(value) or any(repeats(item) for _, item in value)
    return isinstance(value, list) and any(map(repeats, value))


def looks_alike(value: Any) -> bool:
    """Whether an object in a document has a key in other letters than small ones."""
    if isinstance(value, json_oracle.Pairs):
        return any(name.casefold() != name or looks_alike(item) for name, item in value)
    return isinstance(value, list) and any(map(looks_alike, value))


def scanner(data: bytes) -> None:
    format, how, body = data[0] % FORMATS, data[1], data[2:]
    whole = scan_request(format, body, TABLE)
    edges = tuple(itertools.accumulate(map(len, pieces(body, how))))
    parts = scan_request(format, body, TABLE, edges)
    if whole["error"]:  # how much was counted before the fault is nobody's business
        for name in ("text", "prompt_tokens"):
            parts[name] = whole[name]
    assert whole == parts, "the cuts matter"
    assert whole["error"] in _fastpath.ERROR_CODES
    assert 0 <= whole["prompt_tokens"] <= tap_oracle.USAGE_MAX
    assert whole["output_limit"] < 2**31
    assert 1 <= whole["choices"] <= 128
    for start, end in (whole["model_span"], whole["stream_options_span"]):
        assert start == end == -1 or 0 <= start < len(body)
        if start >= 0 and not whole["error"]:
            json.loads(body[start:end])
    assert len(whole["files"]) <= request_oracle.FILES_MAX
    edge = 0
    for start, end in whole["files"]:  # in order, each a string of its own
        assert edge < start < end <= len(body)
        edge = end
    files = [json.loads(body[start:end]) for start, end in whole["files"]]
    assert all(type(name) is str for name in files)
    try:
        document = json_oracle.strict(body)
    except ValueError:
        assert whole["error"], "json.loads refuses it"
        return
    assert whole["error"] != "malformed_json", "json.loads takes it"
    if format not in WITH_ORACLE or repeats(document):
        return
    if whole["error"] == "misspelt_key":  # the oracle reads exact names only
        assert looks_alike(document)
        return
    oracle = request_oracle.Request(format, document, TABLE)
    if oracle.faults:
        assert (whole["error"], whole["error_param"]) in oracle.faults, oracle.faults
        return
    assert not whole["error"], whole["error"]
    assert files == oracle.files
    for name in ("model", "stream", "output_limit", "choices", "include_usage", "background", "priority"):
        assert whole[name] == getattr(oracle, name), name


def usage_tap(data: bytes) -> None:
    format, kind, how, body = data[0] % FORMATS, data[1] % 3, data[2], data[3:]
    whole = tap(format, kind, [body], TABLE)
    parts = tap(format, kind, pieces(body, how), TABLE)
    events = tap(format, kind, pieces(body, how), TABLE, by_event=True)
    assert sum(size for size, _, _ in events["pieces"]) == len(body)
    for result in (whole, parts, events):
        del result["pieces"], result["boundaries"]
    assert whole == parts == events, "the cuts matter"
    for result in (whole, parts):
        for name, value in result.items():
            if name.endswith("_tokens") or name in ("images", "web_searches", "video_seconds", "events"):
                assert 0 <= value <= tap_oracle.USAGE_MAX, name
        assert result["audio_input_tokens"] + result["image_input_tokens"] <= result["input_tokens"]
        assert result["audio_output_tokens"] + result["image_output_tokens"] <= result["output_tokens"]


FIELD_LINES = b"""Host: relay.example
Authorization: Bearer sk-0123456789ab-x
X-Api-Key: sk-1
x-goog-api-key: sk-2
Content-Length: 12
Content-Type: application/json; charset=utf-8
Transfer-Encoding: chunked
Content-Encoding: gzip
Connection: keep-alive
User-Agent: OpenAI/Python 1.0
X-Stainless-Lang: python
anthropic-version: 2023-06-01
X-Relay-Max-Cost: 0.25
X-Forwarded-For: 10.0.0.1, 10.0.0.2
X-Relay-Channel: main
X-Relay-Usage: include
Idempotency-Key: 5f2d
traceparent: 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01
ETag: "a"
Expect: 100-continue
Upgrade: h2c
Retry-After: 3
Set-Cookie: a=b
x-ratelimit-limit-requests: 5
Cache-Control: \t no-store \t
""".replace(b"\n", b"\r\n").splitlines(keepends=True)


def head_seeds(first: bytes) -> Iterator[bytes]:
    for line in FIELD_LINES:
        yield first + line + b"\r\n"
        yield first + FIELD_LINES[0] + line + FIELD_LINES[4] + b"\r\n"
    yield first + b"".join(FIELD_LINES[:6]) + b"\r\n"


def response_seeds() -> Iterator[bytes]:
    yield from head_seeds(b"HTTP/1.1 200 OK\r\n")
    yield b"HTTP/1.0 204 \r\nContent-Type: text/event-stream\r\nContent-Encoding: identity\r\n\r\n"


def chunked_seeds() -> Iterator[bytes]:
    yield b"\x00" + chunk_bytes(b"Hello", b"x" * 300, end=True) + b"HTTP/1.1 200 OK\r\n"
    yield b"\x85" + b'00a;name="v"\r\n0123456789\r\n000\r\nDigest: x\r\nA:b\r\n\r\n'
    yield b"\x10" + b"fffffffffffffff\r\nabc"


def scanner_seeds() -> Iterator[bytes]:
    for number, (format, body, _) in enumerate((*REQUESTS, *NAMED)):
        for ascii in (True, False):
            yield bytes([format, number * 11 % 256]) + json.dumps(body, ensure_ascii=ascii).encode()


def tap_seeds() -> Iterator[bytes]:
    for number, answer in enumerate(ANSWERS):
        yield bytes([answer.format, answer.kind, number * 7 % 256]) + answer.body


TARGETS: dict[str, tuple[Callable[[bytes], None], Callable[[], Iterator[bytes]]]] = {
    "request_head": (request_head, lambda: head_seeds(b"\x00")),
    "response_head": (response_head, response_seeds),
    "chunked": (chunked, chunked_seeds),
    "scan_request": (scanner, scanner_seeds),
    "tap": (usage_tap, tap_seeds),
}
WORDS = [
    b"\\u",
    b"\\ud83d",
    b"\\ude00",
    b"\xef\xbb\xbf",
    b"\r\n\r\n",
    b"data: ",
    b"event: ",
    b"[DONE]",
    b"1e3",
    b"null",
]


def write_seeds(name: str) -> None:
    """The corpus to begin with, and a dictionary of the words in it."""
    corpus = OUT / "fuzz-corpus" / name
    corpus.mkdir(parents=True, exist_ok=True)
    seeds = [seed[:INPUT_BYTES_MAX] for seed in TARGETS[name][1]()]
    for number, seed in enumerate(seeds):
        (corpus / f"seed-{number}").write_bytes(seed)
    found = itertools.chain.from_iterable(re.findall(rb'"[A-Za-z_.]{2,40}"|[A-Za-z-]{3,30}:', seed) for seed in seeds)
    words = sorted({*WORDS, *found})
    quoted = ["".join(f"\\x{byte:02x}" for byte in word) for word in words]
    (OUT / f"fuzz-{name}.dict").write_text("".join(f'"{word}"\n' for word in quoted))


def fuzz_one(name: str, rest: list[str]) -> None:
    """Hands this process over to libFuzzer; never returns."""
    import atheris  # only where there is one

    target = TARGETS[name][0]

    def one(data: bytes) -> None:
        if len(data) >= 3:
            target(data)

    atheris.Setup([f"fuzz {name}", *rest], one)
    atheris.Fuzz()


def fuzz_all(seconds: int) -> int:
    """Every target for its share of the seconds, one after the other. Returns how many of them found something."""
    findings = OUT / "fuzz-findings"
    findings.mkdir(parents=True, exist_ok=True)
    share = max(1, seconds // len(TARGETS))
    failed = 0
    for name in TARGETS:
        write_seeds(name)
        arguments = [
            f"-max_total_time={share}",
            f"-max_len={INPUT_BYTES_MAX}",
            f"-dict={OUT / f'fuzz-{name}.dict'}",
            f"-artifact_prefix={findings / name}-",
            "-timeout=10",
            "-rss_limit_mb=2048",
            str(OUT / "fuzz-corpus" / name),
        ]
        started = time.monotonic()
        with (OUT / f"fuzz-{name}.log").open("wb") as log:
            command = [sys.executable, __file__, name, *arguments]
            code = subprocess.run(command, stdout=log, stderr=subprocess.STDOUT, check=False).returncode
        text = (OUT / f"fuzz-{name}.log").read_text(errors="replace")
        runs = re.findall(r"^Done (\d+) |^#(\d+)\s", text, re.MULTILINE)
        edges = re.findall(r" cov: (\d+) ", text)
        print(
            f"{name}: {time.monotonic() - started:.0f} s, {''.join(runs[-1]) if runs else 0} executions, "
            f"{edges[-1] if edges else 0} edges, {'FOUND SOMETHING: see ' + log.name if code else 'no findings'}",
            flush=True,
        )
        failed += code != 0
    return failed


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("target", choices=["all", *TARGETS])
    parser.add_argument("--seconds", type=int, default=600, help="in total, over all targets")
    options, rest = parser.parse_known_args()
    if options.target == "all":
        return 1 if fuzz_all(options.seconds) else 0
    fuzz_one(options.target, rest)
    return 0


if __name__ == "__main__":
    sys.exit(main())
