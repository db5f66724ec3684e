# make demo    the whole job on motion data      make test    what must hold
# make docs    the site, in _docs                make bench   speed and quality beside others
# make lab     JupyterLab on the notebooks       make sync    bring modules and README up to the notebooks
# make clean   remove what can be made again
#
# Every target sets itself up: a virtual environment in .venv with the versions of constraints.txt.

PY   ?= python3
DATA  ?=
MODEL ?=
BIN  := .venv/bin

export PATH := $(CURDIR)/$(BIN):$(PATH)
export OMP_NUM_THREADS ?= 1

.PHONY: demo test docs bench lab sync clean
.DEFAULT_GOAL := test

READY := .venv/.ready

$(READY): settings.ini setup.py pyproject.toml constraints.txt tools/fix_torchaudio.py
	@test -x $(BIN)/python || $(PY) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "tokenize_lib needs Python 3.11 or newer, and '$(PY)' is not: try 'make PY=python3.12'"; exit 1; }
	@test -x $(BIN)/python || $(PY) -m venv .venv || { rm -rf .venv; \
	  echo "Cannot make a virtual environment: on Debian or Ubuntu, install python3-venv"; exit 1; }
	@$(BIN)/python -m pip --version > /dev/null 2>&1 || $(BIN)/python -m ensurepip
	PYTHONWARNINGS=ignore $(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev,files,cluster,dyad,hubert,video,export]'
	$(BIN)/python tools/fix_torchaudio.py
	@touch $@

demo: $(READY)
	@$(BIN)/python tools/demo.py --data "$(DATA)"

test: $(READY)
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/python tools/check_sync.py
	timeout 1200 $(BIN)/nbdev_test --n_workers 2 --timing
	$(BIN)/pytest -q

docs: $(READY)
	$(BIN)/python tools/build_docs.py
	$(BIN)/sphinx-build -q -W --keep-going -b html _build/src _docs
	@echo "The site is in _docs/index.html"

bench: $(READY)
	$(BIN)/pytest -q -o addopts= tests/benchmarks --benchmark-only
	$(BIN)/papermill nbs/experiments/pose_benchmark.ipynb papermill_runs/pose_benchmark.ipynb --no-progress-bar \
	  -p onnx True -p seconds 1 $(if $(MODEL),-r model "$(MODEL)") $(if $(DATA),-r dataset "$(DATA)")
	@echo "The figures are in papermill_runs/pose_benchmark.ipynb"

lab: $(READY)
	$(BIN)/jupyter lab nbs

sync: $(READY)
	$(BIN)/nbdev_export
	$(BIN)/nbdev_clean
	$(BIN)/python tools/build_readme.py

clean:
	rm -rf _build _proc _docs build .pytest_cache .hypothesis .benchmarks papermill_runs/*.ipynb
