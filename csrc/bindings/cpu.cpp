// The CPU kernels as Python functions.
#include "bindings.h"
#include "xmodal/cpu/covariance.h"
#include "xmodal/cpu/mining.h"
#include "xmodal/cpu/pairs.h"
#include "xmodal/cpu/runtime.h"
#include "xmodal/cpu/structure_preserving.h"
#include "xmodal/cpu/trace_norm.h"
#include "xmodal/cpu/triplet_margin.h"

namespace {

using namespace xmodal::cpu;
using Unlocked = py::call_guard<py::gil_scoped_release>;

void bind_views(py::module_& module) {
  bind_struct(module, "Views", "Samples of one or two views.", field("x", &Views::x), field("y", &Views::y),
              field("m", &Views::m), field("dx", &Views::dx), field("dy", &Views::dy),
              field("x_stride", &Views::x_stride), field("y_stride", &Views::y_stride), field("wide", &Views::wide),
              field("threads", &Views::threads), optional("workspace", &Views::workspace))
      .def("workspace_size", &covariance_workspace, py::arg("backward"), "Bytes of workspace that the kernel needs.");
  bind_struct(module, "CovarianceForward", "Ridges, and the results of `covariance`.",
              field("rx", &CovarianceForward::rx), field("ry", &CovarianceForward::ry),
              field("xx", &CovarianceForward::xx), field("xy", &CovarianceForward::xy),
              field("yy", &CovarianceForward::yy), field("mean_x", &CovarianceForward::mean_x),
              field("mean_y", &CovarianceForward::mean_y));
  bind_struct(module, "CovarianceBackward", "Joint weights, an offset, and the gradients.",
              field("weights", &CovarianceBackward::weights), field("offset", &CovarianceBackward::offset),
              field("grad_x", &CovarianceBackward::grad_x), field("grad_y", &CovarianceBackward::grad_y));
  module.def("covariance", &covariance, Unlocked(), "Covariances and means of the views.");
  module.def("covariance_backward", &covariance_backward, Unlocked(), "Centred views times weights, plus the offset.");
}

void bind_trace_norm(py::module_& module) {
  module.attr("TRACE_NORM_MAX_DIM") = kTraceNormMaxDim;
  bind_struct(module, "TraceNorm", "A batch of pairs of views, and the results of `trace_norm`.",
              field("x", &TraceNorm::x), field("y", &TraceNorm::y), field("wide", &TraceNorm::wide),
              field("problems", &TraceNorm::problems), field("m", &TraceNorm::m), field("dx", &TraceNorm::dx),
              field("dy", &TraceNorm::dy), field("x_stride", &TraceNorm::x_stride),
              field("y_stride", &TraceNorm::y_stride), field("x_problem_stride", &TraceNorm::x_problem_stride),
              field("y_problem_stride", &TraceNorm::y_problem_stride), field("rx", &TraceNorm::rx),
              field("ry", &TraceNorm::ry), field("value", &TraceNorm::value), field("grad_x", &TraceNorm::grad_x),
              field("grad_y", &TraceNorm::grad_y), field("threads", &TraceNorm::threads),
              optional("workspace", &TraceNorm::workspace))
      .def("workspace_size", &trace_norm_workspace, "Bytes of workspace that the kernel needs.");
  module.def("trace_norm", &trace_norm, Unlocked(), "Trace norms and their gradients; False if a value is NaN.");
}

void bind_pairs(py::module_& module) {
  py::enum_<xmodal::PairSum>(module, "PairSum", py::arithmetic(), "Rows of PairSums.sums.")
      .value("loss", xmodal::PairSum::loss)
      .value("active", xmodal::PairSum::active)
      .value("positives", xmodal::PairSum::positives)
      .value("negatives", xmodal::PairSum::negatives)
      .value("positive_distance", xmodal::PairSum::positive_distance)
      .value("negative_distance", xmodal::PairSum::negative_distance);
  bind_struct(module, "Pairs", "Two sets of embeddings and their labels.", field("anchor", &Pairs::anchor),
              field("ref", &Pairs::ref), field("anchor_labels", &Pairs::anchor_labels),
              field("ref_labels", &Pairs::ref_labels), field("m", &Pairs::m), field("n", &Pairs::n),
              field("d", &Pairs::d), field("words", &Pairs::words), field("exclude_diagonal", &Pairs::exclude_diagonal),
              field("wide", &Pairs::wide), field("threads", &Pairs::threads), optional("workspace", &Pairs::workspace))
      .def("workspace_size", &pairs_workspace, py::arg("weights"), "Bytes of workspace that the kernel needs.");
  bind_struct(module, "PairSums", "The results of a loss over all pairs.", field("sums", &PairSums::sums),
              field("anchor_grad", &PairSums::anchor_grad), field("ref_grad", &PairSums::ref_grad));
}

void bind_mining(py::module_& module) {
  py::enum_<Positive>(module, "Positive").value("hard", Positive::hard).value("easy", Positive::easy);
  py::enum_<Negative>(module, "Negative")
      .value("hard", Negative::hard)
      .value("easy", Negative::easy)
      .value("semihard", Negative::semihard)
      .value("random", Negative::random);
  bind_struct(module, "Mining", "The rule of the choice, and the results of `mine_triplets`.",
              field("positive", &Mining::positive), field("negative", &Mining::negative),
              field("beyond_hardest", &Mining::beyond_hardest), field("margin", &Mining::margin),
              field("seed", &Mining::seed), field("positive_idx", &Mining::positive_idx),
              field("negative_idx", &Mining::negative_idx), field("d_ap", &Mining::d_ap), field("d_an", &Mining::d_an),
              field("n_pos", &Mining::n_pos), field("n_neg", &Mining::n_neg));
  module.def("mine_triplets", &mine_triplets, Unlocked(), "One positive and one negative per anchor.");
}

void bind_losses(py::module_& module) {
  bind_struct(module, "StructurePreserving", "Coefficients of anchors and references.",
              field("anchor_pull", &StructurePreserving::anchor_pull),
              field("anchor_push", &StructurePreserving::anchor_push),
              field("ref_pull", &StructurePreserving::ref_pull), field("ref_push", &StructurePreserving::ref_push),
              field("margin", &StructurePreserving::margin));
  module.def("structure_preserving", &structure_preserving, Unlocked(), "ACMR's structure preserving loss.");
  py::enum_<xmodal::Triplets>(module, "Triplets", "The triplets that a margin loss counts.")
      .value("all", xmodal::Triplets::all)
      .value("hard", xmodal::Triplets::hard)
      .value("semihard", xmodal::Triplets::semihard);
  bind_struct(module, "TripletMargin", "The triplets that count, the margin, and the weights of anchors.",
              field("triplets", &TripletMargin::triplets), field("margin", &TripletMargin::margin),
              optional("weight", &TripletMargin::weight));
  module.def("triplet_margin", &triplet_margin, Unlocked(), "The margin loss over all triplets.");
}

}  // namespace

void bind_cpu(py::module_& module) {
  bind_views(module);
  bind_trace_norm(module);
  bind_pairs(module);
  bind_mining(module);
  bind_losses(module);
  module.def("instruction_set", &instruction_set, "The instruction set that the CPU kernels use.");
}
