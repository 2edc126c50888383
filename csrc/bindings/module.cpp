// The native module `_C`. Only the files of this folder depend on Python.
#include "bindings.h"

PYBIND11_MODULE(_C, module) {
  module.doc() = "The native module of xmodal_ops.";
  bind_cpu(module);
  bind_cuda(module);
#ifdef XMODAL_HOST_EMULATION
  bind_host(module);
#endif
}
