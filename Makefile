# mellm: everything a clone can do. `make` alone lists it.
# Needs python3 (3.11-3.13) with venv, and git; the rest is installed into .venv from constraints.txt.

PYTHON ?= python3
BIN := .venv/bin
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help install install-dev study test export readme docs lab clean

help: ## list what make can do
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' Makefile | while IFS="$$(printf '\t')" read -r goal text; do printf '  make %-12s %s\n' "$$goal" "$$text"; done

# The stamps remember which folder was installed: a clone that was moved or copied is installed anew.
ifneq ($(shell cat .venv/.installed 2>/dev/null),$(shell pwd -P))
.PHONY: .venv/.installed
endif

.venv/.installed: settings.ini setup.py constraints.txt
	@set -e; if [ ! -x $(BIN)/python ] || [ "$$(cat $@ 2>/dev/null)" != "$$(pwd -P)" ]; then \
	  chosen=; for candidate in "$(PYTHON)" python3.13 python3.12 python3.11; do \
	    if "$$candidate" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null; then chosen=$$candidate; break; fi; \
	  done; \
	  if [ -z "$$chosen" ]; then \
	    echo "mellm needs Python 3.11, 3.12 or 3.13, but $(PYTHON) is $$("$(PYTHON)" -V 2>&1 || true). Name another one: make PYTHON=/path/to/python3.12 $(MAKECMDGOALS)" >&2; exit 1; \
	  fi; \
	  echo "Making .venv with $$("$$chosen" -V) ..."; \
	  "$$chosen" -m venv --clear .venv || { echo "The virtual environment could not be made. On Debian and Ubuntu: sudo apt install python3-venv" >&2; exit 1; }; \
	fi
	@echo "Installing mellm and its pinned requirements into .venv (some minutes the first time) ..."
	@$(BIN)/python -m pip install -qq --disable-pip-version-check -c constraints.txt -e .
	@printf '%s\n' "$$(pwd -P)" > $@

.venv/.installed-dev: .venv/.installed
	@echo "Installing the development requirements ..."
	@$(BIN)/python -m pip install -qq --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

install: .venv/.installed ## the environment alone (.venv)

install-dev: .venv/.installed-dev ## the environment with what is needed to write and test the notebooks

study: install ## run the six notebooks in order and print the result table
	@$(BIN)/mellm study

test: install-dev ## run every notebook as a test, then tests/ with pytest
	@.ci/test

export: install-dev ## write mellm/*.py from the notebooks, and clean the notebooks
	@$(BIN)/nbdev_export
	@$(BIN)/nbdev_clean

readme: install-dev ## write README.md from nbs/index.ipynb
	@$(BIN)/python .ci/readme.py

docs: install-dev ## build the documentation site in _docs (needs Quarto, https://quarto.org)
	@command -v quarto >/dev/null || { echo "make docs needs Quarto: https://quarto.org/docs/get-started/" >&2; exit 1; }
	@PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python .ci/site.py
	@cd _proc && PATH="$(CURDIR)/$(BIN):$$PATH" quarto render --no-cache
	@rm -rf _docs && mv _proc/_docs _docs && echo "The site is in _docs/index.html"

lab: install ## open the notebooks in JupyterLab
	@$(BIN)/python -m pip install -qq --disable-pip-version-check -c constraints.txt -e '.[lab]'
	@$(BIN)/python -m jupyterlab nbs

clean: ## remove what was built; runs/ and .venv stay
	@rm -rf _proc _docs build dist *.egg-info .pytest_cache .hypothesis
	@find mellm nbs tests -name __pycache__ -type d -prune -exec rm -rf {} +
