# The two commands of the README do all the set-up; a second run skips what is installed.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/installed
DOCS_INSTALLED := $(VENV)/installed-docs

.PHONY: demo test test-slow lint docs notebooks clean
.DEFAULT_GOAL := demo

$(INSTALLED): pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	touch $@

demo: $(INSTALLED)
	$(BIN)/msun-fastai finetune --recipe demo

test: $(INSTALLED)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --maxprocesses 8 --dist worksteal

test-slow: $(INSTALLED)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m slow -n auto --maxprocesses 8 --dist worksteal

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# runs them where they lie, outputs included; tests/test_notebooks.py runs copies. Threads that wait for
# each other are not to spin: with another job beside it that costs ten times as much
notebooks: $(INSTALLED)
	GOMP_SPINCOUNT=10000 PYTHONWARNINGS=ignore HF_HUB_OFFLINE=1 \
	$(BIN)/jupyter execute --inplace --NotebookClient.record_timing=False nbs/*.ipynb

$(DOCS_INSTALLED): $(INSTALLED)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[docs]'
	touch $@

# strict: a warning is an error
docs: $(DOCS_INSTALLED)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

clean:
	rm -rf $(VENV) build dist site *.egg-info
