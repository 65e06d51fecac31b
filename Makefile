# Every target makes .venv and installs the pinned dependencies first, if they are missing or their list has changed.
.DEFAULT_GOAL := help
STUDIES := la-main la-label-count la-ablation la-networks pancreas-main brats-main
.PHONY: help demo test test-slurm check bench $(STUDIES) reproduce tables clean

PYTHON ?= python3
WORKERS ?= 2
# of the studies
SCALE ?= cpu
SEEDS ?=
LAUNCHER ?= basic
DRY ?=
LA_ROOT ?=
PANCREAS_ROOT ?=
BRATS_ROOT ?=
BIN := .venv/bin
INSTALLED := .venv/.installed

help: ## list these targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-15s %s\n", $$1, $$2}' Makefile

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

# $(call sweep,study,name of the variable with its data root): finished runs are skipped, interrupted ones resume
define sweep
@test -n "$($(2))" || { echo "$(2) is not given: make $@ $(2)=<folder of the volumes, see docs/data.md>" >&2; exit 2; }
@$(BIN)/dualseg-train -m sweep=$(1) scale=$(SCALE) launcher=$(LAUNCHER) data.root="$($(2))" \
  $(if $(SEEDS),seed=$(SEEDS)) $(if $(DRY),dry=true)
endef

la-main: $(INSTALLED) ## study: the method against its bounds on Left Atrium (LA_ROOT= SCALE=cpu|full SEEDS=0,1 LAUNCHER= DRY=1)
	$(call sweep,la_main,LA_ROOT)

la-label-count: $(INSTALLED) ## study: how many labels it takes (same words)
	$(call sweep,la_label_count,LA_ROOT)

la-ablation: $(INSTALLED) ## study: what each term is worth (same words)
	$(call sweep,la_ablation,LA_ROOT)

la-networks: $(INSTALLED) ## study: which pair of networks (same words)
	$(call sweep,la_networks,LA_ROOT)

pancreas-main: $(INSTALLED) ## study: Pancreas-CT at 10 and 20 % of the labels (same words, PANCREAS_ROOT=)
	$(call sweep,pancreas_main,PANCREAS_ROOT)

brats-main: $(INSTALLED) ## study: BraTS-2019 at 10 and 20 % of the labels (same words, BRATS_ROOT=)
	$(call sweep,brats_main,BRATS_ROOT)

reproduce: $(STUDIES) ## every study

tables: $(INSTALLED) ## tables, figures and page of every study from its finished runs and committed rows -> experiments/
	@failed=0; for study in $(subst -,_,$(STUDIES)); do \
	  if [ -e experiments/$$study/results.csv ] || ls -d runs/sweeps/$$study-* >/dev/null 2>&1; \
	  then $(BIN)/dualseg-report study $$study || failed=1; else echo "$$study: not run"; fi; \
	done; exit $$failed

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
