// Rotations of pairs of rows that make all rows orthogonal (one-sided Jacobi; Hestenes 1958):
//
//   (a, b) ← (c a − s b, s a + c b) with a·b = 0 afterwards,    s/c the smaller root t of t² + 2 ζ t = 1,
//   ζ = (b·b − a·a) / 2 a·b
//
// Under sweeps over all pairs, A = U Σ Vᵀ converges to Σ Vᵀ. The longer row of a pair comes first (de Rijk 1989): a
// spectrum that falls by many orders of magnitude then converges from its large end.
#pragma once

#include "portable.cuh"
#include "reduce.cuh"

namespace xmodal::cuda::detail {

// Round-robin schedule of an even number of items: every two of them are paired exactly once in items − 1 rounds.
struct Pairing {
  int first, second;
};

__device__ __forceinline__ Pairing round_robin(int round, int pair, int items) {
  const int others = items - 1;
  return {pair ? (round + pair) % others : others, (round - pair + others) % others};
}

// The rotation that makes two rows orthogonal, by a warp; false if they already are.
template <typename T>
__device__ __forceinline__ bool rotation(const T* a, const T* b, int length, T& cosine, T& sine) {
  constexpr T epsilon = sizeof(T) == 4 ? T(1.1920929e-7) : T(2.220446049250313e-16);
  const int lane = threadIdx.x % 32;
  T aa = 0, bb = 0, ab = 0;
  for (int i = lane; i < length; i += 32) aa += a[i] * a[i], bb += b[i] * b[i], ab += a[i] * b[i];
  aa = warp_sum(aa), bb = warp_sum(bb), ab = warp_sum(ab);
  if (!(abs(ab) > epsilon * sqrt(static_cast<T>(length)) * sqrt(aa) * sqrt(bb))) return false;
  const T zeta = (bb - aa) / (2 * ab);
  const T tangent = (zeta < 0 ? T(-1) : T(1)) / (abs(zeta) + sqrt(1 + zeta * zeta));
  cosine = 1 / sqrt(1 + tangent * tangent), sine = cosine * tangent;
  if (bb > aa) {
    const T before = cosine;
    cosine = sine, sine = -before;
  }
  return true;
}

template <typename T>
__device__ __forceinline__ void rotate(T* a, T* b, int length, T cosine, T sine) {
  for (int i = threadIdx.x % 32; i < length; i += 32) {
    const T x = a[i], y = b[i];
    a[i] = cosine * x - sine * y;
    b[i] = sine * x + cosine * y;
  }
}

// One sweep by a block of WARPS warps, a warp per pair, over `count` rows `stride` apart. The rows of v, unless it is
// null, are rotated as well. Returns the number of this thread's rotations. Ends with a barrier.
template <int WARPS, typename T>
__device__ __forceinline__ int sweep_rows(T* rows, int count, int length, int stride, T* v = nullptr,
                                          int v_length = 0) {
  const int warp = threadIdx.x / 32, items = count + count % 2;  // an odd row out pauses for a round
  int rotations = 0;
  for (int round = 0; round + 1 < items; ++round) {
    for (int pair = warp; pair < items / 2; pair += WARPS) {
      const auto [first, second] = round_robin(round, pair, items);
      const int low = min(first, second), high = max(first, second);
      if (high >= count) continue;
      T cosine, sine, *a = rows + low * stride, *b = rows + high * stride;
      if (!rotation(a, b, length, cosine, sine)) continue;
      rotate(a, b, length, cosine, sine);
      if (v) rotate(v + low * stride, v + high * stride, v_length, cosine, sine);
      ++rotations;
    }
    __syncthreads();
  }
  return rotations;
}

}  // namespace xmodal::cuda::detail
