# `make demo` and `make test` do everything, set-up included. `make help` lists the rest.
PYTHON      ?= python3
TORCH_INDEX ?=
EXTRAS      ?= dev
VENV        := .venv
PY          := $(VENV)/bin/python
READY       := $(VENV)/.ready
PYTEST      := $(PY) -m pytest -n 2 --dist worksteal
.DEFAULT_GOAL := help
.PHONY: help setup demo test test-fast test-slow cov lint format docs bench lock wheel clean

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

setup: $(READY)  ## make .venv with everything in it (installs Debian packages where that is allowed)

$(READY): constraints.txt pyproject.toml scripts/setup.sh
	@PYTHON="$(PYTHON)" VENV="$(VENV)" TORCH_INDEX="$(TORCH_INDEX)" EXTRAS="$(EXTRAS)" \
		bash scripts/setup.sh
	@touch $@

demo: $(READY)  ## convert, pretrain, fine-tune and report on real photographs (less than 10 minutes on 2 cores)
	@bash scripts/setup.sh demo-data
	$(PY) demo.py

test: $(READY)  ## run the tests, but for those that take minutes
	$(PYTEST) $(ARGS)

test-fast: $(READY)  ## run the tests that take seconds
	$(PYTEST) -m "not slow and not integration" $(ARGS)

test-slow: $(READY)  ## run the tests that take minutes
	$(PY) -m pytest -m slow $(ARGS)

cov: $(READY)  ## run the tests and measure which lines they reach (kernels and started processes left out)
	$(PYTEST) --cov --cov-report=term $(ARGS)

lint: $(READY)  ## check format, style, common mistakes and types
	$(PY) -m ruff format --check .
	$(PY) -m ruff check .
	$(PY) -m mypy

format: $(READY)  ## format the code and mend what can be mended
	$(PY) -m ruff format .
	$(PY) -m ruff check --fix .

docs: $(READY)  ## build the documentation into site/ and check its links
	NO_MKDOCS_2_WARNING=1 $(PY) -m mkdocs build --strict --quiet

bench: $(READY)  ## measure the loader against other loaders on this machine (installs them into .bench-venv)
	@VENV="$(VENV)" bash scripts/bench.sh
	.bench-venv/bin/python benchmark.py loader --peers official,ffcv,albumentations,dali $(ARGS)

lock:  ## renew constraints.txt after a change of pyproject.toml (ARGS=--upgrade takes the newest versions)
	@PYTHON="$(PYTHON)" bash scripts/lock.sh $(ARGS)

wheel: $(READY)  ## build a wheel into dist/
	rm -rf build  # else modules that were removed since are in it
	$(PY) -m pip wheel -q --no-deps --wheel-dir dist .

clean:  ## remove what was made, but neither raw data nor runs
	rm -rf $(VENV) .bench-venv .pytest_cache .ruff_cache .mypy_cache .coverage* htmlcov site build dist *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
