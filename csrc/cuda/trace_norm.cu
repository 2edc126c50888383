#include <algorithm>

#include "trace_norm.cuh"

namespace xmodal::cuda {

namespace {

constexpr double safe = 1.01, safe3 = safe * safe * safe, safe5 = safe3 * safe * safe;

int edge_of(int dx, int dy) { return detail::ceil_div(std::max(dx, dy), 16) * 16; }

constexpr std::size_t own_shared = 16 << 10;  // static shared memory of the kernel, at most

template <typename T>
std::size_t square_bytes(int edge) {
  return sizeof(T) * edge * detail::small_stride<T>(edge);
}

template <typename T>
int shared_squares(int edge) {
  return static_cast<int>(
      std::min<std::size_t>(detail::small_squares, detail::shared_limit(own_shared) / square_bytes<T>(edge)));
}

template <typename T>
int run(const SmallTraceNorm& call, cudaStream_t stream) {
  SmallTask task{};
  task.call = call;
  task.x_vectors = detail::vector_loads(call.x), task.y_vectors = detail::vector_loads(call.y);
  task.edge = edge_of(call.x.columns, call.y.columns);
  task.shared_squares = shared_squares<T>(task.edge);
  task.scale = 1.0 / (call.x.rows - 1);
  task.tolerance = sizeof(T) == 4 ? 1e-4 : 1e-8;
  std::copy_n(polar_express, polar_express_steps, task.steps);
  return detail::launch(small_trace_norm_kernel<T>, call.blocks, detail::small_threads,
                        task.shared_squares * square_bytes<T>(task.edge), stream, task);
}

}  // namespace

const Quintic polar_express[polar_express_steps] = {
    {8.28721201814563 / safe, -23.595886519098837 / safe3, 17.300387312530933 / safe5},
    {4.107059111542203 / safe, -2.9478499167379106 / safe3, 0.5448431082926601 / safe5},
    {3.9486908534822946 / safe, -2.908902115962949 / safe3, 0.5518191394370137 / safe5},
    {3.3184196573706015 / safe, -2.488488024314874 / safe3, 0.51004894012372 / safe5},
    {2.300652019954817 / safe, -1.6689039845749893 / safe3, 0.4188073119525673 / safe5},
    {1.891301407787398 / safe, -1.2679958271945868 / safe3, 0.37680408948524835 / safe5},
    {1.8750014808534479 / safe, -1.2500016453999487 / safe3, 0.3750001645474248 / safe5},
    {1.875, -1.25, 0.375},
};

std::int64_t small_workspace(int dx, int dy, bool wide) {
  const int edge = edge_of(dx, dy);
  const int outside = detail::small_squares - (wide ? shared_squares<double>(edge) : shared_squares<float>(edge));
  return static_cast<std::int64_t>(outside) * edge *
         (wide ? detail::small_stride<double>(edge) : detail::small_stride<float>(edge));
}

int small_trace_norm(const SmallTraceNorm& task, void* stream) {
  const auto queue = static_cast<cudaStream_t>(stream);
  return task.wide ? run<double>(task, queue) : run<float>(task, queue);
}

}  // namespace xmodal::cuda
