// Orthogonalises the rows of a matrix too large for one block, by the one-sided Jacobi of detail/rotations.cuh.
//
// Groups of `width` rows are paired in a round-robin. A block takes one pair of groups and runs one sweep over its
// 2·width rows in shared memory. A launch is a round; the groups' rounds together are a sweep over the matrix.
#pragma once

#include "detail/portable.cuh"
#include "detail/reduce.cuh"
#include "detail/rotations.cuh"
#include "xmodal/cuda/rotations.h"

namespace xmodal::cuda {

namespace detail {
constexpr int rotation_threads = 512;
}

__global__ void __launch_bounds__(detail::rotation_threads) rotate_rows(RowRotations task, int sweep, int round) {
  using namespace detail;
  XMODAL_DYNAMIC_SHARED(double, shared);
  if (sweep > 0 && task.rotated[sweep - 1] == 0) return;  // converged
  const int groups = ceil_div(task.count, task.width);
  const Pairing own = round_robin(round, blockIdx.x, groups + groups % 2);
  const auto begin = [&](int group) { return min(group * task.width, task.count); };  // an odd group's partner is empty
  const int low = min(own.first, own.second), high = max(own.first, own.second);
  const int first = begin(low), in_first = begin(low + 1) - first;
  const int second = begin(high), in_second = begin(high + 1) - second;
  const auto row = [&](int i) {
    return task.rows + static_cast<long long>(i < in_first ? first + i : second + i - in_first) * task.length;
  };
  const int numbers = (in_first + in_second) * task.length;
  for (int i = threadIdx.x; i < numbers; i += rotation_threads) shared[i] = row(i / task.length)[i % task.length];
  __syncthreads();
  const int rotations =
      block_sum(sweep_rows<rotation_threads / 32>(shared, in_first + in_second, task.length, task.length));
  if (rotations == 0) return;
  for (int i = threadIdx.x; i < numbers; i += rotation_threads) row(i / task.length)[i % task.length] = shared[i];
  if (threadIdx.x == 0) task.rotated[sweep] = 1;
}

}  // namespace xmodal::cuda
