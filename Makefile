# Two commands do everything on a fresh clone: make repro, make test.
PYTHON ?= python3
BIN := .venv/bin
# Two processes of one thread each: two threads that share a core with another process wait for each other.
# If one of them dies, the run ends: xdist would wait for ever for the rest of the file that it was running.
PYTEST := OMP_NUM_THREADS=1 python -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder --max-worker-restart 0
export PATH := $(CURDIR)/$(BIN):$(PATH)

.PHONY: repro ui demo docs screenshots results kill bench bench-costs large test test-full check lock clean
.DEFAULT_GOAL := repro

repro: .venv/installed  ## set up, check params.yaml, run the pipeline
	python -m reprogpt check
	dvc repro

# MLflow's processes for jobs that judge traces are not needed here, and starting them is most of its start.
ui: export MLFLOW_SERVER_ENABLE_JOB_EXECUTION ?= false
ui: .venv/installed  ## MLflow on the store that the stages write to
	@case "$$MLFLOW_TRACKING_URI" in \
	http*) echo "The runs are on the tracking server: open MLFLOW_TRACKING_URI in a browser";; \
	*) echo "MLflow: http://127.0.0.1:$${PORT:-5000}   (another port: make ui PORT=5001)"; \
	echo "There: Model training, at the top left, then the experiment reprogpt"; \
	mlflow ui --backend-store-uri "$${MLFLOW_TRACKING_URI:-sqlite:///mlflow.db}" --host 127.0.0.1 --port $${PORT:-5000};; \
	esac

demo: .venv/installed  ## the pipeline and one experiment on a small model, in a temporary copy: two minutes
	python -m tools.demo

docs: .venv/installed-dev  ## the documentation as a searchable site, in site/; a broken link is an error
	NO_MKDOCS_2_WARNING=1 mkdocs build --strict

results: .venv/installed  ## the tables and figures that are made from docs/results.csv
	python -m tools.results pages

kill: .venv/installed-dev  ## kill a tiny pipeline at 100 random moments and compare everything: a quarter of an hour
	OMP_NUM_THREADS=1 python -m tools.kill_trial --kills 100

bench: .venv/installed  ## how fast this is, beside the book's own formulation: a quarter of an hour
	python -m benchmarks

bench-costs: .venv/installed  ## what checkpoints and portable numerics cost: 20 minutes
	python -m benchmarks.saving
	python -m benchmarks.portable

large: .venv/installed  ## the pipeline on a gigabyte of text: memory, rates, time to the first step; 5 GB of disk
	python -m benchmarks.large

screenshots: .venv/installed-dev  ## docs/images, with Chromium: make screenshots RUNS="NAME NAME"
	python -m tools.screenshots $(RUNS)

test: .venv/installed-dev  ## the tests, with a floor for their coverage
	$(PYTEST) -m "not slow" --cov --cov-report=term

test-full: .venv/installed-dev  ## all tests
	$(PYTEST)

check: .venv/installed-dev  ## linter, formatter, types
	ruff check .
	ruff format --check .
	mypy

# Run each time: the script knows what is missing, also after a move of the folder.
.venv/installed: FORCE
	@$(PYTHON) tools/install.py

.venv/installed-dev: FORCE
	@$(PYTHON) tools/install.py --dev

FORCE:

clean:  ## remove the environment; data, runs and cache stay
	rm -rf .venv .venv.lock

lock:  ## renew requirements*.lock from pyproject.toml: the newest versions that fit
	rm -rf .venv-lock && $(PYTHON) -m venv .venv-lock
	.venv-lock/bin/python -m pip install --quiet . && .venv-lock/bin/python -m pip freeze --all > .venv-lock/run
	.venv-lock/bin/python -m pip install --quiet ".[dev]" && .venv-lock/bin/python -m pip freeze --all > .venv-lock/dev
	grep -vE '^(pip|reprogpt)[ =]' .venv-lock/run | sed 's/+cpu//' > requirements.lock
	grep -vxFf .venv-lock/run .venv-lock/dev > requirements-dev.lock
	rm -rf .venv-lock
