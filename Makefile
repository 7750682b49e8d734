# `make demo` and `make test` do everything, set-up included. `make help` lists the rest.
PYTHON ?= python3
VENV   := .venv
PY     := $(VENV)/bin/python
READY  := $(VENV)/.ready
.DEFAULT_GOAL := help
.PHONY: help setup demo test test-slow lint bench clean

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

setup: $(READY)  ## make .venv with everything in it (installs Debian packages where that is allowed)

$(READY): constraints.txt pyproject.toml scripts/setup.sh
	@PYTHON="$(PYTHON)" VENV="$(VENV)" bash scripts/setup.sh
	@touch $@

demo: $(READY)  ## convert, pretrain, fine-tune and report on real photographs (about 12 minutes on 2 cores)
	@bash scripts/setup.sh demo-data
	$(PY) demo.py

test: $(READY)  ## run the tests
	$(PY) -m pytest

test-slow: $(READY)  ## run the tests that take minutes
	$(PY) -m pytest -m slow

lint: $(READY)  ## check format, style and common mistakes with ruff
	$(PY) -m ruff format --check .
	$(PY) -m ruff check .

bench: $(READY)  ## measure the loader against its peers on this machine (installs them into .bench-venv)
	@VENV="$(VENV)" bash scripts/bench.sh
	.bench-venv/bin/python benchmark.py loader --peers official,ffcv,albumentations,dali $(ARGS)

clean:  ## remove what was made, but neither raw data nor runs
	rm -rf $(VENV) .bench-venv .pytest_cache .ruff_cache build dist *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
