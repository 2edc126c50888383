// Column means μ_j = Σ_i x_ij / m of one or two views, summed in fp64 in a fixed order.
//
// A mean is stored as high + low in twice the working precision: (x − high) − low is then exact up to rounding, even if
// |μ| is far larger than the deviation.
#pragma once

#include "detail/portable.cuh"
#include "detail/tile.cuh"
#include "xmodal/cuda/covariance.h"

namespace xmodal::cuda {

struct MeansTask {
  Matrix view[2];
  bool vectors[2];
  void* shift[2];
  int views, problems, splits;
  double* partials;  // [view][problem][split][column]
};

namespace detail {

constexpr int means_lanes = 8;

__device__ inline double* means_partials(const MeansTask& task, int view, int problem) {
  const long long before = view ? static_cast<long long>(task.problems) * task.view[0].columns : 0;
  return task.partials + task.splits * (before + static_cast<long long>(problem) * task.view[view].columns);
}

}  // namespace detail

// A block sums means_columns columns, four per thread, over its share of the rows.
// blockIdx = (columns, problem by problem; split; view).
template <typename T>
__global__ void __launch_bounds__(256) sum_columns(const __grid_constant__ MeansTask task) {
  using namespace detail;
  __shared__ double sums[means_lanes][means_columns];
  const int across = gridDim.x / task.problems, problem = blockIdx.x / across, first = blockIdx.x % across;
  const Matrix m = of_problem<T>(task.view[blockIdx.z], problem);
  const int quad = 4 * (static_cast<int>(threadIdx.x) % 32), lane = threadIdx.x / 32;
  const int column = means_columns * first + quad;
  const int share = ceil_div(m.rows, task.splits);
  const int begin = min(static_cast<int>(blockIdx.y) * share, m.rows), end = min(begin + share, m.rows);
  const bool whole = task.vectors[blockIdx.z] && column + 4 <= m.columns;
  double sum[4] = {};
  if (column < m.columns)
#pragma unroll 4
    for (int row = begin + lane; row < end; row += means_lanes) {
      const long long index = row * m.stride + column;
      Quad<T> x;
      if (whole) {
        x.load(m.data, index, m.dtype);
      } else {
        x.clear();
#pragma unroll
        for (int i = 0; i < 4; ++i)
          if (column + i < m.columns) x.load_one(i, m.data, index + i, m.dtype);
      }
#pragma unroll
      for (int i = 0; i < 4; ++i) sum[i] += x.get(i, m.dtype);
    }
#pragma unroll
  for (int i = 0; i < 4; ++i) sums[lane][quad + i] = sum[i];
  __syncthreads();
  const int mine = means_columns * first + static_cast<int>(threadIdx.x);
  if (threadIdx.x < means_columns && mine < m.columns) {
    double total = 0;
    for (int l = 0; l < means_lanes; ++l) total += sums[l][threadIdx.x];
    means_partials(task, blockIdx.z, problem)[static_cast<long long>(blockIdx.y) * m.columns + mine] = total;
  }
}

// One thread per column; blockIdx = (columns, problem by problem; 0; view).
template <typename T>
__global__ void divide_sums(const __grid_constant__ MeansTask task) {
  const Matrix& m = task.view[blockIdx.z];
  const int across = gridDim.x / task.problems, problem = blockIdx.x / across;
  const int column = blockIdx.x % across * blockDim.x + threadIdx.x;
  if (column >= m.columns) return;
  const double* partials = detail::means_partials(task, blockIdx.z, problem);
  double total = 0;
  for (int split = 0; split < task.splits; ++split)
    total += partials[static_cast<long long>(split) * m.columns + column];
  const double mean = total / m.rows;
  T* shift = static_cast<T*>(task.shift[blockIdx.z]) + 2LL * m.columns * problem;
  const T high = static_cast<T>(mean);
  shift[column] = high;
  shift[m.columns + column] = static_cast<T>(mean - high);
}

}  // namespace xmodal::cuda
