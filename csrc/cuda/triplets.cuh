// Losses over all pairs, a chunk of anchors at a time: a pass over tiles writes the distance of every pair, then one
// block per anchor sums its loss and replaces the distances by weights.
//
//   |a − r|² = |a|² + |r|² − 2 a·r of split products; if that cancels, measured again in fp64 from the rows
//   ∂/∂a_i Σ_ij f(d_ij) = Σ_j w_ij (a_i − r_j),  w = f'(d) / d,  0 if d = 0: a product of the weights and the rows
#pragma once

#include "detail/pairs.cuh"
#include "detail/reduce.cuh"
#include "xmodal/cuda/triplets.h"

namespace xmodal::cuda {

struct MeasureTask {
  LabelledPairs pairs;
  bool vectors[2];
  Chunk chunk;
};

struct StructureTask {
  Chunk chunk;
  int m, n;
  StructureLoss loss;
};

struct MarginTask {
  Chunk chunk;
  int m, n;
  MarginLoss loss;
};

namespace detail {

template <typename T>
struct alignas(2 * sizeof(T)) Two {
  T value[2];
};

constexpr double cancellation = 1.0 / 256;  // squares below this share of |a|² + |r|² have lost digits

// The warp measures the pairs in its lanes' masks together in fp64, one after the other.
template <typename T, int TILE>
__device__ __forceinline__ void measure_again(const LabelledPairs& p, const Chunk& chunk, int row0, int column0,
                                              const WarpPlace<T, TILE>& warp, unsigned long long cancelled) {
  for (unsigned lanes; (lanes = __ballot_sync(~0u, cancelled != 0)) != 0;) {
    const int lane = __ffs(static_cast<int>(lanes)) - 1;
    const int bit = __shfl_sync(~0u, __popcll((cancelled & (0 - cancelled)) - 1), lane);
    const WarpPlace<T, TILE> place = warp.of_lane(lane);
    const int row = row0 + place.row_of(bit), column = column0 + place.column_of(bit);
    const double square = warp_exact_square(p, row, column);
    if (warp.lane == lane) {
      T& pair = static_cast<T*>(chunk.pairs)[(row - chunk.first) * chunk.stride + column];
      pair = copysign(static_cast<T>(sqrt(square)), pair);
      cancelled &= cancelled - 1;
    }
  }
}

}  // namespace detail

template <typename T, int TILE>
__global__ void __launch_bounds__(TileShape<T, TILE>::threads) measure_tile(const __grid_constant__ MeasureTask task) {
  using namespace detail;
  using Shape = TileShape<T, TILE>;
  const LabelledPairs& p = task.pairs;
  const int tiles_down = ceil_div(task.chunk.rows, TILE), end = task.chunk.first + task.chunk.rows, n = p.ref.rows;
  const int row0 = task.chunk.first + static_cast<int>(blockIdx.x) % tiles_down * TILE;
  const int column0 = static_cast<int>(blockIdx.x) / tiles_down * TILE;

  const WarpPlace<T, TILE> warp;
  TileSums<T, TILE> sum = {};
  pair_products(p, task.vectors, row0, column0, warp, sum);

  const T* a_norms = static_cast<const T*>(p.anchor_norms);
  const T* r_norms = static_cast<const T*>(p.ref_norms);
  T* const out = static_cast<T*>(task.chunk.pairs);
  const long long stride = task.chunk.stride;
  unsigned long long cancelled = 0;  // by WarpPlace::bit
#pragma unroll
  for (int d = 0; d < Shape::down; ++d)
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int row = row0 + warp.row(d, half);
      if (row >= end) continue;
      const T a_norm = a_norms[row];
#pragma unroll
      for (int j = 0; j < Shape::across; ++j) {
        const int column = column0 + warp.column(j, 0);
        if (column >= stride) continue;
        Two<T> two;
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          const T r_norm = column + i < n ? r_norms[column + i] : T(-1), norms = a_norm + r_norm;
          const T square = norms - 2 * sum[d][j][2 * half + i];
          if (a_norm < 0 || r_norm < 0 || (p.exclude_diagonal && row == column + i)) {
            two.value[i] = static_cast<T>(NAN);
            continue;
          }
          if (square < norms * static_cast<T>(cancellation)) cancelled |= 1ull << warp.bit(d, j, 2 * half + i);
          const T distance = square > 0 ? sqrt(square) : T(0);
          two.value[i] = share_a_label(p, row, column + i) ? distance : -distance;
        }
        *reinterpret_cast<Two<T>*>(out + (row - task.chunk.first) * stride + column) = two;
      }
    }
  measure_again(p, task.chunk, row0, column0, warp, cancelled);
}

namespace detail {

// What a thread has summed over its anchor's pairs; write() adds up the block's threads.
struct PairTotals {
  double loss = 0, active = 0, positive_d = 0, negative_d = 0, weight = 0;
  int positives = 0, negatives = 0;

  __device__ void write(const Chunk& chunk, int i, int m) const {
    const double totals[kPairSums] = {
        loss, active, static_cast<double>(positives), static_cast<double>(negatives), positive_d, negative_d};
    for (int s = 0; s < kPairSums; ++s) {
      const double total = block_sum(totals[s]);
      if (threadIdx.x == 0) chunk.sums[static_cast<long long>(s) * m + i] = total;
    }
    if (!chunk.weights) return;
    const double total = block_sum(weight);
    if (threadIdx.x == 0) chunk.weights[i] = total;
  }
};

// The number of keys sorted[k] + shift that are at most `key`.
template <typename T>
__device__ __forceinline__ int count_at_most(const T* sorted, int count, T shift, T key) {
  if (sorted[count - 1] + shift <= key) return count;  // true of most negatives once training has begun
  int low = 0;
  for (int length = count - 1; length > 0;) {
    const int half = length / 2;
    if (sorted[low + half] + shift <= key)
      low += half + 1, length -= half + 1;
    else
      length = half;
  }
  return low;
}

}  // namespace detail

// One block per anchor. ACMR's structure preserving loss (Wang et al., ACM MM 2017, eq. 4–6) in both directions:
//
//   Σ_i Σ_jk (d_ij⁺ + γ max(0, μ − d_ik⁻)) = Σ_i (N⁻_i Σ_j d_ij⁺ + γ N⁺_i Σ_k max(0, μ − d_ik⁻))
//
// so the coefficient of a pair depends on the labels only.
template <typename T>
__global__ void __launch_bounds__(1024, 1) weigh_structure(const __grid_constant__ StructureTask task) {
  using namespace detail;
  const int i = task.chunk.first + static_cast<int>(blockIdx.x);
  T* const row = static_cast<T*>(task.chunk.pairs) + blockIdx.x * task.chunk.stride;
  const T* ref_pull = static_cast<const T*>(task.loss.ref_pull);
  const T* ref_push = static_cast<const T*>(task.loss.ref_push);
  const T pull = static_cast<const T*>(task.loss.anchor_pull)[i];
  const T push = static_cast<const T*>(task.loss.anchor_push)[i], margin = static_cast<T>(task.loss.margin);
  PairTotals totals;
  int active = 0;
  for (int j = threadIdx.x; j < task.n; j += blockDim.x) {
    const T pair = row[j], d = fabs(pair);
    T slope = 0;
    if (signbit(pair) && pair == pair) {
      ++totals.negatives, totals.negative_d += d;
      const T gap = margin - d;
      if (gap > 0) ++active, slope = -(push + ref_push[j]), totals.loss -= static_cast<double>(slope) * gap;
    } else if (pair == pair) {
      ++totals.positives, totals.positive_d += d;
      slope = pull + ref_pull[j], totals.loss += static_cast<double>(slope) * d;
    }
    if (!task.chunk.weights) continue;
    const T weight = d > 0 ? slope / d : T(0);
    row[j] = weight, totals.weight += weight;
  }
  totals.active = active;
  totals.write(task.chunk, i, task.m);
}

namespace detail {

// The positives of an anchor in ascending order, and the number of negatives that are placed among them.
//
// There is one margin, or two for semihard triplets: the loss's, and 0 for the hard triplets, which are subtracted.
template <typename T>
struct Ranking {
  T* sorted;    // [positives], padded with infinity to a power of two
  int* counts;  // [margins, positives]: the number of negatives placed at key k or below
  int positives, margins;
  T first_margin;

  __device__ __forceinline__ Ranking(const MarginLoss& loss, T* shared, int positives, int size)
      : positives(positives),
        margins(loss.triplets == Triplets::semihard ? 2 : 1),
        first_margin(loss.triplets == Triplets::hard ? T(0) : static_cast<T>(loss.margin)) {
    const long long at = static_cast<long long>(blockIdx.x) * loss.capacity;
    sorted = size <= loss.in_shared ? shared : static_cast<T*>(loss.ranked) + at;
    counts = size <= loss.in_shared ? reinterpret_cast<int*>(shared + loss.in_shared) : loss.counts + margins * at;
  }

  __device__ __forceinline__ T margin(int i) const { return i == 0 ? first_margin : T(0); }

  // Sorts the positives of a row of pairs and places its negatives. `gathered` is in shared memory, 0 before the call.
  __device__ __forceinline__ void build(const T* row, int n, int size, int& gathered) const {
    for (int j = threadIdx.x; j < n; j += blockDim.x)
      if (!signbit(row[j]) && row[j] == row[j]) sorted[atomicAdd(&gathered, 1)] = row[j];
    for (int k = positives + static_cast<int>(threadIdx.x); k < size; k += blockDim.x)
      sorted[k] = static_cast<T>(INFINITY);
    for (int k = threadIdx.x; k < margins * positives; k += blockDim.x) counts[k] = 0;
    sort(sorted, size);
    for (int i = 0; i < margins; ++i) {
      for (int j = threadIdx.x; j < n; j += blockDim.x)
        if (signbit(row[j]) && row[j] == row[j]) {
          const int k = count_at_most(sorted, positives, margin(i), -row[j]);
          if (k < positives) atomicAdd(&counts[i * positives + k], 1);  // counts beyond the last key are not used
        }
      running_sums(counts + i * positives, positives);
    }
  }

  // The derivative of the anchor's loss with respect to one distance: g⁺ or g⁻.
  __device__ __forceinline__ int slope(bool negative, T d) const {
    int g = 0;
    for (int i = 0; i < margins; ++i) {
      const int k = count_at_most(sorted, positives, margin(i), negative ? d : d + margin(i));
      const int found = negative ? k - positives : counts[i * positives + k - 1];
      g += i == 0 ? found : -found;
    }
    return g;
  }
};

}  // namespace detail

// One block per anchor. The margin loss over all its triplets without visiting them, with keys p⁺ = d⁺ + μ:
//
//   g⁺ = #negatives before p⁺,   g⁻ = −#positives whose p⁺ comes after d⁻        (ties: 0, inactive)
//   Σ max(0, p⁺ − d⁻) = Σ g⁺ p⁺ + Σ g⁻ d⁻,   ∂/∂d = g,   active triplets: Σ g⁺
//
// Hard triplets are those active at margin 0, semihard triplets the others. Positives are sorted; negatives are placed
// among them by binary search.
template <typename T>
__global__ void __launch_bounds__(1024, 1) weigh_margin(const __grid_constant__ MarginTask task) {
  using namespace detail;
  XMODAL_DYNAMIC_SHARED(T, shared);
  __shared__ int gathered;
  const int i = task.chunk.first + static_cast<int>(blockIdx.x), n = task.n;
  T* const row = static_cast<T*>(task.chunk.pairs) + blockIdx.x * task.chunk.stride;
  PairTotals totals;
  if (threadIdx.x == 0) gathered = 0;
  for (int j = threadIdx.x; j < n; j += blockDim.x) {
    const T pair = row[j];
    if (pair != pair) continue;
    if (signbit(pair))
      ++totals.negatives, totals.negative_d -= pair;
    else
      ++totals.positives, totals.positive_d += pair;
  }
  const int positives = block_sum(totals.positives), negatives = block_sum(totals.negatives);
  const bool ranked = positives > 0 && negatives > 0;  // otherwise there are no triplets

  int size = 1;
  while (size < positives) size *= 2;
  const Ranking<T> ranking(task.loss, shared, positives, size);
  if (ranked) ranking.build(row, n, size, gathered);

  const double scale = task.loss.weight ? task.loss.weight[i] : 1.0;
  for (int j = threadIdx.x; j < n; j += blockDim.x) {
    const T pair = row[j], d = fabs(pair);
    int g = 0;
    if (ranked && pair == pair) {
      g = ranking.slope(signbit(pair), d);
      const double key = signbit(pair) ? static_cast<double>(d) : d + task.loss.margin;
      totals.loss += g * key;
      if (!signbit(pair)) totals.active += g;
    }
    if (!task.chunk.weights) continue;
    const T weight = d > 0 ? static_cast<T>(g * scale) / d : T(0);
    row[j] = weight, totals.weight += weight;
  }
  totals.write(task.chunk, i, task.m);
}

}  // namespace xmodal::cuda
