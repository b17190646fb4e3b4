# One command each; everything is set up in .venv inside the checkout.
PYTHON ?= python3.11
BIN := .venv/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet

.PHONY: help demo test test-slow check bench lock clean

help:
	@echo "make demo       denoise real photographs into demo/out/"
	@echo "make test       the tests"
	@echo "make test-slow  the long ones"
	@echo "make check      linter, formatter, type checker"
	@echo "make bench      throughput against a bare loop (see docs/benchmarks.md for the others)"
	@echo "make lock       choose new versions for requirements.lock"

.venv: .venv/installed

.venv/installed: requirements.lock pyproject.toml
	$(PYTHON) -m venv .venv
	@echo "installing the locked requirements into .venv: some minutes, 3 GB"
	$(PIP) --require-hashes -r requirements.lock
	$(PIP) --no-deps --no-build-isolation -e .
	@touch $@

demo: .venv/installed
	$(BIN)/python -m raydenoise.demo demo

test: .venv/installed
	$(BIN)/python -m pytest -m "not slow and not gpu" --numprocesses 2 --dist loadfile --no-loadscope-reorder

test-slow: .venv/installed
	$(BIN)/python -m pytest -m slow

check: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: .venv/installed
	$(BIN)/python tests/benchmarks/throughput.py

lock:
	uv pip compile --upgrade --python-version 3.11 --generate-hashes --no-emit-index-url --extra dev -o requirements.lock pyproject.toml

clean:
	rm -rf .venv demo build *.egg-info
