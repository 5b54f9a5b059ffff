# One verb per task. A fresh machine needs Python 3.11 and make; everything else lands in .venv.
PYTHON ?= python3
BIN := .venv/bin
PIP_FLAGS := --quiet --disable-pip-version-check --require-hashes
RUNTIME := .venv/.runtime-installed
DEV := .venv/.dev-installed
FOREIGN := .venv-foreign/.installed

# Quick tests over real sockets of what only sockets can show; they count for coverage with the pure ones.
SOCKETS := $(addprefix tests/integration/test_,front_door.py reflection.py jwt_source.py workload_api_service.py workload_api_tokens.py)

# What runs beside the unit tests, in a process of its own.
QUICK := tests/property tests/contract tests/architecture $(SOCKETS)

# Daemons by the dozen on however many cores there are: a test that fails among them has one more try with the machine
# to itself. What was tried again stands in the output; more than five failures are not tried again.
CROWDED := $(SOCKETS:%=--ignore=%) tests/scenarios tests/interop tests/integration
ALONE = { echo "--- failed among others, tried once more alone:"; \
  $(BIN)/pytest --last-failed --last-failed-no-failures=none --collect-only -q -m "not soak" $(CROWDED) $(PYTEST_ARGS) > .again.txt; \
  cat .again.txt; test "$$(grep -c :: .again.txt)" -le 5 && \
  $(BIN)/pytest --last-failed --last-failed-no-failures=none -m "not soak" $(CROWDED) $(PYTEST_ARGS); }

# Python writes no byte code where PYTHONDONTWRITEBYTECODE is set, and would then compile our modules at every start of a
# daemon: a third of the time that takes. An installed package has its byte code; so has this tree.
BYTECODE := -m compileall -q attestors deploy identity_server node_agent spiffe_core workload_api

.PHONY: help demo up test check format bench soak protos lock audit clean

help:
	@echo "make demo    see it work: a server, an agent, two workloads talking mutual TLS (under a minute)"
	@echo "make up      leave a server and an agent running until Ctrl-C"
	@echo "make test    style, types, layers and every test"
	@echo "make check   style, types and layers only"
	@echo "make bench   the measurements of benchmarks/"
	@echo "make soak    the long run"
	@echo "make protos  regenerate the message classes from the .proto files"
	@echo "make lock    resolve requirements/*.in again, with hashes"

demo: $(RUNTIME)
	@$(BIN)/python $(BYTECODE)
	@$(BIN)/python deploy/demo/demo.py

up: $(RUNTIME)
	@$(BIN)/python $(BYTECODE)
	@exec $(BIN)/python deploy/demo/up.py

test: check $(FOREIGN)
	@$(BIN)/python $(BYTECODE)
	$(BIN)/coverage erase
	@$(BIN)/coverage run -m pytest -q $(QUICK) $(PYTEST_ARGS) > .quick.txt 2>&1 & beside=$$!; \
	$(BIN)/coverage run -m pytest -q tests/unit $(PYTEST_ARGS); unit=$$?; \
	wait $$beside; quick=$$?; cat .quick.txt; \
	for code in $$unit $$quick; do [ $$code -eq 0 ] || [ $$code -eq 5 ] || exit $$code; done
	$(BIN)/coverage combine -q
	$(BIN)/coverage report --fail-under=65 > .coverage-report.txt || { tail -60 .coverage-report.txt; exit 1; }
	@tail -1 .coverage-report.txt
	@$(BIN)/pytest -n 3 --dist loadfile -m "not soak" $(CROWDED) $(PYTEST_ARGS) || $(ALONE)

check: $(DEV)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(DEV)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(DEV)
	@$(BIN)/python $(BYTECODE)
	$(BIN)/python benchmarks/run.py $(BENCH_ARGS)

soak: $(DEV)
	@$(BIN)/python $(BYTECODE)
	$(BIN)/pytest -m soak $(PYTEST_ARGS)

protos: $(DEV)
	$(BIN)/python -m spiffe_core.wire.generate

lock: $(DEV)
	cd requirements && for f in runtime dev foreign; do \
	  ../$(BIN)/pip-compile --quiet --generate-hashes --allow-unsafe --strip-extras \
	    --no-emit-index-url --no-emit-trusted-host --no-emit-find-links --output-file $$f.txt $$f.in; done

audit: $(DEV)
	$(BIN)/pip-audit --require-hashes --disable-pip -r requirements/runtime.txt

clean:
	rm -rf .venv .venv-foreign .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache *.egg-info .coverage* .again.txt .quick.txt

.venv/bin/pip:
	@echo "making .venv ..."
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Python 3.11 or newer is needed; say which with: make PYTHON=/path/to/python3.11 $(MAKECMDGOALS)"; exit 1; }
	@$(PYTHON) -m venv .venv || { echo "python3-venv is missing; on Debian: apt-get install python3-venv"; exit 1; }

$(RUNTIME): requirements/runtime.txt pyproject.toml | .venv/bin/pip
	@echo "installing the locked requirements into .venv (once) ..."
	@$(BIN)/pip install $(PIP_FLAGS) -r requirements/runtime.txt
	@$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@$(BIN)/python $(BYTECODE)
	@touch $@

$(DEV): requirements/dev.txt $(RUNTIME)
	@echo "installing the tools for tests into .venv (once) ..."
	@$(BIN)/pip install $(PIP_FLAGS) -r requirements/dev.txt
	@touch $@

# Another project's SPIFFE client lives apart: its messages and ours have the same package-less names.
$(FOREIGN): requirements/foreign.txt
	@echo "installing the foreign client into .venv-foreign (once) ..."
	@$(PYTHON) -m venv .venv-foreign
	@.venv-foreign/bin/pip install $(PIP_FLAGS) -r requirements/foreign.txt
	@touch $@
