# Needs Python 3.11 or newer, git, make and the package registries. Everything else lives in .venv.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Modules are compiled when they are first imported: most of what is installed never is.
INSTALL := $(BIN)/pip --disable-pip-version-check -qq install --no-compile --constraint constraints.txt
# A file's tests stay together: they share servers and models. Each process takes up to 2 GB.
PYTEST := $(BIN)/python -m pytest --numprocesses logical --maxprocesses 8 --dist loadfile
PINS := pyproject.toml constraints.txt requirements-assets.txt

.DEFAULT_GOAL := help
.PHONY: help setup quickstart test test-slow lint format bench protos pipelines bazel clean

help: ## Lists the targets.
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

setup: $(VENV)/.dev ## Creates .venv with all that running, testing and linting need.

quickstart: $(VENV)/.runtime ## Pictures to scored, served models, and a report: the whole of Rebus once.
	$(BIN)/rebus quickstart

test: $(VENV)/.dev ## Runs the fast tests.
	$(PYTEST) -m "not slow"

test-slow: $(VENV)/.dev ## Runs the second tier: processes, an object store, whole pipelines.
	$(PYTEST) -m slow

lint: $(VENV)/.dev ## Checks style, types, the floors' imports, the contract and what is generated from it.
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports --no-logo
	$(BIN)/python -m tools.protos --check
	$(BIN)/python -m tools.protos.buf
	$(BIN)/pyright

format: $(VENV)/.dev ## Formats the code.
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(VENV)/.dev ## Measures against named peers, one script after another.
	set -e; for script in tools/bench/*.py; do $(BIN)/python $$script; done

protos: $(VENV)/.dev ## Generates code, golden descriptor and reference from protos/.
	$(BIN)/python -m tools.protos

pipelines: $(VENV)/.dev ## Compiles the Kubeflow pipelines into pipelines/compiled/.
	$(BIN)/python -m pipelines.compile

bazel: $(VENV)/.dev ## Runs the fast tests through Bazel.
	bazel test //...

clean: ## Removes the environment and the caches; stored data stays.
	rm -rf $(VENV) build dist .pytest_cache .ruff_cache .import_linter_cache *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/.runtime: $(PINS)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "Rebus needs Python 3.11 or newer, and $(PYTHON) is older: make PYTHON=/path/to/python3.11"; exit 1; }
	@echo "Installing into $(VENV) (about a minute)"
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(INSTALL) --editable .
	$(INSTALL) --no-deps --requirement requirements-assets.txt
	@touch $@

$(VENV)/.dev: $(VENV)/.runtime requirements-assets-dev.txt
	$(INSTALL) --editable '.[dev,otlp,ray]'
	$(INSTALL) --no-deps --requirement requirements-assets-dev.txt
	@touch $@
