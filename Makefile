# Framepool. Every target makes .venv from requirements.lock when it is missing, unfinished or older than the lock.

PYTHON ?= python3
CORES ?= $(shell nproc 2>/dev/null || sysctl -n hw.ncpu)
BIN := .venv/bin
VENV := .venv/.made-from-lock
.DEFAULT_GOAL := help
.PHONY: help demo test test-all lint format lock clean
MAKEFLAGS += --no-print-directory
PARALLEL := -n auto --maxprocesses 4 --max-worker-restart 0 --dist loadfile --no-loadscope-reorder

help:  ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@echo "  CORES=$(CORES) cores for demo; PYTHON=$(PYTHON) (3.11 or newer) makes .venv"

demo: $(VENV)  ## render clips, train, report: results/demo/index.html
	$(BIN)/snakemake --cores $(CORES) results/demo

test: $(VENV)  ## the tests that a change needs
	$(BIN)/python -m pytest $(PARALLEL)

test-all: $(VENV)  ## also the slow ones: kills, whole workflows, real data
	$(BIN)/python -m pytest $(PARALLEL) -m ""

lint: $(VENV)  ## ruff, types, Snakemake's own advice
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/snakefmt --check Snakefile pipelines/rules
	$(BIN)/python .ci/snakelint.py

format: $(VENV)  ## let ruff and snakefmt rewrite the sources
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/snakefmt Snakefile pipelines/rules

lock:  ## write requirements.lock from what .venv holds (CONTRIBUTING says when)
	@$(BIN)/python .ci/lock.py > requirements.lock.new
	@mv requirements.lock.new requirements.lock && touch $(VENV)

clean:  ## remove caches and the demo's output; keeps .venv and other datasets
	rm -rf work/demo results/demo build *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +

# Touched last: an installation that was interrupted has no stamp and is made again from nothing.
$(VENV): requirements.lock
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and f"Python >= 3.11 is needed, this is {sys.version.split()[0]}: make PYTHON=python3.12 ...")'
	@echo "making .venv from requirements.lock (once; several minutes, mostly torch) ..."
	@$(PYTHON) -m venv --clear .venv
	@$(BIN)/python -m pip install -qq --disable-pip-version-check --no-compile -r requirements.lock
	@$(BIN)/python -m pip install -qq --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@
	@echo "made .venv"
