# `make demo` and `make test` do everything on a fresh Debian 12 with Python 3.11, as root.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
# NVIDIA Dynamo's, for bench-dynamo alone.
DYNAMO_VENV ?= .venv-dynamo
DYNAMO_PACKAGES := benchmarks/dynamo_requirements.txt
ENGINE_PACKAGES := src/dynamometer/engines/sglang_cpu/requirements.txt
PIP = $(BIN)/python -m pip --disable-pip-version-check --quiet
# What a figure is measured against, and what tests run: fixed, so that two runs compare.
export HF_HUB_OFFLINE := 1

# pip lists as conflicts the CUDA packages that SGLang asks for and a CPU does not need: its words
# are shown where it fails.
logged = $(1) >$(VENV)/setup.log 2>&1 || { cat $(VENV)/setup.log >&2; exit 1; }

.PHONY: help setup system-packages demo test test-quick lint format bench-metrics bench-exporter bench-latency bench-dynamo docs fuzz clean

help: ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 20

setup: $(VENV)/.engine $(VENV)/.project system-packages ## .venv with the CPU build of SGLang, this package, and what tests need

$(VENV)/bin/python $(DYNAMO_VENV)/bin/python:
	@echo "==> a virtual environment in $(@:/bin/python=)"
	@$(PYTHON) -m venv $(@:/bin/python=) >/dev/null 2>&1 || { \
	  command -v apt-get >/dev/null && apt-get update -qq && apt-get install -y -qq python3-venv >/dev/null; \
	  $(PYTHON) -m venv --clear $(@:/bin/python=); }

$(VENV)/.engine: $(ENGINE_PACKAGES) | $(VENV)/bin/python
	@echo "==> the CPU build of SGLang (about a minute, 2.8 GB)"
	@$(call logged,$(PIP) install --no-deps -r $(ENGINE_PACKAGES) --progress-bar off)
	@touch $@

$(VENV)/.project: pyproject.toml src/dynamometer/__init__.py requirements-dev.txt $(VENV)/.engine
	@echo "==> dynamometer itself, and the tools of its developers"
	@$(call logged,$(PIP) install -r requirements-dev.txt -e .)
	@touch $@

# Prometheus and promtool; what checks the recipes in deploy/ (this old docker-compose needs no Docker
# engine). The services that Debian's packages would start are not wanted.
SYSTEM_PACKAGES := prometheus systemd docker-compose
system-packages:
	@command -v promtool >/dev/null && command -v systemd-analyze >/dev/null && \
	command -v docker-compose >/dev/null || { \
	  echo "==> Debian's $(SYSTEM_PACKAGES)"; \
	  if [ "$$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then \
	    echo "    not as root: tests that need them will fail; install these packages"; \
	  else \
	    export DEBIAN_FRONTEND=noninteractive RUNLEVEL=1; \
	    $(call logged,apt-get update -qq && apt-get install -y -qq --no-install-recommends $(SYSTEM_PACKAGES)); fi; }

demo: setup ## the main job on real input: frontend, worker, real SGLang, and what the page says
	@$(BIN)/dyno demo

test: setup ## the tests, with the real engine; with CI=true the slow ones too
	@$(BIN)/python -m pytest $(if $(filter true,$(CI)),,-m "not slow") $(PYTEST_FLAGS)

test-quick: setup ## the tests that need no engine
	@$(BIN)/python -m pytest -m "not engine and not slow" $(PYTEST_FLAGS)

lint: setup ## ruff and mypy
	@$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy

format: setup ## let ruff put the code in form
	@$(BIN)/ruff check --fix . ; $(BIN)/ruff format .

bench-metrics: setup ## what a page and its instruments cost against prometheus_client, in one run; the picture in docs/
	@$(BIN)/python benchmarks/metrics.py --svg docs/metrics-cost.svg $(BENCH_FLAGS)
	@$(BIN)/python benchmarks/scrape.py
	@$(BIN)/python benchmarks/instruments.py

bench-exporter: setup ## what an exporter costs beside a real SGLang, against its own page
	@$(BIN)/python benchmarks/exporter.py $(BENCH_FLAGS)

bench-latency: setup ## means of latencies on the pages against a client's own clock
	@$(BIN)/python benchmarks/latency.py $(BENCH_FLAGS)

bench-dynamo: $(DYNAMO_VENV)/.ready ## NVIDIA Dynamo's worker with our collector in it: the same page, at what cost
	@$(DYNAMO_VENV)/bin/python benchmarks/inside_dynamo.py $(BENCH_FLAGS)

$(DYNAMO_VENV)/.ready: VENV := $(DYNAMO_VENV)
$(DYNAMO_VENV)/.ready: $(ENGINE_PACKAGES) $(DYNAMO_PACKAGES) pyproject.toml src/dynamometer/__init__.py | $(DYNAMO_VENV)/bin/python
	@echo "==> the CPU build of SGLang, and NVIDIA Dynamo (about a minute, 3.1 GB)"
	@$(call logged,$(PIP) install --no-deps -r $(ENGINE_PACKAGES) -r $(DYNAMO_PACKAGES) --progress-bar off)
	@$(call logged,$(PIP) install -e .)
	@touch $@

docs: setup ## docs/configuration.md and docs/metrics.md anew, from the code and from live pages
	@$(BIN)/python docs/generate.py

fuzz: setup ## files and texts that no writer would write, bounded: FUZZ_FLAGS="--runs 200000 --seconds 120"
	@$(BIN)/python tests/fuzz/run.py $(FUZZ_FLAGS)

clean: ## remove what the other targets made
	rm -rf $(VENV) $(DYNAMO_VENV) .demo build dist .pytest_cache .mypy_cache .ruff_cache
