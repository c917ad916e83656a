# What people run and what CI runs are the same targets. Each makes the environment in .venv if there is none.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

IMAGES := train ops triton triton-dev
BENCHMARKS ?= prepare_data batching serving public_data
REGISTRY ?= $(shell sed -n 's/^REGISTRY = "\(.*\)"/\1/p' components/images.py)
VERSION := $(shell sed -n 's/^__version__ = "\(.*\)"/\1/p' src/stillhouse/__init__.py)
TAG ?= $(VERSION)
REVISION = $(shell git describe --always --abbrev=40 --dirty --exclude '*' 2>/dev/null || echo unknown)

.DEFAULT_GOAL := help
.PHONY: help demo test test-fast test-slow check bench images $(IMAGES:%=image-%) docs constraints

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: $(INSTALLED) ## Train, distil, compare, register and serve on built-in data, then ask the endpoint two questions
	$(BIN)/stillhouse run --preset demo --set deploy_target=local
	$(BIN)/stillhouse predict \
		"The room was spotless and the staff could not have been kinder." \
		"I expected to love it, but the soup was bland and the waiter rude."
	@echo
	@echo "The server is still running. To stop it: $(BIN)/stillhouse serve stop"

test: test-fast test-slow ## Run all tests

# Tests at the same time, each with as many threads as there are cores, would wait for one another.
test-fast test-slow: export OMP_NUM_THREADS = 1

test-fast: $(INSTALLED) ## Run the tests that take seconds
	$(BIN)/python -m pytest -n 2 -m "not slow"

test-slow: $(INSTALLED) ## Run the tests that train, serve or build
	$(BIN)/python -m pytest -m slow -n 3 --dist loadfile --no-loadscope-reorder --durations 20

check: $(INSTALLED) ## Check style, types, generated docs and compiled pipelines
	$(BIN)/python -m ruff check
	$(BIN)/python -m ruff format --check
	$(BIN)/python -m mypy
	$(BIN)/python docs/generate.py --check

bench: $(INSTALLED) ## Measure again what is claimed (all but docs/science.md: benchmarks/papers.py, hours)
	@for name in $(BENCHMARKS); do echo "== $$name"; $(BIN)/python "benchmarks/$$name.py" || exit 1; done

images: $(IMAGES:%=image-%) ## Build the container images (REGISTRY, TAG, TORCH_INDEX_URL, DOCKER_BUILD_FLAGS)
	@docker image ls --filter reference='$(REGISTRY)/stillhouse-*:$(TAG)' --format '{{.Repository}}:{{.Tag}}  {{.Size}}'

image-train: BUILD_ARGS = --build-arg TORCH_INDEX_URL='$(TORCH_INDEX_URL)'
$(IMAGES:%=image-%): image-%:
	docker build $(DOCKER_BUILD_FLAGS) $(BUILD_ARGS) --build-arg VERSION=$(VERSION) --build-arg REVISION=$(REVISION) \
		--file images/$*/Dockerfile --tag $(REGISTRY)/stillhouse-$*:$(TAG) .

docs: $(INSTALLED) ## Write the generated docs and the compiled pipelines again
	$(BIN)/python docs/generate.py

$(INSTALLED): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "Installing into $(VENV): the first time, this takes some minutes and 3 GB."
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	@touch $@

constraints: $(INSTALLED) ## Write down the installed versions as the tested ones
	{ sed -n '/^#/p' constraints.txt; $(BIN)/python -m pip list --format=freeze --exclude-editable \
		| sed -E '/^(pip|setuptools|wheel)==/d; s/\+[a-z0-9.]+$$//; s/$$/; python_version == "3.11" or python_version == "3.12"/'; } > constraints.new
	mv constraints.new constraints.txt
