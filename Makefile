# make demo, make test, make bench: each makes .venv if it is missing, then works.
VENV := .venv
PYTHON ?= $(shell command -v python3.11 || command -v python3)
RUN := $(VENV)/bin/python

.PHONY: demo test bench

demo: $(VENV)/.installed
	$(RUN) demo.py $(ARGS)

test: $(VENV)/.installed
	OMP_NUM_THREADS=1 $(RUN) -m pytest -n 2 --dist loadgroup $(ARGS)

bench: $(VENV)/.installed
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
