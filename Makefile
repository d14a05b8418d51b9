# Two commands do all the set-up: `make run` and `make test`. The rest is for those who change the project.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Options for the server: make run OPTIONS="--interval 2"
OPTIONS ?=
# What the tests of the browser client need of npm.
NODE_MODULES := tests/browser/node_modules
# Where the servers live that ours is compared with: what they bring would slow Autobahn down (benchmarks/contest.py).
BENCH := .venv-bench
BENCH_MODULES := benchmarks/node_modules
# Our own reactor, where there is one.
OURS := $(filter Linux,$(shell uname))

# The tests start Python hundreds of times: what it compiles is kept, whatever this shell says.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help run test test-all abuse faults fleet soak fuzz unfair conformance pictures bench lint format clean

help:
	@echo "make run       set up, and start a heartbeat server on this machine (OPTIONS=\"--interval 2\")"
	@echo "make test      set up, and run the test suite (under 90 seconds)"
	@echo "make test-all  everything: also what is slow, needs root, or system packages"
	@echo "make faults    what breaks in the world, done to real programs, cause by cause: a table (five minutes; as root)"
	@echo "make fleet     three servers on one Redis with thousands of clients: killed, cut off, restarted (half an hour; as root)"
	@echo "make soak      2,000 clients under random faults for half an hour, and the simulation for ten minutes"
	@echo "make fuzz      the fuzzers, for an hour (SECONDS=3600)"
	@echo "make unfair    the tests of the wire on reactors that serve nobody in order, five times"
	@echo "make abuse     ten thousand strangers who mean harm beside a thousand clients: how long these wait"
	@echo "make conformance  the Autobahn|Testsuite, whole (it needs CPython 2.7)"
	@echo "make pictures  those of the live page in docs/images, taken anew (a few minutes)"
	@echo "make bench     how fast we are, beside others (40 minutes), and what sessions and being watched cost (two)"
	@echo "make lint      ruff, and mypy in its strict mode"
	@echo "make format    let ruff format the code"
	@echo "make clean     remove the environment and what builds leave behind"

$(VENV)/made:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "Python 3.11 or later is needed, $(PYTHON) is `$(PYTHON) -V 2>&1`; try: make run PYTHON=python3.11"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --upgrade pip
	@touch $@

$(VENV)/run: $(VENV)/made setup.cfg pyproject.toml
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable .
	@touch $@

$(VENV)/test: $(VENV)/made setup.cfg pyproject.toml
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[test]'
	@touch $@ $(VENV)/run

$(VENV)/lint: $(VENV)/test
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[test,lint]'
	@touch $@

$(NODE_MODULES)/made: tests/browser/package.json tests/browser/.npmrc
	@command -v npm >/dev/null \
		|| { echo "npm (with Node 18 or later) is needed for the tests of the browser client; make test does without"; exit 1; }
	cd tests/browser && npm install --no-progress --loglevel=error
	@touch $@

run: $(VENV)/run
	@echo
	@echo "  Open:            http://127.0.0.1:9000/"
	@echo "  In another shell: $(BIN)/heartbeat-client ws://127.0.0.1:9000/ws --interval 1"
	@echo "  Stop with Ctrl-C."
	@echo
	@exec $(BIN)/twistd $(if $(OURS),--reactor=heartbeat) -n --pidfile= heartbeat --messages chat,group $(OPTIONS)

# What is quick runs in two processes; what measures, stalls and kills has the machine to itself. The tests
# in a browser wait for most of their time, some of them for three minutes: these begin, and the others run beside them.
PYTEST := $(BIN)/python -m pytest
QUICK := -n 3 -m 'not slow and not faults and not browser'

test: $(VENV)/test
	$(PYTEST) $(QUICK) --dist loadfile

# What is quick runs again with every frame and handshake left to Autobahn, but for what knows nothing of that choice: the
# core, and the programs of the examples and documents, which make theirs themselves. Both search for longer.
#
# Most of it turns reactors of its own, in memory, and sees nothing of the one that is installed. The modules that do see
# it, or start servers on one of its kind, run again on asyncio's and on ours.
DOCUMENTS := tests/serve/test_docs.py tests/serve/test_examples.py tests/serve/test_readme.py
ON_REACTORS := $(filter-out $(DOCUMENTS),$(shell grep -lE 'internet import .*reactor|pytest_twisted|import .*twistd' \
	tests/wire/test_*.py tests/serve/test_*.py))

# Of what is slow, that which only has much to do, and does not mind who else is at work. The rest measures, stalls and kills.
COMPUTE := tests/core tests/wire tests/simulation \
	$(addprefix tests/serve/test_,$(addsuffix .py,container docs docs_running examples fleet metrics package processes systemd \
	tls_reload tokens_served))

# And that which for most of its time waits for what must happen, or must not.
WAITING := $(addprefix tests/serve/test_,$(addsuffix .py,faults links proxies reactor slow_consumers))

# What hypothesis searches: seven times as far as in `make test`.
FURTHER := --hypothesis-profile=thorough

test-all: test $(NODE_MODULES)/made
	$(PYTEST) $(QUICK) --dist loadfile $(FURTHER) tests/core
	$(PYTEST) $(QUICK) --dist loadfile $(FURTHER) --plain-path tests/wire tests/serve $(DOCUMENTS:%=--ignore=%)
	$(PYTEST) $(QUICK) --maxschedchunk 1 --reactor=asyncio $(ON_REACTORS)
	$(if $(OURS),$(PYTEST) $(QUICK) --maxschedchunk 1 -p tests.on_heartbeat_reactor $(ON_REACTORS))
	$(PYTEST) -n 3 --dist worksteal -m 'slow or faults' $(COMPUTE)
	$(PYTEST) -n 4 --dist worksteal -m 'slow or faults' $(WAITING)
	$(PYTEST) -m '(slow or faults) and not browser' $(COMPUTE:%=--ignore=%) $(WAITING:%=--ignore=%)
	$(PYTEST) -n 6 --maxschedchunk 1 -m browser

# The table of docs/reliability.md: the ranges over three runs.
faults: $(VENV)/test
	$(BIN)/python -m faults --times 3 --write docs/reliability.md

soak: $(VENV)/test
	$(BIN)/python -m tests.simulation --seconds 600
	$(BIN)/python -m faults.soak

# Three servers, one Redis, 3,000 clients behind HAProxy, and what may befall these.
fleet: $(VENV)/test
	$(BIN)/python -m faults.fleet

SECONDS ?= 3600
fuzz: $(VENV)/test
	$(BIN)/python -m fuzz all --seconds $(SECONDS)

# Which test relies on an order that nobody promises: it has failed in CI, one night in many.
unfair: $(VENV)/test
	for round in 1 2 3 4 5; do $(PYTEST) $(QUICK) --dist loadfile -p tests.unfair tests/wire || exit 1; done

# Not a part of test-all: what it measures is a hundredth of what a quiet machine does, and in CI no machine is quiet.
abuse: $(VENV)/test
	$(PYTEST) -s tests/serve/hostile_crowd.py

conformance: $(VENV)/test
	$(BIN)/python conformance/run.py --full

# The pictures in docs/images, taken anew: each state of the live page, on a phone and on a desk, dark and light.
pictures: $(VENV)/test $(NODE_MODULES)/made
	HEARTBEAT_SCREENSHOTS=1 $(PYTEST) -n 2 -m browser tests/browser/test_live_page.py

$(BENCH)/made: $(VENV)/made setup.cfg pyproject.toml
	$(PYTHON) -m venv $(BENCH)
	$(BENCH)/bin/python -m pip install --quiet --disable-pip-version-check --upgrade pip
	$(BENCH)/bin/python -m pip install --quiet --disable-pip-version-check --editable '.[bench]'
	@touch $@

$(BENCH_MODULES)/made: benchmarks/package.json benchmarks/.npmrc
	@if command -v npm >/dev/null; then cd benchmarks && npm install --no-progress --loglevel=error && touch node_modules/made; \
		else echo "npm (with Node 18 or later) is not there: of the other servers, that of Node is left out"; fi

bench: $(VENV)/test $(BENCH)/made $(BENCH_MODULES)/made
	$(BENCH)/bin/python benchmarks/speed.py
	$(BIN)/python benchmarks/sessions.py
	$(BIN)/python benchmarks/metrics.py
	$(BIN)/python benchmarks/fleet.py
	$(BIN)/python benchmarks/scale.py --write
	$(BIN)/python benchmarks/data_centre.py --write

lint: $(VENV)/lint
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/lint
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:
	rm -rf $(VENV) $(NODE_MODULES) $(BENCH) $(BENCH_MODULES) .venv-conformance .venv-fuzz .venv-3.* .fuzz \
		benchmarks/build conformance/build build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .coverage
