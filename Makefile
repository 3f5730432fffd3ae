# make demo, make test, make test-deep, make lint, make types, make docs, make recording, make bench; each installs what it needs.
#
# Where no virtual environment is active, one is made in .venv. TORCH names the torch that pip installs:
# on Linux the plain package brings several gigabytes of CUDA, which nothing here needs. To choose
# another build, install torch yourself into an active environment, or say so, for example:
#     make test TORCH="torch --index-url URL_OF_A_CPU_INDEX"

TORCH ?= torch==2.13.0
THREADS ?= 2
WORK ?= build/scale

ifdef VIRTUAL_ENV
VENV := $(VIRTUAL_ENV)
else
VENV := .venv
endif
PYTHON := $(VENV)/bin/python
BIN := $(abspath $(VENV))/bin
ROOMS := cli merging codecs recipes

.PHONY: demo recording test test-deep lint types docs bench check-data clean

$(PYTHON):
	python3 -m venv $(VENV)

$(VENV)/installed-%: pyproject.toml | $(PYTHON)
	$(PYTHON) -m pip install --quiet $(TORCH)
	$(PYTHON) -m pip install --quiet --editable ".[$*]"
	touch $@

demo: $(VENV)/installed-eval
	$(PYTHON) examples/digits/train.py --out build/digits --threads $(THREADS)
	PATH="$(BIN):$$PATH" $(BIN)/flexswitch run recipes/digits.yaml

test: $(VENV)/installed-dev
	$(PYTHON) -m pytest -n $(THREADS) -m "not deep"

# The slow tests, and every law on as many examples as it names; tests/support/laws.py.
test-deep: $(VENV)/installed-dev
	FLEXSWITCH_TEST_DEPTH=deep $(PYTHON) -m pytest -n $(THREADS) -m "hypothesis or deep"

lint: $(VENV)/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/installed-dev build/types
	MYPYPATH=build/types $(BIN)/mypy -p flexswitch

# The page docs/recording.md and the picture of a routed batch.
recording: $(VENV)/installed-eval
	$(PYTHON) examples/digits/train.py --out build/digits --threads $(THREADS)
	PATH="$(BIN):$$PATH" $(PYTHON) docs/recording.py build/digits

# The site, in build/docs. A broken link or an undocumented public name fails.
docs: $(VENV)/installed-docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build

# mypy finds the package through links, since the folders do not carry its name.
build/types: Makefile
	mkdir -p build/types/flexswitch
	for name in $(ROOMS) api/__init__.py api/py.typed; do \
		ln -sfn ../../../$$name build/types/flexswitch/$${name#api/}; done
	touch build/types

# WORK takes 30 GB of synthetic checkpoints. DATA is a folder of <task>.train.jsonl.gz and <task>.test.jsonl.gz; run.py says where the eight are from.
bench: check-data $(VENV)/installed-benchmarks
	PATH="$(BIN):$$PATH" $(PYTHON) benchmarks/text8/run.py --data $(DATA)
	PATH="$(BIN):$$PATH" $(PYTHON) benchmarks/flex_switch/run.py --data $(DATA)
	PATH="$(BIN):$$PATH" $(PYTHON) benchmarks/flex_switch/ablation.py --data $(DATA)
	PATH="$(BIN):$$PATH" $(PYTHON) benchmarks/flex_switch/speed.py --data $(DATA)
	PATH="$(BIN):$$PATH" $(PYTHON) benchmarks/flex_switch/files.py --data $(DATA)
	PATH="$(BIN):$$PATH" $(PYTHON) benchmarks/flex_switch/memory.py --work $(WORK)
	PATH="$(BIN):$$PATH" $(PYTHON) benchmarks/routing/run.py --data $(DATA) --models benchmarks/text8/cache
	PATH="$(BIN):$$PATH" $(PYTHON) benchmarks/storage/run.py --models benchmarks/text8/cache
	PATH="$(BIN):$$PATH" $(PYTHON) benchmarks/search/run.py
	PATH="$(BIN):$$PATH" $(PYTHON) benchmarks/speed/run.py
	PATH="$(BIN):$$PATH" $(PYTHON) benchmarks/scale/run.py --work $(WORK)
	PATH="$(BIN):$$PATH" $(PYTHON) benchmarks/zoo/run.py
	$(PYTHON) examples/digits/train.py --out build/digits --threads $(THREADS)
	PATH="$(BIN):$$PATH" $(PYTHON) benchmarks/first_call/run.py --models build/digits

check-data:
	@test -d "$(DATA)" || { echo "make bench DATA=DIR: DIR holds the tasks' .jsonl.gz files"; exit 2; }

clean:
	rm -rf build .venv *.egg-info
