"""Builds the load client and the simulated upstream from native/*.c, when they are missing or older than their source.

A Python client would be the bottleneck long before nginx is, so both are plain C programs. OpenSSL is used if its
headers are present; without them everything but the TLS scenarios works.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

SOURCE = Path(__file__).parent / "native"
TARGET = Path(__file__).parent.parent / "build" / "benchmarks"
FLAGS = ("-O2", "-g", "-std=gnu11", "-Wall", "-Wextra")


class BuildError(Exception):
    """No C compiler, or the compiler refused; the message says which."""


@dataclass(frozen=True)
class Tools:
    load: Path
    upstream: Path
    tls: bool


def _compiler() -> str:
    found = os.environ.get("CC") or shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if not found:
        raise BuildError("no C compiler found (looked for $CC, cc, gcc, clang)")
    return found


def _compile(compiler: str, source: Path, target: Path, *, tls: bool) -> subprocess.CompletedProcess[str]:
    libraries = ["-lssl", "-lcrypto", "-lm"] if tls else ["-lm"]
    define = ["-DBENCH_TLS"] if tls else []
    unfinished = target.with_suffix(f".{os.getpid()}")
    done = subprocess.run(
        [*shlex.split(compiler), *FLAGS, *define, str(source), "-o", str(unfinished), *libraries],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode == 0:
        unfinished.replace(target)  # whole or not at all, also when two builds run at once
    return done


def build(target: Path = TARGET) -> Tools:
    """Returns the two programs, built if need be. BuildError with the compiler's words."""
    target.mkdir(parents=True, exist_ok=True)
    newest = max(path.stat().st_mtime for path in SOURCE.iterdir())
    flag = target / "with-tls"
    programs = (target / "load", target / "upstream")
    if all(program.exists() and program.stat().st_mtime > newest for program in programs):
        return Tools(programs[0], programs[1], flag.exists())
    compiler = _compiler()
    for tls in (True, False):
        results = [_compile(compiler, SOURCE / f"{p.name}.c", p, tls=tls) for p in programs]
        if all(result.returncode == 0 for result in results):
            flag.touch() if tls else flag.unlink(missing_ok=True)
            return Tools(programs[0], programs[1], tls)
    raise BuildError("\n".join(result.stderr for result in results if result.returncode))
