# The two commands of the README are `make demo` and `make test`; each sets up
# its own environment in .venv.
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
ARGS ?=
export OMP_NUM_THREADS := 1
export OPENBLAS_NUM_THREADS := 1
# Compiled once, not by each of the many processes that tests start.
export PYTHONDONTWRITEBYTECODE :=

.PHONY: audit docs demo reference test test-slow crash-points fuzz bench soak soak-night lint clean venv

demo: venv
	$(BIN)/python -m ppd.demo $(ARGS)

test: venv
	$(BIN)/python -m pytest -n 3 --dist loadfile --no-loadscope-reorder $(ARGS)

# All places where a process can be made to die; `make test` comes to some of the supervisor's.
crash-points: venv
	$(BIN)/python -m pytest tests/test_crash_points.py -m "" $(ARGS)

# What takes long, or is one of many alike.
test-slow: venv
	$(BIN)/python -m pytest -m slow -o timeout=900 $(ARGS)

# Ten times what `make test` sends of broken messages and headers.
fuzz: venv
	PPD_FUZZ=full $(BIN)/python -m pytest tests/test_fuzz.py -m "" -s $(ARGS)

bench: venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements-bench.txt
	$(BIN)/python -m bench $(ARGS)

soak-night: venv
	$(BIN)/python -m bench.soak_night $(ARGS)

# A quarter of an hour in which everything fails; ARGS="--minutes 2 --seed 7" for another.
soak: venv
	$(BIN)/python -m bench.soak $(ARGS)

# The docs as a site, in build/site; what is wrong with links ends it.
docs: venv
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

lint: venv
	$(BIN)/ruff check ppd tests bench tools/report-picture tools/page-picture tools/run-dockerfile tools/runtime-requirements tools/metrics-reference tools/audit
	$(BIN)/ruff format --check --quiet ppd tests bench
	$(BIN)/mypy

# What of the docs is made from the code: settings, commands, messages.
reference: venv
	$(BIN)/python -m ppd.cli.ctl config reference > docs/configuration.md
	$(BIN)/python -m ppd.cli.reference > docs/ppdctl.md
	$(BIN)/python -m ppd.cli.message_reference > docs/messages.md

# Is installed what is locked, and does anybody know of a hole in it?
audit: venv
	$(BIN)/python tools/audit $(ARGS)

venv: $(STAMP)

$(STAMP): requirements.txt setup.cfg pyproject.toml tools/find-python
	@python=$$(tools/find-python) || exit 1; \
	echo "Setting up $(VENV) with $$python; the first time takes a minute or two."; \
	"$$python" -m venv --clear $(VENV) && \
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt && \
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

clean:
	rm -rf $(VENV) demo-output .pytest_cache .mypy_cache .ruff_cache build *.egg-info
