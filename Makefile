# `make demo` and `make test` do everything on a fresh Debian 12 with Python 3.11, as root.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
# The environment of NVIDIA Dynamo, only for bench-dynamo.
DYNAMO_VENV ?= .venv-dynamo
DYNAMO_PACKAGES := benchmarks/dynamo_requirements.txt
# The environment of SGLang's Rust router, only for bench-serving with ROUTER=1.
ROUTER_VENV ?= .venv-router
ROUTER_PACKAGE := sglang-router==0.3.2
ENGINE_PACKAGES := src/dynamometer/engines/sglang_cpu/requirements.txt
PIP = $(BIN)/python -m pip --disable-pip-version-check --quiet
# Benchmarks and tests use local models only, so that two runs are comparable.
export HF_HUB_OFFLINE := 1

# pip reports a conflict for each CUDA package that SGLang requires and a CPU does not need: show its
# output only after a failure.
logged = $(1) >$(VENV)/setup.log 2>&1 || { cat $(VENV)/setup.log >&2; exit 1; }

.PHONY: help setup system-packages demo demo-disagg test test-quick lint format bench-metrics bench-fleet bench-exporter bench-latency bench-serving bench-dynamo docs sglang-runs dashboards fuzz load clean

help: ## show this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 20

# The modules are compiled as pip compiles those of an installed package: a faster start, and less memory, also
# where PYTHONDONTWRITEBYTECODE is set.
setup: $(VENV)/.engine $(VENV)/.project system-packages ## create .venv with the CPU build of SGLang, this package, and the tools for tests
	@$(BIN)/python -m compileall -q src

$(VENV)/bin/python $(DYNAMO_VENV)/bin/python $(ROUTER_VENV)/bin/python:
	@echo "==> creating a virtual environment in $(@:/bin/python=)"
	@$(PYTHON) -m venv $(@:/bin/python=) >/dev/null 2>&1 || { \
	  command -v apt-get >/dev/null && apt-get update -qq && apt-get install -y -qq python3-venv >/dev/null; \
	  $(PYTHON) -m venv --clear $(@:/bin/python=); }

$(VENV)/.engine: $(ENGINE_PACKAGES) | $(VENV)/bin/python
	@echo "==> installing the CPU build of SGLang (about a minute, 2.8 GB)"
	@$(call logged,$(PIP) install --no-deps -r $(ENGINE_PACKAGES) --progress-bar off)
	@touch $@

$(VENV)/.project: pyproject.toml src/dynamometer/__init__.py requirements-dev.txt $(VENV)/.engine
	@echo "==> installing dynamometer and its development tools"
	@$(call logged,$(PIP) install -r requirements-dev.txt -e .)
	@touch $@

# Debian's package of each program: Prometheus and promtool, and the checkers of the recipes in deploy/ (this
# old docker-compose works without a Docker engine); and of each library that Mooncake needs, by which prefill
# and decode engines transfer KV caches. The packages must not start their services.
SYSTEM_PROGRAMS := promtool:prometheus systemd-analyze:systemd docker-compose:docker-compose
SYSTEM_LIBRARIES := libcurl.so.4:libcurl4 libibverbs.so.1:libibverbs1 libnuma.so.1:libnuma1 librdmacm.so.1:librdmacm1
system-packages:
	@missing=""; libraries="$$(/sbin/ldconfig -p 2>/dev/null || true)"; \
	for program in $(SYSTEM_PROGRAMS); do \
	  command -v "$${program%:*}" >/dev/null || missing+=" $${program#*:}"; done; \
	for library in $(SYSTEM_LIBRARIES); do \
	  [[ "$$libraries" == *"$${library%:*}"* ]] || missing+=" $${library#*:}"; done; \
	[ -z "$$missing" ] || { \
	  echo "==> installing Debian's$$missing"; \
	  if [ "$$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then \
	    echo "    not root: install these packages, or the tests that need them fail"; \
	  else \
	    export DEBIAN_FRONTEND=noninteractive RUNLEVEL=1; \
	    $(call logged,apt-get update -qq && apt-get install -y -qq --no-install-recommends $$missing); fi; }

# OBSERVE=1 starts Prometheus, too, and prints its answers to three questions.
demo: setup ## start frontend, worker and real SGLang, send requests, print a part of the page
	@$(BIN)/dyno demo $(if $(OBSERVE),--observe)

demo-disagg: setup ## the same with prefill and decode apart: two real SGLangs, and the KV cache between them
	@$(BIN)/dyno demo --disaggregated $(if $(OBSERVE),--observe)

test: setup ## run the tests, with the real engine; with CI=true also the slow tests
	@$(BIN)/python -m pytest $(if $(filter true,$(CI)),,-m "not slow") $(PYTEST_FLAGS)

test-quick: setup ## run the tests that need no engine
	@$(BIN)/python -m pytest -m "not engine and not slow" $(PYTEST_FLAGS)

lint: setup ## run ruff and mypy
	@$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy

format: setup ## format the code with ruff
	@$(BIN)/ruff check --fix . ; $(BIN)/ruff format .

bench-metrics: setup ## compare the cost of pages and instruments with prometheus_client; draw the picture in docs/
	@$(BIN)/python benchmarks/metrics.py --svg docs/metrics-cost.svg $(BENCH_FLAGS)
	@$(BIN)/python benchmarks/scrape.py
	@$(BIN)/python benchmarks/instruments.py

bench-fleet: setup ## compare a scrape of the fleet's page with scrapes of each worker
	@$(BIN)/python benchmarks/fleet.py $(BENCH_FLAGS)

bench-exporter: setup ## measure the cost of an exporter beside a real SGLang, against the engine's own page
	@$(BIN)/python benchmarks/exporter.py $(BENCH_FLAGS)

bench-latency: setup ## compare mean latencies on the pages with a client's own clock
	@$(BIN)/python benchmarks/latency.py $(BENCH_FLAGS)

# ROUTER=1 adds SGLang's Rust router, DYNAMO=1 NVIDIA Dynamo, REAL=1 the real engine, GROWTH=1 large prompts
# and long answers.
bench-serving: setup $(if $(ROUTER),$(ROUTER_VENV)/.ready) $(if $(DYNAMO),$(DYNAMO_VENV)/.ready) ## measure what serving costs, against the engines alone and a bare relay
	@$(BIN)/python benchmarks/serving.py $(if $(ROUTER),--router-python $(ROUTER_VENV)/bin/python) \
	  $(if $(DYNAMO),--dynamo-python $(CURDIR)/$(DYNAMO_VENV)/bin/python) $(if $(REAL),--real) $(if $(GROWTH),--growth) $(BENCH_FLAGS)

$(ROUTER_VENV)/.ready: VENV := $(ROUTER_VENV)
$(ROUTER_VENV)/.ready: | $(ROUTER_VENV)/bin/python
	@echo "==> installing $(ROUTER_PACKAGE)"
	@$(call logged,$(PIP) install $(ROUTER_PACKAGE))
	@touch $@

bench-dynamo: $(DYNAMO_VENV)/.ready ## measure the cost of a page of NVIDIA Dynamo's worker, with and without Dynamometer's collector
	@$(DYNAMO_VENV)/bin/python benchmarks/inside_dynamo.py $(BENCH_FLAGS)

$(DYNAMO_VENV)/.ready: VENV := $(DYNAMO_VENV)
$(DYNAMO_VENV)/.ready: $(ENGINE_PACKAGES) $(DYNAMO_PACKAGES) pyproject.toml src/dynamometer/__init__.py | $(DYNAMO_VENV)/bin/python
	@echo "==> installing the CPU build of SGLang and NVIDIA Dynamo (about a minute, 3.1 GB)"
	@$(call logged,$(PIP) install --no-deps -r $(ENGINE_PACKAGES) -r $(DYNAMO_PACKAGES) --progress-bar off)
	@$(call logged,$(PIP) install -e .)
	@touch $@

docs: setup ## generate docs/configuration.md, docs/metrics.md and the dashboards from the code and from live pages
	@$(BIN)/python docs/generate.py

sglang-runs: setup ## run SGLang in each mode, and write docs/sglang-metrics.md from its pages: RUNS="plain prefill"
	@$(BIN)/python docs/sglang_runs.py $(RUNS)

dashboards: setup ## write Grafana's JSON of the dashboards, and docs/dashboards.md
	@$(BIN)/python docs/generate.py dashboards

fuzz: setup ## run the fuzzers for a bounded time: FUZZ_FLAGS="--runs 200000 --seconds 120"
	@$(BIN)/python tests/fuzz/run.py $(FUZZ_FLAGS)

load: setup ## run the real engine under full load beside busy processes, LOAD_SECONDS long (600): no false alarm
	@LOAD_SECONDS=$${LOAD_SECONDS:-600} $(BIN)/python -m pytest -q -s tests/worker/test_hangs.py -k never_unresponsive

clean: ## remove the files that other targets created
	rm -rf $(VENV) $(DYNAMO_VENV) $(ROUTER_VENV) .demo .observe build dist .pytest_cache .mypy_cache .ruff_cache
