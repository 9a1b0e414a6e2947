# Headrace: the commands are in README.md and CONTRIBUTING.md.
PYTHON ?= python3
BIN := .venv/bin

.venv/installed: pyproject.toml requirements.txt
	@test -d .venv || $(PYTHON) -m venv .venv
	@echo "installing Headrace into .venv (once; a minute or two)"
	$(BIN)/pip install -q --disable-pip-version-check -r requirements.txt
	$(BIN)/pip install -q --disable-pip-version-check --no-deps -e .
	@touch $@
