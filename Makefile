# gramfuse: everything a user or a contributor runs. `make help` lists it.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

PYTHON ?= python3
PIP_ARGS ?=
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# One thread per test: two test processes with two threads each would only fight over the cores.
TEST_ENV := OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false
# Whoever ends first takes over half of what the other still has.
PARALLEL := -n 2 --dist worksteal
FAST := tests/unit tests/property tests/golden tests/attacks
# Measure only: `coverage report` judges the sum of all suites, never pytest the share of one. On PostgreSQL the same code
# runs as on SQLite, and measuring takes half as long again.
COVER := --cov --cov-report= --cov-fail-under=0
# Containers often set it, and then each of the many processes compiles tests and libraries for itself.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help install demo test check browser containers screenshots bench bench-smoke soak paper paper-smoke format lint types imports serve worker gpu clean

help: ## List the commands
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-18s %s\n", $$1, $$2}'
	@printf '\nVariables: PYTHON=%s  VENV=%s  PIP_ARGS=… (passed to pip, e.g. --index-url)\n' '$(PYTHON)' '$(VENV)'
	@printf 'Demo: DEMO_SIZE=smoke takes about a minute and writes to .demo/smoke, not .demo; its scores mean nothing.\n'
	@printf '      KEEP=1 leaves the service up and says how to sign in to its dashboard; DEMO_FOLDER=… is used instead.\n'
	@printf 'Clean: what a server of yours holds (.gramfuse-server) and the demo trained (.demo/cache) is kept.\n'

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "gramfuse needs Python 3.11 or newer: make install PYTHON=python3.11")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip $(PIP_ARGS)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt $(PIP_ARGS) --editable '.[dev]'
	touch $@

install: $(STAMP) ## Create .venv with everything pinned

demo: $(STAMP) ## Three organizations merge their models through the service (DEMO_SIZE=smoke|full, KEEP=1)
	@$(BIN)/python examples/demo/play.py

test: $(STAMP) ## The whole CPU suite, on SQLite and PostgreSQL
	$(TEST_ENV) $(BIN)/python -m pytest $(PARALLEL) $(FAST)
	$(TEST_ENV) $(BIN)/python -m pytest $(PARALLEL) tests/integration
	$(TEST_ENV) $(BIN)/python -m pytest -n 2 --dist loadgroup tests/system tests/browser

check: $(STAMP) lint types imports ## Format, lint, types, import directions, migrations, tests, coverage
	rm -f .coverage .coverage.*
	$(TEST_ENV) $(BIN)/python -m pytest $(PARALLEL) $(COVER) $(FAST)
	$(TEST_ENV) $(BIN)/python -m pytest $(PARALLEL) $(COVER) --cov-append tests/integration -m "not postgresql"
	$(BIN)/python -m coverage report
	$(TEST_ENV) $(BIN)/python -m pytest $(PARALLEL) tests/integration -m postgresql
	$(TEST_ENV) $(BIN)/python -m pytest -n 2 --dist loadgroup tests/system tests/browser

browser: $(STAMP) ## The dashboard in a real Chromium (apt-get install chromium)
	$(TEST_ENV) $(BIN)/python -m pytest tests/browser

containers: $(STAMP) ## The compose file in Docker, by the guides' commands: build, merge, kill, save, lose, restore
	$(TEST_ENV) GRAMFUSE_REQUIRE_CONTAINERS=1 $(BIN)/python -m pytest -x -p no:randomly tests/containers

screenshots: $(STAMP) ## Take the documentation's pictures of the dashboard anew: docs/screenshots
	$(TEST_ENV) GRAMFUSE_SCREENSHOTS=1 GRAMFUSE_REQUIRE_BROWSER=1 $(BIN)/python -m pytest tests/browser/test_screenshots.py

bench: $(STAMP) ## Measure against the published algorithm: tables, benchmarks/results/latest.json, docs/performance.svg
	PYTHONPATH=tests HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false $(BIN)/python benchmarks/run.py

bench-smoke: $(STAMP) ## The same with tiny sizes: does it run at all? (BENCH_OUT=FILE)
	PYTHONPATH=tests HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false $(BIN)/python benchmarks/run.py --smoke \
		--out $(or $(BENCH_OUT),build/bench-smoke.json) --picture $(or $(BENCH_OUT),build/bench-smoke.json).svg

soak: $(STAMP) ## Load and faults against a real server for five minutes: docs/reliability.md (SOAK_ARGS="--jobs 5000")
	OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 $(BIN)/python -m benchmarks.soak $(SOAK_ARGS)

paper: $(STAMP) ## The RegMean paper's tables, merged by the service: docs/results.md (PAPER_ARGS="--only btc --seeds 1")
	$(BIN)/python -m benchmarks.paper $(PAPER_ARGS)

paper-smoke: $(STAMP) ## The same with a handful of sentences: does it run at all? (PAPER_OUT=FOLDER)
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.paper --smoke --at-once 1 --folder $(or $(PAPER_OUT),build/paper)/kept \
		--out $(or $(PAPER_OUT),build/paper)/results.json --picture $(or $(PAPER_OUT),build/paper)/results.svg

format: $(STAMP) ## Rewrite the sources in the house format
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

lint: $(STAMP) ## Format and lint, without changing anything
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

types: $(STAMP) ## mypy, strict
	$(BIN)/mypy

imports: $(STAMP) ## The import directions of docs/architecture.md
	$(BIN)/lint-imports --no-cache

serve: $(STAMP) ## Start the API on loopback, port 8080, with the state in .gramfuse-server
	$(BIN)/gramfuse-server init
	$(BIN)/gramfuse-server serve --host 127.0.0.1 --port 8080

worker: $(STAMP) ## Start one worker beside `make serve`
	$(BIN)/gramfuse-server worker

# A bare CUDA machine has no .venv of ours: any Python with torch, transformers, safetensors, numpy, pydantic, pytest.
gpu: ## Tests that need a CUDA device (GPU_PYTHON=python3; needs no installation of gramfuse)
	PYTHONPATH=$(if $(PYTHONPATH),$(PYTHONPATH):)client:server:shared:tests $(or $(GPU_PYTHON),$(PYTHON)) -m pytest -m gpu -p no:cacheprovider \
		-c tests/gpu/pytest.ini --rootdir . tests/gpu

# In this order: a demo whose service is still up is not pulled from under it, and then nothing is removed.
clean: ## Remove .venv, caches, builds and the demo's runs; keep its trained models, and .gramfuse-server
	$(PYTHON) examples/demo/folder.py .demo/smoke .demo
	rm -rf $(VENV) build dist htmlcov coverage.xml .coverage .coverage.*
	rm -rf .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	find . -name .git -prune -o -name __pycache__ -type d -prune -exec rm -rf {} +
