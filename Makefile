# `make run` and `make test` need Python >= 3.11, a C compiler and make; everything else goes into .venv.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
SOURCES := setup.py relay/_fastpath.pyx $(wildcard relay/fastpath/*)

.PHONY: run test lint bench soak asan fuzz clean

run: .make-build
	$(BIN)/python -m relay demo

test: .make-build
	$(BIN)/python -m pytest

# The long forms of tests/faults: kills, endings, bursts. Stop it with MINUTES=5; repeat a run with SEED=n.
MINUTES ?= 30
SEED ?= 0

soak: .make-build
	$(BIN)/python -m tests.faults.soak --minutes $(MINUTES) --seed $(SEED)

lint: .make-build
	$(BIN)/ruff check .
	$(BIN)/ruff format --check relay tests benchmarks tools setup.py
	$(BIN)/mypy

bench: .make-build
	$(BIN)/python -m benchmarks run --write-docs docs/performance.md

# The lock file pins every package by hash; the project itself is built in place, so that editing needs no reinstall.
.make-venv: requirements.lock
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --require-hashes -r requirements.lock
	touch $@

.make-build: .make-venv $(SOURCES)
	$(BIN)/python setup.py --quiet build_ext --inplace
	touch $@

clean:
	rm -rf $(VENV) .make-venv .make-build build relay/_fastpath.c relay/_fastpath*.so

# The compiled module under AddressSanitizer and UndefinedBehaviorSanitizer, and every test that runs in this process.
asan: .make-venv
	rm -rf build/asan && mkdir -p build/asan
	cp -r setup.py pyproject.toml README.md LICENSE relay tests build/asan/
	rm -f build/asan/relay/_fastpath*.so build/asan/relay/_fastpath.c
	cd build/asan && RELAY_BUILD=asan $(CURDIR)/$(BIN)/python setup.py --quiet build_ext --inplace
	cd build/asan && ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=halt_on_error=1:print_stacktrace=1 PYTHONMALLOC=malloc \
	  LD_PRELOAD="$$(cc -print-file-name=libasan.so) $$(cc -print-file-name=libubsan.so)" \
	  $(CURDIR)/$(BIN)/python -m pytest tests/fastpath tests/proxy tests/test_estimator.py -p no:cacheprovider
