# `make demo` and `make test` set up all that they need in .venv; see README.md.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
# A reproducible environment for work on the project; the package itself accepts any torch >= 2.6.
export PIP_CONSTRAINT ?= $(CURDIR)/constraints.txt

.PHONY: native
native:  ## compile the native module into the source tree, for work on it: PYTHONPATH=. finds it there
	cmake -G Ninja -S . -B build/native -DCMAKE_BUILD_TYPE=Release -DXMODAL_CUDA=$(or $(XMODAL_CUDA),OFF) \
	  -DXMODAL_WERROR=ON -DPython_EXECUTABLE=$$(command -v $(PYTHON)) \
	  -Dpybind11_DIR=$$($(PYTHON) -m pybind11 --cmakedir) -DCMAKE_LIBRARY_OUTPUT_DIRECTORY=$(CURDIR)/xmodal_ops
	ninja -C build/native
