# Two commands: `make demo` and `make test`. Both set the project up first, on a bare Debian or Ubuntu machine too.

PYTHON ?= python3
BIN := .venv/bin
DEBIAN := python3-venv libegl1 libopengl0 libgl1 libgl1-mesa-dri libglib2.0-0
EPISODES := data/lift

.PHONY: demo test check setup bench lock clean
.DELETE_ON_ERROR:

demo: setup  ## collect demonstrations, run jobs/quickstart.yaml, print the curve
	@$(BIN)/python -m jobs.quickstart

test: setup check  ## every test a machine without a GPU can run
	$(BIN)/pytest

check: setup  ## style, types, import layers
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

bench: setup  ## measure again and refresh bench/README.md
	$(BIN)/python -m bench.loop

setup: .venv/ready

.venv/ready: pyproject.toml constraints.txt
	@missing=$$(for p in $(DEBIAN); do dpkg -s $$p 2>/dev/null | grep -q '^Status: install ok' || echo $$p; done); \
	if [ -z "$$missing" ] || ! command -v apt-get >/dev/null; then :; \
	elif [ $$(id -u) = 0 ]; then apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $$missing; \
	elif sudo -n true 2>/dev/null; then sudo apt-get update -qq && sudo apt-get install -y -qq --no-install-recommends $$missing; \
	else echo "Debian packages are missing; run: sudo apt-get install $$missing" >&2; exit 1; fi
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	@touch $@

lock: setup  ## write constraints.txt from what is installed
	@{ head -1 constraints.txt; $(BIN)/pip freeze --exclude-editable | sed 's/+cpu//'; } > constraints.new && mv constraints.new constraints.txt

clean:  ## remove the environment, the demo's data and its results
	rm -rf .venv data runs
