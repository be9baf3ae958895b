# One-word verbs. `make run` and `make test` are all a newcomer needs; both install into .venv first.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
DEPLOY_STAMP := $(VENV)/.installed-deploy
PORT ?= 8000
WORK ?= runs/demo
# Set WORKERS=0 to run tests in one process.
WORKERS ?= 2

.DEFAULT_GOAL := help
.PHONY: help setup run test test-quick test-deploy check format serve bench bench-serve bench-export bench-gpu load clean

help: ## Show this list
	@awk 'BEGIN {FS = ":.*## "} /^[a-z-]+:.*## / {printf "  make %-11s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

$(STAMP): pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "Python 3.11 or newer is needed, found " + sys.version.split()[0])'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -e '.[cpu,train,export,load,dev]'
	touch $(STAMP)

setup: $(STAMP) ## Install everything into .venv

run: $(WORK)/models/aliases.json ## Five-minute run: data, training, export, service, example scores
	$(BIN)/python -m loadtests.examples --store $(WORK)/models --port $(PORT) & \
	$(BIN)/ctr-serve run --store $(WORK)/models --port $(PORT)

$(WORK)/data/dataset.yaml: $(STAMP)
	$(BIN)/ctr-train data synthetic --preset demo --out $(WORK)/data

$(WORK)/run/metrics.json: $(WORK)/data/dataset.yaml
	$(BIN)/ctr-train run --config training/configs/synthetic_mmoe.yaml --data $(WORK)/data --out $(WORK)/run --resume

$(WORK)/models/aliases.json: $(WORK)/run/metrics.json
	$(BIN)/ctr-export build $(WORK)/run --store $(WORK)/models

serve: $(STAMP) ## Serve the store of the last `make run` on 127.0.0.1:$(PORT)
	$(BIN)/ctr-serve run --store $(WORK)/models --port $(PORT)

test: check ## Static checks and the whole test suite
	$(BIN)/python -m pytest -n $(WORKERS)

test-quick: $(STAMP) ## Tests without the slow ones
	$(BIN)/python -m pytest -n $(WORKERS) -m 'not slow'

$(DEPLOY_STAMP): $(STAMP)
	$(BIN)/python -m pip install --quiet -e '.[cpu,train,export,dev,load,deploy]'
	touch $(DEPLOY_STAMP)

test-deploy: $(DEPLOY_STAMP) ## Images, compose and Kubernetes for real (needs root and DEPLOY_KIT; skips say what is left out)
	$(BIN)/python -m pytest tests/deploy --timeout 1200 --durations 15 -rs

check: $(STAMP) ## Style, types and import rules
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(STAMP) ## Rewrite the code in the house format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(STAMP) ## Cost of a request, next to the bare graph (needs a finished `make run`)
	$(BIN)/python -m loadtests.bench_score --store $(WORK)/models --json $(WORK)/bench.json

bench-serve: $(STAMP) ## What serving costs beside the bare graph, each figure with its target (needs wrk)
	$(BIN)/python -m loadtests.bench_serve --json runs/bench-serve/figures.json

load: $(WORK)/models/aliases.json ## A minute of users, then planned arrivals, held to loadtests/slo.yaml
	$(BIN)/python -m loadtests.campaign --store $(WORK)/models --routing loadtests/routing.yaml --out runs/load

bench-export: $(STAMP) ## Compiled graphs beside a plain exporter's: rows a second, parity, memory
	$(BIN)/python -m loadtests.bench_export --json runs/bench-export/figures.json

bench-gpu: $(STAMP) ## The same graphs on a GPU, where the machine and the runtime have one
	$(BIN)/python -m loadtests.bench_export.gpu --json runs/bench-gpu/figures.json

clean: ## Remove caches and the demo's output; .venv stays
	rm -rf $(WORK) build .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -not -path './.venv/*' -exec rm -rf {} +
