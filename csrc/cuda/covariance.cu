#include <algorithm>

#include "covariance.cuh"

namespace xmodal::cuda {

namespace {

template <typename T>
int run(const MeansTask& task, int columns, cudaStream_t stream) {
  const dim3 sums(detail::ceil_div(columns, means_columns) * task.problems, task.splits, task.views);
  if (const int error = detail::launch(sum_columns<T>, sums, 256, 0, stream, task)) return error;
  const dim3 means(detail::ceil_div(columns, 128) * task.problems, 1, task.views);
  return detail::launch(divide_sums<T>, means, 128, 0, stream, task);
}

}  // namespace

int column_means(const ColumnMeans& means, void* stream) {
  MeansTask task{};
  task.view[0] = means.x, task.view[1] = means.y;
  task.shift[0] = means.x_shift, task.shift[1] = means.y_shift;
  task.views = means.y.data ? 2 : 1;
  task.problems = means.problems, task.splits = means.splits, task.partials = means.partials;
  for (int v = 0; v < task.views; ++v) task.vectors[v] = detail::vector_loads(task.view[v]);
  const int columns = std::max(means.x.columns, means.y.columns);
  const auto queue = static_cast<cudaStream_t>(stream);
  return means.wide ? run<double>(task, columns, queue) : run<float>(task, columns, queue);
}

}  // namespace xmodal::cuda
