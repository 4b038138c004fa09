# Every target works on a fresh machine with Python 3.10 or newer and make.
PYTHON ?= python3
VENV ?= .venv
WORKERS ?= 2
BIN := $(VENV)/bin
DEMO := $(VENV)/demo.installed
DEV := $(VENV)/dev.installed

# Threads of numerical libraries would compete with the test workers.
export OMP_NUM_THREADS ?= 1

.PHONY: help demo test check lint format clean

help:
	@echo "make demo    measure, train and predict on this CPU; leaves .demo/report.html"
	@echo "make test    ruff, mypy and all tests"
	@echo "make check   ruff, mypy and the fast tests"
	@echo "make lint    ruff and mypy"
	@echo "make format  let ruff format the code"

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip

$(DEMO): pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --editable ".[ort,report]"
	@touch $@

$(DEV): pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --editable ".[dev]"
	# The stubs ask for TensorRT itself, which type checking does without.
	$(BIN)/python -m pip install --quiet --no-deps "tensorrt-stubs>=10,<11"
	@touch $@

demo: $(DEMO)
	env -u OMP_NUM_THREADS $(BIN)/python -m perfpred.demo --out .demo

lint: $(DEV)
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

test: lint
	$(BIN)/python -m pytest -n $(WORKERS)

check: lint
	$(BIN)/python -m pytest -n $(WORKERS) -m "not slow"

format: $(DEV)
	$(BIN)/ruff format

clean:
	rm -rf $(VENV) .demo build .pytest_cache .mypy_cache .ruff_cache
