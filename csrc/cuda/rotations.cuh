// Singular values and vectors of a matrix too large for one block, by one-sided Jacobi on groups of its rows.
//
// Groups of `width` rows meet in pairs, a block a pair: it makes their 2·width rows orthogonal, as far as one sweep
// over them goes, in shared memory. A launch is a round of meetings, players − 1 rounds are a sweep over the matrix.
#pragma once

#include "detail/portable.cuh"
#include "detail/reduce.cuh"
#include "detail/rotations.cuh"

namespace xmodal::cuda {

struct Rotations {
  double* rows;
  int count, length, width;
  int* rotated;  // of each sweep, whether there was anything to rotate
};

namespace detail {
constexpr int rotation_threads = 512;
}

__global__ void __launch_bounds__(detail::rotation_threads) rotate_rows(Rotations task, int sweep, int round) {
  using namespace detail;
  XMODAL_DYNAMIC_SHARED(double, shared);
  if (sweep > 0 && task.rotated[sweep - 1] == 0) return;  // all rows are orthogonal
  const int groups = ceil_div(task.count, task.width);
  const Meeting groups_here = meeting(round, blockIdx.x, groups + groups % 2);
  const auto begin = [&](int group) { return min(group * task.width, task.count); };  // the odd one's partner is empty
  const int low = min(groups_here.first, groups_here.second), high = max(groups_here.first, groups_here.second);
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
