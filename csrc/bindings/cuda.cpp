// The CUDA kernels as the Python module _C.cuda; the headers in csrc/include/xmodal/cuda document the fields.
#include "bindings.h"

#ifdef XMODAL_WITH_CUDA
#include <stdexcept>
#include <string>
#include <tuple>
#include <vector>

#include "xmodal/cuda/covariance.h"
#include "xmodal/cuda/device.h"
#include "xmodal/cuda/mining.h"
#include "xmodal/cuda/products.h"
#include "xmodal/cuda/rotations.h"
#include "xmodal/cuda/trace_norm.h"
#include "xmodal/cuda/triplets.h"

namespace {

using namespace xmodal::cuda;
using Address = std::uintptr_t;

// A refused launch is no fault of the user's arguments, which Python has checked.
void check(int error) {
  if (error) throw std::runtime_error("CUDA: " + error_string(error));
}

void bind_matrix(py::module_& module) {
  py::enum_<DType>(module, "DType")
      .value("f32", DType::f32)
      .value("f16", DType::f16)
      .value("bf16", DType::bf16)
      .value("f64", DType::f64);
  bind_struct<Matrix>(module, "Matrix", "A matrix in device memory.", field("data", &Matrix::data),
                      field("stride", &Matrix::stride), field("rows", &Matrix::rows),
                      field("columns", &Matrix::columns), field("dtype", &Matrix::dtype),
                      optional("shift", &Matrix::shift), optional("batch", &Matrix::batch));
}

void bind_covariance(py::module_& module) {
  module.attr("MEANS_COLUMNS") = means_columns;
  bind_struct<ColumnMeans>(module, "ColumnMeans", "Column means of one or two views.", field("x", &ColumnMeans::x),
                           optional("y", &ColumnMeans::y), field("x_shift", &ColumnMeans::x_shift),
                           optional("y_shift", &ColumnMeans::y_shift), field("problems", &ColumnMeans::problems),
                           field("wide", &ColumnMeans::wide), field("splits", &ColumnMeans::splits),
                           field("partials", &ColumnMeans::partials));
  module.def("column_means",
             [](const ColumnMeans& means, Address stream) { check(column_means(means, pointer<void>(stream))); });
}

void bind_products(py::module_& module) {
  module.attr("SLICE") = slice;
  py::enum_<ProductLayout>(module, "ProductLayout")
      .value("nn", ProductLayout::nn)
      .value("tn", ProductLayout::tn)
      .value("nt", ProductLayout::nt);
  bind_struct<Term>(module, "Term", "One product of a sum.", field("a", &Term::a), field("b", &Term::b));
  bind_struct<Product>(
      module, "Product", "A sum of one or two products.", field("first", &Product::first),
      optional("second", &Product::second), field("rows", &Product::rows), field("columns", &Product::columns),
      field("symmetric", &Product::symmetric), field("alpha", &Product::alpha), field("beta", &Product::beta),
      field("gamma", &Product::gamma), field("add", &Product::add), field("add_stride", &Product::add_stride),
      field("out", &Product::out), field("out_stride", &Product::out_stride), field("out_dtype", &Product::out_dtype));
  bind_struct<Iteration>(module, "Iteration", "The state of an iteration that ends on the device.",
                         field("active", &Iteration::active), optional("previous", &Iteration::previous),
                         optional("change", &Iteration::change));
  bind_struct<Plan>(module, "Plan", "How products run.", field("problems", &Plan::problems), field("wide", &Plan::wide),
                    field("layout", &Plan::layout), field("tile", &Plan::tile), field("splits", &Plan::splits),
                    field("partials", &Plan::partials), optional("iteration", &Plan::iteration));
  module.def("product_tiles", &product_tiles, py::arg("rows"), py::arg("columns"), py::arg("symmetric"),
             py::arg("tile"));
  module.def("products", [](const std::vector<Product>& list, const Plan& plan, Address stream) {
    if (list.empty() || list.size() > max_products) throw py::value_error("a launch takes 1 to 3 products");
    check(products(list.data(), static_cast<int>(list.size()), plan, pointer<void>(stream)));
  });
  module.def("test_convergence", [](const Iteration& iteration, int tiles, double tolerance, Address stream) {
    check(test_convergence(iteration, tiles, tolerance, pointer<void>(stream)));
  });
}

void bind_trace_norm(py::module_& module) {
  module.attr("POLAR_EXPRESS_STEPS") = polar_express_steps;
  module.attr("SMALL_COLUMNS") = small_columns;
  module.def(
      "polar_steps",
      [](bool wide) {
        std::vector<std::tuple<double, double, double>> steps;
        for (const Quintic& q : polar_express) steps.emplace_back(q.a, q.b, q.c);
        for (int i = 0; i < polar_last_steps(wide); ++i) steps.emplace_back(polar_last.a, polar_last.b, polar_last.c);
        return steps;
      },
      py::arg("wide"), "The coefficients of all steps of the polar iteration.");
  bind_struct<SmallTraceNorm>(
      module, "SmallTraceNorm", "The trace norm of views with few columns.", field("x", &SmallTraceNorm::x),
      field("y", &SmallTraceNorm::y), optional("xx", &SmallTraceNorm::xx), optional("xy", &SmallTraceNorm::xy),
      optional("yy", &SmallTraceNorm::yy), field("rx", &SmallTraceNorm::rx), field("ry", &SmallTraceNorm::ry),
      field("top_k", &SmallTraceNorm::top_k), optional("sigma", &SmallTraceNorm::sigma),
      optional("value", &SmallTraceNorm::value), optional("gxx", &SmallTraceNorm::gxx),
      optional("gxy", &SmallTraceNorm::gxy), optional("gyx", &SmallTraceNorm::gyx),
      optional("gyy", &SmallTraceNorm::gyy), field("workspace", &SmallTraceNorm::workspace),
      field("problems", &SmallTraceNorm::problems), field("blocks", &SmallTraceNorm::blocks),
      field("wide", &SmallTraceNorm::wide));
  module.def("small_workspace", &small_workspace, py::arg("dx"), py::arg("dy"), py::arg("wide"),
             "Numbers of workspace that a block of small_trace_norm needs.");
  module.def("small_trace_norm",
             [](const SmallTraceNorm& task, Address stream) { check(small_trace_norm(task, pointer<void>(stream))); });
}

void bind_rotations(py::module_& module) {
  bind_struct<RowRotations>(module, "RowRotations", "Rotations that make rows orthogonal.",
                            field("rows", &RowRotations::rows), field("count", &RowRotations::count),
                            field("length", &RowRotations::length), field("width", &RowRotations::width),
                            field("sweeps", &RowRotations::sweeps), field("rotated", &RowRotations::rotated));
  module.def("rotation_width", &rotation_width, py::arg("length"),
             "The largest group of rows that fits into shared memory, 0 if rows are too long.");
  module.def("orthogonalise_rows",
             [](const RowRotations& task, Address stream) { check(orthogonalise_rows(task, pointer<void>(stream))); });
}

void bind_mining(py::module_& module) {
  bind_struct<LabelledPairs>(
      module, "LabelledPairs", "Two sets of labelled embeddings.", field("anchor", &LabelledPairs::anchor),
      field("ref", &LabelledPairs::ref), field("anchor_norms", &LabelledPairs::anchor_norms),
      field("ref_norms", &LabelledPairs::ref_norms), field("anchor_labels", &LabelledPairs::anchor_labels),
      field("ref_labels", &LabelledPairs::ref_labels), field("words", &LabelledPairs::words),
      field("exclude_diagonal", &LabelledPairs::exclude_diagonal), field("wide", &LabelledPairs::wide),
      field("tile", &LabelledPairs::tile));
  bind_struct<Choice>(module, "Choice", "What to mine for every anchor.", field("positive", &Choice::positive),
                      field("farthest", &Choice::farthest), field("floor", &Choice::floor),
                      field("bound", &Choice::bound), field("key", &Choice::key));
  bind_struct<Mined>(module, "Mined", "The mined references of every anchor.", field("index", &Mined::index),
                     field("distance", &Mined::distance), optional("square", &Mined::square));
  module.def("squared_norms", [](const Matrix& rows, bool wide, Address norms, Address stream) {
    check(squared_norms(rows, wide, pointer<void>(norms), pointer<void>(stream)));
  });
  module.def("mine", [](const LabelledPairs& pairs, const std::vector<Choice>& choices, Address counts,
                        Address stream) {
    if (choices.empty() || choices.size() > 2) throw py::value_error("a search takes 1 or 2 choices");
    check(mine(pairs, choices.data(), static_cast<int>(choices.size()), pointer<int>(counts), pointer<void>(stream)));
  });
  module.def("read_mined", [](const LabelledPairs& pairs, const Choice& choice, const Mined& mined, Address stream) {
    check(read_mined(pairs, choice, mined, pointer<void>(stream)));
  });
  module.def("draw_negatives", [](const LabelledPairs& pairs, std::int64_t seed, const Mined& mined, Address stream) {
    check(draw_negatives(pairs, seed, mined, pointer<void>(stream)));
  });
}

void bind_triplet_losses(py::module_& module) {
  bind_struct<Chunk>(module, "Chunk", "Some anchors, their pairs, and the outputs of a loss.",
                     field("first", &Chunk::first), field("rows", &Chunk::rows), field("pairs", &Chunk::pairs),
                     field("stride", &Chunk::stride), field("sums", &Chunk::sums), field("weights", &Chunk::weights));
  bind_struct<StructureLoss>(
      module, "StructureLoss", "The structure preserving loss.", field("anchor_pull", &StructureLoss::anchor_pull),
      field("anchor_push", &StructureLoss::anchor_push), field("ref_pull", &StructureLoss::ref_pull),
      field("ref_push", &StructureLoss::ref_push), field("margin", &StructureLoss::margin));
  bind_struct<MarginLoss>(module, "MarginLoss", "The triplet margin loss.", field("triplets", &MarginLoss::triplets),
                          field("margin", &MarginLoss::margin), field("weight", &MarginLoss::weight),
                          field("in_shared", &MarginLoss::in_shared), field("capacity", &MarginLoss::capacity),
                          field("ranked", &MarginLoss::ranked), field("counts", &MarginLoss::counts));
  module.def("measure_pairs", [](const LabelledPairs& pairs, const Chunk& chunk, Address stream) {
    check(measure_pairs(pairs, chunk, pointer<void>(stream)));
  });
  module.def("structure_loss",
             [](const LabelledPairs& pairs, const Chunk& chunk, const StructureLoss& loss, Address stream) {
               check(structure_loss(pairs, chunk, loss, pointer<void>(stream)));
             });
  module.def("margin_loss", [](const LabelledPairs& pairs, const Chunk& chunk, const MarginLoss& loss, Address stream) {
    check(margin_loss(pairs, chunk, loss, pointer<void>(stream)));
  });
}

}  // namespace

void bind_cuda(py::module_& module) {
  module.attr("with_cuda") = true;
  module.def("cuda_archs", &architectures, "The architectures that this binary holds code for.");
  module.def("cuda_unavailable", &unavailable, "Why the driver cannot run the kernels; empty if it can.");
  auto cuda = module.def_submodule("cuda", "The CUDA kernels.");
  cuda.def("set_device", [](int index) { check(set_device(index)); }, py::arg("index"));
  bind_matrix(cuda);
  bind_covariance(cuda);
  bind_products(cuda);
  bind_trace_norm(cuda);
  bind_rotations(cuda);
  bind_mining(cuda);
  bind_triplet_losses(cuda);
  cuda.attr("Triplets") = module.attr("Triplets");  // bound for the CPU
}
#else
#include <string>
#include <vector>

void bind_cuda(py::module_& module) {
  module.attr("with_cuda") = false;
  module.def("cuda_archs", [] { return std::vector<std::string>(); });
  module.def("cuda_unavailable", [] { return std::string("this build has no CUDA kernels: " XMODAL_NO_CUDA); });
}
#endif
