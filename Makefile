# On a fresh machine with Python 3.11 or newer, pip, venv and make: `make demo`, then `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

.DELETE_ON_ERROR:
.PHONY: setup demo test test-oldest check surface docs wheel cpp bench bench-peers clean

demo: $(INSTALLED)
	$(BIN)/irtool demo

# The environment alone.
setup: $(INSTALLED)

# Two workers with torch's default threads each would fight over the same cores.
test: $(INSTALLED)
	OMP_NUM_THREADS=1 $(BIN)/pytest -q -n 2

# The suite with the oldest releases that irtool works with (constraints-oldest.txt), in an environment of its own: 7 GB, which stays in
# build/oldest until `make clean`. Run it before each release. tests/oldest.txt names what is left out; docs/installation.md says why.
test-oldest:
	$(PYTHON) -m venv build/oldest
	build/oldest/bin/python -m pip install --quiet --disable-pip-version-check -c constraints-oldest.txt --config-settings editable_mode=compat -e '.[test]'
	OMP_NUM_THREADS=1 build/oldest/bin/pytest -q -n 2 @tests/oldest.txt

check: $(INSTALLED)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check --quiet .
	$(BIN)/mypy --no-error-summary
	$(BIN)/lint-imports --no-logo

# What the commands take, as the data that help and completion read. Run it after an option was changed.
surface: $(INSTALLED)
	$(BIN)/python -m irtool.cli.surface

# The site, in build/site: open index.html. A broken link or an unknown name fails it.
docs: $(INSTALLED)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet

# The wheel, built and run in an environment of its own, away from the checkout.
wheel: $(INSTALLED)
	.ci/wheel

# The C++ runner: build/cpp/irtool-run. On Debian it needs cmake, g++, libstb-dev and libjpeg-dev. MNN is in its wheel, or in the
# SDK that MNN_ROOT names (`make cpp MNN_ROOT=FOLDER`, or in the environment), which needs no Python. For .onnx files too:
# make cpp ONNXRUNTIME_ROOT=FOLDER, or on Debian 13 libonnxruntime-dev.
cpp: $(if $(MNN_ROOT),,$(INSTALLED))
	cmake -S cpp -B build/cpp -DPython="$(CURDIR)/$(BIN)/python" -DMNN_ROOT="$(MNN_ROOT)" -DONNXRUNTIME_ROOT="$(ONNXRUNTIME_ROOT)"
	cmake --build build/cpp

# Each script prints the figures behind one claim of the README; together they take about an hour. Peers join in where
# `make bench-peers` was run before.
bench: $(INSTALLED)
	set -e; python=$(BIN)/python; [ ! -x .bench-venv/bin/python ] || python=.bench-venv/bin/python; \
	for script in speed coverage random_cnns onnx_files onnx_parity; do echo "== bench/$$script.py"; $$python bench/$$script.py; done

# Torch-Pruning and timm in an environment of their own. It sees torch and irtool through a path file, since a second torch
# would take 5.7 GB; neither peer ever becomes a dependency.
bench-peers: $(INSTALLED)
	$(PYTHON) -m venv .bench-venv
	.bench-venv/bin/python -m pip install --quiet --disable-pip-version-check --no-deps torch-pruning==1.6.1 timm==1.0.31
	.bench-venv/bin/python -m pip install --quiet --disable-pip-version-check huggingface_hub pyyaml
	$(BIN)/python -c 'import site; print(site.getsitepackages()[0])' > "$$(.bench-venv/bin/python -c 'import site; print(site.getsitepackages()[0])')/main.pth"
	echo "$(CURDIR)" >> "$$(.bench-venv/bin/python -c 'import site; print(site.getsitepackages()[0])')/main.pth"

clean:
	rm -rf $(VENV) build dist *.egg-info .hypothesis .pytest_cache .mypy_cache .ruff_cache .import_linter_cache

# Made again when the dependencies change. An interrupted install leaves no stamp, so it is taken up again. `compat` puts the checkout on
# Python's path: the default finds irtool by a hook that comes too late where the current folder holds a clone called irtool.
$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "irtool needs Python 3.11 or newer, and $(PYTHON) is " + sys.version.split()[0] + ". Name another: make PYTHON=python3.12")'
	@echo "Installing into $(VENV) (torch is large: some minutes the first time)"
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt --config-settings editable_mode=compat -e '.[dev]'
	@touch $@
