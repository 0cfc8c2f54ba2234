# `make` lists the commands. They need GNU make and Python 3.11 or later; the rest comes by itself.
PYTHON ?= python3
ARGS ?=
WORKERS ?= auto
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --no-input -q

# So that commands which are printed to be copied go by make, too.
export FLOWLAB_MAKE := $(MAKE)

.DEFAULT_GOAL := help
.PHONY: help run test lint results ask list compact plots report claims bench docs clean
.NOTPARALLEL:
.SILENT:

help: ## List these commands
	awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-8s %s\n", $$1, $$2 }' Makefile
	echo
	echo '  ARGS passes settings on:   make run ARGS="init=xavier depth=100"'
	echo '  PYTHON picks the Python:   make run PYTHON=python3.12   (before .venv exists)'

run: $(VENV)/run.stamp ## Measure gradient flow; ARGS="init=xavier depth=100"
	$(BIN)/python -m experiments.run $(ARGS)

test: $(VENV)/test.stamp ## Run the tests; ARGS="-k theory"
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder $(ARGS)

lint: $(VENV)/test.stamp ## Check style and formatting
	$(BIN)/ruff check -q .
	$(BIN)/ruff format --check -q .

results: $(VENV)/run.stamp ## Run every sweep of conf/experiment
	for file in conf/experiment/*.yaml; do \
		name=$$(basename "$$file" .yaml); \
		echo "experiment=$$name"; \
		$(BIN)/python -m experiments.run -m "experiment=$$name" $(ARGS) || exit 1; \
	done
	echo "Weights, biases and the batch"
	$(BIN)/python -m experiments.batch $(ARGS)
	echo "Where the gradient goes"
	$(BIN)/python -m experiments.ledger depth=20 skip=identity $(ARGS)

ask: $(VENV)/run.stamp ## Look an answer up; ARGS="activation=tanh depth=100"
	$(BIN)/python -m experiments.ask $(ARGS)

list: $(VENV)/run.stamp ## List experiments: runs kept and missing, size, command
	$(BIN)/python -m experiments.results $(ARGS)

compact: $(VENV)/run.stamp ## Gather the files of large sweeps into few
	$(BIN)/python -m experiments.compact $(ARGS)

plots: $(VENV)/run.stamp ## Draw the tables under results
	$(BIN)/python -m experiments.plots $(ARGS)

report: $(VENV)/run.stamp ## Write the report from tables and figures
	$(BIN)/python -m experiments.report $(ARGS)

claims: $(VENV)/test.stamp ## Test the field's claims against measurements
	$(BIN)/python -m experiments.claims $(ARGS)

bench: $(VENV)/test.stamp ## Time a measurement against other ways to make it
	$(BIN)/python -m experiments.benchmark $(ARGS)

docs: $(VENV)/run.stamp ## Rewrite the generated tables of docs/
	$(BIN)/python -m experiments.docs $(ARGS)

clean: ## Remove caches and build leftovers; results and .venv stay
	find . \( -name $(VENV) -o -name .git -o -name results \) -prune \
		-o -type d -name __pycache__ -prune -exec rm -rf {} +
	rm -rf build dist outputs multirun .pytest_cache .ruff_cache *.egg-info

# pip is what venv installs last: an interrupted creation is begun again.
$(BIN)/pip:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
		echo "flowlab needs Python 3.11 or later; $(PYTHON) is" \
			"$$($(PYTHON) --version 2>/dev/null || echo missing). Name another: make PYTHON=python3.12" >&2; \
		exit 1; }
	echo "Creating $(VENV) (once)"
	$(PYTHON) -m venv $(VENV)

$(VENV)/run.stamp: pyproject.toml constraints.txt | $(BIN)/pip
	echo "Installing into $(VENV)"
	$(PIP) install -e . -c constraints.txt
	$(BIN)/python -m compileall -q flowlab experiments
	touch $@

$(VENV)/test.stamp: pyproject.toml constraints.txt | $(BIN)/pip
	echo "Installing into $(VENV), tools for tests included"
	$(PIP) install -e '.[test]' -c constraints.txt
	$(BIN)/python -m compileall -q flowlab experiments
	touch $(VENV)/run.stamp $@
