# make demo, make test, make lint, make bench, make tpu-check, make gpu-check, make clean.
# Another Python: make test PYTHON=python3.12
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --quiet --disable-pip-version-check
DEMO := build/demo

.PHONY: demo test lint bench tpu-check gpu-check clean

demo: $(VENV)/installed
	@echo "== Embedding examples/corpus.jsonl with the embedded checkpoint"
	@rm -rf $(DEMO)
	$(BIN)/python -m stella_jax embed examples/corpus.jsonl --out $(DEMO)
	@echo "== Searching it"
	$(BIN)/python -m stella_jax search $(DEMO) "green tea" -k 3
	$(BIN)/python -m stella_jax search $(DEMO) "the game of chess" -k 3
	$(BIN)/python -m stella_jax search $(DEMO) "what do birds eat?" -k 3
	@echo "== The example of stella's model card (its numbers need the published weights; these are tiny's)"
	$(BIN)/python -m stella_jax demo

# There is no torch in the test extra from Python 3.12 on: what compares with it is then left out.
test: $(VENV)/installed-test
	@if $(BIN)/python -c "import torch" 2>/dev/null; then \
	  $(BIN)/python -m pytest -q; \
	else \
	  $(BIN)/python -m pytest -q -m "not torch and not gpu and not weights and not soak"; \
	fi

lint: $(VENV)/installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python

# Writes a dated file and a picture into bench/results. Some only: make bench BENCH="encode latency"; to try: BENCH=--small.
# With an NVIDIA GPU: make bench EXTRAS=test,bench,cuda
BENCH ?=
EXTRAS ?= test,bench
bench: $(VENV)/installed-bench
	$(BIN)/python bench/run.py $(BENCH)

# Compiles the encoder for TPU pods without a TPU. All topologies: make tpu-check TPU=
TPU ?= --topology v5e:2x4 --length 48 512
tpu-check: .venv-tpu/installed
	.venv-tpu/bin/python bench/tpu.py $(TPU)

# Compiles the encoder for NVIDIA's GPUs without a GPU, on Python 3.12 or later: make gpu-check PYTHON=python3.12
# (.ci/run leaves it out, as it installs 5 GB)
GPU ?=
gpu-check: .venv-gpu/installed
	.venv-gpu/bin/python bench/gpu.py $(GPU)

clean:
	rm -rf .venv .venv-* build dist .hypothesis .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/installed: pyproject.toml | $(VENV)/bin/python
	@echo "== Installing stella-jax into $(VENV) (a minute or two, once)"
	@$(PIP) install --editable .
	@touch $@

$(VENV)/installed-test: pyproject.toml | $(VENV)/bin/python
	@echo "== Installing stella-jax with its test extra into $(VENV) (a few minutes, once)"
	@$(PIP) install --editable ".[test]"
	@touch $@ $(VENV)/installed

$(VENV)/installed-bench: pyproject.toml | $(VENV)/bin/python
	@echo "== Installing stella-jax with $(EXTRAS) into $(VENV) (a few minutes, once)"
	@$(PIP) install --editable ".[$(EXTRAS)]"
	@touch $@ $(VENV)/installed $(VENV)/installed-test

.venv-tpu/installed: pyproject.toml
	@echo "== Installing stella-jax with its tpu extra into .venv-tpu (a minute or two, once)"
	@$(PYTHON) -m venv .venv-tpu
	@.venv-tpu/bin/python -m pip --quiet --disable-pip-version-check install --editable ".[tpu]"
	@touch $@

.venv-gpu/installed: pyproject.toml
	@$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 12) and 'Compiling ahead for a GPU needs jax 0.12, thus Python 3.12: make gpu-check PYTHON=...')"
	@echo "== Installing stella-jax with its cuda extra into .venv-gpu (5 GB, a few minutes, once)"
	@$(PYTHON) -m venv .venv-gpu
	@.venv-gpu/bin/python -m pip --quiet --disable-pip-version-check install --editable ".[cuda]"
	@touch $@

$(VENV)/bin/python:
	@$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 11) and 'stella-jax needs Python 3.11 or later: make PYTHON=...')"
	@echo "== Making $(VENV) with $$($(PYTHON) --version)"
	@$(PYTHON) -m venv $(VENV)
