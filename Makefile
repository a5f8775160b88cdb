# `make demo` and `make test` do all the set-up; nothing but Python 3.11, git and make is needed.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
DEMO := runs/demo

.PHONY: install demo test check lint types clean
install: $(VENV)/.installed

$(VENV)/.installed: setup.cfg pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -q -e ".[dev]"
	touch $@

demo: install
	$(BIN)/conan demo --out $(DEMO)

test: install
	$(BIN)/pytest

lint: install
	$(BIN)/ruff check
	$(BIN)/ruff format --check

types: install
	$(BIN)/mypy

check: lint types test

clean:
	rm -rf $(VENV) runs build *.egg-info
