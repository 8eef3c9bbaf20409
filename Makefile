# One-line verbs, the same as in CI. `make serve` is all that a newcomer needs.
PYTHON ?= $(shell for p in python3 python3.11 python3.12 python3.13; do $$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
BIN := .venv/bin
STAMP := .venv/installed

.PHONY: install serve test test-slow test-clients test-gpu chaos audit check fmt bench docs

install: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	$(if $(PYTHON),,$(error Python 3.11 or newer is needed; name it with make PYTHON=/path/to/python3))
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[serve,torch,bundled,dev]'
	touch $@

serve: $(STAMP)
	@$(BIN)/hilbert serve $(ARGS)

test: $(STAMP)
	$(BIN)/python -m pytest -q -m 'not gpu and not slow' $(ARGS)

test-slow: $(STAMP)
	$(BIN)/python -m pytest -q -m 'slow and not gpu' $(ARGS)

# Other people's client libraries, in environments of their own under .venv-clients (2 GB), against a real server.
test-clients: $(STAMP)
	$(BIN)/python tests/clients/run.py $(ARGS)

test-gpu: $(STAMP)
	$(BIN)/python -m pytest -q -m gpu $(ARGS)

chaos: $(STAMP)
	$(BIN)/python -m pytest -q -rP -m chaos tests/chaos $(ARGS)

audit: $(STAMP)
	$(BIN)/python tests/chaos/audit.py $(ARGS)

check: $(STAMP)
	$(BIN)/ruff check src tests bench && $(BIN)/ruff format --check src tests bench && $(BIN)/mypy && $(BIN)/lint-imports

fmt: $(STAMP)
	$(BIN)/ruff check --fix src tests bench; $(BIN)/ruff format src tests bench

bench: $(STAMP)
	$(BIN)/python -m bench $(ARGS)

docs: $(STAMP)
	$(BIN)/python -m hilbert.config.docs docs/configuration.md
	$(BIN)/python tests/clients/table.py docs/compatibility.md
