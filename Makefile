# make quickstart   set up .venv, then run the whole life cycle
# make test         set up .venv with the development tools, then run every check

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
SETUP := tools/setup_environment.py
INPUTS := pyproject.toml constraints.txt $(SETUP)

.PHONY: quickstart test lint types floors tests format clean

quickstart: $(VENV)/.quickstart
	$(BIN)/yunque quickstart

test: lint types floors tests

lint: $(VENV)/.dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

types: $(VENV)/.dev
	$(BIN)/mypy

floors: $(VENV)/.dev
	$(BIN)/lint-imports

tests: $(VENV)/.dev
	$(BIN)/pytest -n auto

format: $(VENV)/.dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) build dist src/*.egg-info

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "Yunque needs Python 3.11 or newer (make PYTHON=python3.12 ...)"; exit 1; }
	@$(PYTHON) -m venv $(VENV) \
		|| { rm -rf $(VENV); echo "python3 has no venv module: install python3-venv"; exit 1; }

$(VENV)/.quickstart: $(VENV)/bin/python $(INPUTS)
	$(BIN)/python $(SETUP) quickstart
	@touch $@

$(VENV)/.dev: $(VENV)/bin/python $(INPUTS)
	$(BIN)/python $(SETUP) dev
	@touch $@ $(VENV)/.quickstart
