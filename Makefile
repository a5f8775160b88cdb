# `make demo` and `make test` do all the set-up; nothing but Python 3.11, git and make is needed.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
DEMO := runs/demo
# Python compiles what it imports; compiling all that is installed takes longer.
PIP := $(BIN)/pip install -q --disable-pip-version-check --no-compile

.PHONY: demo test check lint types clean

$(VENV)/.installed: setup.cfg pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(PIP) -e .
	touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(PIP) -e ".[dev]"
	$(BIN)/python -m compileall -q -j 0 $(VENV)/lib  # tests start many processes, some where Python may not write
	touch $@

demo: $(VENV)/.installed
	$(BIN)/conan demo --out $(DEMO)

test: $(VENV)/.installed-dev
	$(BIN)/pytest

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check
	$(BIN)/ruff format --check

types: $(VENV)/.installed-dev
	$(BIN)/mypy

check: lint types test

clean:
	rm -rf $(VENV) runs build *.egg-info
