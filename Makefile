# Two commands: `make demo` and `make test`. Both set the project up first, on a bare Debian or Ubuntu machine too.

PYTHON ?= python3
BIN := .venv/bin
# What must be there before pip: pip's bootstrap, and what MuJoCo and OpenCV link to.
DEBIAN := python3-venv libegl1 libopengl0 libgl1 libgl1-mesa-dri libglib2.0-0
LIBRARIES := libEGL.so.1 libOpenGL.so.0 libGL.so.1 libgthread-2.0.so.0

PROCESSES ?= 2
PYTEST := $(BIN)/python -m pytest -n $(PROCESSES) --dist loadgroup --no-loadscope-reorder
TIMES := .test-times

# `make lerobot`: LeRobot takes no other Python here, and PyPI's torch for Linux brings 3 GB of CUDA with it.
PYTHON312 ?= python3.12
TORCH_CPU ?= https://download.pytorch.org/whl/cpu

.PHONY: demo lines test coverage test-full stress gpu check setup debian browser libero pusht docs docs-tools policies lerobot bench lock image-lock clean
.DELETE_ON_ERROR:

demo: setup  ## collect demonstrations, run jobs/quickstart.yaml, print the curve
	@$(BIN)/python -m jobs.quickstart

lines: setup  ## the same with jobs/lines_lift.yaml: ours beside ACT, Diffusion Policy and BC-RNN of other libraries; needs Python 3.12
	@$(BIN)/python -m jobs.quickstart jobs/lines_lift.yaml

test: setup check  ## the checks and the fast tests: nine minutes on two fast cores
	$(PYTEST) -p bench.suite --test-times=$(TIMES)/fast

coverage: setup check  ## the same with line coverage, which takes up to a quarter longer; fails below 85 %
	$(PYTEST) --cov --cov-report=term:skip-covered --cov-fail-under=85

test-full: test browser libero pusht docs-tools  ## the rest as well: kills, network namespaces, three nodes, LIBERO, push-T, the browser, the documentation site, short benches
	$(PYTEST) -p bench.suite --test-times=$(TIMES)/full -m full
	$(BIN)/python -m bench.suite --read $(TIMES)/fast $(TIMES)/full

stress: setup pusht  ## 30 random kills during a sweep, 200 during episodes, 5,000 episodes of one pool; the other benches in short; sweeps that take long
	$(BIN)/pytest -m stress

gpu: setup  ## on a machine with a GPU, within 15 minutes: the tests that need one, and what svd-256 costs on it, into bench/results/gpu.json
	$(BIN)/python -m bench gpu

check: setup  ## style, types, import layers
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

libero: setup  ## also LIBERO-10: its code, tasks and meshes, 360 MB
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --constraint constraints-libero.txt --editable '.[dev,libero]'

pusht: setup  ## also gym-pusht and the example package with own tasks, docs/own_tasks.md
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --constraint constraints-pusht.txt --editable '.[dev,pusht]'
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --editable examples/own_tasks

docs: docs-tools  ## the documentation site in site/: open site/index.html; fails for a broken link
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet

docs-tools: setup  ## what `make docs` and its test need: mkdocs and its extensions, 40 MB
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --constraint constraints-docs.txt --editable '.[dev,docs]'

policies: setup  ## the environments of the external policies in policies/: 3 GB of downloads, Python 3.12
	$(BIN)/demoscale policy prepare policies/lerobot_act policies/lerobot_diffusion policies/robomimic_bc_rnn

lerobot: .venv-lerobot/ready  ## Hugging Face's LeRobot, with which tests compare imports and exports: an environment of its own, with Python 3.12

.venv-lerobot/ready: constraints-lerobot.txt
	@$(PYTHON312) -c "import sys; sys.exit(sys.version_info[:2] != (3, 12))" 2>/dev/null || \
	{ echo "LeRobot needs Python 3.12, and $(PYTHON312) is none; install it, or name one: make lerobot PYTHON312=/path/to/python3.12" >&2; exit 1; }
	$(PYTHON312) -m venv .venv-lerobot
	.venv-lerobot/bin/pip install --quiet --disable-pip-version-check --extra-index-url $(TORCH_CPU) --constraint constraints-lerobot.txt 'lerobot[dataset]'
	@touch $@

bench: setup  ## measure again and refresh bench/README.md
	$(BIN)/python -m bench

setup: .venv/ready

.venv/ready: pyproject.toml constraints.txt
	@$(PYTHON) -c "import ensurepip, ctypes; [ctypes.CDLL(name) for name in '$(LIBRARIES)'.split()]" 2>/dev/null || $(MAKE) --no-print-directory debian
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	@touch $@

debian:  ## the system libraries that headless rendering needs, and venv
	@if ! command -v apt-get >/dev/null; then echo "install with your system's packages: python venv and the libraries $(LIBRARIES)" >&2; exit 1; \
	elif [ $$(id -u) = 0 ]; then apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $(DEBIAN); \
	elif sudo -n true 2>/dev/null; then sudo apt-get update -qq && sudo apt-get install -y -qq --no-install-recommends $(DEBIAN); \
	else echo "Debian packages are missing; run: sudo apt-get install --no-install-recommends $(DEBIAN)" >&2; exit 1; fi

browser: setup  ## Chromium, in which tests open the page, and axe-core; without Chromium they are skipped, unless CI is set
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --constraint constraints-browser.txt axe-playwright-python
	-@for name in chromium chromium-browser google-chrome; do command -v $$name >/dev/null && exit 0; done; \
	$(MAKE) --no-print-directory debian DEBIAN=chromium

lock: setup  ## write constraints.txt from what is installed
	@{ head -1 constraints.txt; $(BIN)/pip freeze --exclude-editable | sed 's/+cpu//'; } > constraints.new && mv constraints.new constraints.txt

# By PyPI's hashes: wheels alone, but for evdev, which has none. The same uv each time, so that the same constraints give the same files.
HASHED := .venv/uv/bin/uv pip compile --quiet --no-config --default-index https://pypi.org/simple --generate-hashes --no-annotate --no-header \
	--python-version 3.11 --python-platform x86_64-manylinux_2_36 --only-binary :all:
image-lock: setup  ## write deploy/requirements*.txt, the image's packages by hash, from constraints.txt
	$(PYTHON) -m venv .venv/uv && .venv/uv/bin/pip install --quiet --disable-pip-version-check uv==0.13.8
	$(HASHED) --no-binary evdev --constraint constraints.txt --output-file deploy/requirements.txt pyproject.toml
	echo setuptools | $(HASHED) --constraint deploy/requirements.txt --output-file deploy/requirements-build.txt -

clean:  ## remove the environment, the demo's data and its results, the site
	rm -rf .venv .venv-lerobot data runs site
