# make demo and make test do everything on a machine that has Python >= 3.10 and make, and nothing else.
#   make demo    a trained transformer, opened up
#   make test    the tests
#   make test-remote   those of tracing, each of them through the wire of remote execution
#   make test-ray      those of a server on a Ray cluster, for which it installs ray (240 MB), and nothing else does
#   make check   formatting, lint and types, then the tests
#   make bench   speed, next to transformers
#   make docs    the documentation as a site in site/, which can be read without a network
#   make mutants mistakes planted, one at a time: does the suite notice?
# Another interpreter: make test PYTHON=python3.12

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
DOCS_INSTALLED := $(VENV)/.docs-installed

# The suite starts Python some two hundred times: a module is compiled by the first, and its asserts are rewritten once.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: docs mutants demo test test-remote test-ray formatting lint types check bench format clean

demo: $(INSTALLED)
	$(BIN)/nnzoo demo

test: $(INSTALLED)
	$(BIN)/python -m pytest --numprocesses auto --maxprocesses 4 --dist loadfile

TRACED := tracing* contexts* generation* envoy_* streaming prompt* reference_runs nnsight_programs analysis_changing

test-remote: $(INSTALLED)
	$(BIN)/python -m pytest --numprocesses auto --maxprocesses 4 --remote $(wildcard $(TRACED:%=tests/test_%.py))

test-ray: $(INSTALLED)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --no-build-isolation --editable '.[dev,ray]'
	$(BIN)/python -m pytest tests/test_remote_ray.py

formatting: $(INSTALLED)
	$(BIN)/ruff format --check .

lint: $(INSTALLED)
	$(BIN)/ruff check .

types: $(INSTALLED)
	$(BIN)/mypy

check: formatting lint types
	$(MAKE) test

docs: $(DOCS_INSTALLED)
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --clean

mutants: $(INSTALLED)
	$(BIN)/python tests/mutations.py

bench: $(INSTALLED)
	$(BIN)/python -m benchmarks.run

format: $(INSTALLED)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# setuptools first and no build isolation, so that the pins hold for the build too
$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info; v >= (3, 10) or sys.exit("nnzoo needs Python >= 3.10, and $(PYTHON) is %d.%d; try: make PYTHON=python3.12" % v[:2])'
	$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear $(VENV)
	@echo "Installing into $(VENV), once: PyTorch is large, and it may take minutes."
	$(BIN)/python -m pip install --quiet --constraint constraints.txt setuptools
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --no-build-isolation --editable '.[dev]'
	touch $@

$(DOCS_INSTALLED): $(INSTALLED)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --no-build-isolation --editable '.[docs]'
	touch $@

clean:
	rm -rf $(VENV) build dist site *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
