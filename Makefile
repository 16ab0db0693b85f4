# make demo    set up .venv, then run the whole system at small size on the toy world
# make test    the same set-up, then the tests
# make check   lint, types and tests: what CI runs, without the demo
# make bench   all benchmarks, their table written into docs/speed.md; e.g. ARGS="--upstream CHECKOUT"
# make known-answers    comparisons whose right verdict is known (about an hour and a half; see docs/results.md)
# make mini-weights   make the small weights of the package again (about 35 minutes)
#
# The set-up needs python3 >= 3.11 and a package index; it is done once and again only when the pins change.
# `make demo ARGS="--quick"` passes arguments on; `make demo PYTHON=python3.12` picks an interpreter.

PYTHON ?= python3
ARGS   ?=
VENV   := .venv
BIN    := $(VENV)/bin
PIP    := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt
READY  := $(VENV)/.ready
TOOLS  := $(VENV)/.ready-dev

.PHONY: bench known-answers mini-weights demo test lint types check format setup setup-dev clean
.DELETE_ON_ERROR:

demo: $(READY)
	$(BIN)/hwm demo $(ARGS)

# One thread a process: two processes of two threads each on two cores wait for one another ten times as long.
test: $(TOOLS)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses auto --dist worksteal $(ARGS)

lint: $(TOOLS)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(TOOLS)
	$(BIN)/pyright

check: lint types test

format: $(TOOLS)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(TOOLS)
	$(BIN)/python -m benchmarks --into docs/speed.md $(ARGS)

known-answers: $(TOOLS)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m known_answers tests/test_known_answers.py $(ARGS)

mini-weights: $(TOOLS)
	$(BIN)/python scripts/make_mini_weights.py

setup: $(READY)

setup-dev: $(TOOLS)

# The build tool is installed first and pinned like all else, so that nothing is resolved outside the pins.
$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	    echo "hwm needs Python 3.11 or newer, found: $$($(PYTHON) --version 2>&1). Try: make PYTHON=python3.12 ..."; exit 1; }
	@echo "Setting up $(VENV) with the pinned dependencies (once; a few minutes)"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(PIP) hatchling
	@$(PIP) --no-build-isolation --editable .
	@touch $@

$(TOOLS): $(READY)
	@echo "Adding the test and lint tools"
	@$(PIP) --no-build-isolation --editable '.[dev]'
	@touch $@

clean:
	rm -rf $(VENV) build dist .pytest_cache .ruff_cache .hypothesis
