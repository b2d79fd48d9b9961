PYTHON ?= python

help:  ## list the targets
	@grep -E '^[a-z-]+:.*##' Makefile | sed -E 's/:.*##/  -/'
install:  ## the package with what the tests need, editable
	$(PYTHON) -m pip install -e ".[test]"
check:  ## lint, format, types
	$(PYTHON) -m ruff check . && $(PYTHON) -m ruff format --check . && $(PYTHON) -m mypy
test:  ## the default suite
	$(PYTHON) -m pytest -q -n auto
test-all:  ## slow tests too; those marked data need $$ANOMALY_LIB_DATA
	$(PYTHON) -m pytest -q -m "not gpu"
bench:  ## every benchmark, JSON into benchmarks/results
	for script in benchmarks/bench_*.py; do $(PYTHON) $$script || exit 1; done
figures:  ## docs/manual/results.md and the gallery from the run folders
	$(PYTHON) scripts/make_figures.py
docs:  ## the documentation site in site/ (pip install -e ".[docs]")
	$(PYTHON) -m mkdocs build --strict
.PHONY: help install check test test-all bench figures docs
