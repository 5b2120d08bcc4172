PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed
MINUTES ?= 3

.PHONY: setup demo test fuzz lint bench clean

setup: $(STAMP)

# torch goes first and alone, so that no dependency's looser range chooses another build of it.
$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet "$$(grep '^torch==' constraints.txt)"
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[train,tune,plot,serve,eval,ray,dev]"
	touch $@

demo: $(STAMP)
	$(BIN)/unveil demo --minutes $(MINUTES)

# One thread a process: the processes share the cores. Each takes neighbouring tests, so that few prepare the same twice.
test: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist worksteal

# What the tests do with the HTTP interface, for longer.
fuzz: $(STAMP)
	UNVEIL_FUZZ_REQUESTS=5000 $(BIN)/python -m pytest -s tests/test_serve_schema.py

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python

bench: $(STAMP)
	for script in training_speed decoding_speed serve adaptation; do echo "== $$script"; $(BIN)/python benchmarks/$$script.py || exit 1; done

clean:
	rm -rf .venv build dist *.egg-info .pytest_cache .ruff_cache
