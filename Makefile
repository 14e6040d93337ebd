# make book    build the book into _build/html (creates .venv, runs the chapters)
# make test    check style and types, run the tests that need no built book
# make check   the tests, the book with its warnings as errors, the tests of the built book
# make nightly all there is, for hours: also long tests, many examples, the fault campaign, mutants
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
EDITION := $(if $(STUDY),_build/editions/$(basename $(notdir $(STUDY)))/)
BUILD := $(EDITION)_build
EXTRA := $(BUILD)/extra
# The longest first, so that at the end no core waits for another; before them those that hardly need what the neurons'
# pages compute first.
LONG = $(patsubst %,$(EDITION)book/%.md,your-network scale clip bench virtual-neurons splitting)
CHAPTERS = $(shell grep -l '^```{code-cell}' $(LONG) $(EDITION)book/*.md | awk '!seen[$$0]++')
ATLAS := --out $(EXTRA)/neurons --method circuits --method "circuits (LRP)" --method activations --embedder mini-clip \
	--home ../book/index.html

# Python compiles what it imports once, and not in each process again, which takes 10 s every time.
export PYTHONDONTWRITEBYTECODE :=

.DELETE_ON_ERROR:
.PHONY: help env book fresh $(EDITION) lab quick test check check-book nightly lint types format clean distclean print wheel

help:  ## show this list
	@grep -E '^[a-z]+:.*##' $(firstword $(MAKEFILE_LIST)) | sed -E 's/:.*## /\t/' | expand -t 12

env: $(STAMP)  ## create .venv with the tested versions

# uv takes a fraction of pip's time; pip does it where uv can't, say behind an index that only pip is told of.
$(STAMP): pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "No Python 3.10 to 3.13 found. Name one: make PYTHON=/path/to/python3" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { echo "$(PYTHON) cannot create virtual environments." \
		"On Debian or Ubuntu its package python3-venv is missing; environment.yml is the way with conda." >&2; exit 1; }
	$(PYTHON) -m venv .venv
	$(PIP) uv
	$(BIN)/uv pip install -q --python $(BIN)/python -c constraints.txt -e ".[book,test]" || $(PIP) -e ".[book,test]"
	@touch $@

# The chapters run side by side, and the book is made of the results; a chapter that failed runs again there, with its
# error shown. Beside all that the neurons' own pages are written, which the chapters' explorers lead to; they may take
# longer than the chapters, as the last step uses one core, so they are copied to the site at the end. Results of
# another study go where the command line keeps them, and are found there.
book: export PURE_NB_BOOK := $(CURDIR)/$(EXTRA)
book: export PURE_NB_STORE := $(if $(STUDY),$(abspath $(PURE_NB_STORE)),$(CURDIR)/_build/store)
book: export TQDM_DISABLE := 1
book: export PYDEVD_DISABLE_FILE_VALIDATION := 1
book: $(STAMP) fresh $(EDITION)  ## build the book; prints where it is
	@export OMP_NUM_THREADS=1 LOKY_MAX_CPU_COUNT=1; \
	$(if $(STUDY),:,nice -n 10 $(BIN)/pure-nb atlas glyphs $(ATLAS) > /dev/null) & atlas=$$!; \
	$(BIN)/python tools/run_chapters.py $(BUILD)/.jupyter_cache $(CHAPTERS); \
	$(BIN)/jupyter-book build ./$(EDITION) $(BOOKFLAGS); built=$$?; wait $$atlas && exit $$built
	@cp -R $(EXTRA)/. $(BUILD)/html
	@echo "The book: $(CURDIR)/$(BUILD)/html/index.html"

# Chapters are cached once run. The cache knows the chapters but not the package: forget it when the package changed.
fresh: $(STAMP)
	@sum=$$(find pure_nb constraints.txt -type f ! -name '*.pyc' -print0 | LC_ALL=C sort -z | xargs -0 cksum | cksum); \
	if [ "$$sum" != "$$(cat $(BUILD)/package.sum 2>/dev/null)" ]; then \
		rm -rf $(BUILD)/.jupyter_cache $(BUILD)/.doctrees $(BUILD)/html $(BUILD)/store $(EXTRA); \
		mkdir -p $(BUILD) && echo "$$sum" > $(BUILD)/package.sum; \
	fi; mkdir -p $(EXTRA)

ifdef STUDY
$(EDITION): $(STAMP) fresh
	TQDM_DISABLE= $(BIN)/python tools/edition.py "$(STUDY)" $@
endif

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

nightly: lint types  ## all there is, for hours: also long tests, many examples, the fault campaign, mutants
	$(MAKE) book STRICT=1
	$(PYTEST) --hypothesis-profile nightly
	$(BIN)/python benchmarks/faults.py
	$(BIN)/python tools/mutants.py

lint: $(STAMP)  ## ruff
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

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
print: book  ## the book on one page and as PDF, in _build/print
	$(BIN)/jupyter-book build . --builder singlehtml
	@cp -R $(EXTRA)/. _build/singlehtml
	$(BIN)/python tools/print_book.py _build/singlehtml _build/print/book.pdf

wheel: $(STAMP)  ## the package as it is published, in dist
	rm -rf dist
	$(BIN)/uv build --out-dir dist
	$(BIN)/uv tool run twine check --strict dist/*
