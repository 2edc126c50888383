// The Python face of the native module, and the only file that knows Python. Functions take addresses,
// shapes, strides and a stream as integers: torch, NumPy and CuPy arrays all come down to these.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstdint>
#include <optional>

#include "xmodal/cpu.h"
#include "xmodal/trace_norm.h"
#include "xmodal/triplets.h"
#ifdef XMODAL_WITH_CUDA
#include "xmodal/cuda.h"
#endif

namespace py = pybind11;

namespace {

template <typename T>
T* pointer(std::uintptr_t address) {
  return reinterpret_cast<T*>(address);
}

xmodal::TraceNorm trace_norm_problem(std::uintptr_t x, std::uintptr_t y, std::int64_t m, std::int64_t dx,
                                     std::int64_t dy, std::int64_t x_stride, std::int64_t y_stride, double rx,
                                     double ry, std::uintptr_t grad_x, std::uintptr_t grad_y, std::uintptr_t workspace,
                                     int threads) {
  return {pointer<const void>(x),
          pointer<const void>(y),
          m,
          dx,
          dy,
          x_stride,
          y_stride,
          rx,
          ry,
          0,
          pointer<void>(grad_x),
          pointer<void>(grad_y),
          pointer<void>(workspace),
          threads};
}

void bind_cpu(py::module_& module) {
  module.attr("TRACE_NORM_MAX_DIM") = xmodal::cpu::kTraceNormMaxDim;
  module.def(
      "trace_norm_workspace_bytes",
      [](std::int64_t m, std::int64_t dx, std::int64_t dy, int threads) {
        return xmodal::cpu::trace_norm_workspace_bytes(
            trace_norm_problem(0, 0, m, dx, dy, 0, 0, 0, 0, 0, 0, 0, threads));
      },
      "Bytes of workspace that trace_norm_cpu needs.");
  module.def(
      "trace_norm_cpu",
      [](std::uintptr_t x, std::uintptr_t y, bool wide, std::int64_t m, std::int64_t dx, std::int64_t dy,
         std::int64_t x_stride, std::int64_t y_stride, double rx, double ry, std::uintptr_t grad_x,
         std::uintptr_t grad_y, std::uintptr_t workspace, int threads) -> std::optional<double> {
        auto problem =
            trace_norm_problem(x, y, m, dx, dy, x_stride, y_stride, rx, ry, grad_x, grad_y, workspace, threads);
        py::gil_scoped_release unlocked;
        const bool served = wide ? xmodal::cpu::trace_norm_f64(problem) : xmodal::cpu::trace_norm_f32(problem);
        return served ? std::optional<double>(problem.value) : std::nullopt;
      },
      "Value of the trace norm and its gradients; None where a covariance does not factorise in fp64.");
  module.def("instruction_set", &xmodal::cpu::instruction_set, "The instruction set that the CPU kernels run with.");
}

void bind_triplets(py::module_& module) {
  using namespace xmodal::cpu;
  using Address = std::uintptr_t;
  py::class_<Pairs>(module, "Pairs", "Two sets of embeddings and their labels, as the triplet kernels take them.")
      .def(py::init([](Address anchor, Address ref, Address shift, Address anchor_labels, Address ref_labels,
                       std::int64_t m, std::int64_t n, std::int64_t d, std::int64_t words, bool exclude_diagonal,
                       bool wide, int threads) {
             return Pairs{pointer<void>(anchor),
                          pointer<void>(ref),
                          pointer<void>(shift),
                          pointer<std::int64_t>(anchor_labels),
                          pointer<std::int64_t>(ref_labels),
                          m,
                          n,
                          d,
                          words,
                          exclude_diagonal,
                          wide,
                          threads,
                          nullptr};
           }),
           py::kw_only(), py::arg("anchor"), py::arg("ref"), py::arg("shift"), py::arg("anchor_labels"),
           py::arg("ref_labels"), py::arg("m"), py::arg("n"), py::arg("d"), py::arg("words"),
           py::arg("exclude_diagonal"), py::arg("wide"), py::arg("threads"))
      .def("workspace_size", &workspace_size, py::arg("weights"), "Bytes that a kernel needs; see set_workspace.")
      .def("set_workspace", [](Pairs& pairs, Address address) { pairs.workspace = pointer<void>(address); });
  py::enum_<Positive>(module, "Positive").value("hard", Positive::hard).value("easy", Positive::easy);
  py::enum_<Negative>(module, "Negative")
      .value("hard", Negative::hard)
      .value("easy", Negative::easy)
      .value("semihard", Negative::semihard)
      .value("random", Negative::random);
  py::enum_<Triplets>(module, "Triplets")
      .value("all", Triplets::all)
      .value("hard", Triplets::hard)
      .value("semihard", Triplets::semihard);
  module.def(
      "mine_triplets",
      [](const Pairs& pairs, Positive positive, Negative negative, bool beyond_hardest, double margin,
         std::int64_t seed, Address positive_idx, Address negative_idx, Address positive_d, Address negative_d,
         Address positives, Address negatives) {
        mine_triplets(pairs,
                      {positive, negative, beyond_hardest, margin, seed, pointer<std::int64_t>(positive_idx),
                       pointer<std::int64_t>(negative_idx), pointer<double>(positive_d), pointer<double>(negative_d),
                       pointer<std::int64_t>(positives), pointer<std::int64_t>(negatives)});
      },
      py::call_guard<py::gil_scoped_release>());
  module.def(
      "structure_preserving",
      [](const Pairs& pairs, Address anchor_positive, Address anchor_negative, Address ref_positive,
         Address ref_negative, double margin, Address sums, Address anchor_grad, Address ref_grad) {
        structure_preserving(pairs,
                             {pointer<double>(anchor_positive), pointer<double>(anchor_negative),
                              pointer<double>(ref_positive), pointer<double>(ref_negative), margin},
                             {pointer<double>(sums), pointer<void>(anchor_grad), pointer<void>(ref_grad)});
      },
      py::call_guard<py::gil_scoped_release>());
  module.def(
      "triplet_margin",
      [](const Pairs& pairs, Triplets triplets, double margin, Address weight, Address sums, Address anchor_grad,
         Address ref_grad) {
        triplet_margin(pairs, {triplets, margin, pointer<double>(weight)},
                       {pointer<double>(sums), pointer<void>(anchor_grad), pointer<void>(ref_grad)});
      },
      py::call_guard<py::gil_scoped_release>());
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
  bind_triplets(module);
  bind_cuda(module);
}
