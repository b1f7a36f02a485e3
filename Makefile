# Needs Python 3.11 or newer and make, nothing else beforehand: the rest is installed into .venv.

SHELL := /bin/sh
export PATH := $(PATH):/usr/sbin:/sbin
# Compiled modules are kept, whatever the surroundings wish: a run starts hundreds of processes that would compile anew.
unexport PYTHONDONTWRITEBYTECODE

ifeq ($(origin PYTHON),undefined)
PYTHON := $(shell for python in python3.13 python3.12 python3.11 python3; do \
	"$$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && { echo "$$python"; break; }; done)
endif
VERSION := import sys; print("%d.%d" % sys.version_info[:2])
# Packages are installed in .venv, or beside it if that one is of another version than the PYTHON that is asked for.
VENV := .venv
ifeq ($(origin PYTHON),command line)
ifneq ($(PYTHON),)
VENV := $(shell new=$$($(PYTHON) -c '$(VERSION)' 2>/dev/null) old=$$(.venv/bin/python -c '$(VERSION)' 2>/dev/null); \
	if test -z "$$old" || test "$$new" = "$$old"; then echo .venv; else echo ".venv-$$new"; fi)
endif
endif
export TROGDOR_VENV := $(VENV)
BIN := $(VENV)/bin
READY := $(VENV)/.ready
SEEDS ?= 10000
EFFORT ?= 10
FRESH ?= yes
PART ?=
MINUTES ?= 10
KAFKA ?= 4.4.0 3.9.2
TESTS ?=
SUITES ?= check test e2e test-newest sim fuzz matrix test-kafka
# What a suite is when it is whole, whatever was asked for on the command line.
WHOLE := PART= SEEDS=10000 EFFORT=10 FRESH= TESTS= KAFKA="4.4.0 3.9.2"
WORKERS := $(shell echo $$(( $$(getconf _NPROCESSORS_ONLN) * 2 )))
PYTEST := $(BIN)/python -m pytest
IN_PARTS := TROGDOR_PART=$(PART)

.PHONY: help demo test e2e test-newest test-kafka matrix check fmt sim fuzz soak bench test-all reference clean system system-kafka

help: ## Show this list
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 16

demo: $(READY) system ## Cut a small cluster in two and freeze a process, and watch both heal
	$(BIN)/trogdor-bus demo

test: $(READY) system ## Run all tests but the longer suites
	$(PYTEST) -n $(WORKERS) --dist worksteal -m "not e2e and not daemons and not matrix and not kafka"

e2e: $(READY) system ## Run the tests of whole daemons, and of real namespaces
	$(PYTEST) -n 3 -m "e2e and not kafka"
	$(PYTEST) -n $(WORKERS) -m "daemons and not matrix and not kafka"

test-newest: $(READY) ## Run `make test e2e` on the newest Python at hand that we support, if it is not the usual one
	@newest=$$(.ci/newest-python) && test -n "$$newest" || { echo "make: no Python that we support was found" >&2; exit 1; }; \
		if test "$$("$$newest" -c '$(VERSION)')" = "$$($(BIN)/python -c '$(VERSION)')"; then \
		echo "the newest Python at hand is the one of make test"; else echo "with $$newest:"; $(MAKE) test e2e PYTHON="$$newest"; fi

test-kafka: $(READY) system-kafka ## Run the tests on real Kafka clusters, in a Docker of their own (root; the first time makes an image)
	for version in $(KAFKA); do contrib/kafka-image/build --version $$version --only-cache || exit; done
	.ci/with-docker sh -ec 'for version in $(KAFKA); do contrib/kafka-image/build --version $$version; done; \
		$(IN_PARTS) exec $(PYTEST) -n 2 --dist loadfile -m "kafka and not registry" $(TESTS)'

matrix: $(READY) system ## Crash every fault at every step of its life, measure how soon it is healed; hostile peers, a short soak
	$(IN_PARTS) $(PYTEST) -s -m "matrix and not kafka"

check: $(READY) ## Lint, format, types, who may import whom
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy --strict
	$(BIN)/lint-imports --no-logo

fmt: $(READY) ## Format the code
	$(BIN)/ruff check --fix-only .
	$(BIN)/ruff format .

sim: $(READY) ## Simulate whole clusters, SEEDS=10000 different ones; then broken ones, which must be noticed
	$(IN_PARTS) $(BIN)/python -m tests.sim --seeds $(SEEDS)
	$(IN_PARTS) $(BIN)/python -m tests.sim --mutants

fuzz: $(READY) system ## Fuzz every decoder and model, EFFORT=10 times the examples of make test, new ones each time unless FRESH= is empty
	$(IN_PARTS) TROGDOR_EFFORT=$(EFFORT) TROGDOR_FRESH=$(FRESH) $(PYTEST) -n auto --timeout 900 tests/fuzz tests/agents/test_journal_model.py \
		tests/agents/test_stops_model.py tests/agents/platforms/test_rules_model.py

soak: $(READY) system ## Random faults and random deaths on a lab of 8 nodes, for MINUTES=10
	$(BIN)/python -m tests.soak --minutes $(MINUTES)

bench: $(READY) system ## Measure, print tables, write JSON to benchmarks/results
	$(BIN)/python -m benchmarks

test-all: ## Run all of SUITES, each whole and without a skip; what passed on this very tree is not run again
	@for suite in $(SUITES); do .ci/once $$suite env TROGDOR_REQUIRE=all make $$suite $(WHOLE) || exit; done

reference: $(READY) ## Write the generated parts of docs/reference
	$(BIN)/python -m tests.house.reference

clean: ## Remove .venv, caches and builds
	rm -rf .venv .venv-* dist build .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

system: ## Install what the system lacks (root, Debian or Ubuntu), or print the command to type
	@.ci/setup ip=iproute2 iptables=iptables nsenter=util-linux ps=procps ping=iputils-ping

system-kafka: system
	@.ci/setup debootstrap=debootstrap mvn=maven setpriv=util-linux

$(READY): pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "make: no Python 3.11 or newer was found; install one, or say make PYTHON=/path/to/python3" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "make: PYTHON=$(PYTHON) is no Python 3.11 or newer" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || .ci/setup python-venv=$$($(PYTHON) -c 'import sys; print("python%d.%d-venv" % sys.version_info[:2])')
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r constraints.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@touch $@
