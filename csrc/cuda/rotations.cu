#include <algorithm>

#include "rotations.cuh"
#include "xmodal/cuda.h"

namespace xmodal::cuda {

int rotation_width(int length) {
  constexpr std::size_t own = 1 << 10, most = detail::rotation_threads / 32;  // a warp for each pair of a round
  return static_cast<int>(std::min(most, detail::shared_limit(own) / (2 * sizeof(double) * length)));
}

int orthogonalise_rows(double* rows, int count, int length, int width, int sweeps, int* rotated, void* stream) {
  const Rotations task{rows, count, length, width, rotated};
  const int groups = detail::ceil_div(count, width), players = groups + groups % 2;
  const std::size_t shared = 2 * sizeof(double) * width * length;
  for (int sweep = 0; sweep < sweeps; ++sweep)
    for (int round = 0; round + 1 < players; ++round)
      if (const int error = detail::launch(rotate_rows, players / 2, detail::rotation_threads, shared,
                                           static_cast<cudaStream_t>(stream), task, sweep, round))
        return error;
  return 0;
}

}  // namespace xmodal::cuda
