// Pairs of labelled rows: whether they share a label, their products a tile at a time, and their exact distance.
#pragma once

#include "tile_product.cuh"
#include "xmodal/cuda/pairs.h"

namespace xmodal::cuda::detail {

__device__ __forceinline__ bool share_a_label(const LabelledPairs& p, long long i, long long j) {
  if (p.words == 0) return p.anchor_labels[i] == p.ref_labels[j];
  for (int w = 0; w < p.words; ++w)
    if (p.anchor_labels[i * p.words + w] & p.ref_labels[j * p.words + w]) return true;
  return false;
}

// |a − r|² in fp64 from the rows as given: by one thread, or one lane's share of it.
__device__ inline double exact_square(const LabelledPairs& p, long long i, long long j, int lane = 0, int lanes = 1) {
  double sum = 0;
  for (int k = lane; k < p.anchor.columns; k += lanes) {
    const double difference = read<double>(p.anchor.data, i * p.anchor.stride + k, p.anchor.dtype) -
                              read<double>(p.ref.data, j * p.ref.stride + k, p.ref.dtype);
    sum += difference * difference;
  }
  return sum;
}

// The same by a whole warp; every lane gets the sum.
__device__ inline double warp_exact_square(const LabelledPairs& p, long long i, long long j) {
  double sum = exact_square(p, i, j, threadIdx.x % 32, 32);
  for (int offset = 16; offset > 0; offset >>= 1) sum += __shfl_xor_sync(~0u, sum, offset);
  return sum;
}

// sum = the products of TILE anchors from row0 on and TILE references from column0 on. Ends with a barrier.
template <typename T, int TILE>
__device__ __forceinline__ void pair_products(const LabelledPairs& p, const bool (&vectors)[2], int row0, int column0,
                                              const WarpPlace<T, TILE>& warp, TileSums<T, TILE>& sum) {
  constexpr int ld = TileShape<T, TILE>::by_row, threads = TileShape<T, TILE>::threads;
  alignas(16) __shared__ T a_shared[2][TILE * ld];
  alignas(16) __shared__ T b_shared[2][TILE * ld];
  Rectangle<T, TILE, slice, ld, threads> a_next, b_next;
  const auto fetch = [&](int s) {
    a_next.fetch(p.anchor, vectors[0], row0, s * slice);
    b_next.fetch(p.ref, vectors[1], column0, s * slice);
  };
  const auto put = [&](int s) {
    a_next.put(a_shared[s % 2], p.anchor, row0, s * slice);
    b_next.put(b_shared[s % 2], p.ref, column0, s * slice);
  };
  multiply_slices<T, TILE, false, false>(0, ceil_div(p.anchor.columns, slice), warp, a_shared, b_shared, sum, fetch,
                                         put);
}

}  // namespace xmodal::cuda::detail
