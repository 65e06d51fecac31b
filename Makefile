# Every target makes .venv and installs the pinned dependencies first, if they are missing or their list has changed.
.DEFAULT_GOAL := help
STUDIES := la-main la-label-count la-ablation la-networks la-seed la-baseline la-mix la-mix-ablation la-dual pancreas-main brats-main hippocampus \
  hippocampus-design head-neck
.PHONY: help demo verdict test quick test-slurm drill check bench gpu $(STUDIES) reproduce tables clean

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
HIPPOCAMPUS_ROOT ?=
HEAD_NECK_ROOT ?=
DATA_ROOT ?=
BIN := .venv/bin
INSTALLED := .venv/.installed

help: ## list these targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-15s %s\n", $$1, $$2}' Makefile

demo: $(INSTALLED) ## train dual_mix on the embedded dataset (minutes on 2 cores) -> runs/demo/report.html
	@$(BIN)/dualseg-train experiment=demo
	@$(BIN)/dualseg-report run runs/demo

verdict: $(INSTALLED) ## do the unlabeled scans of DATA_ROOT= help? (SEEDS=0,1 LAUNCHER= DRY=1)
	@test -n "$(DATA_ROOT)" || { echo "DATA_ROOT is not given: make $@ DATA_ROOT=<your folder, see docs/own-data.md>" >&2; exit 2; }
	@$(BIN)/dualseg-train -m sweep=verdict data=folder data.root="$(DATA_ROOT)" launcher=$(LAUNCHER) \
	  $(if $(SEEDS),seed=$(SEEDS)) $(if $(DRY),dry=true)

# One thread a process: test processes that each start several would slow one another down.
test: $(INSTALLED) ## run all tests, WORKERS=2 processes at a time
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder --max-worker-restart 0

quick: $(INSTALLED) ## the tests that need a moment each: about a minute
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n $(WORKERS) --dist loadfile -m "not slow"

test-slurm: $(INSTALLED) ## a sweep on a real Slurm of one machine, as root (apt-get install slurm-wlm munge); minutes
	@$(BIN)/python tests/slurm/run.py

# Each prints its figures, and goes on after one that failed.
drill: $(INSTALLED) ## damage 1,050 files, kill commands 200 times, signal every process of a training; an hour
	@failed=0; for part in files kills signals; do $(BIN)/python tests/drill/$$part.py || failed=1; done; exit $$failed

check: $(INSTALLED) ## lint (ruff), formatting (ruff format) and types (mypy)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(INSTALLED) ## measure speed and memory against plain loops and MedPy
	$(BIN)/python benchmarks/bench.py

PART ?= check
OUT ?= runs/gpu
gpu: $(INSTALLED) ## what one GPU does: PART=check speed of the methods' steps; PART=run ROWS="mix_8 ..." LA_ROOT=, full size
	$(BIN)/python benchmarks/gpu.py $(PART) "$(OUT)" $(ROWS) $(if $(LA_ROOT),--la-root "$(LA_ROOT)")

# $(call root,study): name of the variable with its data root
root = $(root_$(firstword $(subst -, ,$(1))))
root_la := LA_ROOT
root_pancreas := PANCREAS_ROOT
root_brats := BRATS_ROOT
root_hippocampus := HIPPOCAMPUS_ROOT
root_head := HEAD_NECK_ROOT

# $(call sweep,study): finished runs are skipped, interrupted ones resume. What is finished is collected, also when runs
# failed: exit code 1, which stays. Above that the sweep was refused, or stopped by hand: nothing is collected.
define sweep
@test -n "$($(root))" || { echo "$(root) is not given: make $@ $(root)=<folder of the volumes, see docs/data.md>" >&2; exit 2; }
@$(BIN)/dualseg-train -m sweep=$(subst -,_,$(1)) scale=$(SCALE) launcher=$(LAUNCHER) data.root="$($(root))" \
  $(if $(SEEDS),seed=$(SEEDS)) $(if $(DRY),dry=true,; code=$$?; [ $$code -gt 1 ] || \
  $(BIN)/dualseg-report study $(subst -,_,$(1)) || [ $$code -ne 0 ] || code=1; exit $$code)
endef

la-main: $(INSTALLED) ## study: the method against its bounds on Left Atrium (LA_ROOT= SCALE=cpu|full SEEDS=0,1 LAUNCHER= DRY=1)
la-label-count: $(INSTALLED) ## study: how many labels it takes (same arguments)
la-ablation: $(INSTALLED) ## study: what each term is worth (same arguments)
la-networks: $(INSTALLED) ## study: which pair of networks (same arguments)
la-seed: $(INSTALLED) ## study: every method beside supervised training (same arguments)
la-baseline: $(INSTALLED) ## study: how strong labels alone are, three networks and augmentations (same arguments)
la-mix: $(INSTALLED) ## study: what unlabeled scans add to 2, 4, 8 and 16 labels, test cases (same arguments)
la-mix-ablation: $(INSTALLED) ## study: what dual_mix consists of, one factor at a time (same arguments)
la-dual: $(INSTALLED) ## study: why the paper's objective collapses, what keeps it (same arguments)
hippocampus: $(INSTALLED) ## study: supervised at full resolution, 10 and 140 labels (same arguments, HIPPOCAMPUS_ROOT=)
hippocampus-design: $(INSTALLED) ## study: where the recipe of data=folder is chosen (same arguments, HIPPOCAMPUS_ROOT=)
head-neck: $(INSTALLED) ## study: five small organs of CT, foreground sampling (same arguments, HEAD_NECK_ROOT=)
pancreas-main: $(INSTALLED) ## study: Pancreas-CT at 10 and 20 % of the labels (same arguments, PANCREAS_ROOT=)
brats-main: $(INSTALLED) ## study: BraTS-2019 at 10 and 20 % of the labels (same arguments, BRATS_ROOT=)

$(STUDIES):
	$(call sweep,$@)

reproduce: $(INSTALLED) ## every study whose data root is given, one after the other; goes on after one that failed
	@failed=0; $(foreach study,$(STUDIES),$(if $($(call root,$(study))),\
	  $(MAKE) --no-print-directory $(study) || failed=1,\
	  echo "$(study): skipped, $(call root,$(study)) is not given");) exit $$failed

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
