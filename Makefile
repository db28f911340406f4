# Every target sets up all that it needs: a virtual environment in .venv with the pinned dependencies.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
export FLWR_TELEMETRY_ENABLED := 0
export FLWR_DISABLE_UPDATE_CHECK := 1
export OMP_NUM_THREADS ?= 1

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-fast lint fmt check hooks bench clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  %-10s %s\n", $$1, $$2}'

# torch comes first and by exact version: any other order may resolve to a different build.
$(VENV)/.ready: pyproject.toml constraints.txt
	@command -v $(PYTHON) >/dev/null || { echo "Concord needs Python 3.11: install it or run make PYTHON=/path/to/python3.11"; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt torch==2.13.0
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	@touch $@

setup: $(VENV)/.ready ## make the virtual environment

demo: setup ## the main job: a coordinator and four hospitals as real processes; leaves demo-out/report.html
	$(BIN)/sims demo --out demo-out

test: setup ## all tests that this machine can run, real processes included
	$(BIN)/python -m pytest -n 2 -m "not gpu and not long and not processes"
	$(BIN)/python -m pytest -m "processes and not gpu"

test-fast: setup ## the tests of a minute or two, run before every commit
	$(BIN)/python -m pytest -n 2 -q -m "not gpu and not long and not processes and not slow"

lint: setup ## ruff, mypy, import-linter
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy .
	$(BIN)/lint-imports

fmt: setup ## format and mend what ruff can mend
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

check: lint test-fast ## what the commit hook runs

hooks: ## run `make check` before every commit in this clone
	git config core.hooksPath .githooks

bench: setup ## federated rounds beside plain Flower's (minutes)
	$(BIN)/sims bench rounds

clean: ## remove the virtual environment and what the demo left
	rm -rf $(VENV) demo-out
