# make demo   trains on the demo data, scores it and writes a page with pictures
# make test   the whole suite
# make docs   the pages of docs/ as a site, in site/
# make gpu    proves the GPU half on this machine's GPU in eight minutes, without a network
# All set up what they need: a virtual environment in .venv with the versions of constraints.txt.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
MINUTES ?= 5
WORKERS ?= 2
GPU_PYTHON ?= 3.12

.PHONY: demo test gpu gpu-wheels slurm browser lint format docs wheel clean help
.DEFAULT_GOAL := help

help:
	@sed -n '1,5s/^# //p' Makefile

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
	  { echo "t2i_hpc needs Python 3.10 or newer: make PYTHON=python3.11 $(MAKECMDGOALS)"; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[test,lint]'
	@touch $@

# The demo: encoders first, then the GAN that is steered by them, a score, a page.
RUN = $(BIN)/python -m t2i_hpc
DEMO = experiment=demo engine.minutes=$(MINUTES) engine.checkpoint.milestones=$(MINUTES)000 \
  system.damsm.weight=0.1

demo: $(READY)
	@echo "1/4 text encoder (about 75 seconds on two cores)"
	@$(RUN).pretrain experiment=demo_encoders
	@echo "2/4 SSA-GAN ($(MINUTES) minutes of training in all; Ctrl-C saves, make demo resumes)"
	@encoders=$$($(RUN).pretrain experiment=demo_encoders --print-run) && \
	  weights="system.text_encoder.weights=$$encoders/text_encoder.safetensors \
	    system.image_encoder.weights=$$encoders/image_encoder.safetensors" && \
	  $(RUN).train $(DEMO) $$weights && \
	  run=$$($(RUN).train $(DEMO) $$weights --print-run) && \
	  echo "3/4 scores, each in two evaluation shards" && \
	  $(RUN).evaluate run=$$run checkpoint=all evaluation=demo && \
	  echo "4/4 page and picture" && \
	  $(RUN).report run=$$run

# Slurm's tests run on a real cluster of two nodes, which root can have on one machine.
SLURM := slurmctld slurmd slurm-client munge slurmdbd slurm-wlm-mysql-plugin \
  mariadb-server-core mariadb-client-core

slurm:
	@PATH=$$PATH:/usr/sbin; command -v slurmdbd >/dev/null && command -v mariadbd >/dev/null || \
	  { [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null && apt-get -qq update && \
	    DEBIAN_FRONTEND=noninteractive apt-get -qq install --no-install-recommends $(SLURM) \
	      >/dev/null; } || \
	  echo "Slurm cannot be installed here: its tests say so and are skipped"

# The page of t2i_hpc.serve is tried in a real browser.
browser:
	@command -v chromium >/dev/null && command -v chromedriver >/dev/null || \
	  { [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null && apt-get -qq update && \
	    DEBIAN_FRONTEND=noninteractive apt-get -qq install --no-install-recommends \
	      chromium chromium-driver >/dev/null; } || \
	  echo "Chromium cannot be installed here: its tests say so and are skipped"

# In the order of folders: sorted by their number of tests, the few and long ones of Slurm come last,
# on one worker.
test: $(READY) slurm browser
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder

# The GPU's machine needs no network, and of torch only that it sees the GPU: what else is missing
# there comes along in gpu-wheels/, and goes to a folder of its own.
GPU := .gpu
SDISTS := antlr4-python3-runtime deepspeed
WHEELS_FOR := --python-version $(GPU_PYTHON) --implementation cp \
  --abi cp$(subst .,,$(GPU_PYTHON)) --abi abi3 --abi none --platform manylinux_2_28_x86_64 \
  --platform manylinux_2_17_x86_64 --platform manylinux2014_x86_64 --platform any

gpu-wheels: $(READY)
	rm -rf $@
	$(BIN)/python -m pip download --quiet --no-deps --only-binary=:all: $(WHEELS_FOR) \
	  --constraint constraints.txt --dest $@ --requirement benchmarks/gpu-wheels.txt
	$(BIN)/python -m pip wheel --quiet --no-deps --constraint constraints.txt --wheel-dir $@ $(SDISTS)
	@du -sh $@

gpu:
	@$(PYTHON) benchmarks/gpu_machine.py --wheels gpu-wheels --into $(GPU)

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(READY)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[docs]'
	$(BIN)/python -m docs.generate_reference
	$(BIN)/zensical build --strict

wheel: $(READY)
	$(BIN)/python -m pip wheel --quiet --no-deps --wheel-dir dist .

clean:
	rm -rf $(VENV) $(GPU) gpu-wheels dist build site docs/generated .pytest_cache .mypy_cache .ruff_cache .hypothesis
