# The README's two commands. Each builds .venv by itself; only python3 (>= 3.11), git and make are needed.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin

.PHONY: demo test format clean

demo: $(VENV)/.ready
	$(BIN)/python examples/mnist_demo.py

test: $(VENV)/.ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	$(BIN)/python -m pytest

format: $(VENV)/.ready
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# uv installs in seconds what pip installs in minutes; where it cannot be had, pip does.
$(VENV)/.ready: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "justimage needs Python 3.11 or newer; this is %s. Try: make PYTHON=python3.12" % sys.version.split()[0])'
	$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet uv || echo "uv could not be installed; going on with pip"
	@if $(BIN)/python -m uv --version >/dev/null 2>&1; then \
		echo "installing with uv"; \
		$(BIN)/python -m uv pip install --quiet --python $(BIN)/python -c constraints.txt -e '.[dev,demo,data,science]'; \
	else \
		echo "installing with pip"; \
		$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[dev,demo,data,science]'; \
	fi
	@touch $@

clean:
	rm -rf $(VENV) .pytest_cache .ruff_cache
