// Sums over a block, in a fixed order so that results are reproducible to the bit, and sorting by a block.
#pragma once

#include "portable.cuh"

namespace xmodal::cuda::detail {

// The sum over the warp, in every lane.
template <typename T>
__device__ __forceinline__ T warp_sum(T value) {
  for (unsigned offset = 16; offset > 0; offset >>= 1) value += __shfl_xor_sync(~0u, value, offset);
  return value;
}

// The sum over the block, in every thread. All threads must call it; the block consists of whole warps.
template <typename T>
__device__ __forceinline__ T block_sum(T value) {
  __shared__ T partial[32];
  const unsigned lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  value = warp_sum(value);
  __syncthreads();  // other threads may still read the previous sum
  if (lane == 0) partial[warp] = value;
  __syncthreads();
  T sum = 0;
  for (unsigned w = 0; w < blockDim.x / 32; ++w) sum += partial[w];
  return sum;
}

// x[i] = x[0] + … + x[i], in place. Starts and ends with a barrier.
__device__ inline void running_sums(int* x, int size) {
  __shared__ int totals[32];
  const int thread = static_cast<int>(threadIdx.x), lane = thread % 32, threads = static_cast<int>(blockDim.x);
  const int each = ceil_div(size, threads), begin = min(thread * each, size), end = min(begin + each, size);
  __syncthreads();
  int own = 0;
  for (int i = begin; i < end; ++i) own += x[i];
  int sum = own;  // of this lane and the lanes before it
  for (int offset = 1; offset < 32; offset <<= 1) {
    const int other = __shfl_sync(~0u, sum, lane < offset ? lane : lane - offset);
    if (lane >= offset) sum += other;
  }
  if (lane == 31) totals[thread / 32] = sum;
  __syncthreads();
  sum -= own;
  for (int w = 0; w < thread / 32; ++w) sum += totals[w];
  for (int i = begin; i < end; ++i) x[i] = sum += x[i];
  __syncthreads();
}

// Sorts in ascending order by a bitonic network; `size` is a power of two. Starts and ends with a barrier.
template <typename T>
__device__ void sort(T* x, int size) {
  __syncthreads();
  for (int run = 2; run <= size; run *= 2)
    for (int step = run / 2; step > 0; step /= 2) {
      for (int pair = threadIdx.x; pair < size / 2; pair += blockDim.x) {
        const int i = 2 * pair - (pair & (step - 1));
        const T low = x[i], high = x[i + step];
        if ((low > high) == ((i & run) == 0)) x[i] = high, x[i + step] = low;
      }
      __syncthreads();
    }
}

}  // namespace xmodal::cuda::detail
