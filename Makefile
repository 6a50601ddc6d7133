# make demo   continues a prompt with the shipped model, speculatively
# make test   installs jaxspec and runs its tests
# make test-aot   installs compilers for TPUs and GPUs that are not here, and uses them
# make lint   checks the style, and the types of the contracts and the loops
#
# PYTHON chooses the interpreter, VENV where to install, TESTS which tests to run. The
# compilers have an environment of their own, AOT_VENV: beside them JAX looks for a GPU at
# every start, and prints a traceback where it finds none.
PYTHON ?= python3
VENV ?= .venv
AOT_VENV ?= .venv-aot
TESTS ?= tests
WORKERS ?= 2

.PHONY: demo test test-aot lint clean

demo: $(VENV)/.installed
	$(VENV)/bin/jaxspec generate --compare

test: $(VENV)/.installed-dev
	$(VENV)/bin/python -m pytest -q -n $(WORKERS) --dist loadfile \
	  --no-loadscope-reorder $(TESTS)

test-aot: $(AOT_VENV)/.installed-aot
	$(AOT_VENV)/bin/python -m pytest -q -n $(WORKERS) tests/aot

lint: $(VENV)/.installed-dev
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/pyrefly check --python-interpreter-path $(VENV)/bin/python

$(VENV)/bin/python $(AOT_VENV)/bin/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "jaxspec needs Python 3.11 or later; name one with PYTHON=")'
	$(PYTHON) -m venv $(@D)/..

$(VENV)/.installed: pyproject.toml | $(VENV)/bin/python
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check --editable .
	touch $@

$(VENV)/.installed-dev: pyproject.toml | $(VENV)/bin/python
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	touch $(VENV)/.installed $@

$(AOT_VENV)/.installed-aot: pyproject.toml | $(AOT_VENV)/bin/python
	$(AOT_VENV)/bin/python -m pip install --quiet --disable-pip-version-check --editable '.[aot]'
	touch $@

clean:
	rm -rf $(VENV) $(AOT_VENV) build jaxspec.egg-info
