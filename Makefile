# `make demo` and `make test` set everything up in .venv first, once.
PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python
READY := $(VENV)/.ready

.PHONY: demo test test-slow lint setup doctor
.DELETE_ON_ERROR:

demo: $(READY)
	$(RUN) tools/demo.py

test: $(READY)
	$(RUN) -m pytest -m "not slow"

test-slow: $(READY)
	$(RUN) -m pytest -m slow

lint: $(READY)
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .

doctor: $(READY)
	$(RUN) tools/doctor.py

setup: $(READY)

# Without isolation the package's build sees what is installed (setup.py asks), and needs no network.
$(READY): requirements.txt setup.py
	@$(PYTHON) -c "import sys; sys.exit(not (3, 10) <= sys.version_info < (3, 13))" || \
		{ echo "Python 3.10 to 3.12 is needed: make PYTHON=python3.11 ..."; exit 1; }
	test -x $(RUN) || $(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet --upgrade "setuptools>=77" wheel
	$(RUN) -m pip install --quiet -r requirements.txt
	$(RUN) -m pip install --quiet --no-deps --no-build-isolation --editable .
	touch $@
