// The CPU kernels as Python functions.
#include "xmodal/cpu.h"

#include "bindings.h"
#include "xmodal/covariance.h"
#include "xmodal/trace_norm.h"
#include "xmodal/triplets.h"

namespace {

xmodal::TraceNorm trace_norm_batch(std::int64_t problems, std::int64_t m, std::int64_t dx, std::int64_t dy,
                                   int threads) {
  xmodal::TraceNorm batch{};
  batch.problems = problems, batch.m = m, batch.dx = dx, batch.dy = dy, batch.threads = threads;
  return batch;
}

void bind_pair_of_views(py::module_& module) {
  module.attr("TRACE_NORM_MAX_DIM") = xmodal::cpu::kTraceNormMaxDim;
  module.def(
      "trace_norm_workspace_bytes",
      [](std::int64_t problems, std::int64_t m, std::int64_t dx, std::int64_t dy, int threads) {
        return xmodal::cpu::trace_norm_workspace_bytes(trace_norm_batch(problems, m, dx, dy, threads));
      },
      "Bytes of workspace that trace_norm_cpu needs.");
  module.def(
      "trace_norm_cpu",
      [](std::uintptr_t x, std::uintptr_t y, bool wide, std::int64_t problems, std::int64_t m, std::int64_t dx,
         std::int64_t dy, std::int64_t x_stride, std::int64_t y_stride, std::int64_t x_problem_stride,
         std::int64_t y_problem_stride, double rx, double ry, std::uintptr_t value, std::uintptr_t grad_x,
         std::uintptr_t grad_y, std::uintptr_t workspace, int threads) {
        auto batch = trace_norm_batch(problems, m, dx, dy, threads);
        batch.x = pointer<void>(x), batch.y = pointer<void>(y);
        batch.x_stride = x_stride, batch.y_stride = y_stride;
        batch.x_problem_stride = x_problem_stride, batch.y_problem_stride = y_problem_stride;
        batch.rx = rx, batch.ry = ry;
        batch.value = pointer<double>(value), batch.grad_x = pointer<void>(grad_x);
        batch.grad_y = pointer<void>(grad_y), batch.workspace = pointer<void>(workspace);
        py::gil_scoped_release unlocked;
        return wide ? xmodal::cpu::trace_norm_f64(batch) : xmodal::cpu::trace_norm_f32(batch);
      },
      "Trace norms and their gradients; a value is NaN, and the result false, where a covariance does not factorise.");
  using xmodal::cpu::Views;
  py::class_<Views>(module, "Views", "Samples of one view or two, as the covariance kernels take them.")
      .def(py::init([](std::uintptr_t x, std::uintptr_t y, std::int64_t m, std::int64_t dx, std::int64_t dy,
                       std::int64_t x_stride, std::int64_t y_stride, bool wide, int threads) {
             return Views{pointer<void>(x), pointer<void>(y), m, dx, dy, x_stride, y_stride, wide, threads, nullptr};
           }),
           py::kw_only(), py::arg("x"), py::arg("y"), py::arg("m"), py::arg("dx"), py::arg("dy"), py::arg("x_stride"),
           py::arg("y_stride"), py::arg("wide"), py::arg("threads"))
      .def("workspace_size", &xmodal::cpu::covariance_workspace, py::arg("backward"),
           "Bytes that a kernel needs; see set_workspace.")
      .def("set_workspace", [](Views& views, std::uintptr_t address) { views.workspace = pointer<void>(address); });
  module.def(
      "covariance_cpu",
      [](const Views& views, double rx, double ry, std::uintptr_t xx, std::uintptr_t xy, std::uintptr_t yy,
         std::uintptr_t mean_x, std::uintptr_t mean_y) {
        py::gil_scoped_release unlocked;
        xmodal::cpu::covariance(
            views, rx, ry,
            {pointer<void>(xx), pointer<void>(xy), pointer<void>(yy), pointer<void>(mean_x), pointer<void>(mean_y)});
      },
      "Covariances and means of the views.");
  module.def(
      "covariance_backward_cpu",
      [](const Views& views, std::uintptr_t weights, std::uintptr_t offset, std::uintptr_t grad_x,
         std::uintptr_t grad_y) {
        py::gil_scoped_release unlocked;
        xmodal::cpu::covariance_backward(views, pointer<void>(weights), pointer<void>(offset), pointer<void>(grad_x),
                                         pointer<void>(grad_y));
      },
      "Centred views times joint weights, plus an offset.");
  module.def("instruction_set", &xmodal::cpu::instruction_set, "The instruction set that the CPU kernels run with.");
}

void bind_triplets(py::module_& module) {
  using namespace xmodal::cpu;
  using Address = std::uintptr_t;
  py::class_<Pairs>(module, "Pairs", "Two sets of embeddings and their labels, as the triplet kernels take them.")
      .def(py::init([](Address anchor, Address ref, Address anchor_labels, Address ref_labels, std::int64_t m,
                       std::int64_t n, std::int64_t d, std::int64_t words, bool exclude_diagonal, bool wide,
                       int threads) {
             return Pairs{pointer<void>(anchor),
                          pointer<void>(ref),
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
           py::kw_only(), py::arg("anchor"), py::arg("ref"), py::arg("anchor_labels"), py::arg("ref_labels"),
           py::arg("m"), py::arg("n"), py::arg("d"), py::arg("words"), py::arg("exclude_diagonal"), py::arg("wide"),
           py::arg("threads"))
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

}  // namespace

void bind_cpu(py::module_& module) {
  bind_pair_of_views(module);
  bind_triplets(module);
}
