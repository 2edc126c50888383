#include <algorithm>

#include "rotations.cuh"

namespace xmodal::cuda {

int rotation_width(int length) {
  constexpr std::size_t own = 1 << 10, most = detail::rotation_threads / 32;  // one warp per pair of a round
  return static_cast<int>(std::min(most, detail::shared_limit(own) / (2 * sizeof(double) * length)));
}

int orthogonalise_rows(const RowRotations& task, void* stream) {
  const int groups = detail::ceil_div(task.count, task.width), items = groups + groups % 2;
  const std::size_t shared = 2 * sizeof(double) * task.width * task.length;
  for (int sweep = 0; sweep < task.sweeps; ++sweep)
    for (int round = 0; round + 1 < items; ++round)
      if (const int error = detail::launch(rotate_rows, items / 2, detail::rotation_threads, shared,
                                           static_cast<cudaStream_t>(stream), task, sweep, round))
        return error;
  return 0;
}

}  // namespace xmodal::cuda
