# Chores, each of them one line that also works by hand. Every target creates what it needs.

PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready

.DEFAULT_GOAL := help
.PHONY: help setup test torture check docs peers clean

help:  ## Print this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*##/\t/' | expand -t 10

setup: $(READY)  ## Create .venv with everything that tests and checks need

$(READY): pyproject.toml .ci/constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "qconvert needs Python 3.11 or newer; name one: make PYTHON=python3.12"; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -q -c .ci/constraints.txt -e ".[cpu,torch,timm,dev]"
	@touch $@

test: $(READY)  ## Run the tests
	$(BIN)/python -m pytest

torture: $(READY)  ## Run the long tests: kills, full disks, two builds at once
	$(BIN)/python -m pytest -m torture tests/torture

check: $(READY)  ## Format, lint, types, layers, size budget, docs up to date
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python .ci/budget.py
	$(BIN)/python docs/generate.py --check

docs: $(READY)  ## Write the reference pages again
	$(BIN)/python docs/generate.py

peers: $(READY)  ## Compare with other tools, as ratios in one run
	$(BIN)/python -m pip install -q -c .ci/constraints.txt -r benchmarks/requirements.txt
	$(BIN)/python -m benchmarks.peers

clean:  ## Remove the environment and everything made by these targets
	rm -rf .venv build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
