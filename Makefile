# make demo    install, run the whole study on the embedded demo mill, say where the report is
# make quick   install, run the tests that need no Ray and little time
# make test    the same, and the tests on real Rays that need little time
# make long    the tests that need more time
# make coverage    all of these, and which lines no test ran
# make check   format, lint, types, import order
# make bench   the benchmarks (not part of the tests)
# make chaos   the slow tests, and long runs in which processes and machines are killed

PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/.installed

.PHONY: demo quick test long coverage check bench chaos install docs clean

demo: $(INSTALLED)
	$(BIN)/faithad study --config configs/demo.yaml

# A worker for each core: PyTorch's own threads would only be in each other's way.
PARALLEL := OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses auto --dist loadfile

# Without compiled modules, each of the many processes that tests start would compile them anew.
export PYTHONDONTWRITEBYTECODE :=

quick: $(INSTALLED)
	$(PARALLEL) -m "not ray and not long and not slow"

# Two Rays on one machine would take each other's cores.
test: quick
	$(BIN)/python -m pytest -m "ray and not long and not slow"

long: $(INSTALLED)
	$(PARALLEL) -m "long and not ray and not slow"
	$(BIN)/python -m pytest -m "long and ray and not slow"

coverage: $(INSTALLED)
	$(PARALLEL) -m "not ray and not slow" --cov=faithad --cov-report=
	$(BIN)/python -m pytest -m "ray and not slow" --cov=faithad --cov-append --cov-report=term:skip-covered

check: $(INSTALLED)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: $(INSTALLED)
	$(BIN)/python -m tests.benchmarks.attribution
	$(BIN)/python tests/benchmarks/training.py
	$(BIN)/python tests/benchmarks/audit.py
	$(BIN)/python -m tests.benchmarks.scores
	$(BIN)/python tests/benchmarks/planning.py
	$(BIN)/python -m tests.benchmarks.decisions
	$(BIN)/python -m tests.benchmarks.detection
	$(BIN)/python -m tests.benchmarks.score_selection
	$(BIN)/python -m tests.benchmarks.events
	$(BIN)/python -m tests.benchmarks.states
	$(BIN)/python -m tests.benchmarks.references

chaos: $(INSTALLED)
	$(BIN)/python -m pytest -m slow
	$(BIN)/python -m pytest tests/chaos/*.py

install: $(INSTALLED)

$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "faithad needs Python 3.11 or newer, found %d.%d: run make with PYTHON=python3.11" % sys.version_info[:2])'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	@touch $@

# The page that is made from the schemas.
docs: $(INSTALLED)
	$(BIN)/python docs/tables.py

clean:
	rm -rf .venv runs
