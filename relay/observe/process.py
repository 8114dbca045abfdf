"""The process's own figures, under the names that Prometheus' client libraries use."""

from __future__ import annotations

import os
import resource
import time
from pathlib import Path

from relay.observe.exposition import Page

_PAGE_BYTES = resource.getpagesize()


def _started() -> float:
    """Unix time at which the process began, by the kernel's clock ticks since boot."""
    try:
        fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
        since_boot = int(fields[19]) / os.sysconf("SC_CLK_TCK")
        return time.time() - (time.clock_gettime(time.CLOCK_BOOTTIME) - since_boot)
    except (OSError, ValueError, IndexError):
        return time.time()


STARTED_SECONDS = round(_started(), 3)


def add(page: Page, open_descriptors: int) -> None:
    """CPU, memory and descriptors.

    `open_descriptors` is the caller's own count: the kernel would list them one by one.
    """
    used = resource.getrusage(resource.RUSAGE_SELF)
    page.single(
        "process_cpu_seconds_total", "counter", "CPU time, user and system.", round(used.ru_utime + used.ru_stime, 6)
    )
    page.single("process_start_time_seconds", "gauge", "Unix time at which the process began.", STARTED_SECONDS)
    try:
        sizes = Path("/proc/self/statm").read_text().split()
    except OSError:
        sizes = []
    if len(sizes) > 1:
        page.single("process_virtual_memory_bytes", "gauge", "Address space.", int(sizes[0]) * _PAGE_BYTES)
        page.single("process_resident_memory_bytes", "gauge", "Memory in use.", int(sizes[1]) * _PAGE_BYTES)
    page.single("process_open_fds", "gauge", "File descriptors of connections.", open_descriptors)
    page.single("process_max_fds", "gauge", "Limit on file descriptors.", resource.getrlimit(resource.RLIMIT_NOFILE)[0])
