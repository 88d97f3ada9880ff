# The two commands of the README, and what they are made of. Both set up `.venv` first.

PYTHON ?= python3
# The build of PyTorch to install; for a GPU for instance TORCH="torch" make demo
TORCH ?= torch==2.13.0
DEMO ?= demo

BIN := .venv/bin
export TOKENIZERS_PARALLELISM := false

# A file of tests at a time to each core, whose models are too small to gain from threads.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses logical --dist loadfile

.PHONY: demo test test-slow lint format clean

demo: .venv/installed  ## the whole path on four tasks: data, training, evaluation, card and replay, in the folder $(DEMO)
	$(BIN)/python examples/demo.py --output $(DEMO)

test: .venv/installed lint  ## lint and the fast tests
	$(PYTEST) -m "not slow"

test-slow: .venv/installed  ## every test
	$(PYTEST)

lint: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: .venv/installed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

.venv/installed: setup.cfg pyproject.toml
	@echo "Setting up .venv (a few minutes the first time)"
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet "$(TORCH)"
	$(BIN)/python -m pip install --quiet --editable ".[dev]"
	touch $@

clean:
	rm -rf .venv $(DEMO) build *.egg-info
