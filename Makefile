# Both commands set themselves up: `make generate PROMPT="..."` and `make test`.
# PYTHON=python3.12 chooses the interpreter, EXTRAS=cuda13 (or cuda12, tpu) the accelerator,
# ARGS passes options on: make generate PROMPT="..." ARGS="--seed 3" or make test ARGS="-k sampler".

PROMPT ?= a large red ball rolls to the left
EXTRAS ?=
ARGS ?=
# Processes that run tests, each module in one of them; a process needs about 2 GB of memory.
WORKERS ?= 2
# The text as it was typed: make expands no `$` in it, and the shell reads it from the environment.
override PROMPT := $(value PROMPT)
export PROMPT

BIN := .venv/bin
# Empty files that say what is installed; a changed pyproject.toml makes them old.
READY := .venv/.ready$(if $(EXTRAS),-$(EXTRAS))
READY_TO_TEST := .venv/.ready-test

.PHONY: generate test check lint types clean
.DEFAULT_GOAL := generate

generate: $(READY)
	@$(BIN)/jvdm generate "$$PROMPT" $(ARGS)

test: $(READY_TO_TEST)
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder -m "not notebook and not browser and not long" $(ARGS)

lint: $(READY_TO_TEST)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(READY_TO_TEST)
	$(BIN)/pyright

check: lint types test

clean:
	rm -rf .venv .venv-newer .jax_cache build dist jvdm.egg-info

.venv/bin/python:
	@python=""; \
	for name in $(PYTHON) python3 python3.13 python3.12 python3.11; do \
	  if "$$name" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then \
	    python="$$name"; break; \
	  fi; \
	done; \
	if [ -z "$$python" ]; then \
	  echo "jvdm needs Python 3.11 or newer, and $$(python3 --version 2>&1 || echo no python3) was found;" >&2; \
	  echo "install it and name it: make PYTHON=/path/to/python3.12 ..." >&2; exit 2; \
	fi; \
	echo "setting up .venv with $$("$$python" --version)"; \
	"$$python" -m venv .venv || { rm -rf .venv; \
	  echo "the venv module of $$python does not work; on Debian and Ubuntu: apt install python3-venv" >&2; \
	  exit 2; }

$(READY): pyproject.toml | .venv/bin/python
	@echo "installing jvdm (a few minutes the first time)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.$(if $(EXTRAS),[$(EXTRAS)])'
	@touch $@

$(READY_TO_TEST): pyproject.toml | .venv/bin/python
	@echo "installing jvdm and its test tools (a few minutes the first time)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[test]'
	@touch $@
