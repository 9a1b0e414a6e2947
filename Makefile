# Headrace: the commands are in README.md and CONTRIBUTING.md.
PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip install -q --disable-pip-version-check
DATA ?= sample
SEEDS ?= 300
FIRST ?= 1
KILLS ?= 20
SECONDS ?= 600
NODES ?= 1

.PHONY: .types run test test-stack stack check bench bench-broker bench-nexmark bench-peers sim kill-test kill-test-local history clean

# What runs, and what the tests need beside it.
.venv/run: pyproject.toml requirements.txt
	@$(PYTHON) -c 'import sys; sys.exit("Headrace needs Python 3.11 or newer; this is " + sys.version.split()[0] + ". Name one: make PYTHON=python3.12" if sys.version_info < (3, 11) else 0)'
	@test -d .venv || $(PYTHON) -m venv .venv
	@echo "installing Headrace into .venv (once; a minute or two)"
	@$(PIP) --upgrade "setuptools>=77,<85"
	@$(PIP) -r requirements.txt
	@$(PIP) --no-deps --no-build-isolation -e .
	@echo "compiling the kernels (once on this machine; about half a minute)"
	@$(BIN)/python -c "from headrace import worker; worker.kernels.warm()"
	@touch $@

.venv/test: .venv/run requirements-test.txt
	@echo "installing what the tests need"
	@$(PIP) -r requirements-test.txt
	@touch $@

run: .venv/run
	@$(BIN)/python examples/returns/replay.py $(DATA)

# The secrets of docker-compose.yml, made once.
.env: .env.example
	@test ! -e $@ || { echo "$@ is older than $< and is kept: compare them by hand"; exit 1; }
	@umask 077 && $(PYTHON) -c 'import re, secrets, sys; print(re.sub(r"(?m)^(?!COMPOSE)([A-Z_]+)=$$", lambda m: m[0] + secrets.token_urlsafe(24), open("$<").read()), end="")' > $@
	@echo "wrote $@, with new secrets: the gateway opens at http://localhost:8080/?token=$$(sed -n s/^HEADRACE_TOKEN=//p $@)"

# Type checkers see the packages under their import names through links.
.types: .venv/test
	@mkdir -p .types/headrace
	@for d in streams models serving; do ln -sfn ../../$$d .types/headrace/$$d; done
	@for f in headrace/*.py headrace/py.typed; do ln -sfn ../../$$f .types/headrace/$$(basename $$f); done

check: .venv/test .types
	$(BIN)/ruff check .
	MYPYPATH=.types $(BIN)/mypy --strict .types/headrace tests examples benchmarks

test: check
	$(BIN)/python -m pytest -n 2 -m "not stack"

# The browser's tests apart: its driver leaves an event loop running.
test-stack: .venv/test
	$(BIN)/python -m tests.stack.provision
	$(BIN)/python -m pytest -m stack --ignore tests/browser
	$(BIN)/python -m pytest -m stack tests/browser

stack: .venv/test
	$(BIN)/python -m tests.stack.provision
	@$(BIN)/python -m tests.stack.kafka --nodes $(NODES)

sim: .venv/test
	FIRST=$(FIRST) SEEDS=$(SEEDS) $(BIN)/python -m pytest -n 2 tests/simulation --timeout 0

kill-test: .venv/test
	KILLS=$(KILLS) $(BIN)/python -m pytest -s tests/kill/test_worker_kills.py

kill-test-local: .venv/test
	KILLS=$(KILLS) $(BIN)/python -m pytest -s tests/kill/test_kills.py --timeout 7200

history: .venv/test
	SECONDS=$(SECONDS) $(BIN)/python -m pytest -s tests/history/test_local.py

bench: .venv/test
	$(BIN)/python -m benchmarks

bench-broker: .venv/test
	$(BIN)/python -m benchmarks.broker

bench-nexmark: .venv/test
	$(BIN)/python -m benchmarks.nexmark

# Each engine in an environment of its own, fetched once a machine; Java and Maven come from the system.
bench-peers: .venv/test
	$(BIN)/python -m tests.stack.provision
	$(BIN)/python -m benchmarks.peers

clean:
	rm -rf .venv .types .headrace build *.egg-info
