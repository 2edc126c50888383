#include <algorithm>

#include "covariance.cuh"

namespace xmodal::cuda {

namespace {

template <typename T>
int run(const MeansTask& task, int columns, cudaStream_t stream) {
  const dim3 sums(detail::ceil_div(columns, detail::means_columns) * task.problems, task.splits, task.views);
  if (const int error = detail::launch(sum_columns<T>, sums, 256, 0, stream, task)) return error;
  const dim3 columns_of_all(detail::ceil_div(columns, 128) * task.problems, 1, task.views);
  return detail::launch(divide_sums<T>, columns_of_all, 128, 0, stream, task);
}

}  // namespace

int column_means(const Matrix* views, int count, int problems, bool wide, int splits, double* partials,
                 void* const* shifts, void* stream) {
  MeansTask task{};
  task.views = count, task.problems = problems, task.splits = splits, task.partials = partials;
  int columns = 0;
  for (int v = 0; v < count; ++v) {
    task.view[v] = views[v];
    task.vectors[v] = detail::vector_loads(views[v]);
    task.shift[v] = shifts[v];
    columns = std::max(columns, views[v].columns);
  }
  const auto queue = static_cast<cudaStream_t>(stream);
  return wide ? run<double>(task, columns, queue) : run<float>(task, columns, queue);
}

}  // namespace xmodal::cuda
