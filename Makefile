# Every target makes .venv from requirements.txt if it is missing, then works in it. ARGS are handed on.
VENV := .venv
PYTHON ?= $(shell command -v python3.11 || command -v python3)
RUN := $(VENV)/bin/python
PYTEST := OMP_NUM_THREADS=1 $(RUN) -m pytest -n 2 --dist loadgroup

.PHONY: help demo real lint test test-all attacks bench wheel clean
.DEFAULT_GOAL := help

help:  ## this list
	@awk -F ':.*## +' '/^[a-z-]+:.*## /{printf "make %-9s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: $(VENV)/.installed  ## train CLIP and TIER on drawings, compare them: five minutes
	$(RUN) demo.py $(ARGS)

# The first IMAGES of each data set. OPENI="--address URL" is for a mirror of Open-I's archives.
IMAGES ?= 300
CLIP := openai/clip-vit-base-patch32
real: $(VENV)/.installed  ## the same in small on real radiographs, which it downloads (docs/first_model.md): a quarter of an hour
	$(RUN) -m modeling_tier.data download openi runs/real/openi --max_images $(IMAGES) $(OPENI)
	$(RUN) -m modeling_tier.data prepare openi --data_dir runs/real/openi --output_dir runs/real/openi-320 \
		--section both --split_by subject
	$(RUN) train.py --config configs/openi.yaml --data_dir runs/real/openi-320 --output_dir runs/real/tier \
		--model.pretrained $(CLIP) --training.epochs 3 --training.batch_size 32 --training.mixed_precision no \
		--data.num_workers 0 $(ARGS)
	$(RUN) evaluate_zeroshot.py --model $(CLIP) --model runs/real/tier --dataset chestxray14 \
		--data_dir timm/nih-chest-xray-14 --max_images $(IMAGES) --output_dir runs/real/report

lint: $(VENV)/.installed  ## style (ruff) and types of the public modules (mypy)
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m mypy

test: $(VENV)/.installed  ## the tests without the slow ones: under 12 minutes on two cores
	$(PYTEST) -m "not slow" $(ARGS)

test-all: $(VENV)/.installed  ## all tests
	$(PYTEST) $(ARGS)

attacks: $(VENV)/.installed  ## the sweeps of hostile and damaged input alone: a quarter of an hour
	$(PYTEST) tests/attacks $(ARGS)

bench: $(VENV)/.installed  ## every benchmark that needs no GPU, each beside its baseline
	$(RUN) benchmarks/synthetic_speed.py
	$(RUN) benchmarks/step_cost.py
	$(RUN) benchmarks/entropy_cost.py
	$(RUN) benchmarks/preparation.py
	$(RUN) benchmarks/loader.py
	$(RUN) benchmarks/training_speed.py
	$(RUN) benchmarks/grad_cache.py
	$(RUN) benchmarks/transforms.py
	$(RUN) benchmarks/memory.py
	$(RUN) benchmarks/paper_step.py
	$(RUN) benchmarks/bootstrap.py
	$(RUN) benchmarks/evaluation_speed.py

$(VENV)/.installed: requirements.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=...")'
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet --disable-pip-version-check -r requirements.txt
	@touch $@

wheel: $(VENV)/.installed  ## the installable package, in dist/
	rm -rf build  # else a file that is no longer in the project stays in the package
	$(RUN) -m pip wheel --quiet --no-deps --wheel-dir dist .

clean:  ## remove what the targets make, runs/ excepted
	rm -rf $(VENV) build dist *.egg-info .ruff_cache .mypy_cache .pytest_cache .hypothesis .versions
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
