# The README's two commands. Both make a virtual environment in .venv. PYTHON=python3.13 chooses
# another Python, which gets an environment of its own: .venv-python3.13.
PYTHON ?= python3
VENV ?= .venv$(patsubst %,-%,$(subst /,-,$(filter-out python3,$(PYTHON))))
BIN := $(VENV)/bin

# Seconds for each target of `make fuzz`; TARGETS chooses some.
FUZZ_SECONDS ?= 60
TARGETS ?=

.PHONY: demo test check docs soak fuzz release

demo: $(VENV)/.installed
	$(BIN)/multibox demo --out runs/demo

test: $(VENV)/.installed
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist loadfile --no-loadscope-reorder \
		--max-worker-restart 0

check: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

docs: $(VENV)/.installed
	$(BIN)/python tests/command_reference.py
	NO_COLOR=1 $(BIN)/zensical build --clean --strict

soak: $(VENV)/.installed
	$(BIN)/python -m pytest -m slow -rP

fuzz: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check \
		--constraint constraints.txt --editable '.[dev,fuzz]'
	PYTHONPATH=tests OMP_NUM_THREADS=1 $(BIN)/python -m fuzz --seconds $(FUZZ_SECONDS) $(TARGETS)

release: $(VENV)/.installed
	PYTHON=$(abspath $(BIN))/python .ci/release

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check \
		--constraint constraints.txt --editable '.[dev]'
	touch $@
