# Two commands do all the set-up: `make demo` and `make test`. The environment is made once and kept in .venv.
PYTHON ?= python3
BIN = .venv/bin

.PHONY: demo test lint clean
.DEFAULT_GOAL := demo

demo: .venv/.sample
	$(BIN)/convlens train mnist-5k --epochs 12

test: .venv/.dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile

lint: .venv/.dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

.venv/bin/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "ConvLens needs Python 3.11 or newer: make demo PYTHON=python3.11")'
	$(PYTHON) -m venv .venv

.venv/.sample: pyproject.toml constraints.txt | .venv/bin/python
	@echo "Installing ConvLens into .venv (once; it may have to download PyTorch) ..."
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[sample]'
	@touch $@

.venv/.dev: pyproject.toml constraints.txt | .venv/bin/python
	@echo "Installing ConvLens and its tests' tools into .venv (once; it may have to download PyTorch) ..."
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch .venv/.sample $@

clean:
	rm -rf .venv build dist src/*.egg-info .mypy_cache .pytest_cache .ruff_cache
