# `make run`: a finished run and a server, from a clean clone. Needs Python >= 3.11 and make, nothing else.

PYTHON ?= python3
PORT ?= 5001
DATA ?= .flowledger
ARGS ?=
WORKERS ?= 0
VENV := .venv
BIN := $(VENV)/bin

# A stamp holds what was installed: a newer pyproject.toml installs again, everything else does not.
RUNTIME := $(VENV)/.installed-runtime
TESTING := $(VENV)/.installed-testing
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet

.PHONY: run setup test check bench up down

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "$(PYTHON) is older than 3.11. Name another: make PYTHON=python3.12 $(MAKECMDGOALS)" >&2; exit 1; }
	@echo "making $(VENV)" >&2
	@$(PYTHON) -m venv $(VENV)

$(RUNTIME): pyproject.toml | $(BIN)/python
	@echo "installing (once)" >&2
	@$(PIP) install --no-compile -e '.[javascript,documents]' 2>/dev/null || \
	  { echo "without JavaScript and office documents: not all packages are to be had here" >&2; $(PIP) install --no-compile -e .; }
	@touch $@

$(TESTING): pyproject.toml | $(BIN)/python
	@echo "installing with test extras (once)" >&2
	@$(PIP) install -e '.[test,servers]'
	@touch $@ $(RUNTIME)

setup: $(TESTING)  ## everything for development

run: $(RUNTIME)  ## import and run the sample offline, keep serving; PORT= and DATA= override
	@exec $(BIN)/flowledger dev examples/hello.yml --run --offline --port $(PORT) --data $(DATA)

test: $(TESTING)  ## the suite, with a real broker and database where they can be had; ARGS= goes to pytest; WORKERS=2: two at a time
	$(BIN)/python -m pytest -q -n $(WORKERS) --dist loadfile --no-loadscope-reorder $(ARGS)

check: $(TESTING)  ## style, types, import rules; changes nothing
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -q tests/unit/test_layering.py

# The ones that need no server; the others take `--kafka BOOTSTRAP` (python -m tests.servers kafka prints one).
bench: $(TESTING)  ## one JSON line per question
	@for name in engine containers journal_sqlite steps first_event large_outputs projector sandbox rounds streams; do \
	  $(BIN)/python -m benchmarks.$$name || exit 1; done

up:  ## docker compose, until healthy
	docker compose up --build --detach --wait

down:
	docker compose down
