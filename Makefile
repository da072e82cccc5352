# Every target is a line or two that calls Python: include/laptop/ holds what they do.
SHELL := /bin/bash
PYTHON ?= python3
export DATA
export RECIPE ?= demo/0.8M_lora_cpu
export OVERRIDES ?= {}
export PROMPT
export RUN
export DELETE
export BASE
export BUILD_BASE
export ANEMONE_HOME ?= $(CURDIR)/.anemone
export ANEMONE_PORT ?= 8080
override ANEMONE_HOME := $(abspath $(ANEMONE_HOME))
AIRFLOW := $(ANEMONE_HOME)/venvs/airflow/bin
JOBS := $(ANEMONE_HOME)/venvs/jobs/bin
SERVING := $(ANEMONE_HOME)/venvs/serving/bin
# Tests by the environment in which they run.
TESTS_AIRFLOW := $(wildcard tests/include tests/operators tests/dags tests/plugins tests/docs tests/examples)
TESTS_SERVING := tests/jobs/serving
TESTS_JOBS := tests/jobs $(addprefix --ignore=,$(TESTS_SERVING))

.PHONY: help demo doctor setup up down run drop ask test test-airflow test-jobs test-serving test-faults test-kubernetes soak gc bench limits images compose-check lint lock clean

help:  ## show this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*##/\t/' | expand -t 17
	@echo "Variables: PYTHON, ANEMONE_HOME (default .anemone), ANEMONE_PORT (default 8080; serving takes + 10 to + 15)"
	@echo "Of one command: run DATA, RECIPE, OVERRIDES; drop RUN; ask PROMPT; up TRAFFIC; gc DELETE; soak MINUTES; bench ONLY;"
	@echo "  images IMAGES, BASE, BUILD_BASE; compose-check BASE, BUILD_BASE; lock UPGRADE=yes"

demo: setup  ## from data sets to live releases and back, watched in this terminal
	@$(AIRFLOW)/python -m include.laptop.demo

doctor:  ## can this machine run it?
	@$(PYTHON) -m include.laptop.doctor

setup: doctor  ## make the Python environments from their lock files
	@$(PYTHON) -m include.laptop.setup

up: setup  ## start Airflow and serving, print addresses and login; with traffic: make up TRAFFIC=30
	@$(AIRFLOW)/python -m include.laptop.up $(if $(TRAFFIC),--traffic "$(TRAFFIC)")

down:  ## stop Airflow, serving and traffic
	@$(PYTHON) -m include.laptop.components down

run: setup  ## customize on your own data: make run DATA=my.jsonl RECIPE=demo/0.8M_lora_cpu
	@$(AIRFLOW)/python -m include.laptop.run "$$DATA" "$$RECIPE" --overrides "$$OVERRIDES"

drop: setup  ## end a run that would go on: make drop RUN=customize/manual__…, as make up prints it
	@$(AIRFLOW)/python -m include.laptop.drop "$$RUN"

ask:  ## one request to the live model: make ask PROMPT="show the logs of checkout in prod"
	@$(AIRFLOW)/python -m include.laptop.ask "$$PROMPT"

test: setup lint  ## lint, and the unit, integration and end-to-end tests
	@$(MAKE) --no-print-directory -j 3 --output-sync=line test-airflow test-jobs test-serving
	@$(AIRFLOW)/pytest tests/e2e

test-airflow:
	@$(AIRFLOW)/pytest $(TESTS_AIRFLOW)

test-jobs:
	@$(JOBS)/pytest $(TESTS_JOBS)

test-serving:
	@$(SERVING)/pytest $(TESTS_SERVING)

test-faults: setup  ## the fault-injection tests; docs/faults.md lists them
	@$(JOBS)/pytest -m scenario tests/faults/jobs $(TESTS_JOBS)
	@$(SERVING)/pytest -m scenario tests/faults/serving $(TESTS_SERVING)
	@$(AIRFLOW)/pytest -m scenario tests/faults/airflow $(TESTS_AIRFLOW)

test-kubernetes: setup  ## jobs, DAGs and releases on the cluster that KUBECONFIG names, in a namespace of their own
	@$(AIRFLOW)/pytest tests/kubernetes

soak: setup  ## a release a minute under traffic, and nothing grows: make soak MINUTES=20
	@ANEMONE_SOAK_MINUTES=$(or $(MINUTES),20) $(SERVING)/pytest tests/faults/serving/test_soak.py

gc: setup  ## show what of the store to delete, and why; delete it: make gc DELETE=yes
	@$(AIRFLOW)/python -m include.laptop.gc "$$DELETE"

limits: setup  ## measure the figures that the limits of the demo's gates were derived from
	@$(AIRFLOW)/python tests/benchmarks/limits.py

bench: setup  ## measure the figures, beside other tools; one of them: make bench ONLY=curation
	@$(PYTHON) -m include.laptop.setup bench
	@$(AIRFLOW)/python tests/benchmarks/bench.py $(ONLY)

images:  ## build the images that run without a GPU, and print their sizes; another one: make images IMAGES=nemo
	@sh include/deploy/docker/images.sh $(IMAGES)

compose-check: setup  ## bring docker-compose.yaml up, run a data set through to its release, and take it down again
	@$(AIRFLOW)/python -m tests.include.deploy.compose.come_up $(if $(BASE),--base $(BASE)) $(if $(BUILD_BASE),--build-base $(BUILD_BASE))

lint: setup  ## check style, types, and that no package imports what it must not
	@$(AIRFLOW)/ruff check && $(AIRFLOW)/lint-imports --no-logo && $(AIRFLOW)/mypy

lock: setup  ## write the lock files from pyproject.toml
	@$(AIRFLOW)/python -m include.laptop.lock $(if $(UPGRADE),--upgrade)

clean:  ## stop everything, and remove all that Anemone made
	@$(PYTHON) -m include.laptop.components clean
