# make book    build the book into _build/html (creates .venv, runs the chapters)
# make test    check style and types, run the tests that need no built book
# make check   the tests, the book with its warnings as errors, the tests of the built book
# make nightly all there is, for hours: also long tests, many examples, the fault campaign, mutants
# make newest  the tests of rules and layers with the newest zennit
# Variables: PYTHON=python3.12  STRICT=1 (warnings of the book are errors)  BOOKFLAGS=...  PYTESTFLAGS=...  LIMIT=20
#            STUDY=path/to/study.toml (make book: the book on that study, in _build/editions)

PYTHON ?= $(shell for p in python3.11 python3.12 python3.13 python3.10 python3; do \
	$$p -c 'import sys; sys.exit(not (3, 10) <= sys.version_info < (3, 14))' 2>/dev/null && echo $$p && break; done)
BIN := .venv/bin
PIP := $(BIN)/python -m pip install --disable-pip-version-check -q --no-compile -c constraints.txt
STAMP := .venv/.installed
BOOKFLAGS ?= $(if $(filter-out 0,$(STRICT)),-W --keep-going)
PYTESTFLAGS ?=
# Seconds for each test of `quick` and `test`, beside which nothing else should run.
LIMIT ?= 20
# All cores: each takes tests in a row, since a module's share what is made once, and helps others when it is done.
PYTEST = $(BIN)/python -m pytest -n auto --dist worksteal --durations 10 $(PYTESTFLAGS)

# Python compiles what it imports once, and not in each process again, which takes 10 s every time.
export PYTHONDONTWRITEBYTECODE :=

.DELETE_ON_ERROR:
.PHONY: help env book lab quick test check check-book newest nightly lint types format clean distclean print wheel

help:  ## show this list
	@grep -E '^[a-z]+:.*##' $(firstword $(MAKEFILE_LIST)) | sed -E 's/:.*## /\t/' | expand -t 12

env: $(STAMP)  ## create .venv with the tested versions

$(STAMP): pyproject.toml constraints.txt
	tools/make_env.sh $(PYTHON)
	@touch $@

book: $(STAMP)  ## build the book; prints where it is
	$(BIN)/python tools/build.py $(if $(STUDY),--study "$(STUDY)") $(BOOKFLAGS)

lab: $(STAMP)  ## open the chapters in JupyterLab
	$(PIP) -e ".[lab]"
	$(BIN)/jupyter lab book

quick: $(STAMP)  ## the unit tests
	$(PYTEST) --timeout $(LIMIT) -m "not (slow or book or nightly)"

test: lint types  ## style, types, the tests that need no built book
	$(PYTEST) --timeout $(LIMIT) -m "not (book or nightly)"

check: test check-book  ## the tests, and the built book's

check-book:  ## the book with its warnings as errors, and the tests of the built book
	$(MAKE) book STRICT=1
	$(PYTEST) -m "book and not nightly"

newest:  ## the tests of rules and layers with the newest zennit, which zennit-crp does not take, in _build/newest
	$(PYTHON) -m venv --clear _build/newest
	grep -v '^zennit' constraints.txt >_build/newest/constraints.txt
	_build/newest/bin/python -m pip install -q -c _build/newest/constraints.txt -e ".[unit]"
	_build/newest/bin/python -m pytest -n auto -rs $(PYTESTFLAGS) -m "not nightly" $(addprefix tests/test_, \
		lrp.py circuits.py layers.py render.py planting.py splitting.py virtual_layer.py)

nightly: lint types  ## all there is, for hours: also long tests, many examples, the fault campaign, mutants
	$(MAKE) book STRICT=1
	$(PYTEST) --hypothesis-profile nightly
	$(BIN)/python benchmarks/faults.py
	$(BIN)/python tools/mutants.py

lint: $(STAMP)  ## ruff, and the contract of imports
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

types: $(STAMP)  ## mypy
	$(BIN)/mypy

format: $(STAMP)  ## rewrite the code in the project's style
	$(BIN)/ruff check --fix-only .
	$(BIN)/ruff format .

clean:  ## remove the built book, its cache and the tools' caches
	rm -rf _build .mypy_cache .pytest_cache .ruff_cache .hypothesis dist

distclean: clean  ## remove .venv too
	rm -rf .venv

# The chapters come from the cache of `book`; none runs again.
print: book  ## the book on one page, as PDF and as EPUB, in _build/print
	$(BIN)/python tools/print_book.py
	$(BIN)/python tools/make_epub.py

wheel: $(STAMP)  ## the package as it is published, in dist
	rm -rf dist
	$(BIN)/uv build --out-dir dist
	$(BIN)/uv tool run twine check --strict dist/*
