# make help lists the targets. Everything runs in .venv, which the first target that needs it makes.

PYTHON := .venv/bin/python
NAME ?= smoke
# A PYTHONPATH set for other work must not come between Baton and its own packages.
unexport PYTHONPATH PYTHONHOME VIRTUAL_ENV

.PHONY: help setup demo test check proto bench

help:  ## list the targets
	@sed -n 's/^\([a-z]*\):.*## /  make \1	/p' Makefile

setup:  ## make .venv with everything Baton needs (2 GB)
	@sh tools/setup

demo: setup  ## the main job, for real: two pools on a local Ray, three prompts
	@$(PYTHON) -m deploy.demo

test: setup  ## all tests, the ones on a local Ray included
	@$(PYTHON) -m pytest -m "not gpu and not matrix"

check: setup  ## in a minute or two: format, lint, types, imports, contract, guard rails
	@$(PYTHON) -m tools.check

proto: setup  ## generate rpc/pb from proto/, and docs/lifecycle.md from the tables
	@$(PYTHON) -m tools.proto
	@$(PYTHON) -m tools.lifecycle

bench: setup  ## measure what is claimed; NAME=engine for another than the smoke benchmark
	@$(PYTHON) -m bench $(NAME)
