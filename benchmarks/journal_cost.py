"""CPU that the in-flight journal and the rolling hold add to a call and to a streamed event.

    python -m benchmarks.journal_cost

Loops around the functions that a call runs, compiled into a module of their own (build/benchmarks/): a slot of the
journal taken, filled with seven texts, ended and freed; an admission over three scopes with all limits, and its
settlement; and, per event, the check of the hold, its growth slice by slice, and the stores into the slot. The journal
is a mapped file, as in a relay. Not contained: what a call does anyhow (parsing, counting text).
"""

from __future__ import annotations

import importlib.util
import mmap
import statistics
import subprocess
import sys
import tempfile
from typing import Any

from benchmarks.build import SOURCE, TARGET
from relay import _fastpath

NAME = "journal_cost"
RUNS = 5
CALLS = 100_000
EVENTS = 5_000_000
SLOTS = 8192
TARGET_CALL_NS, TARGET_EVENT_NS = 1000, 50
SETUP = """
from Cython.Build import cythonize
from setuptools import Extension, setup
setup(ext_modules=cythonize([Extension({name!r}, [{source!r}], extra_compile_args=["-std=gnu11", "-O2"])],
      build_dir={target!r}), script_args=["-q", "build_ext", "--build-lib", {target!r}, "--build-temp", {target!r}])
"""


def build() -> Any:
    """The compiled loops."""
    program = SETUP.format(name=NAME, source=str(SOURCE / f"{NAME}.pyx"), target=str(TARGET))
    TARGET.mkdir(parents=True, exist_ok=True)
    subprocess.run([sys.executable, "-c", program], check=True, cwd=SOURCE.parent.parent)
    (library,) = TARGET.glob(f"{NAME}.*.so")
    specification = importlib.util.spec_from_file_location(NAME, library)
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


def prepare(module: Any) -> tuple[Any, Any, Any]:
    """A key with three scopes that have every limit, a price, a policy."""
    scopes = []
    for number, kind in enumerate(("key", "account", "organisation")):
        scope = module.Scope(kind, number + 1)
        scope.configure(
            now_ns=0, rpm=1 << 30, tpm=1 << 40, concurrency=1 << 20, daily_nano=1 << 60, monthly_nano=1 << 60
        )
        scopes.append(scope)
    key = module.ApiKey(b"abcdefghijkl", bytes(32), 1, 1)
    key.update(scopes=tuple(scopes), balance=module.Balance(1, 1 << 60))
    rate = module.Rate(model=b"gpt-4o", card="rates-58e9c4332cc6", input=2_500_000, output=10_000_000)
    return key, rate, module.Policy(prompt_margin_permille=100, hold_output_tokens=4096, hold_slice_tokens=256)


def main() -> int:
    module = build()
    key, rate, policy = prepare(module)
    size = SLOTS * _fastpath.JOURNAL_SLOT_SIZE
    with tempfile.TemporaryFile() as file:
        file.truncate(size)
        journal = module.Journal(memoryview(mmap.mmap(file.fileno(), size)))
        figures: dict[str, list[float]] = {"journal": [], "hold": [], "event": []}
        for _ in range(RUNS):
            figures["journal"].append(module.journal_calls(journal, rate, CALLS))
            figures["hold"].append(module.hold_calls(key, rate, policy, CALLS))
            figures["event"].append(module.events(journal, key, rate, policy, EVENTS))
    middle = {name: statistics.median(values) for name, values in figures.items()}
    call = middle["journal"] + middle["hold"]
    print(f"per call   {call:7.0f} ns of CPU: journal {middle['journal']:.0f}, hold and limits {middle['hold']:.0f}")
    print(f"per event  {middle['event']:7.1f} ns of CPU")
    print(f"targets    {TARGET_CALL_NS:7} ns, {TARGET_EVENT_NS} ns")
    return 0 if call <= TARGET_CALL_NS and middle["event"] <= TARGET_EVENT_NS else 1


if __name__ == "__main__":
    sys.exit(main())
