# `make demo` and `make test` set everything up by themselves; they need Python 3.11 or newer.
PYTHON ?= python3
BIN := .venv/bin
# One thread per test process: several processes share the cores.
TEST := OMP_NUM_THREADS=1 PYTHONSAFEPATH=1

# Installation compiles nothing, so every process would compile all that it imports: torch alone takes seconds.
unexport PYTHONDONTWRITEBYTECODE

# The linters and the tests run side by side.
MAKEFLAGS += --jobs=2

.PHONY: demo picture test pytest lint test-wheel bench docs methods-page inference-page install install-test clean

demo: install
	$(BIN)/onceclip demo

test: lint pytest

pytest: install-test
	$(TEST) $(BIN)/python -m pytest -n auto

lint: install-test
	$(BIN)/ruff check .
	$(BIN)/mypy -p onceclip

# What the wheel may lack and the checkout has, looked at from another folder: the program, modules, the demo model,
# the report's templates.
WHEEL := tests/test_cli.py tests/test_house.py
# A whole path, for processes in other folders.
SITE := PYTHONPATH=$(CURDIR)/build/wheel/site
test-wheel: install-test
	rm -rf build/wheel && mkdir -p build/wheel/site
	$(BIN)/python -m build --wheel --outdir build/wheel . >build/wheel/log.txt 2>&1 || (cat build/wheel/log.txt; false)
	$(BIN)/python -m pip install --quiet --no-deps --target build/wheel/site build/wheel/onceclip-*.whl
	cp -r tests setup.cfg README.md build/wheel
	cd build/wheel && $(SITE) site/bin/onceclip methods >methods.txt
	cd build/wheel && $(TEST) $(SITE) ../../$(BIN)/python -m pytest -n auto -m "not slow and not checkout" $(WHEEL)

# About 45 minutes on two quiet cores; `python -m docs.performance_page bench.jsonl` makes the page of it.
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

# The picture of README.md, from the demo's report; needs Chromium or Chrome.
picture: demo
	$(BIN)/python docs/report_picture.py

docs: install
	$(BIN)/python docs/command_page.py > docs/commands.md
	$(BIN)/python docs/catalogue_file.py

# Python compiles what it imports; most of what is installed never is.
INSTALL := $(BIN)/python -m pip install -qq --disable-pip-version-check --no-compile

install: .venv/installed
install-test: .venv/installed-test .types/onceclip

.venv/bin/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "onceclip needs Python 3.11 or newer: make PYTHON=python3.12")'
	$(PYTHON) -m venv .venv

.venv/installed: .venv/bin/python setup.cfg pyproject.toml
	$(INSTALL) -e .
	touch $@

.venv/installed-test: .venv/bin/python setup.cfg pyproject.toml
	$(INSTALL) -e '.[test]'
	touch .venv/installed $@

# Type checkers cannot look through an editable install of a mapped package.
.types/onceclip:
	mkdir -p .types && ln -sfn .. $@

clean:
	rm -rf .venv .types build dist *.egg-info
