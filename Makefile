# Chores, each of them one line that also works by hand. Every target creates what it needs.

PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready

.DEFAULT_GOAL := help
.PHONY: help setup quick test test-all torture any-cpu any-cpu-files gpu-lab gpu-lab-wheels gpu-lab-kernels check dist grown docs peers zoo clean
.PHONY: demo build bench report image image-gpu image-check smoke locks

help:  ## Print this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*##/\t/' | expand -t 13

NEW_ENOUGH = $(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	{ echo "qconvert needs Python 3.11 or newer; name one: make PYTHON=python3.12"; exit 1; }

setup: $(READY)  ## Create .venv with everything that tests and checks need

$(READY): pyproject.toml .ci/constraints.txt
	@$(NEW_ENOUGH)
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -q -c .ci/constraints.txt -e ".[cpu,torch,timm,dev]"
	@touch $@

# `tests/conftest.py` decides which files come first. Bytecode that is kept makes the hundreds of
# processes which the tests start faster, whatever the environment says.
PYTEST = PYTHONDONTWRITEBYTECODE= $(BIN)/python -m pytest -n auto --dist loadfile --no-loadscope-reorder

quick: $(READY)  ## Run the fast tests (under a minute)
	$(PYTEST) -q -m "not slow and not long and not torture"

# QCONVERT_TEST_CPU=Haswell runs what computes in INT8 as that CPU, in one process.
INT8_TESTS = tests/backends/test_cpu.py $(addprefix tests/quantize/test_,apply_plan.py pairs.py \
	rounded_weights.py rules_ort_cpu.py weights.py)
AS_CPU = $(BIN)/python -m tests.any_cpu $(QCONVERT_TEST_CPU) $(INT8_TESTS)

test: $(READY)  ## Run the tests (QCONVERT_TEST_CPU=Haswell: the INT8 ones as this CPU)
	$(if $(QCONVERT_TEST_CPU),$(AS_CPU),$(PYTEST)) -m "not long and not torture"

test-all: $(READY)  ## Run all tests that CI runs; `any-cpu` and `gpu-lab` have more of their kind
	$(PYTEST) -m "not torture and not ((any_cpu or gpu_lab) and long)"

torture: $(READY)  ## Run the long tests: spoiled input, kills, full disks, two builds at once
	$(BIN)/python -m pytest -m torture tests/torture

any-cpu: any-cpu-files  ## Run INT8 files as x86 without VNNI and as ARM, under QEMU
	$(PYTEST) tests/any_cpu
	$(BIN)/python -m tests.any_cpu.table

any-cpu-files: $(READY)
	$(BIN)/python -m tests.any_cpu.environment

gpu-lab: gpu-lab-wheels  ## Run the real GPU wheels over fake libraries (fetches 400 MB once)
	$(PYTEST) -m "gpu_lab or proves" tests/gpu_lab tests/backends --junit-xml .venv/gpu-lab.xml
	$(BIN)/python -m tests.gpu_lab.table .venv/gpu-lab.xml

gpu-lab-wheels: $(READY)
	$(BIN)/python -m tests.gpu_lab.lab.environment

gpu-lab-kernels: gpu-lab-wheels  ## Write the table of CUDA kernels anew from the wheel
	$(BIN)/python -m tests.gpu_lab.cuda_kernels

check: $(READY)  ## Check format, lint, types, import layers and generated docs
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python docs/generate.py --check

dist:  ## Build wheel and sdist, and try them in an empty environment
	.ci/dist

grown: $(READY)  ## Show lines per folder, the longest files and functions
	$(BIN)/python .ci/grown.py

docs: $(READY)  ## Write the reference pages again
	$(BIN)/python docs/generate.py

peers: $(READY)  ## Compare with other tools, as ratios in one run
	$(BIN)/python -m pip install -q -c .ci/constraints.txt -r benchmarks/requirements.txt
	$(BIN)/python -m benchmarks.peers

zoo: $(READY)  ## Run a hundred networks through export and build, and write docs/zoo.md
	$(BIN)/python -m pip install -q -c .ci/constraints.txt -r benchmarks/requirements.txt
	HF_HUB_OFFLINE=1 $(BIN)/python -m benchmarks.zoo

# These also run in a folder of yours, as `make -f PATH/Makefile build ...`. QCONVERT=qconvert takes
# the one on PATH; without it an environment beside this file is made, with the EXTRAS.
HERE := $(dir $(lastword $(MAKEFILE_LIST)))
OWN := $(HERE).venv/bin/qconvert
QCONVERT ?= $(OWN)
EXTRAS ?= cpu
FORMAT ?= text

# A name as the shell takes it, whatever is in it.
quoted = '$(subst ','\'',$(1))'
option = $(if $(2), $(1) $(call quoted,$(2)))
ASKED = $(call option,--images,$(IMAGES))$(call option,--eval,$(EVAL))$(call option,--labels,$(LABELS))

demo: $(filter $(OWN),$(QCONVERT))  ## Engines of a network that comes along: size, latency, accuracy
	$(QCONVERT) demo

build: given-MODEL $(filter $(OWN),$(QCONVERT))  ## Engines of MODEL (IMAGES EVAL LABELS RUN GATES OPTIONS)
	$(QCONVERT) build $(call quoted,$(MODEL))$(ASKED)$(call option,-o,$(RUN)) $(GATES) $(OPTIONS)

bench: given-RUN $(filter $(OWN),$(QCONVERT))  ## Time the engines of RUN on this machine (GATES OPTIONS)
	$(QCONVERT) bench $(call quoted,$(RUN)) $(GATES) $(OPTIONS)

report: given-RUN $(filter $(OWN),$(QCONVERT))  ## Show the report of RUN (FORMAT)
	@$(QCONVERT) report $(call quoted,$(RUN)) --format $(FORMAT)

# make takes a path with spaces for several, so that HERE would be another folder.
$(OWN):
	$(if $(filter 1,$(words $(MAKEFILE_LIST))),,$(error the path of this Makefile has spaces: make QCONVERT=qconvert takes the one on PATH))
	@$(NEW_ENOUGH)
	$(PYTHON) -m venv $(HERE).venv
	$(HERE)$(BIN)/python -m pip install -q -e "$(HERE)[$(EXTRAS)]"

EXAMPLE_MODEL = MODEL=model.onnx IMAGES=calib_data EVAL=val GATES="--max-drop 1"
EXAMPLE_RUN = RUN=runs/model
given-%:
	$(if $($*),,$(error $* is missing, as in: make $(MAKECMDGOALS) $(EXAMPLE_$*)))

# docker, or what takes the same words: podman, and buildah for making images.
CONTAINER ?= docker
IMAGE ?= qconvert

image:  ## Make the image for CPUs (CONTAINER IMAGE IMAGE_ARGS)
	$(CONTAINER) build -f docker/Dockerfile --target cpu -t $(IMAGE):cpu $(IMAGE_ARGS) .

image-gpu:  ## Make the image for NVIDIA GPUs
	$(CONTAINER) build -f docker/Dockerfile --target gpu -t $(IMAGE):gpu $(IMAGE_ARGS) .

smoke:  ## Run the demo in the image for CPUs
	$(CONTAINER) run --rm $(IMAGE):cpu demo

image-check:  ## Make and use the image without a daemon (as root)
	docker/check

locks:  ## Write the releases that images are made of again
	docker/lock

clean:  ## Remove the environment and everything made by these targets
	rm -rf .venv qconvert-demo build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
