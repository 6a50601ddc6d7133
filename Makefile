# make demo   continues a prompt with the shipped model, speculatively
# make test   installs jaxspec and runs its tests
# make test-aot   installs compilers for TPUs and GPUs that are not here, and uses them
# make lint   checks the style
#
# PYTHON chooses the interpreter, VENV where to install, TESTS which tests to run.
PYTHON ?= python3
VENV ?= .venv
TESTS ?= tests
WORKERS ?= 2

.PHONY: demo test test-aot lint clean

demo: $(VENV)/.installed
	$(VENV)/bin/jaxspec generate --compare

test: $(VENV)/.installed-dev
	$(VENV)/bin/python -m pytest -q -n $(WORKERS) --dist loadfile \
	  --no-loadscope-reorder $(TESTS)

test-aot: $(VENV)/.installed-aot
	$(VENV)/bin/python -m pytest -q -n $(WORKERS) tests/aot

lint: $(VENV)/.installed-dev
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .

$(VENV)/bin/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "jaxspec needs Python 3.11 or later; name one with PYTHON=")'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: pyproject.toml | $(VENV)/bin/python
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check --editable .
	touch $@

$(VENV)/.installed-dev: pyproject.toml | $(VENV)/bin/python
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	touch $(VENV)/.installed $@

$(VENV)/.installed-aot: pyproject.toml | $(VENV)/bin/python
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check --editable '.[dev,tpu-aot,gpu-aot]'
	touch $(VENV)/.installed $(VENV)/.installed-dev $@

clean:
	rm -rf $(VENV) build jaxspec.egg-info
