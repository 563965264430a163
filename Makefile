# `make demo` and `make test` work in a fresh clone: they build .venv first when it is missing or out of date.
# Overrides: PYTHON=/path/to/python3.12 picks the interpreter, WORKERS=4 the number of test processes.

VENV    := .venv
BIN     := $(VENV)/bin
STAMP   := $(VENV)/.installed
TYPING  := $(VENV)/typing
PACKAGE := ltx2_two_stage
WORKERS ?= 2
PYTEST_ARGS ?=

.PHONY: test demo lint format typecheck pytest venv clean distclean
.DELETE_ON_ERROR:

test: lint typecheck pytest

demo: $(STAMP)
	$(BIN)/python -m $(PACKAGE).cli demo

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# mypy derives module names from folder names; the link gives the checkout its package name whatever its folder is called.
typecheck: $(STAMP)
	@mkdir -p $(TYPING) && ln -sfn ../.. $(TYPING)/$(PACKAGE)
	MYPYPATH=$(TYPING) $(BIN)/mypy -p $(PACKAGE)

# One thread per process: test processes that each start a thread per core get in each other's way.
# loadgroup keeps the tests of one ComfyUI in one process, so that only one is started.
pytest: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist loadgroup $(PYTEST_ARGS)

venv: $(STAMP)

# The stamp is written last, so a failed install is tried again.
$(STAMP): pyproject.toml requirements.txt constraints.txt
	@rm -f $@
	@if ! $(BIN)/python -c "" >/dev/null 2>&1; then \
	  found=; \
	  for candidate in $(PYTHON) python3.13 python3.12 python3.11 python3.10 python3 python; do \
	    if "$$candidate" -c 'import sys, venv, ensurepip; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 13))' \
	        >/dev/null 2>&1; then found="$$candidate"; break; fi; \
	  done; \
	  if [ -z "$$found" ]; then \
	    echo "make: no Python 3.10 to 3.13 with the venv module was found." >&2; \
	    echo "Install one (Debian and Ubuntu: python3 and python3-venv), or name it: make PYTHON=/path/to/python" >&2; \
	    exit 1; \
	  fi; \
	  echo "Building $(VENV) with $$("$$found" --version) ($$found)"; \
	  "$$found" -m venv $(VENV); \
	fi
	$(BIN)/python -m pip install -c constraints.txt torch -r requirements.txt -e ".[dev]"
	@touch $@

clean:
	rm -rf build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache $(TYPING)
	find . -name __pycache__ -type d -not -path "./$(VENV)/*" -prune -exec rm -rf {} +

distclean: clean
	rm -rf $(VENV)
