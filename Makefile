# `make demo` and `make test` do all the set-up; nothing but Python 3.11 or later, git and make is needed.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
LOWEST := .venv-lowest
DEMO := runs/demo
# Python compiles what it imports; compiling all that is installed takes longer.
INSTALL := bin/pip install -q --disable-pip-version-check --no-compile
# One process a core, tests of one group (a shared, expensive fixture) in one of them.
PYTEST := bin/pytest -n auto --maxprocesses 4 --dist loadgroup --durations 10

.PHONY: demo test test-lowest smoke-lowest check lint types docs wheel clean

$(VENV)/.installed: setup.cfg pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(VENV)/$(INSTALL) -e ".[all]"
	touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(VENV)/$(INSTALL) -e ".[dev]"
	$(BIN)/python -m compileall -qq -j 0 $(VENV)/lib || true  # tests start many processes; torch holds files of later Pythons
	touch $@

# The lowest release that setup.cfg allows of each direct requirement.
$(LOWEST)/.installed-dev: setup.cfg pyproject.toml .ci/lowest.py
	$(PYTHON) -m venv $(LOWEST)
	$(PYTHON) .ci/lowest.py > $(LOWEST)/constraints.txt
	$(LOWEST)/$(INSTALL) -c $(LOWEST)/constraints.txt -e ".[dev]"
	$(LOWEST)/bin/python -m compileall -qq -j 0 $(LOWEST)/lib || true
	touch $@

demo: $(VENV)/.installed
	$(BIN)/conan demo --out $(DEMO)

test: $(VENV)/.installed-dev
	OMP_NUM_THREADS=1 $(VENV)/$(PYTEST)

test-lowest: $(LOWEST)/.installed-dev
	OMP_NUM_THREADS=1 $(LOWEST)/$(PYTEST)

# The wheel in an empty environment of the lowest releases, and the line in small from it, with no checkout near.
smoke-lowest: wheel
	PYTHON=$(PYTHON) .ci/smoke dist lowest

wheel: $(VENV)/.installed-dev
	rm -rf build/lib build/bdist* dist
	$(BIN)/python -m build --no-isolation > /dev/null
	rm -rf build/lib build/bdist*

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check
	$(BIN)/ruff format --check

types: $(VENV)/.installed-dev
	$(BIN)/mypy

# The API reference; a warning is an error.
docs: $(VENV)/.installed-dev
	rm -rf build/docs
	$(BIN)/python docs/reference.py build/docs

check: lint types test

clean:
	rm -rf $(VENV) $(LOWEST) runs build dist *.egg-info
