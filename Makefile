# Every target makes the environment it needs in .venv, from nothing but make and a Python 3.11 or newer.
# All paths are relative: the folder may have a space in its name.
#   make test ARGS="-k breaker"      pytest's own arguments (then without the coverage floor)
#   make PYTHON=python3.12 test      another interpreter
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help demo test check types prove fuzz bench conformance mutate docs requirements clean environment-run environment-dev environment-peers

export PYTHON
python := .venv/bin/python
# Also with another interpreter, each in an environment of its own: make test-3.12
others := $(addprefix test-,3.11 3.12 3.13 3.14)
.PHONY: $(others)

help: ## Show the targets
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/  make \1\t\2/p' Makefile | expand -t 20

demo: environment-run ## Watch events become signed webhooks, past failing receivers and a kill -9
	@.venv/bin/webhook-adapter demo

test: environment-dev ## Run the tests; without ARGS, with branch coverage and its floor. test-3.12: on that Python
	@$(python) -m pytest $(if $(ARGS),$(ARGS),--cov --cov-report=term)

$(others): test-%:
	@VENV=.venvs/$* PYTHON="$$(./tools/interpreter.sh $*)" ./tools/environment.sh dev
	@.venvs/$*/bin/python -m pytest -p no:cacheprovider $(ARGS)

check: environment-dev ## Check format, lint, types and the import direction
	$(python) -m ruff format --check .
	$(python) -m ruff check .
	$(python) -m mypy
	$(python) -m basedpyright
	$(python) -m pytest -q -p no:randomly tests/test_imports.py tests/test_repository.py

types: environment-dev ## See that every public name of resilience has a declared type, so that no checker infers another
	@PATH="$(CURDIR)/.venv/bin:$$PATH" basedpyright --verifytypes resilience --ignoreexternal

prove: environment-dev ## Prove the guards: property by property, with mutants. SCHEDULES=100000000 takes long
	@$(python) -m tests.proof $(if $(SCHEDULES),--schedules=$(SCHEDULES)) $(ARGS)

fuzz: environment-dev ## Let a receiver answer at random ten thousand times. FUZZ=100000 takes long
	@FUZZ=$(or $(FUZZ),10000) $(python) -m pytest --timeout=0 tests/adapter/test_fuzzed_receiver.py $(ARGS)

bench: environment-peers ## Time every guard, beside other libraries too; BENCH_ENFORCE=1 fails past a target
	$(python) -m benchmarks
	$(python) -m pytest benchmarks --benchmark-enable --benchmark-only -p no:randomly --timeout=0 $(ARGS)

conformance: environment-peers ## Run the peers' reported defects against them and us; ARGS=--write renews the page
	@$(python) -m benchmarks.conformance $(ARGS)

mutate: ## Change the machines line by line; fails where no test notices. Takes an hour
	@VENV=.venvs/mutate ./tools/environment.sh mutate
	@.venvs/mutate/bin/python -m tools.mutants $(ARGS)

docs: environment-dev ## Build the documentation into site/; a warning is an error
	$(python) -m zensical build --strict --clean

requirements: ## Pin the requirements anew (needs uv)
	./tools/requirements.sh

clean: ## Remove everything that was made
	rm -rf .venv .venvs mutants .venv.lock .cache .mypy_cache .ruff_cache .pytest_cache .hypothesis .benchmarks .coverage .coverage.* htmlcov site dist
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

environment-run:
	@./tools/environment.sh run

environment-dev:
	@./tools/environment.sh dev

environment-peers:
	@./tools/environment.sh peers
