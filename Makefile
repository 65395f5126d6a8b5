# The two commands a newcomer needs: `make demo` and `make test`. Both create .venv themselves.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed

.PHONY: demo test test-fast lint format bench coverage gpu gpu-wheels gpu-page results-page clean

# torch first and alone: with it pinned and present, nothing else can pull a CUDA build of several GB.
$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit("landscape needs Python 3.11 or newer, this is " + sys.version.split()[0]) if sys.version_info < (3, 11) else None'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt torch==2.13.0
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	touch $(STAMP)

demo: $(STAMP)
	$(BIN)/landscape spectrum 'checkpoints/digits/width=*/seed=0/final.pt' --out demo
	$(BIN)/landscape plot 'demo/**/*.spectrum.h5' --out demo/spectra.png

# One thread a process: two processes of two threads each wait for one another most of the time.
test: lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal --durations 10

test-fast: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal -m 'not slow'

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(STAMP)
	$(BIN)/python benchmarks/run.py

# On a machine with a GPU, bare and without network: `make gpu-wheels` elsewhere, carry gpu-wheels/ there, `make gpu`.
# OPTIONS: --phases tests,products --budget 500 --resume gpu-results/gpu.json
DEVICE ?= cuda
SIZE   ?= full
gpu:
	$(PYTHON) -m benchmarks.gpu.run --device $(DEVICE) --size $(SIZE) $(OPTIONS)

gpu-wheels: $(STAMP)
	$(BIN)/python -m benchmarks.gpu.wheels $(OPTIONS)

# docs/benchmarks-gpu.md from result files: make gpu-page FILE="docs/benchmarks-gpu/*.json"
FILE ?= $(wildcard docs/benchmarks-gpu/*.json)
gpu-page:
	$(PYTHON) -m benchmarks.gpu.page $(FILE)

# Thousands of new random problems against dense truth; counts into docs/coverage.md. `PROBLEMS=200` does fewer.
PROBLEMS ?= 2000
coverage: $(STAMP)
	$(BIN)/python tests/coverage_run.py --problems $(PROBLEMS) --workers 2

# docs/results/report.md from the result files beside it
results-page: $(STAMP)
	$(BIN)/landscape report docs/results --format markdown --title "Claims decided on two cores"

clean:
	rm -rf $(VENV) demo landscape-results
