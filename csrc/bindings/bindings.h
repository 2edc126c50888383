// What the files of the Python interface share. Functions take addresses, shapes, strides and a stream as integers:
// torch, NumPy and CuPy arrays all come down to these.
#pragma once

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstdint>

namespace py = pybind11;

void bind_cpu(py::module_& module);   // cpu.cpp
void bind_cuda(py::module_& module);  // cuda.cpp
#ifdef XMODAL_HOST_EMULATION
void bind_host(py::module_& module);  // tests/host/host.cpp
#endif

template <typename T>
T* pointer(std::uintptr_t address) {
  return reinterpret_cast<T*>(address);
}
