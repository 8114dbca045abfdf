"""What keeps content out of core files and other processes: set once, before anything is served."""

import ctypes
import faulthandler
import logging
import os
import resource

log = logging.getLogger("relay")

TRACING_SWITCH = "RELAY_ALLOW_TRACING"
_PR_SET_DUMPABLE = 4


def harden() -> None:
    """No core file, no tracing of this process (strace, gdb, /proc/PID/mem) by anyone but root, no stack dumps.

    With RELAY_ALLOW_TRACING=1 the process stays dumpable; that is for tests, and is logged as a warning.
    """
    faulthandler.disable()
    if os.environ.get(TRACING_SWITCH) == "1":
        log.warning("%s=1: this process can be traced and may leave core files with content in them", TRACING_SWITCH)
        return
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    # Also for core files that the kernel pipes to a program: those ignore the limit, but not this.
    if ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0) != 0:
        log.warning("the process could not be made undumpable (%s)", os.strerror(ctypes.get_errno()))
