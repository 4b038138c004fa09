# Every target works on a fresh machine with Python 3.10 or newer and make.
PYTHON ?= python3
VENV ?= .venv
WORKERS ?= 2
BIN := $(VENV)/bin
DEMO := $(VENV)/demo.installed
DEV := $(VENV)/dev.installed

# Threads of numerical libraries would compete with the test workers.
export OMP_NUM_THREADS ?= 1

# `make experiments` is to take half an hour of two cores; on two threads of one slow server core its parts took 64
# core-minutes, some 34 minutes together: ablation 17 core-minutes, accuracy 12, transfer 10, published 6, the others
# less than 5 each. conv_layers keeps results of all rows and takes 5 where there are none.
# Where all rows would take longer, a script takes a sample with a fixed seed, says so in its text, and takes more with
# --full, --engines or --select. `campaign_plans` and `published_headlines` make data, not results; the datasets' pages
# say when.
PUBLISHED := $(if $(PERFPRED_REFERENCE_DATA),build/published)
# Of one process each, so two at a time, the longest first.
EXPERIMENTS ?= $(if $(PUBLISHED),import-published) nondeterminism scale cuda_launches flops_agreement fusion_speed \
	inversions micro_architecture optimisation_gain published_coverage
# On all cores by themselves, so one at a time.
PARALLEL_EXPERIMENTS ?= fusion_agreement accuracy ablation transfer $(if $(PUBLISHED),published conv_layers)

.PHONY: help demo test check experiments lint format clean

help:
	@echo "make demo         measure, train and predict on this CPU; leaves .demo/report.html"
	@echo "make test         ruff, mypy and all tests"
	@echo "make check        ruff, mypy and the fast tests"
	@echo "make experiments  all results of experiments/ again; half an hour of two cores, or somewhat more"
	@echo "make lint         ruff and mypy"
	@echo "make format       let ruff format the code"

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

experiments: $(DEV)
ifndef PUBLISHED
	@echo "PERFPRED_REFERENCE_DATA is not set: published tables, published and conv_layers are left out"
endif
	$(MAKE) --no-print-directory -j 2 $(addprefix experiment-,$(EXPERIMENTS))
	$(MAKE) --no-print-directory -j 1 $(addprefix experiment-,$(PARALLEL_EXPERIMENTS))

experiment-import-published: $(DEV)
	$(BIN)/python -m perfpred.cli import published $(PERFPRED_REFERENCE_DATA)/tensorrt_published.csv \
		$(PERFPRED_REFERENCE_DATA)/tensorrt_published_detectors.csv --out $(PUBLISHED)

experiment-accuracy experiment-ablation experiment-transfer: GIVEN = $(addprefix --published ,$(PUBLISHED))
experiment-published: GIVEN = $(PUBLISHED)
# All precisions and splits take half an hour alone.
experiment-conv_layers: GIVEN = --precision fp16 --split pair cin
experiment-fusion_agreement: GIVEN = --cache build/fusion
experiment-%: $(DEV)
	$(BIN)/python experiments/$*.py $(GIVEN)

format: $(DEV)
	$(BIN)/ruff format

clean:
	rm -rf $(VENV) .demo build .pytest_cache .mypy_cache .ruff_cache
