# One command each. Everything is set up in .venv inside the checkout.
PYTHON ?= python3.11
BIN := .venv/bin

.PHONY: demo test check bench lock clean

.venv: .venv/installed

.venv/installed: requirements.lock pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	touch $@
