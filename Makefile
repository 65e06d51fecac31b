# Every target makes .venv and installs the pinned dependencies first, if they are missing or their list has changed.
.DEFAULT_GOAL := help
.PHONY: help demo test test-slurm check bench la-main clean

PYTHON ?= python3
WORKERS ?= 2
SCALE ?= cpu
LA_ROOT ?=
BIN := .venv/bin
INSTALLED := .venv/.installed

help: ## list these targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' Makefile

demo: $(INSTALLED) ## train both networks on the embedded dataset (minutes on 2 cores) -> runs/demo/report.html
	@$(BIN)/dualseg-train experiment=demo
	@$(BIN)/dualseg-report run runs/demo

# One thread a process: test processes that each start several would slow one another down.
test: $(INSTALLED) ## run all tests, WORKERS=2 processes at a time
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile

test-slurm: $(INSTALLED) ## a sweep on a real Slurm of one machine, as root (apt-get install slurm-wlm munge); minutes
	@$(BIN)/python tests/slurm/run.py

check: $(INSTALLED) ## lint (ruff), formatting (ruff format) and types (mypy)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(INSTALLED) ## measure speed and memory against plain loops and MedPy
	$(BIN)/python benchmarks/bench.py

la-main: $(INSTALLED) ## the Left Atrium study: SCALE=cpu LA_ROOT=<folder of <case>/mri_norm2.h5>
	@test -n "$(LA_ROOT)" || { echo "LA_ROOT is not given: make la-main LA_ROOT=<folder of <case>/mri_norm2.h5>" >&2; exit 2; }
	$(BIN)/python experiments/la_main/study.py run --root "$(LA_ROOT)" --scale $(SCALE)

clean: ## remove .venv, caches and build outputs; runs/ and data/ stay
	rm -rf .venv .pytest_cache .mypy_cache .ruff_cache dist
	find . -name __pycache__ -prune -exec rm -rf {} +

# A .venv that works is kept; one that is missing, broken or too old is made anew.
$(INSTALLED): pyproject.toml constraints.txt
	@$(BIN)/python -c 'import pip, sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	  $(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	    echo "dualseg needs Python >= 3.11, and '$(PYTHON)' is not one. Name one: make PYTHON=/path/to/python3.11 ..." >&2; \
	    exit 1; }; \
	  echo "Making .venv"; $(PYTHON) -m venv --clear .venv; }
	$(BIN)/python -m pip install -e '.[dev]' -c constraints.txt
	@touch $@
