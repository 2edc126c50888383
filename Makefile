# `make demo` and `make test` set up all that they need in .venv; README.md says more.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
DEVICE ?= cpu
# A reproducible environment for work on the project; the package itself accepts any torch >= 2.6.
export PIP_CONSTRAINT ?= $(CURDIR)/constraints.txt
export PIP_DISABLE_PIP_VERSION_CHECK = 1

BUILD_INPUTS := pyproject.toml setup.py CMakeLists.txt $(shell find csrc -type f)
BENCHES_cpu  := accuracy out_of_core distributed
HAS_DRIVER   := $(wildcard /proc/driver/nvidia /dev/nvidiactl /dev/dxg)

.PHONY: help demo test lint bench gpu-check native clean
help:  ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 12

demo: $(VENV)/.train  ## train linear CCA and DCCA on the embedded glyphs, print the scores, draw retrieved items
	$(BIN)/xmodal demo --output runs/demo --json runs/demo.json

test: $(VENV)/.test  ## all tests: ops, models, command line, packaging, and the CUDA kernels under host emulation
	$(BIN)/python -m pytest

lint: $(VENV)/.test  ## ruff, mypy --strict on the package, clang-format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy --strict xmodal_ops
	find csrc tests/host \( -name '*.cpp' -o -name '*.h' -o -name '*.cu' -o -name '*.cuh' \) \
	  | xargs $(BIN)/clang-format --dry-run -Werror

bench: $(VENV)/.bench  ## all benchmarks for DEVICE=cpu|cuda, about an hour; writes bench/results/<device>
	for name in $(BENCHES_$(DEVICE)); do $(BIN)/python -m bench.$$name || exit 1; done
	for name in trace_norm covariance triplets large_batch acmr_epoch; do \
	  $(BIN)/python -m bench.$$name --device $(DEVICE) || exit 1; done

gpu-check:  ## on a machine with a GPU: build, gpu tests, sanitizer, benchmarks; PART=build|tests|sanitizer|bench
	PART="$(PART)" PYTHON=$(PYTHON) bash bench/gpu_check.sh

native:  ## compile only the native module into the source tree; XMODAL_CUDA=ON with the kernels
	cmake -G Ninja -S . -B build/native -DCMAKE_BUILD_TYPE=Release -DXMODAL_CUDA=$(or $(XMODAL_CUDA),OFF) \
	  -DXMODAL_WERROR=ON -DPython_EXECUTABLE=$$(command -v $(PYTHON)) \
	  -Dpybind11_DIR=$$($(PYTHON) -m pybind11 --cmakedir) -DCMAKE_LIBRARY_OUTPUT_DIRECTORY=$(CURDIR)/xmodal_ops
	ninja -C build/native

clean:  ## remove everything that the other targets made
	rm -rf $(VENV) build dist runs *.egg-info xmodal_ops/*.so .pytest_cache .mypy_cache .ruff_cache

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

# The demo on a machine without an NVIDIA driver does not wait for kernels that could not run.
$(VENV)/.train: $(BUILD_INPUTS) | $(BIN)/python
	XMODAL_CUDA=$(or $(XMODAL_CUDA),$(if $(HAS_DRIVER),AUTO,OFF)) $(BIN)/pip install -q -e ".[train]"
	touch $@

# With an nvcc, the tests' build compiles every kernel, warnings as errors.
$(VENV)/.test: $(BUILD_INPUTS) | $(BIN)/python
	XMODAL_WERROR=ON $(BIN)/pip install -q -e ".[test]"
	touch $@

$(VENV)/.bench: $(VENV)/.test
	$(BIN)/pip install -q -e ".[test,bench]"
	touch $@
