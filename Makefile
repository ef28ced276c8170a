# make test | demo | check | bench | torture | clean       Needs GNU make, bash, git and Python 3.11 or later.
SHELL  := bash
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed

.PHONY: test check demo bench torture clean $(VENV)
.DELETE_ON_ERROR:

# Most tests keep one core busy: two at once, each on one thread; plain pytest does as well. The
# checks run beside them, and say what they found in the end.
test: $(STAMP)
	@$(MAKE) --no-print-directory check > $(VENV)/check.log 2>&1 & checking=$$!; \
	OMP_NUM_THREADS=1 $(BIN)/pytest -q -n 2 --dist worksteal; tested=$$?; \
	wait $$checking; checked=$$?; cat $(VENV)/check.log; exit $$((tested | checked))

check: $(STAMP)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

demo: $(STAMP)
	$(BIN)/lcm-arith demo

# Some benchmarks are held against libraries that nothing else here needs.
bench: $(STAMP)
	$(BIN)/pip install -q --no-deps scipy torchmetrics lightning-utilities
	@set -euo pipefail; shopt -s nullglob; \
	for script in benchmarks/[!_]*.py; do echo "== $$script"; $(BIN)/python "$$script"; done

# About 15 minutes: kills, full disks, rotten bits, crowds. Parts of it: tools/torture.py --only F3
torture: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/pytest -q -m long
	OMP_NUM_THREADS=1 $(BIN)/python tools/torture.py

$(VENV): $(STAMP)

# Installed again only when what is to be installed has changed.
$(STAMP): pyproject.toml constraints.txt
	@echo "Installing into $(VENV): minutes the first time"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -c constraints.txt -e ".[dev]"
	touch $@

# Keeps $(VENV), which takes minutes to fill; delete it by hand for a truly fresh start.
clean:
	rm -rf build dist demo *.egg-info .pytest_cache .mypy_cache .ruff_cache .coverage htmlcov
	find . -path ./$(VENV) -prune -o -name __pycache__ -type d -prune -exec rm -rf {} +
