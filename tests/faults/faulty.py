"""Switches for what `faulty.c` does to a relay: its wall clock, its disk. The library is compiled on first use."""

import atexit
import functools
import mmap
import os
import shutil
import struct
import subprocess
import tempfile
from pathlib import Path

import pytest

from tests.functional.relay_process import RelayProcess

SOURCE = Path(__file__).with_name("faulty.c")
_OFFSETS = {"clock_offset_ns": (0, "q"), "full": (8, "i"), "fsync_fails": (12, "i"), "fsyncs": (16, "q"),
            "refused": (24, "q"), "fsync_ns": (32, "q")}  # fmt: skip


@functools.cache
def library() -> Path:
    """Skips the test where there is no compiler."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("needs a C compiler")
    folder = Path(tempfile.mkdtemp(prefix="relay-faulty-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    built = folder / "faulty.so"
    command = [compiler, "-shared", "-fPIC", "-O1", "-Wall", "-Werror", "-o", str(built), str(SOURCE), "-ldl"]
    subprocess.run(command, check=True, capture_output=True)
    return built


class Faults:
    """Gives a relay that is not started yet these surroundings; then `faults.full = 1` and so on, at any time."""

    def __init__(self, relay: RelayProcess, *, shadow: bool = False) -> None:
        path = relay.folder / "switches"
        path.write_bytes(bytes(64))
        descriptor = os.open(path, os.O_RDWR)
        object.__setattr__(self, "_memory", mmap.mmap(descriptor, 64))
        os.close(descriptor)
        relay.environment = relay.environment | {"LD_PRELOAD": str(library()), "RELAY_FAULTS": str(path)}
        object.__setattr__(self, "shadow", relay.folder / "shadow")
        if shadow:
            self.shadow.mkdir()
            relay.environment["RELAY_FAULTS_SHADOW"] = str(self.shadow)

    def __getattr__(self, name: str) -> int:
        offset, kind = _OFFSETS[name]
        return struct.unpack_from(kind, self._memory, offset)[0]

    def __setattr__(self, name: str, value: int) -> None:
        offset, kind = _OFFSETS[name]
        struct.pack_into(kind, self._memory, offset, value)

    def jump(self, seconds: float) -> None:
        """Moves the relay's wall clock, from where it is."""
        self.clock_offset_ns += round(seconds * 1e9)
