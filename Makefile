# For GNU make (3.81 or newer) on Linux and macOS. Another Python: make demo PYTHON=python3.12

PYTHON ?= python3
BIN := .venv/bin
PIP_INSTALL := $(BIN)/python -m pip install --disable-pip-version-check
PYTEST := $(BIN)/python -m pytest
# In as many processes as there are cores.
PARALLEL := -n auto --dist worksteal

# Of `make gpu`. A dry run on a CPU: make gpu DEVICE=cpu SMALL=1 DATA=shapes
DEVICE ?= cuda
DATA ?= cifar10
SMALL ?=

# With run-time type checks of shapes and dtypes: what computes with tensors, and takes seconds.
TYPED := --hypothesis-profile=typed --jaxtyping-packages=alexnet_lib,beartype.beartype \
	tests/network tests/interop tests/test_inference.py \
	tests/data/test_augmentation.py tests/data/test_images.py tests/data/test_loaders.py \
	tests/data/test_preprocess.py tests/data/test_statistics.py tests/training/test_loop.py \
	tests/training/test_metrics.py tests/training/test_batches.py tests/training/test_preparation.py

.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help demo test test-slow fuzz soak bench gpu docs clean

help: ## list these targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-10s %s\n", $$1, $$2}' Makefile

demo: .venv/library ## train on the built-in shapes, evaluate, write runs/demo/ (under 5 minutes)
	$(BIN)/alexnet-lib demo

test: .venv/dev ## lint, types, tests, docs
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(PYTEST) $(PARALLEL) -m "not slow"
	$(PYTEST) $(PARALLEL) -m "not bad_input and not slow" $(TYPED)
	$(MAKE) --no-print-directory docs NOTEBOOKS=off

test-slow: .venv/dev ## the tests that take minutes
	$(PYTEST) -m slow

fuzz: .venv/dev ## fuzz the readers of strangers' files (4 minutes)
	$(PIP_INSTALL) 'atheris>=3'
	for name in checkpoint weights image table; do $(BIN)/python fuzz/fuzz.py $$name -max_total_time=60 || exit 1; done

soak: .venv/dev ## train for an hour, killed at random moments: the same bits, and nothing that grows
	PYTHONPATH=tests $(BIN)/python tests/soak.py

bench: .venv/library ## where the time goes: tables of ratios, written to benchmarks/results/ too (12 minutes)
	$(BIN)/python benchmarks/bench.py

# Each part runs also where one before it failed. BIN may be the folder of a Python that has what
# the tests need; the library itself need not be installed.
gpu: export PYTHONPATH := src
gpu: $(if $(filter .venv/bin,$(BIN)),.venv/dev) ## on a GPU: tests, tables, a whole run of `modern` (the aim: under 10 minutes)
	run=runs/gpu-$$(date +%Y%m%d-%H%M%S); failed=; \
	$(PYTEST) -k device-$(DEVICE) -m "not slow" || failed="$$failed tests"; \
	$(BIN)/python benchmarks/bench.py --device $(DEVICE) $(if $(SMALL),--small) || failed="$$failed bench"; \
	$(BIN)/python -m alexnet_lib train $(DATA) --recipe modern --device $(DEVICE) --out $$run \
		$(if $(SMALL),--epochs 1 --train-images 64 --batch-size 16 --image-size 67) && \
	$(BIN)/python benchmarks/recipes.py $$run $(DATA) --name modern $(if $(SMALL),--views 1) \
		--runs $(if $(SMALL),$$run/stored,benchmarks/results/runs-$(DEVICE)) || failed="$$failed training"; \
	test -z "$$failed" || { echo "failed:$$failed"; exit 1; }

# A fresh environment, because a page that is not read again does not repeat its warnings. With
# NOTEBOOKS=off the notebooks are shown, but not run, which takes most of the time.
docs: .venv/dev ## run the notebooks, build docs/_build/html/, check its pages (in Chromium too, if installed)
	$(BIN)/sphinx-build -W --keep-going --fresh-env $(if $(NOTEBOOKS),-D nb_execution_mode=$(NOTEBOOKS)) -b html docs docs/_build/html
	$(BIN)/python docs/check_pages.py docs/_build/html

clean: ## remove .venv and what was built; data/ and runs/ stay
	rm -rf .venv docs/_build docs/_static docs/examples dist .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find src tests docs -name __pycache__ -prune -exec rm -rf {} +

# Each of the three files below is written when its step is complete. What an interruption has left
# of .venv is cleared by the next call; what it has left of an installation is completed by pip.
.venv/made:
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("Python 3.11 or newer is needed, $(PYTHON) is %d.%d: name another with make PYTHON=..." % sys.version_info[:2])'
	$(PYTHON) -m venv --clear .venv
	@touch $@

.venv/library: pyproject.toml | .venv/made
	$(PIP_INSTALL) -e .
	@touch $@

.venv/dev: pyproject.toml | .venv/made
	$(PIP_INSTALL) -e '.[dev]'
	@touch .venv/library $@
