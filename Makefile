# `make demo` and `make test` set everything up by themselves; they need Python 3.11 or newer.
PYTHON ?= python3
BIN := .venv/bin
# One thread per test process: several processes share the cores.
TEST := OMP_NUM_THREADS=1 PYTHONSAFEPATH=1

.PHONY: demo test lint test-wheel bench docs methods-page inference-page install install-test clean

demo: install
	$(BIN)/onceclip demo

test: install-test lint
	$(TEST) $(BIN)/python -m pytest -n auto

lint: install-test
	$(BIN)/ruff check .
	$(BIN)/mypy -p onceclip

# Tests again, on the wheel that users get, from another folder: of files and commands, not of the mathematics.
WHEEL := tests/test_cli.py tests/test_cli_failures.py tests/test_house.py \
	$(addprefix tests/pipeline/,extraction/test_extract.py prediction/test_predict.py runs/test_sweep.py \
	reporting/test_report.py export/test_export.py sources/test_sources.py)
test-wheel: install-test
	rm -rf build/wheel && mkdir -p build/wheel/site
	$(BIN)/python -m build --wheel --outdir build/wheel . >build/wheel/log.txt 2>&1 || (cat build/wheel/log.txt; false)
	$(BIN)/python -m pip install --quiet --no-deps --target build/wheel/site build/wheel/onceclip-*.whl
	cp -r tests setup.cfg README.md build/wheel
	cd build/wheel && $(TEST) PYTHONPATH=site ../../$(BIN)/python -m pytest -n auto -m "not slow and not checkout" $(WHEEL)

# Half an hour on two quiet cores; `python -m docs.performance_page bench.jsonl` makes the page of it.
bench: install-test
	$(BIN)/python -m bench all --out bench.jsonl

# Hours of runs on stores of your own: make methods-page STORES="a.zarr b.zarr"; it goes on where it was.
RUNS ?= build/methods
methods-page: install
	$(BIN)/python docs/methods_page.py $(STORES) --out $(RUNS) > docs/methods.md.new
	mv docs/methods.md.new docs/methods.md

# Prints the table of docs/inference.md: make inference-page STORE=a.zarr; it goes on where it was.
inference-page: install
	$(BIN)/python docs/inference_page.py $(STORE) --out build/inference

docs: install
	$(BIN)/python docs/command_page.py > docs/commands.md

install: .venv/installed
install-test: .venv/installed-test .types/onceclip

.venv/bin/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "onceclip needs Python 3.11 or newer: make PYTHON=python3.12")'
	$(PYTHON) -m venv .venv

.venv/installed: .venv/bin/python setup.cfg pyproject.toml
	$(BIN)/python -m pip install -qq --disable-pip-version-check -e .
	touch $@

.venv/installed-test: .venv/installed
	$(BIN)/python -m pip install -qq --disable-pip-version-check -e '.[test]'
	touch $@

# Type checkers cannot look through an editable install of a mapped package.
.types/onceclip:
	mkdir -p .types && ln -sfn .. $@

clean:
	rm -rf .venv .types build dist *.egg-info
