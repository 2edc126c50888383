// The CUDA kernels as Python functions; without them, why there are none.
#include <optional>
#include <stdexcept>
#include <string>
#include <tuple>
#include <vector>

#include "bindings.h"

#ifdef XMODAL_WITH_CUDA
#include "xmodal/cuda.h"
#include "xmodal/cuda_triplets.h"

namespace cuda = xmodal::cuda;

namespace {

// A launch that the driver refused: not the user's doing.
void check(int error) {
  if (error) throw std::runtime_error("CUDA: " + cuda::error_string(error));
}

void bind_products(py::module_& module) {
  py::class_<cuda::Matrix>(module, "Matrix")
      .def(py::init([](std::uintptr_t data, std::int64_t stride, int rows, int columns, int kind, std::uintptr_t shift,
                       std::int64_t batch) {
             return cuda::Matrix{pointer<void>(data),  stride, rows, columns, static_cast<cuda::Kind>(kind),
                                 pointer<void>(shift), batch};
           }),
           py::arg("data"), py::arg("stride"), py::arg("rows"), py::arg("columns"), py::arg("kind"),
           py::arg("shift") = 0, py::arg("batch") = 0);
  py::class_<cuda::Product>(module, "Product")
      .def(py::init([](std::vector<cuda::Matrix> a, std::vector<cuda::Matrix> b, int rows, int columns, bool symmetric,
                       double alpha, double beta, double gamma, std::uintptr_t add, std::int64_t add_stride,
                       std::uintptr_t out, std::int64_t out_stride, int out_kind) {
        if (a.empty() || a.size() > 2 || a.size() != b.size())
          throw py::value_error("a and b must hold 1 or 2 factors");
        cuda::Product p;
        p.terms = static_cast<int>(a.size());
        for (int i = 0; i < p.terms; ++i) p.a[i] = a[i], p.b[i] = b[i];
        p.rows = rows, p.columns = columns, p.symmetric = symmetric;
        p.alpha = alpha, p.beta = beta, p.gamma = gamma;
        p.add = pointer<void>(add), p.add_stride = add_stride;
        p.out = pointer<void>(out), p.out_stride = out_stride, p.out_kind = static_cast<cuda::Kind>(out_kind);
        return p;
      }));
  module.def("cuda_products", [](const std::vector<cuda::Product>& list, int problems, bool wide, int layout, int tile,
                                 int splits, std::uintptr_t partials, std::uintptr_t active, std::uintptr_t previous,
                                 std::uintptr_t change, std::uintptr_t stream) {
    if (list.empty() || list.size() > 3) throw py::value_error("a launch takes 1 to 3 products");
    cuda::Plan plan;
    plan.problems = problems;
    plan.wide = wide, plan.layout = static_cast<cuda::Layout>(layout), plan.tile = tile, plan.splits = splits;
    plan.partials = pointer<void>(partials), plan.active = pointer<int>(active);
    plan.previous = pointer<void>(previous), plan.change = pointer<double>(change);
    check(cuda::products(list.data(), static_cast<int>(list.size()), plan, pointer<void>(stream)));
  });
  module.def("cuda_settle", [](std::uintptr_t change, int tiles, double tolerance, std::uintptr_t active,
                               std::uintptr_t stream) {
    check(cuda::settle(pointer<double>(change), tiles, tolerance, pointer<int>(active), pointer<void>(stream)));
  });
  module.def("cuda_column_means",
             [](const std::vector<cuda::Matrix>& views, int problems, bool wide, int splits, std::uintptr_t partials,
                const std::vector<std::uintptr_t>& shifts, std::uintptr_t stream) {
               if (views.empty() || views.size() > 2 || views.size() != shifts.size())
                 throw py::value_error("one or two views");
               void* targets[2] = {};
               for (std::size_t i = 0; i < shifts.size(); ++i) targets[i] = pointer<void>(shifts[i]);
               check(cuda::column_means(views.data(), static_cast<int>(views.size()), problems, wide, splits,
                                        pointer<double>(partials), targets, pointer<void>(stream)));
             });
}

void bind_trace_norm(py::module_& module) {
  module.def("polar_steps", [](bool wide) {
    std::vector<std::tuple<double, double, double>> steps;
    for (const cuda::Quintic& q : cuda::polar_express) steps.emplace_back(q.a, q.b, q.c);
    for (int i = 0; i < cuda::polar_last_steps(wide); ++i)
      steps.emplace_back(cuda::polar_last.a, cuda::polar_last.b, cuda::polar_last.c);
    return steps;
  });
  module.def("cuda_rotation_width", &cuda::rotation_width);
  module.def("cuda_orthogonalise_rows", [](std::uintptr_t rows, int count, int length, int width, int sweeps,
                                           std::uintptr_t rotated, std::uintptr_t stream) {
    check(cuda::orthogonalise_rows(pointer<double>(rows), count, length, width, sweeps, pointer<int>(rotated),
                                   pointer<void>(stream)));
  });
  module.def("cuda_small_workspace", &cuda::small_workspace);
  module.def("cuda_small_trace_norm",
             [](const cuda::Matrix& x, const cuda::Matrix& y, std::uintptr_t xx, std::uintptr_t xy, std::uintptr_t yy,
                double rx, double ry, int top_k, std::uintptr_t sigma, std::uintptr_t value, std::uintptr_t gxx,
                std::uintptr_t gxy, std::uintptr_t gyx, std::uintptr_t gyy, std::uintptr_t workspace, int problems,
                int blocks, bool wide, std::uintptr_t stream) {
               const cuda::SmallTraceNorm task{x,
                                               y,
                                               pointer<void>(xx),
                                               pointer<void>(xy),
                                               pointer<void>(yy),
                                               rx,
                                               ry,
                                               top_k,
                                               pointer<void>(sigma),
                                               pointer<void>(value),
                                               pointer<void>(gxx),
                                               pointer<void>(gxy),
                                               pointer<void>(gyx),
                                               pointer<void>(gyy),
                                               pointer<void>(workspace),
                                               problems,
                                               blocks};
               check(cuda::small_trace_norm(task, wide, pointer<void>(stream)));
             });
}

void bind_mining(py::module_& module) {
  py::class_<cuda::LabelledPairs>(module, "LabelledPairs")
      .def(py::init([](const cuda::Matrix& anchor, const cuda::Matrix& ref, std::uintptr_t anchor_norms,
                       std::uintptr_t ref_norms, std::uintptr_t anchor_labels, std::uintptr_t ref_labels, int words,
                       bool exclude_diagonal) {
        return cuda::LabelledPairs{anchor,
                                   ref,
                                   pointer<void>(anchor_norms),
                                   pointer<void>(ref_norms),
                                   pointer<std::int64_t>(anchor_labels),
                                   pointer<std::int64_t>(ref_labels),
                                   words,
                                   exclude_diagonal};
      }));
  py::class_<cuda::Choice>(module, "Choice")
      .def(py::init([](bool positive, bool farthest, std::uintptr_t floor, std::uintptr_t bound, std::uintptr_t key) {
        return cuda::Choice{positive, farthest, pointer<double>(floor), pointer<unsigned long long>(bound),
                            pointer<unsigned long long>(key)};
      }));
  module.def("cuda_squared_norms",
             [](const cuda::Matrix& rows, bool wide, std::uintptr_t norms, std::uintptr_t stream) {
               check(cuda::squared_norms(rows, wide, pointer<void>(norms), pointer<void>(stream)));
             });
  module.def("cuda_mine", [](const cuda::LabelledPairs& pairs, const std::vector<cuda::Choice>& choices,
                             std::uintptr_t counts, bool wide, int tile, std::uintptr_t stream) {
    if (choices.empty() || choices.size() > 2) throw py::value_error("one or two choices");
    check(cuda::mine(pairs, choices.data(), static_cast<int>(choices.size()), pointer<int>(counts), wide, tile,
                     pointer<void>(stream)));
  });
  module.def("cuda_mined", [](const cuda::LabelledPairs& pairs, const cuda::Choice& choice, std::uintptr_t index,
                              std::uintptr_t distance, std::uintptr_t square, bool wide, std::uintptr_t stream) {
    check(cuda::mined(pairs, choice, pointer<std::int64_t>(index), pointer<void>(distance), pointer<double>(square),
                      wide, pointer<void>(stream)));
  });
  module.def("cuda_draw_negatives", [](const cuda::LabelledPairs& pairs, std::int64_t seed, std::uintptr_t index,
                                       std::uintptr_t distance, bool wide, std::uintptr_t stream) {
    check(cuda::draw_negatives(pairs, seed, pointer<std::int64_t>(index), pointer<void>(distance), wide,
                               pointer<void>(stream)));
  });
}

void bind_triplet_losses(py::module_& module) {
  using Address = std::uintptr_t;
  py::class_<cuda::Chunk>(module, "Chunk").def(py::init([](int first, int rows, Address pairs, std::int64_t stride) {
    return cuda::Chunk{first, rows, pointer<void>(pairs), stride};
  }));
  py::class_<cuda::AnchorSums>(module, "AnchorSums").def(py::init([](Address sums, Address weights) {
    return cuda::AnchorSums{pointer<double>(sums), pointer<double>(weights)};
  }));
  module.def("cuda_measure",
             [](const cuda::LabelledPairs& pairs, const cuda::Chunk& chunk, bool wide, int tile, Address stream) {
               check(cuda::measure(pairs, chunk, wide, tile, pointer<void>(stream)));
             });
  module.def(
      "cuda_structure_preserving",
      [](const cuda::LabelledPairs& pairs, const cuda::Chunk& chunk, Address anchor_pull, Address anchor_push,
         Address ref_pull, Address ref_push, double margin, const cuda::AnchorSums& out, bool wide, Address stream) {
        const cuda::StructurePreserving loss{pointer<void>(anchor_pull), pointer<void>(anchor_push),
                                             pointer<void>(ref_pull), pointer<void>(ref_push), margin};
        check(cuda::structure_preserving(pairs, chunk, loss, out, wide, pointer<void>(stream)));
      });
  module.def("cuda_triplet_margin",
             [](const cuda::LabelledPairs& pairs, const cuda::Chunk& chunk, int triplets, double margin, Address weight,
                int in_shared, Address ranked, Address counts, const cuda::AnchorSums& out, bool wide, Address stream) {
               const cuda::TripletMargin loss{static_cast<cuda::Triplets>(triplets),
                                              margin,
                                              pointer<double>(weight),
                                              in_shared,
                                              pointer<void>(ranked),
                                              pointer<int>(counts)};
               check(cuda::triplet_margin(pairs, chunk, loss, out, wide, pointer<void>(stream)));
             });
}
}  // namespace

void bind_cuda(py::module_& module) {
  bind_products(module);
  bind_trace_norm(module);
  bind_mining(module);
  bind_triplet_losses(module);
  module.attr("with_cuda") = true;
  module.def("cuda_set_device", [](int index) { check(cuda::set_device(index)); });
  module.def("cuda_archs", &xmodal::cuda::architectures, "The architectures that this binary holds code for.");
  module.def("cuda_unavailable", &xmodal::cuda::unavailable, "Why no kernel can run here; empty where one can.");
}
#else
void bind_cuda(py::module_& module) {
  module.attr("with_cuda") = false;
  module.def("cuda_archs", [] { return std::vector<std::string>(); });
  module.def("cuda_unavailable", [] { return std::string("this build has no CUDA kernels"); });
}
#endif
