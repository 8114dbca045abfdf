"""What the relay needs of its surroundings: versions it depends on, and file descriptors for its connections."""

import contextlib
import ctypes
import logging
import os
import re
import resource
import sqlite3
from pathlib import Path

import aiohttp
from aiohttp import http_parser
from uvloop import _version as uvloop_version

from relay.errors import RelayError

log = logging.getLogger("relay")

UVLOOP_MIN = (0, 23, 0)  # earlier ones can cross connections after a cancelled connect
AIOHTTP_MIN = (3, 14, 5)  # earlier ones have request smuggling holes
SQLITE_MIN = (3, 37, 0)  # STRICT tables
# Database, journal, log, control socket, resolver, aiohttp's own, and a margin for what is being closed.
DESCRIPTORS_RESERVED = 64
CONNECTIONS_MIN = 8
CGROUP_LIMITS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))
MEMORY_BACK_PERCENT = 95  # once beyond the limit, calls are let in again below this part of it


class EnvironmentUnfit(RelayError):  # noqa: N818 - it reads as what it says
    """A promise could not be kept here."""


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version)[:3])


def check_versions() -> None:
    """Raises EnvironmentUnfit."""
    if not __debug__:
        raise EnvironmentUnfit("do not run with -O: invariants are checked in production")
    if http_parser.HttpRequestParser.__module__ != "aiohttp._http_parser":
        raise EnvironmentUnfit("aiohttp's C parser is not loaded; install aiohttp from a wheel or with a C compiler")
    for name, found, least in (
        ("uvloop", uvloop_version.__version__, UVLOOP_MIN),
        ("aiohttp", aiohttp.__version__, AIOHTTP_MIN),
        ("SQLite", sqlite3.sqlite_version, SQLITE_MIN),
    ):
        if _numbers(found) < least:
            raise EnvironmentUnfit(f"{name} {found} is too old: at least {'.'.join(map(str, least))} is needed")


def versions() -> str:
    """For the first line of the log."""
    return f"uvloop {uvloop_version.__version__}, aiohttp {aiohttp.__version__}, SQLite {sqlite3.sqlite_version}"


def raise_descriptor_limit() -> int:
    """Raises the soft limit on file descriptors to the hard one. Returns the limit in force."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard if hard != resource.RLIM_INFINITY else 2**31 - 1


def memory_limit_bytes(configured: int) -> int:
    """`server.memory_bytes_max`; 0 becomes nine tenths of what this machine, or its control group, has."""
    if configured:
        return configured
    there = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    for path in CGROUP_LIMITS:
        with contextlib.suppress(OSError, ValueError):  # "max" is no number
            there = min(there, int(path.read_text()))
    return there * 9 // 10


def resident_bytes() -> int:
    """Memory of this process."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def give_memory_back() -> None:
    """What the allocator keeps for later goes back to the system."""
    with contextlib.suppress(AttributeError, OSError):  # another C library
        ctypes.CDLL(None).malloc_trim(0)


_warned: set[tuple[int, int]] = set()


def connections_within(connections_max: int, descriptors: int) -> int:
    """How many client connections can be had with so many descriptors: each may need one more, to an upstream.

    Raises EnvironmentUnfit where hardly any are left.
    """
    affordable = (descriptors - DESCRIPTORS_RESERVED) // 2
    if affordable < CONNECTIONS_MIN:
        raise EnvironmentUnfit(
            f"the limit on file descriptors is {descriptors}: at least {DESCRIPTORS_RESERVED + 2 * CONNECTIONS_MIN} "
            "are needed (ulimit -n, LimitNOFILE)"
        )
    if affordable < connections_max and (connections_max, descriptors) not in _warned:
        _warned.add((connections_max, descriptors))  # once, not at each reload
        log.warning(
            "server.connections_max is %d, but the limit on file descriptors (%d) allows %d: further connections get "
            "503; raise LimitNOFILE to %d",
            connections_max, descriptors, affordable, 2 * connections_max + DESCRIPTORS_RESERVED,
        )  # fmt: skip
    return min(connections_max, affordable)
