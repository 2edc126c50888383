// Sums over a block in a fixed order, so that the same input gives the same bits.
#pragma once

#include "portable.cuh"

namespace xmodal::cuda::detail {

// The sum over the warp, in every lane.
template <typename T>
__device__ __forceinline__ T warp_sum(T value) {
  for (unsigned offset = 16; offset > 0; offset >>= 1) value += __shfl_xor_sync(~0u, value, offset);
  return value;
}

// The sum over the block, in every thread. A block of whole warps; every thread takes part.
template <typename T>
__device__ __forceinline__ T block_sum(T value) {
  __shared__ T partial[32];
  const unsigned lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  value = warp_sum(value);
  __syncthreads();  // an earlier sum may still be read
  if (lane == 0) partial[warp] = value;
  __syncthreads();
  T sum = 0;
  for (unsigned w = 0; w < blockDim.x / 32; ++w) sum += partial[w];
  return sum;
}

}  // namespace xmodal::cuda::detail
