# `make demo` and `make test` work from a fresh clone: each makes .venv if need be and installs the package as a user
# would. The checkout itself is never imported.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
SOURCES := pyproject.toml setup.py MANIFEST.in README.md $(shell find csrc dlmt_fast -name '*.py' -o -name '*.cpp' -o -name '*.h' -o -name py.typed)
PYTEST := $(BIN)/pytest

.PHONY: demo test test-long lint format sanitize clean
.DELETE_ON_ERROR:

demo: $(VENV)/.demo
	$(BIN)/dlmt demo

test: $(VENV)/.dev
	$(PYTEST) -m "not long"

test-long: $(VENV)/.dev
	$(PYTEST) -m long

lint: $(VENV)/.lint
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run --Werror $$(git ls-files 'csrc/*.h' 'csrc/*.cpp')
	$(BIN)/mypy

format: $(VENV)/.lint
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $$(git ls-files 'csrc/*.h' 'csrc/*.cpp')

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.demo: $(VENV)/bin/python $(SOURCES)
	$(BIN)/python -m pip install --quiet '.[demo]'
	touch $@

$(VENV)/.dev: $(VENV)/bin/python $(SOURCES)
	$(BIN)/python -m pip install --quiet '.[dev]'
	touch $@

$(VENV)/.lint: $(VENV)/.dev
	$(BIN)/python -m pip install --quiet '.[dev,lint]'
	touch $@

clean:
	rm -rf build dist *.egg-info .sanitize demo-output .pytest_cache .hypothesis .mypy_cache .ruff_cache
