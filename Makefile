# `make demo` and `make test` work from a fresh clone: each makes .venv if need be and installs the package as a user
# would. The checkout itself is never imported.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
SOURCES := pyproject.toml setup.py MANIFEST.in README.md $(shell find csrc dlmt_fast -name '*.py' -o -name '*.cpp' -o -name '*.h' -o -name '*.cu' -o -name '*.cuh' -o -name py.typed)
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
	$(BIN)/clang-format --dry-run --Werror $$(git ls-files 'csrc/*.h' 'csrc/*.cpp' 'csrc/*.cu' 'csrc/*.cuh')
	$(BIN)/mypy

# The C++ side under AddressSanitizer and UndefinedBehaviorSanitizer. libstdc++ is preloaded beside libasan, else the
# first C++ exception aborts; Python itself leaks at exit. One case is left to the ordinary run: min-max asks for memory
# inside a call, and where a fork falls into that, the child waits for ever for a lock of the sanitizer's own allocator
# (backtrace: operator new[] in SizeClassAllocator64::GetFromAllocator), which glibc's allocator takes care of.
sanitize: $(VENV)/.dev
	$(BIN)/python -m pip install --quiet 'setuptools>=69' 'pybind11>=2.12'
	rm -rf .sanitize
	DLMT_SANITIZE=1 DLMT_NATIVE=1 $(BIN)/python setup.py -q build --build-base .sanitize --build-lib .sanitize/lib
	LD_PRELOAD="$$(g++ -print-file-name=libasan.so):$$(g++ -print-file-name=libstdc++.so)" \
	ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=print_stacktrace=1 PYTHONPATH=.sanitize/lib DLMT_TEST_CHECKOUT=1 \
	$(PYTEST) -p no:cacheprovider -q -m "not long" tests/test_native.py tests/test_equality.py tests/test_png_reader.py \
	  --deselect 'tests/test_native.py::test_a_fork_in_the_middle_of_another_threads_call[minmax]'

format: $(VENV)/.lint
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $$(git ls-files 'csrc/*.h' 'csrc/*.cpp' 'csrc/*.cu' 'csrc/*.cuh')

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
