# The README's two commands. Each builds .venv by itself; only python3 (>= 3.11), git and make are needed.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
LOWEST := .venv-lowest

.PHONY: demo test test-lowest format clean

demo: $(VENV)/.ready
	$(BIN)/python examples/mnist_demo.py

test: $(VENV)/.ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	$(BIN)/python -m pytest -n auto

# The lowest versions that pyproject.toml allows, on the lowest Python. Built anew each time, as uv would keep what is
# installed. The uv of .venv does where none is on the path.
test-lowest:
	@uv=$$(command -v uv || echo "$(BIN)/python -m uv"); \
	$$uv --version >/dev/null 2>&1 || { echo "test-lowest needs uv, as pip cannot choose the lowest versions: pip install uv"; exit 1; }; \
	set -e; \
	$$uv venv --quiet --clear --python 3.11 $(LOWEST); \
	$$uv pip install --quiet --compile-bytecode --python $(LOWEST)/bin/python --resolution lowest-direct -e '.[dev,demo,data,science,eval]'
	@$(LOWEST)/bin/python -c 'import re; from importlib.metadata import distributions, requires; \
	names = {re.match(r"[\w.-]+", text)[0].lower() for text in requires("justimage")}; \
	print(*sorted(f"{each.name}=={each.version}" for each in distributions() if each.name.lower() in names), sep="\n")'
	$(LOWEST)/bin/python -m pytest -n auto tests/lowest.py

format: $(VENV)/.ready
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# uv installs in seconds what pip installs in minutes; where it cannot be had, pip does. Compiled once, as pip does too:
# where Python may not write its bytecode, every command and test would compile torch anew, for seconds.
$(VENV)/.ready: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "justimage needs Python 3.11 or newer; this is %s. Try: make PYTHON=python3.12" % sys.version.split()[0])'
	$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet uv || echo "uv could not be installed; going on with pip"
	@if $(BIN)/python -m uv --version >/dev/null 2>&1; then \
		echo "installing with uv"; \
		$(BIN)/python -m uv pip install --quiet --compile-bytecode --python $(BIN)/python -c constraints.txt -e '.[dev,demo,data,science,eval]'; \
	else \
		echo "installing with pip"; \
		$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[dev,demo,data,science,eval]'; \
	fi
	@touch $@

clean:
	rm -rf $(VENV) $(LOWEST) .pytest_cache .ruff_cache
