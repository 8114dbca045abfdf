"""Of all tests: generated ones are the same in each run, and nothing is left when the run ends.

Nothing that hypothesis makes depends on how fast the machine is, sanitizers included. `make properties` (the option
`--hypothesis-profile random`) makes new examples in each run.
"""

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

settings.register_profile("same", deadline=None, database=None, derandomize=True)
settings.register_profile("random", deadline=None, database=None, max_examples=1000)
settings.load_profile("same")

# In the system's temporary folder, when a run ends. What passed has removed its own; this is what failed, or is shared.
LEFT_BYTES_MAX = 100 << 20


def left_bytes(folder: Path) -> int:
    """On the disk: a sparse file counts with what it takes."""
    return sum(path.lstat().st_blocks * 512 for path in folder.rglob("*"))


def left_processes(folder: Path) -> list[str]:
    """Command lines of processes that were started by this one or with a file of this folder, and still run."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            words = (process / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
            state, parent = (process / "stat").read_text().rpartition(") ")[2].split()[:2]
        except (FileNotFoundError, ProcessLookupError):  # it has ended meanwhile
            continue
        if state != "Z" and int(process.name) != os.getpid() and (int(parent) == os.getpid() or str(folder) in words):
            found.append(words)
    return found


@pytest.fixture(scope="session", autouse=True)
def everything_is_cleared_up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Temporary files that tests make elsewhere than in `tmp_path` lie beside it, and go with it."""
    folder = tmp_path_factory.mktemp("temporary")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TMPDIR", str(folder))
        patch.setattr(tempfile, "tempdir", str(folder))
        yield
    assert left_processes(tmp_path_factory.getbasetemp()) == []
    assert left_bytes(tmp_path_factory.getbasetemp()) <= LEFT_BYTES_MAX
