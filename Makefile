# Two commands do all the set-up: `make demo` and `make test`. The environment is made once and kept in .venv.
PYTHON ?= python3
BIN = .venv/bin

.PHONY: demo test test-browser lint clean
.DEFAULT_GOAL := demo

demo: .venv/.sample
	$(BIN)/convlens train mnist-5k --epochs 12

# Bytecode is kept, also where the shell asks for none: without it each process compiles the package and pytest rewrites
# every test anew.
test: .venv/.dev
	PYTHONDONTWRITEBYTECODE= OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal

# The page in a real chromium; with CONVLENS_AXE=.../axe.min.js (npm install axe-core, elsewhere) its accessibility, too.
test-browser: .venv/.dev
	CONVLENS_SLOW=1 OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/test_page_browser.py

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
