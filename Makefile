# Two commands need nothing but Python 3.10-3.12 and a network: `make demo` and `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

.PHONY: demo test test-all lint check schemas clean
.DELETE_ON_ERROR:

$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -c constraints.txt torch
	$(BIN)/python -m pip install --quiet -c constraints.txt -e ".[formats,compress,timm,hf,detection,models,dev]"
	touch $@

demo: $(INSTALLED)  ## Prune, distil and quantize the embedded digit classifier, to four formats, each one executed
	$(BIN)/edgeopt run models/mnist-mobilenet/recipe.yaml -o out/demo
	$(BIN)/edgeopt report out/demo

test: lint  ## Lint, type-check, and run every test that is not marked slow
	$(BIN)/python -m pytest -m "not slow" -n 2 --dist loadfile

test-all: lint  ## The slow tests too
	$(BIN)/python -m pytest -n 2 --dist loadfile

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

schemas: $(INSTALLED)  ## Regenerate schemas/ from the types
	$(BIN)/python scripts/write_schemas.py

clean:
	rm -rf $(VENV) out build dist
