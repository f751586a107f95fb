# `make demo` and `make test` set everything up in .venv first, once; `make test-official`, which
# tests on the official OpenMMLab distributions, does so in .venv-official.
PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python
READY := $(VENV)/.ready
OFFICIAL := .venv-official
# Side by side on the cores there are; each worker takes about a gigabyte. File by file, so that
# what a file's tests share is made once.
WORKERS := -n auto --maxprocesses 4 --dist loadfile

.PHONY: demo test test-slow test-gpu test-official lint setup doctor
.DELETE_ON_ERROR:

demo: $(READY)
	$(RUN) tools/demo.py

test: $(READY)
	$(RUN) -m pytest $(WORKERS) -m "not slow"

test-slow: $(READY)
	$(RUN) -m pytest -m slow

test-gpu: $(READY)
	GPU_TESTS=1 $(RUN) -m pytest -m gpu

test-official: $(OFFICIAL)/.ready
	$(OFFICIAL)/bin/python tools/doctor.py
	$(OFFICIAL)/bin/python -m pytest $(WORKERS) -m "not slow"

lint: $(READY)
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .

doctor: $(READY)
	$(RUN) tools/doctor.py

setup: $(READY)

# Without isolation the package's build sees what is installed (setup.py asks), and needs no network.
$(READY): requirements.txt setup.py
$(OFFICIAL)/.ready: requirements-official.txt setup.py
$(READY) $(OFFICIAL)/.ready:
	@$(PYTHON) -c "import sys; sys.exit(not (3, 10) <= sys.version_info < (3, 13))" || \
		{ echo "Python 3.10 to 3.12 is needed: make PYTHON=python3.11 ..."; exit 1; }
	test -x $(@D)/bin/python || $(PYTHON) -m venv $(@D)
	$(@D)/bin/python -m pip install --quiet --upgrade "setuptools>=77" wheel
	$(@D)/bin/python -m pip install --quiet -r $<
	$(@D)/bin/python -m pip install --quiet --no-deps --no-build-isolation --editable .
	touch $@
