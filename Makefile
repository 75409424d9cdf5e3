# `make help` lists the targets. Another Python: make test PYTHON=python3.12
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# Without byte code of the many modules that are never imported.
INSTALL := -m pip --quiet --disable-pip-version-check install --no-compile --editable
DEMO := build/demo

.PHONY: help demo test test-numbers test-versions slow nightly messages lint docs bench tpu-check gpu-check clean

help:  ## Show this list
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 22

demo: $(VENV)/installed  ## Embed the example corpus with the included checkpoint, then search it
	@echo "== Embedding examples/corpus.jsonl with the included checkpoint"
	@rm -rf $(DEMO)
	$(BIN)/python -m stella_jax embed examples/corpus.jsonl --out $(DEMO)
	@echo "== Searching it"
	$(BIN)/python -m stella_jax search $(DEMO) "green tea" -k 3
	$(BIN)/python -m stella_jax search $(DEMO) "the game of chess" -k 3
	$(BIN)/python -m stella_jax search $(DEMO) "what do birds eat?" -k 3
	@echo "== The example of stella's model card (its numbers need the published weights; these are tiny's)"
	$(BIN)/python -m stella_jax demo

# There is no torch in the test extra from Python 3.12 on: what compares with it is then left out.
NO_TORCH = $$($(BIN)/python -c "import torch" 2>/dev/null || echo "not torch and")
QUICK = $(NO_TORCH) not gpu and not slow and not nightly

# A worker per core; the tests of a file share compiled programs, so they stay together, in the order of tests/conftest.py.
WORKERS := -n auto --dist loadfile --no-loadscope-reorder

test: $(VENV)/installed-test  ## Run the quick tests, offline, some minutes on two cores
	$(BIN)/python -m pytest -q $(WORKERS) -m "$(QUICK)"

# Numbers and bits again, compiled as users compile, where the other tests skip XLA's optimizations.
NUMBERS := tests/models/test_attention.py tests/test_goldens.py tests/test_runner.py tests/test_sharding.py \
  tests/test_embedder.py::test_same_text_same_bits tests/test_embedder.py::test_same_bits_in_any_order \
  tests/test_embedder.py::test_padding_changes_no_bit tests/test_oracle.py::test_whole_encoder_on_a_right_padded_batch \
  "tests/train/test_training_goldens.py::test_the_first_ten_steps[loss-matryoshka_mnrl]"
test-numbers: $(VENV)/installed-test  ## Run the tests of numbers and bits, compiled as users compile
	XLA_FLAGS= $(BIN)/python -m pytest -q $(WORKERS) -m "$(NO_TORCH) not gpu and not nightly" $(NUMBERS)

# A selection of what depends on JAX, Flax, Orbax or the standard library, for a second version of those.
VERSIONS := tests/test_embedding_model.py tests/test_embedder.py tests/cli tests/checkpoint/test_weights.py \
  tests/convert/test_round_trip.py tests/readers/test_csv_rows.py tests/train/test_checkpoints.py
test-versions: $(VENV)/installed-test  ## Run what depends on the versions of Python and JAX
	$(BIN)/python -m pytest -q $(WORKERS) -m "$(QUICK)" $(VERSIONS)

slow: $(VENV)/installed-test  ## Run the slow tests: whole jobs and training runs, kills, Ray, examples
	$(BIN)/python -m pytest -q $(WORKERS) -m "$(NO_TORCH) slow and not nightly"

# Half an hour on two cores. More of each: make nightly KILLS=12 MUTATIONS=2000
nightly: $(VENV)/installed-test  ## Run the slow tests and the nightly cases; before a release, or every night
	$(BIN)/python -m pytest -q $(WORKERS) -m "$(NO_TORCH) (slow or nightly)"

MESSAGES ?= tests
messages: $(VENV)/installed-test  ## Rewrite the expected wording of errors, tests/messages; then read the diff
	$(BIN)/python -m pytest -q $(WORKERS) -m "$(QUICK)" --snapshot-update $(MESSAGES)

lint: $(VENV)/installed-test  ## Check style and types with ruff and pyright
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python

# Without --quiet, which makes --strict ignore warnings.
docs: $(VENV)/installed-docs  ## Build the site of the guides into build/site; fails on a broken link
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

# Writes a dated file and a picture into bench/results. Some only: make bench BENCH="encode latency"; to try: BENCH=--small.
# With an NVIDIA GPU: make bench EXTRAS=test,bench,cuda
BENCH ?=
EXTRAS ?= test,bench
bench: $(VENV)/installed-bench  ## Measure speed against other libraries; BENCH="encode latency" runs some
	$(BIN)/python bench/run.py $(BENCH)

# Compiles the encoder for TPU pods without a TPU. All topologies: make tpu-check TPU=
TPU ?= --topology v5e:2x4 --length 48 512
tpu-check: .venv-tpu/installed  ## Compile the encoder for TPU pods, without a TPU
	.venv-tpu/bin/python bench/tpu.py $(TPU)

# Compiles the encoder for NVIDIA's GPUs without a GPU, on Python 3.12 or later: make gpu-check PYTHON=python3.12
# (.ci/run leaves it out, as it installs 5 GB)
GPU ?=
gpu-check: .venv-gpu/installed  ## Compile the encoder for NVIDIA GPUs, without a GPU (5 GB to install)
	.venv-gpu/bin/python bench/gpu.py $(GPU)

clean:  ## Remove everything that these targets made
	rm -rf .venv .venv-* build dist .hypothesis .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/installed: pyproject.toml | $(VENV)/bin/python
	@echo "== Installing stella-jax into $(VENV) (a minute or two, once)"
	@$(BIN)/python $(INSTALL) .
	@touch $@

$(VENV)/installed-test: pyproject.toml | $(VENV)/bin/python
	@echo "== Installing stella-jax with its test extra into $(VENV) (a few minutes, once)"
	@$(BIN)/python $(INSTALL) ".[test]"
	@touch $@ $(VENV)/installed

$(VENV)/installed-docs: pyproject.toml | $(VENV)/bin/python
	@echo "== Installing stella-jax with its docs extra into $(VENV) (a minute or two, once)"
	@$(BIN)/python $(INSTALL) ".[docs]"
	@touch $@ $(VENV)/installed

$(VENV)/installed-bench: pyproject.toml | $(VENV)/bin/python
	@echo "== Installing stella-jax with $(EXTRAS) into $(VENV) (a few minutes, once)"
	@$(BIN)/python $(INSTALL) ".[$(EXTRAS)]"
	@touch $@ $(VENV)/installed $(VENV)/installed-test

.venv-tpu/installed: pyproject.toml
	@echo "== Installing stella-jax with its tpu extra into .venv-tpu (a minute or two, once)"
	@$(PYTHON) -m venv .venv-tpu
	@.venv-tpu/bin/python $(INSTALL) ".[tpu]"
	@touch $@

.venv-gpu/installed: pyproject.toml
	@$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 12) and 'Compiling ahead for a GPU needs jax 0.12, thus Python 3.12: make gpu-check PYTHON=...')"
	@echo "== Installing stella-jax with its cuda extra into .venv-gpu (5 GB, a few minutes, once)"
	@$(PYTHON) -m venv .venv-gpu
	@.venv-gpu/bin/python $(INSTALL) ".[cuda]"
	@touch $@

$(VENV)/bin/python:
	@$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 11) and 'stella-jax needs Python 3.11 or later: make PYTHON=...')"
	@echo "== Making $(VENV) with $$($(PYTHON) --version)"
	@$(PYTHON) -m venv $(VENV)
