# Everything a fresh machine needs: Python 3.11 to 3.13, make, and the package registries.
PYTHON ?= $(shell command -v python3.11 || command -v python3.12 || command -v python3.13 || command -v python3)
BIN = .venv/bin
PORT ?= 5000
# One thread for each process: the actors are the parallelism.
export OMP_NUM_THREADS ?= 1

.PHONY: demo test test-recorded test-long test-notebooks docs lint bench bench-aggregation bench-peers bench-secure bench-sweep bench-data bench-stacked ui cluster
.PHONY: cluster-down schema clean

demo: .venv/ready
	$(BIN)/fedrobust run experiments/quickstart.yaml

# Two processes: one shares a Ray between its tests, the other runs what needs none.
test: .venv/ready
	$(BIN)/pytest --numprocesses 2 --dist loadgroup

# What takes seconds each, or whole files of it: half as long again.
.PHONY: test-slow
test-slow: .venv/ready
	$(BIN)/pytest -m 'slow and not long' --numprocesses 2 --dist loadgroup

# The same bits as before: a few minutes.
test-recorded: .venv/ready
	$(BIN)/pytest -m long tests/test_recorded.py

test-long: .venv/ready
	$(BIN)/pytest -m long

# The commands of docs/your-data.md as they are typed, in an empty folder: some minutes.
.PHONY: test-your-data
test-your-data: .venv/ready
	$(BIN)/pytest -m long tests/test_your_data.py

test-notebooks: .venv/ready
	$(BIN)/pytest -m long tests/test_notebooks.py

# The site, into build/docs: a broken link or a name that is not there is an error, and nothing is fetched.
docs: .venv/ready
	$(BIN)/sphinx-build --quiet --fail-on-warning --keep-going --fresh-env docs build/docs
	@echo "the site: build/docs/index.html"

# The wheel in environments of its own: without an extra, and with [platform].
.PHONY: test-wheel
test-wheel: .venv/ready
	tests/wheel.sh $(BIN)/python

lint: .venv/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy fedrobust

bench: .venv/ready bench-aggregation
	$(BIN)/python benchmarks/rounds.py
	$(BIN)/python benchmarks/start.py

# Hospitals trained together, on the GPU if there is one; a minute or two on two cores.
# A sweep beside the same trials in bare processes: more than five minutes.
bench-sweep: .venv/ready
	$(BIN)/python benchmarks/sweep.py

# Patches from 455,000 files: a quarter of an hour and 5 GB of disk; with ARGS="--side 96 --sections memory" 20 GB.
bench-data: .venv/ready
	$(BIN)/python benchmarks/data.py $(ARGS)

bench-stacked: .venv/ready
	$(BIN)/python benchmarks/stacked.py

# With all the threads that the machine has, for both sides.
bench-aggregation: .venv/ready
	env -u OMP_NUM_THREADS $(BIN)/python benchmarks/aggregation.py
	env -u OMP_NUM_THREADS $(BIN)/python benchmarks/coordinator.py

# Beside Flower, which gets an environment of its own on top of the project's. A quarter of an hour: not part of bench.
bench-secure: .venv/bench/ready
	.venv/bench/bin/python benchmarks/secure.py

# A round beside those of Flower and pfl-research, in the same environment.
bench-peers: .venv/bench/ready
	.venv/bench/bin/python benchmarks/peers.py

ui: .venv/ready
	@$(BIN)/fedrobust ui --port $(PORT)

# A head, two workers and MLflow on this machine, e.g. `make cluster ARGS="--workers 3 --cpus 4"`.
cluster: .venv/ready
	@$(BIN)/python cluster/local.py up $(ARGS)

cluster-down: .venv/ready
	@$(BIN)/python cluster/local.py down

schema: .venv/ready
	$(BIN)/fedrobust schema > experiments/schemas/experiment.schema.json
	$(BIN)/fedrobust schema --matrix > experiments/schemas/matrix.schema.json
	$(BIN)/fedrobust schema --sweep > experiments/schemas/sweep.schema.json
	$(BIN)/fedrobust schema --duel > experiments/schemas/duel.schema.json

clean:
	rm -rf .venv build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

.venv/ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --constraint constraints.txt --editable ".[dev]"
	touch $@

# Flower and pfl want older versions of some packages: they are put in front of the project's, which stay as they are.
SITE = -c "import sysconfig; print(sysconfig.get_path('purelib'))"
.venv/bench/ready: .venv/ready
	$(BIN)/python -m venv .venv/bench
	echo "import site; site.addsitedir('$$($(BIN)/python $(SITE))')" > $$(.venv/bench/bin/python $(SITE))/project.pth
	.venv/bench/bin/pip install --quiet --editable ".[bench]"
	touch $@
