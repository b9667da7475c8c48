# make demo       a real trained model, operated on and verified, in a minute or two
# make test       the tests, in minutes
# make test-all   these, and what takes long: conformance, proofs at width, the study's quick form
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
PIP    := $(BIN)/python -m pip
TORCH_INDEX ?=
STAMP  := $(VENV)/.installed-
# Qualcomm's compiler, where it runs; elsewhere the tests that ask it are skipped with the reason.
NPU    := $(shell $(PYTHON) scripts/npu_extra.py)

.PHONY: demo tables study test test-all test-slow fuzz test-executorch with-executorch test-aimet with-aimet lint bench docs support clean

demo: $(STAMP)demo
	$(BIN)/python scripts/demo.py

# Trainable parameters of each recipe beside those that arXiv 2503.06019 prints.
tables: $(STAMP)demo
	$(BIN)/python scripts/tables.py

# The paper's study in small: about an hour on two cores; ARGS=--quick takes four minutes.
study: $(STAMP)study
	PYTHONPATH=$(CURDIR)/scripts $(BIN)/python -m study $(ARGS)

test: $(STAMP)test
	$(BIN)/python -m pytest -n 2 $(ARGS)

test-all: test test-slow

test-slow: $(STAMP)test
	$(BIN)/python -m pytest -n 2 -m slow $(ARGS)

# 10,000 spoilt recipes, overrides, configs, headers, plans, folders and records: about half an hour.
fuzz: $(STAMP)test
	SURGERY_FUZZ=10000 $(BIN)/python -m pytest -n 2 tests/fuzz $(ARGS)

# The one form of export that wants one torch alone: an environment of its own, and some minutes.
test-executorch:
	$(MAKE) VENV=.venv-executorch with-executorch

with-executorch: $(STAMP)executorch
	$(BIN)/python -m pytest tests/unit/export/test_export_executorch.py $(ARGS)

# Quantising with AIMET: an environment of its own, 2.7 GB.
test-aimet:
	$(MAKE) VENV=.venv-aimet with-aimet

with-aimet: $(STAMP)aimet
	$(BIN)/python -m pytest tests/unit/npu/test_quantize_aimet.py $(ARGS)

# Every model type of transformers, tiny and random, through every operation: most of an hour.
support: $(STAMP)test
	PYTHONPATH=tests $(BIN)/python -m support.run $(ARGS)

lint: $(STAMP)lint
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python docs/generate.py --check

bench: $(STAMP)test
	$(BIN)/python benchmarks/run_all.py

docs: $(STAMP)docs
	$(BIN)/python docs/generate.py
	$(BIN)/mkdocs build --strict

# What another build of torch needs: make demo TORCH_INDEX=https://download.pytorch.org/whl/cpu
$(VENV)/bin/python:
	@$(PYTHON) scripts/check_machine.py "$(TORCH_INDEX)"
	$(PYTHON) -m venv $(VENV)

$(STAMP)torch: constraints.txt | $(VENV)/bin/python
	$(PIP) install -q -c constraints.txt torch $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX))
	@touch $@

$(STAMP)demo: pyproject.toml constraints.txt $(STAMP)torch
	$(PIP) install -q -c constraints.txt -e .
	@touch $@

$(STAMP)test: pyproject.toml constraints.txt $(STAMP)torch
	$(PIP) install -q -c constraints.txt -e '.[test$(NPU)]'
	@touch $@

$(STAMP)executorch: pyproject.toml constraints.txt $(STAMP)torch
	$(PIP) install -q -c constraints.txt -e '.[executorch]' pytest
	@touch $@

# AIMET's onnx2torch asks for torchvision and works without. The index has it for CUDA's torch, and beside
# another build of torch it keeps transformers from loading models.
$(STAMP)aimet: pyproject.toml constraints.txt $(STAMP)torch
	$(PIP) install -q -c constraints.txt -e '.[aimet]' pytest
	$(PIP) uninstall -q -y torchvision
	@touch $@

$(STAMP)study: pyproject.toml constraints.txt $(STAMP)torch
	$(PIP) install -q -c constraints.txt -e '.[study]'
	@touch $@

$(STAMP)lint: pyproject.toml constraints.txt $(STAMP)torch
	$(PIP) install -q -c constraints.txt -e '.[test,lint$(NPU)]'
	@touch $@

$(STAMP)docs: pyproject.toml constraints.txt $(STAMP)torch
	$(PIP) install -q -c constraints.txt -e '.[docs]'
	@touch $@

clean:
	rm -rf $(VENV) site dist build .pytest_cache .mypy_cache .ruff_cache
