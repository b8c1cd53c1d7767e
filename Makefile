# `make demo` and `make test` do all the set-up on a fresh machine: Python >= 3.11 and pip suffice.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
JOBS ?= 2
SEED ?= 0

.PHONY: demo test lint types walls tests fuzz faults parity examples peers zoo htp clean
.DEFAULT_GOAL := test

# torch first and by itself: the packages built against it then find the pinned version in place.
$(READY): pyproject.toml setup.py constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -c constraints.txt torch==2.13.0
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[dev]'
	touch $@

demo: $(READY)
	$(BIN)/fuseq lower examples/sisr_x3/model.py --backend onnx -o build/sisr --force
	@echo "The bundle is in $(CURDIR)/build/sisr"

test: lint types walls tests

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# Each example is a program of its own, with its own directory on the path.
types: $(READY)
	$(BIN)/mypy
	for example in examples/*/; do MYPYPATH=$$example $(BIN)/mypy $$example || exit 1; done

walls: $(READY)
	$(BIN)/lint-imports --no-cache

# One thread a worker: the workers already fill the cores.
tests: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(JOBS) -q

# Ten thousand random graphs, fused and compared: for the night. SEED gives others.
fuzz: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.fuzz.campaign --graphs 10000 --jobs $(JOBS) --seed $(SEED)

# Hundreds of faults planted in the files of ten networks, and a thousand clean checks.
faults: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.faults.campaign --jobs $(JOBS) --seed $(SEED)

# Thirty networks trained in integers, and ten million outputs compared with the runtime's.
parity: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.qat_parity

# The three papers' systems: trained on, lowered to three targets, checked, and a table of figures.
examples: $(READY)
	rm -rf build/examples
	OMP_NUM_THREADS=1 $(BIN)/python examples/common/report.py --out build/examples \
		--table examples/figures.md --jobs $(JOBS)

# Other toolkits on the same network, each in an environment of its own: a page of figures.
peers: $(READY)
	$(BIN)/python -m benchmarks.peers.install
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.peers

# Published networks: heavy, so `make test` leaves them out. What the last three packages want
# besides, for training, is more than all the rest and disagrees with the pinned set; their networks
# do without.
zoo: $(READY)
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[test-zoo]'
	$(BIN)/python -m pip install --quiet -c constraints.txt --no-deps birder resselt spandrel
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(JOBS) -q tests/zoo

# Eighteen networks on the emulators of four Snapdragon chips.
htp: $(READY)
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[qnn]'
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(JOBS) -q tests/htp

clean:
	rm -rf build dist *.egg-info
