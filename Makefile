# Every target sets itself up: .venv is made on first use and remade when constraints.txt changes.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

# The TensorRT-RTX wheels exist for x86-64 Linux; elsewhere the engine backend is ONNX Runtime.
EXTRAS := $(if $(filter Linux-x86_64,$(shell uname -s)-$(shell uname -m)),[rtx],)

MODEL ?= ffs
AUTOML ?= auto
DATA ?=
KITTI ?=
BENCHMARK ?= ../shared/bench/search_quality.py
VAL ?=
ARGS ?=
STUDY ?=
DATA_ARGS = $(if $(DATA),--data $(DATA)) $(if $(VAL),--val $(VAL))

.PHONY: help study train plan status report promote dashboard data schemas parity check test \
	test-all test-gpu bench bench-search bench-overhead install clean

help: ## Show every target with its sentence
	@grep -hE '^[a-z-]+:.*?## ' $(MAKEFILE_LIST) | awk -F':.*?## ' '{printf "  make %-15s %s\n", $$1, $$2}'

$(VENV)/.installed: constraints.txt pyproject.toml
	@echo "Setting up $(VENV) (a few minutes the first time) ..."
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "DepthTune needs Python 3.11 or newer; set PYTHON=/path/to/python3.11")'
	@rm -rf $(VENV)
	@$(PYTHON) -m venv $(VENV)
	@$(PIP) --editable '.$(EXTRAS)'
	@touch $@

$(VENV)/.dev: $(VENV)/.installed
	@echo "Adding the development tools ..."
	@$(PIP) --editable '.$(if $(EXTRAS),[rtx$(comma)dev],[dev])'
	@touch $@
comma := ,

$(VENV)/.dashboard: $(VENV)/.installed
	@echo "Adding Ray's dashboard ..."
	@$(PIP) --editable '.[dashboard]'
	@touch $@

install: $(VENV)/.installed ## Make the virtual environment and stop

study: $(VENV)/.installed ## Tune MODEL (DATA=, VAL=: annotation files), promote the best trial, write the report
	@$(BIN)/automl study $(MODEL) $(DATA_ARGS) $(ARGS)

train: $(VENV)/.installed ## Train MODEL; AUTOML=auto|on|off decides between a study and a plain run
	@$(BIN)/automl train $(MODEL) --automl-policy $(AUTOML) $(DATA_ARGS) $(ARGS)

plan: $(VENV)/.installed ## Show what a study of MODEL would do, without running anything
	@$(BIN)/automl plan $(MODEL) $(DATA_ARGS) $(ARGS)

status: $(VENV)/.installed ## Show the newest study, or STUDY
	@$(BIN)/automl status $(STUDY) $(ARGS)

report: $(VENV)/.installed ## Write the report of STUDY (default: the newest) again
	@$(BIN)/automl report $(STUDY) $(ARGS)

promote: $(VENV)/.installed ## Promote the best trial of STUDY to graph, engine and bundle again
	@$(BIN)/automl promote $(STUDY) $(ARGS)

dashboard: $(VENV)/.dashboard ## Show the Ray dashboard of a running study on 127.0.0.1
	@$(BIN)/automl dashboard $(STUDY) $(ARGS)

data: $(VENV)/.installed ## Write the embedded pairs and every layout to results/data (ARGS="--layout kitti --pairs 200")
	@$(BIN)/python -m stereo.data.generator results/data $(ARGS)

schemas: $(VENV)/.installed ## Regenerate schemas/, spec_templates/ and docs/spec-reference.md
	@$(BIN)/python -m stereo.spec.schema

parity: $(VENV)/.installed ## Run a parity kit, KIT=PREFIX [GOLDEN=FILE.npz]; exit 1 beyond tolerance
	@$(BIN)/python -m tests.parity.kit $(KIT) $(if $(GOLDEN),--golden $(GOLDEN))

check: $(VENV)/.dev ## Lint, format, types, import contracts, generated files
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	$(BIN)/lint-imports
	$(BIN)/python -m stereo.spec.schema --check

test: $(VENV)/.dev ## The default tests (under 10 minutes on two cores)
	$(BIN)/python -m pytest -m 'not slow and not gpu and not chaos' -n 2 --dist loadgroup $(ARGS)

test-all: $(VENV)/.dev ## The default tests plus slow and chaos
	$(BIN)/python -m pytest -m 'not gpu' -n 2 --dist loadgroup $(ARGS)

test-gpu: $(VENV)/.dev ## The tests that need an NVIDIA GPU
	$(BIN)/python -m pytest -m gpu $(ARGS)

bench: $(VENV)/.dev ## Measure speed and memory against the yardstick, into docs/performance.md
	$(BIN)/python tests/bench/networks.py --record
	OMP_NUM_THREADS=1 $(BIN)/python tests/bench/dataloader.py --record $(if $(KITTI),--kitti $(KITTI))

bench-search: $(VENV)/.dev ## Score the search algorithms on seeded objectives (BENCHMARK=search_quality.py), an hour
	OMP_NUM_THREADS=1 $(BIN)/python tests/bench/search.py --benchmark $(BENCHMARK) --record $(ARGS)

bench-overhead: $(VENV)/.dev ## Measure what a study costs beside its trials, into docs/performance.md
	$(BIN)/python tests/bench/overhead.py --record $(ARGS)

clean: ## Remove the virtual environment and caches (never results/)
	rm -rf $(VENV) *.egg-info .pytest_cache .ruff_cache .hypothesis .import_linter_cache
