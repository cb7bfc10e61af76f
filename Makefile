# make setup | run | test | check | protos | docs | bench | fuzz | faults | soak
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
FUZZ_SECONDS ?= 300
ROUNDS ?= 200
SEED ?=
WORKERS ?= 2
PYTEST = $(BIN)/python -m pytest -n $(WORKERS)
# Tests of a module share daemons, so they stay together.
TESTS = $(PYTEST) --dist loadfile
INSTALLED = $(VENV)/.installed

.PHONY: setup run test test-slow faults soak check format protos docs bench fuzz audit clean

setup: $(INSTALLED)

$(INSTALLED): pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	touch $(INSTALLED)

run: setup
	$(BIN)/orchestrator run configs/digits.toml

test: setup
	$(TESTS) -m "not slow and not faults"

test-slow: setup
	$(TESTS) -m "slow and not fault"

# One module has most of the time, and its daemons serve a whole session.
faults: setup
	$(PYTEST) --dist worksteal -p tests.fault_table -m "fault or faults"

soak: setup
	$(BIN)/python -m tests.soak --rounds $(ROUNDS) $(if $(SEED),--seed $(SEED))

check: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python scripts/make_protos.py --check
	$(BIN)/python scripts/make_config_reference.py --check
	$(BIN)/bandit --quiet --configfile pyproject.toml --recursive repsearch store searcher learner orchestrator scripts benchmarks
	$(BIN)/python scripts/audit.py

audit: setup
	$(BIN)/python scripts/audit.py

format: setup
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

protos: setup
	$(BIN)/python scripts/make_protos.py

docs: setup
	$(BIN)/python scripts/make_config_reference.py

fuzz: setup
	$(BIN)/python -m pip install --quiet --editable '.[fuzz]'
	mkdir -p .fuzz
	$(BIN)/python -m tests.fuzz_rpc -max_total_time=$(FUZZ_SECONDS) -max_len=8192 .fuzz

bench: setup
	$(BIN)/python benchmarks/digits.py
	$(BIN)/python benchmarks/mnist.py

clean:
	rm -rf .mypy_cache .ruff_cache .pytest_cache build dist
