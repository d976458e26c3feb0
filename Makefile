# SPDX-FileCopyrightText: The appliance authors
# SPDX-License-Identifier: Apache-2.0
# Everything that is installed or built goes to $(CACHE), keyed by the content of what describes it; never into the clone.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

CACHE := $(or $(APPLIANCE_CACHE),$(or $(XDG_CACHE_HOME),$(HOME)/.cache)/appliance)
PYTHON_SYSTEM := /usr/bin/python3.11
VENV := $(CACHE)/venv-$(shell cat requirements/dev.txt | sha256sum | cut -c1-16)
PY := $(VENV)/bin/python
APT_LISTS := tests/apt-packages.txt
export PYTHONDONTWRITEBYTECODE := 1
export APPLIANCE_CACHE := $(CACHE)


.PHONY: help setup packages venv python check fix test test-sealed lab-world lab-packages lab-up lab-down lab-shell lab lab-timed drills bench demo clean

help: ## this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

setup: packages venv ## install what check and test need (Debian packages as root, Python packages in the cache)

packages:
	@missing=$$(dpkg-query -W -f='$${Package} $${Status}\n' 2>/dev/null | awk '$$NF=="installed"{print $$1}' | sort | comm -13 - <(sort -u $(APT_LISTS))); \
	if [ -n "$$missing" ]; then \
	  if [ "$$(id -u)" != 0 ]; then echo "make: these Debian packages are missing, install them as root: $$missing" >&2; exit 1; fi; \
	  apt-get update -q -y && DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends $$missing; \
	fi

venv: $(VENV)/.done

$(VENV)/.done:
	@mkdir -p $(CACHE)
	@exec 9>$(VENV).lock; flock 9; if [ ! -e $@ ]; then rm -rf $(VENV); $(PYTHON_SYSTEM) -m venv $(VENV); \
	  $(PY) -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements/dev.txt; touch $@; fi

python: venv
	@echo $(PY)

check: venv ## format, lint, types, import contracts, playbooks, charts, generated files
	@$(PY) -m ruff format --check . && $(PY) -m ruff check .
	@$(PY) -m mypy
	@$(VENV)/bin/lint-imports
	@PY=$(PY) VENV=$(VENV) bash tests/check.sh

fix: venv ## format and mend what can be mended by itself
	@$(PY) -m ruff check --fix-only -q . ; $(PY) -m ruff format .

test: ## no cluster, no network; passes as an unprivileged user once the Debian packages are there (root gets them installed)
	@$(MAKE) -s packages venv
	@$(PY) -m pytest -n 2 -q

test-sealed: venv ## make test as nobody in a network namespace with only lo (as root)
	@bash tests/sealed.sh $(VENV)

lab-packages:
	@$(MAKE) -s packages APT_LISTS="tests/apt-packages.txt tests/lab/packages.txt"

lab-world: venv lab-packages ## compile what a connected machine would fetch (about 13 minutes once, then cached)
	@$(PY) -m tests.lab.world build

lab-up: venv lab-packages ## three bare machines in a namespace without an uplink (LAB_NAME names it)
	@$(PY) -m tests.lab up

lab-down: venv ## remove every lab, however it was left
	@$(PY) -m tests.lab down --all

lab-shell: venv ## a shell on the depot of the demo
	@$(PY) -m tests.lab exec --name demo bastion bash -l

lab: venv lab-packages ## the tests that need root, machines and a cluster
	@$(PY) -m pytest -q tests/lab_suite

lab-timed: venv lab-packages ## the first and second installation against their limits, on a machine that does nothing else
	@APPLIANCE_TIMED=1 $(PY) -m pytest -q -s tests/lab_suite/test_install_cluster.py -k "in_time or second_installation"

drills: venv lab-packages ## kill, flip, fill and skew, at length (-rP: what a test that passed has printed, its seeds above all)
	@$(PY) -m pytest -q -rP -m "slow or not slow" tests/drills && $(PY) -m pytest -q -rP -n 2 -m slow
	@$(PY) -m pytest -q -rP -m "slow or not slow" tests/lab_suite/test_install_cluster.py

bench: venv ## the ratios of docs/benchmarks.md
	@$(PY) -m benchmarks

demo: ## from nothing to a cluster that is Ready with the model in place (DEMO=--record writes its times into docs/benchmarks.md)
	@$(MAKE) -s packages lab-packages venv
	@$(PY) -m tests.lab.demo $(DEMO)

clean: ## remove what the targets made in this clone (the cache stays)
	@find . -name __pycache__ -type d -prune -exec rm -rf {} + ; rm -rf .mypy_cache .ruff_cache .hypothesis .import_linter_cache build dist
