"""Builds the compiled hot path, `relay._fastpath`, from `relay/_fastpath.pyx` and the files it includes.

RELAY_BUILD=quick   not optimised: builds in a quarter of the time, for work on the module itself
RELAY_BUILD=debug   bounds checks and C assertions on
RELAY_BUILD=asan    the same under AddressSanitizer and UndefinedBehaviorSanitizer
RELAY_BUILD=fuzz    the same by clang (CC, LDSHARED), with libFuzzer's coverage counters, for tools/fuzz.py
"""

import glob
import os

from Cython.Build import cythonize
from setuptools import Extension, setup

MODE = os.environ.get("RELAY_BUILD", "release")
CHECKED = MODE in ("debug", "asan", "fuzz")

# -fwrapv is not given: signed overflow is kept out by clamping, and the sanitizer build would not see it otherwise.
compile_args = ["-std=gnu11", "-Wno-unused-function", "-Wno-unused-variable", "-Wno-unreachable-code"]
link_args: list[str] = []
if CHECKED:
    compile_args += ["-O1", "-g", "-UNDEBUG"]
elif MODE == "quick":
    compile_args += ["-O0", "-g0"]
else:
    compile_args += ["-O2", "-g0", "-fno-plt"]  # -O3 and debug information triple the build and gain nothing
if MODE == "asan":
    compile_args += ["-fsanitize=address,undefined", "-fno-omit-frame-pointer"]
    link_args += ["-fsanitize=address,undefined"]
if MODE == "fuzz":
    compile_args += ["-fsanitize=fuzzer-no-link,address,undefined", "-fno-sanitize-recover=undefined"]
    link_args += ["-fsanitize=fuzzer-no-link,address,undefined"]

directives = {
    "language_level": 3,
    "boundscheck": CHECKED,
    "wraparound": False,
    "cdivision": True,
    "initializedcheck": CHECKED,
    "freethreading_compatible": False,
}

extension = Extension(
    "relay._fastpath",
    ["relay/_fastpath.pyx"],
    depends=sorted(glob.glob("relay/fastpath/*")),
    extra_compile_args=compile_args,
    extra_link_args=link_args,
)

# The C code, 240,000 lines, goes to build/, out of the way of whoever searches relay/.
setup(ext_modules=cythonize([extension], compiler_directives=directives, force=CHECKED, build_dir="build"))
