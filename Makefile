# Every target works on a fresh machine with Python 3.10 or newer and make.
PYTHON ?= python3
VENV ?= .venv
WORKERS ?= 2
BIN := $(VENV)/bin
DEMO := $(VENV)/demo.installed
DEV := $(VENV)/dev.installed

# Threads of numerical libraries would compete with the test workers.
export OMP_NUM_THREADS ?= 1

# Scripts that need no arguments; where PERFPRED_REFERENCE_DATA is set, some of them read the published tables too.
# `campaign_plans` and `published_headlines` make data, not results; the datasets' pages say when.
EXPERIMENTS ?= cuda_launches flops_agreement fusion_speed inversions micro_architecture nondeterminism \
	optimisation_gain scale ablation
PUBLISHED := $(if $(PERFPRED_REFERENCE_DATA),build/published)

.PHONY: help demo test check experiments lint format clean

help:
	@echo "make demo         measure, train and predict on this CPU; leaves .demo/report.html"
	@echo "make test         ruff, mypy and all tests"
	@echo "make check        ruff, mypy and the fast tests"
	@echo "make experiments  all results of experiments/ again; hours"
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
	for name in $(EXPERIMENTS); do echo "== $$name"; $(BIN)/python experiments/$$name.py || exit 1; done
	$(BIN)/python experiments/fusion_agreement.py --cache build/fusion
ifdef PERFPRED_REFERENCE_DATA
	$(BIN)/python -m perfpred.cli import published $(PERFPRED_REFERENCE_DATA)/tensorrt_published.csv \
		$(PERFPRED_REFERENCE_DATA)/tensorrt_published_detectors.csv --out $(PUBLISHED)
	$(BIN)/python experiments/published.py $(PUBLISHED)
	$(BIN)/python experiments/published_coverage.py $(PERFPRED_REFERENCE_DATA)
	$(BIN)/python experiments/conv_layers.py
else
	@echo "PERFPRED_REFERENCE_DATA is not set: conv_layers, published and published_coverage are left out"
endif
	$(BIN)/python experiments/accuracy.py $(addprefix --published ,$(PUBLISHED))
	$(BIN)/python experiments/transfer.py $(addprefix --published ,$(PUBLISHED))

format: $(DEV)
	$(BIN)/ruff format

clean:
	rm -rf $(VENV) .demo build .pytest_cache .mypy_cache .ruff_cache
