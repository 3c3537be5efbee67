# Two commands for newcomers: `make demo` and `make test`.  Each sets up .venv when it is missing.
VENV := .venv
PYTHON := $(VENV)/bin/python
HOST_PYTHON ?= python3
PRESET ?= faces16
DATA ?=

# A word for the shell, whatever stands in it: $(call q,$(NAME)).
q = '$(subst ','\'',$(1))'

# glibc gives large blocks back to the system after every use; keeping them saves a quarter of a
# small network's training step on a CPU.  Memory then stays at its peak.  Other systems ignore it.
export MALLOC_MMAP_MAX_ = 0
export MALLOC_TRIM_THRESHOLD_ = 2147483647

.PHONY: demo test test-slow test-versions findings bench lint docs playground slug clean

$(VENV)/.installed: pyproject.toml
	$(HOST_PYTHON) -c 'import sys; sys.version_info >= (3, 10) or sys.exit("dreamlib needs Python 3.10 or newer, and $(HOST_PYTHON) is %d.%d: name another, as in make demo HOST_PYTHON=python3.12" % sys.version_info[:2])'
	$(HOST_PYTHON) -m venv $(VENV)
	$(PYTHON) -m pip install --quiet --upgrade pip
	$(PYTHON) -m pip install --quiet --editable '.[all]'
	touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(PYTHON) -m pip install --quiet --editable '.[all,dev]'
	touch $@

demo: $(VENV)/.installed
	$(PYTHON) -m dreamlib demo --preset $(call q,$(PRESET)) $(if $(DATA),--data $(call q,$(DATA)))

test: $(VENV)/.installed-dev
	$(PYTHON) -m pytest -n 2 --dist worksteal

test-slow: $(VENV)/.installed-dev
	$(PYTHON) -m pytest -m slow

# The same on what Colab and Kaggle have, and on the lowest versions allowed: make test-versions SETS=colab
SETS ?=
test-versions:
	$(HOST_PYTHON) tools/versions.py $(SETS)

# What others' software does that nobody would guess: make findings, or FINDINGS="one another"
FINDINGS ?= $(patsubst findings/%.sh,%,$(wildcard findings/*.sh))
findings:
	failed=; for name in $(FINDINGS); do echo "== $$name"; sh findings/$$name.sh || failed="$$failed $$name"; done; \
	[ -z "$$failed" ] || { echo "CHANGED:$$failed"; exit 1; }

# Side by side with other packages: make bench, make bench BENCH=dream_cost, make bench BENCH=--quick
BENCH ?=
bench: $(VENV)/.installed-bench
	$(PYTHON) -m benchmarks $(foreach word,$(BENCH),$(call q,$(word)))

$(VENV)/.installed-bench: $(VENV)/.installed-dev
	$(PYTHON) -m pip install --quiet --editable '.[all,dev,bench]'
	touch $@

lint: $(VENV)/.installed-dev
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/pyright --pythonpath $(PYTHON)

# The API reference, from the docstrings: docs/api/index.html
docs: $(VENV)/.installed-dev
	PYTHONPATH=. $(PYTHON) -W ignore tools/docs.py docs/api

# Points every badge, link and setup cell at a repository: make slug REPO=owner/name [TAG=v1.2.3]
slug:
	$(HOST_PYTHON) tools/slug.py $(call q,$(REPO)) $(if $(TAG),$(call q,$(TAG)))

# The playground as a page in a browser, for a trained run: make playground RUN=runs/faces
RUN ?= runs/demo
playground: $(VENV)/.installed
	@test -f $(call q,$(RUN)/config.yaml) || { echo there is no run $(call q,$(RUN)): make demo, or name one: make playground RUN=runs/faces; exit 2; }
	$(PYTHON) -m pip install --quiet --editable '.[all,playground]'
	DREAMLIB_RUN="$$(cd $(call q,$(RUN)) && pwd)" JUPYTER_PATH= JUPYTER_PREFER_ENV_PATH=1 $(PYTHON) -m voila notebooks/06_playground.ipynb --theme=light --strip_sources=True --Voila.config_file_paths=tools/voila

# Removes what the other targets made, runs/ excepted: it holds trained models.
clean:
	rm -rf $(VENV) .versions docs/api build dist *.egg-info .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
