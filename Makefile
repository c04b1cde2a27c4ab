# Every task of the project. `make run` and `make test` need a Python 3.11-3.13 and PyPI; `make help` lists the rest.

SHELL := /bin/bash
# A gateway is four processes: each would compile our modules anew, for half a second, where nothing keeps them compiled.
unexport PYTHONDONTWRITEBYTECODE
.DEFAULT_GOAL := help
VENV := .venv
BIN := $(VENV)/bin
TESTS ?= tests
# Test files that run side by side. Each gateway under test is four processes of its own.
JOBS ?= $(shell n=$$(nproc 2>/dev/null || echo 2); echo $$((n > 4 ? 4 : n)))
ARGS ?=
# What every gateway under test keeps its rows in: sqlite, or postgresql with two web processes and four workers.
DATABASE ?= sqlite

# The newest Python 3.13, 3.12 or 3.11 that runs: on the PATH, or one of pyenv's.
define FIND_PYTHON
for version in 3.13 3.12 3.11; do \
  for candidate in python$$version python3 $${PYENV_ROOT:-$$HOME/.pyenv}/versions/$$version.*/bin/python3; do \
    if "$$candidate" -c "import sys, ensurepip, venv; sys.exit('%d.%d' % sys.version_info[:2] != '$$version')" 2>/dev/null; \
    then "$$candidate" -c 'import sys; print(sys.executable)'; exit; fi; \
  done; \
done
endef
PYTHON ?= $(shell $(FIND_PYTHON))

.PHONY: help
help: ## This list
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## (.*)/  make \1\t\2/' | expand -t 18

$(BIN)/python:
	@test -n "$(PYTHON)" || { echo "No Python 3.11, 3.12 or 3.13 was found on the PATH or among pyenv's versions." >&2; exit 1; }
	"$(PYTHON)" -m venv --clear $(VENV)

# Two stamps: what the gateway needs, and beside it what its tests need. Installing checks every hash.
$(VENV)/run.stamp: requirements.lock | $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --require-hashes -r requirements.lock
	@touch $@

$(VENV)/dev.stamp: requirements-dev.lock | $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --require-hashes -r requirements-dev.lock
	@touch $@ $(VENV)/run.stamp

.PHONY: run
run: $(VENV)/run.stamp ## Set up and serve; ARGS='--workers 2' adds flags
	exec $(BIN)/python -m gateway serve $(ARGS)

.PHONY: test
test: lint types imports ## Set up and test all; REQUIRE=all: nothing may be missing; DATABASE=postgresql
	COVERAGE_CORE=$$($(BIN)/python -c "import sys; print('sysmon' if sys.version_info >= (3, 12) else 'ctrace')") \
	  REQUIRE=$(REQUIRE) GATEWAY_TEST_DATABASE=$(DATABASE) $(BIN)/python -m pytest $(TESTS) -n $(JOBS) --dist worksteal --cov --cov-report=term $(ARGS) < /dev/null

.PHONY: lint
lint: $(VENV)/dev.stamp ## Style and common mistakes
	$(BIN)/ruff check .

.PHONY: types
types: $(VENV)/dev.stamp ## mypy, strict
	$(BIN)/mypy

.PHONY: imports
imports: $(VENV)/dev.stamp ## Who may import whom
	$(BIN)/lint-imports

.PHONY: contract
contract: $(VENV)/dev.stamp ## The backend port's contract, on SQLite and, if there, PostgreSQL
	REQUIRE=$(REQUIRE) $(BIN)/python -m pytest tests/contract $(ARGS) < /dev/null

.PHONY: conformance
conformance: $(VENV)/run.stamp ## Judge a running server: ARGS='--dicomweb URL --aet T --port P --report FILE'
	$(BIN)/python -m gateway conformance $(or $(ARGS),--dicomweb http://127.0.0.1:8080/dicomweb --aet GATEWAY --port 11112)

.PHONY: demo
demo: $(VENV)/dev.stamp ## Show the main job, end to end
	$(BIN)/python -m demo $(ARGS)

.PHONY: bench
bench: $(VENV)/dev.stamp ## Measure against the budgets
	$(BIN)/python -m benchmarks.compare $(ARGS)

.PHONY: campaign
campaign: $(VENV)/dev.stamp ## A long run of one property: NAME=...
	@test -n "$(NAME)" || { echo "usage: make campaign NAME=... (see campaigns/)" >&2; exit 2; }
	$(BIN)/python -m campaigns.$(NAME) $(ARGS)

.PHONY: docs
docs: $(VENV)/run.stamp ## Write the generated pages
	$(BIN)/python docs/generate.py

.PHONY: lock
lock: ## Resolve the dependencies again (needs uv)
	uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-annotate \
	  --no-header --upgrade pyproject.toml -o requirements.lock
	uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-annotate \
	  --no-header --extra dev -c requirements.lock pyproject.toml -o requirements-dev.lock

# What tests use beyond Python, from Debian and npm; repeating it installs nothing anew.
SYSTEM := dcmtk dicom3tools orthanc orthanc-dicomweb orthanc-gdcm wrk curl postgresql nodejs chromium
SUDO := $(shell test "$$(id -u)" = 0 || echo sudo)
APT := $(SUDO) env DEBIAN_FRONTEND=noninteractive apt-get -q -o Dpkg::Options::=--force-confold

.PHONY: system
system: ## Install what the tests can use beyond Python, from Debian and npm (root or sudo)
	@missing=; for name in $(SYSTEM); do \
	  dpkg-query -W -f='$${db:Status-Abbrev}' $$name 2>/dev/null | grep -q '^ii' || missing="$$missing $$name"; done; \
	if [ -n "$$missing" ]; then \
	  $(APT) update < /dev/null && \
	  RUNLEVEL=1 $(APT) install -y --no-install-recommends $$missing < /dev/null; \
	fi
	@command -v npm > /dev/null || $(APT) install -y --no-install-recommends npm < /dev/null
	@npm ci --prefix tests/javascript --silent --no-audit --no-fund < /dev/null
	@tests/viewers/get_ohif.sh
	@tests/start_postgres.sh

.PHONY: clean
clean: ## Remove the environment and what tools have left
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .coverage* dist
