# What the examples share. PYTHON is that of this checkout where `make setup` made one.
PYTHON ?= $(firstword $(wildcard ../../.venv/bin/python) python3)
QCONVERT := $(PYTHON) -m qconvert
# More options for `qconvert build`, as in `make ARGS="--backend cpu,tensorrt-rtx"`.
ARGS ?=

.DEFAULT_GOAL := run
.PHONY: run clean
