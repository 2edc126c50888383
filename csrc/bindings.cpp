// The Python face of the native module, and the only file that knows Python. Functions take addresses,
// shapes, strides and a stream as integers: torch, NumPy and CuPy arrays all come down to these.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "xmodal/cpu.h"
#ifdef XMODAL_WITH_CUDA
#include "xmodal/cuda.h"
#endif

namespace py = pybind11;

#ifdef XMODAL_HOST_EMULATION
void bind_host(py::module_& module);  // tests/host/host.cpp
#endif

namespace {

void bind_cpu(py::module_& module) {
  module.def("instruction_set", &xmodal::cpu::instruction_set, "The instruction set that the CPU kernels run with.");
}

void bind_cuda(py::module_& module) {
#ifdef XMODAL_WITH_CUDA
  module.attr("with_cuda") = true;
  module.def("cuda_archs", &xmodal::cuda::architectures, "The architectures that this binary holds code for.");
  module.def("cuda_unavailable", &xmodal::cuda::unavailable, "Why no kernel can run here; empty where one can.");
#else
  module.attr("with_cuda") = false;
  module.def("cuda_archs", [] { return std::vector<std::string>(); });
  module.def("cuda_unavailable", [] { return std::string("this build has no CUDA kernels"); });
#endif
}

}  // namespace

PYBIND11_MODULE(_C, module) {
  module.doc() = "The native module of xmodal_ops.";
  bind_cpu(module);
  bind_cuda(module);
#ifdef XMODAL_HOST_EMULATION
  bind_host(module);
#endif
}
