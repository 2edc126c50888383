// The losses over all pairs, a chunk of anchors at a time. A tile pass leaves every pair's distance, a block per anchor
// then sums its loss and leaves weights in their place:
//
//   |a − r|² = |a|² + |r|² − 2 a·r of split products; where that cancels, measured anew in fp64 from the rows
//   ∂/∂a_i Σ_ij f(d_ij) = Σ_j w_ij (a_i − r_j),  w = f'(d) / d,  0 where d = 0: a product of the weights and the rows
#pragma once

#include "detail/pairs.cuh"
#include "detail/reduce.cuh"

namespace xmodal::cuda {

struct MeasureTask {
  LabelledPairs pairs;
  bool vectors[2];
  Chunk chunk;
};

struct StructureTask {
  Chunk chunk;
  int m, n;
  StructurePreserving loss;
  AnchorSums out;
};

struct MarginTask {
  Chunk chunk;
  int m, n, capacity;
  TripletMargin loss;
  AnchorSums out;
};

namespace detail {

template <typename T>
struct alignas(2 * sizeof(T)) Two {
  T value[2];
};

constexpr double lost_share = 1.0 / 256;  // of |a|² + |r|²: smaller squares have lost digits

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

  const auto row_at = [&](int d, int half, int lane) { return row0 + warp.row + 16 * d + lane / 4 + 8 * half; };
  const auto column_at = [&](int j, int lane) { return column0 + warp.column + 8 * j + lane % 4 * 2; };
  const T* a_norms = static_cast<const T*>(p.anchor_norms);
  const T* r_norms = static_cast<const T*>(p.ref_norms);
  T* const out = static_cast<T*>(task.chunk.pairs);
  const long long stride = task.chunk.stride;
  static_assert(Shape::down * Shape::across * 4 <= 64);
  unsigned long long lost = 0;  // a bit for a pair's number in the fragments
#pragma unroll
  for (int d = 0; d < Shape::down; ++d)
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int row = row_at(d, half, warp.lane);
      if (row >= end) continue;
      const T a_norm = a_norms[row];
#pragma unroll
      for (int j = 0; j < Shape::across; ++j) {
        const int column = column_at(j, warp.lane);
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
          if (square < norms * static_cast<T>(lost_share)) lost |= 1ull << ((d * Shape::across + j) * 4 + 2 * half + i);
          const T distance = square > 0 ? sqrt(square) : T(0);
          two.value[i] = share_a_label(p, row, column + i) ? distance : -distance;
        }
        *reinterpret_cast<Two<T>*>(out + (row - task.chunk.first) * stride + column) = two;
      }
    }
  // The warp measures together, one pair of one of its lanes after the other.
  for (unsigned lanes; (lanes = __ballot_sync(~0u, lost != 0)) != 0;) {
    const int lane = __ffs(static_cast<int>(lanes)) - 1;
    const int at = __shfl_sync(~0u, __popcll((lost & (0 - lost)) - 1), lane);
    const int row = row_at(at / (4 * Shape::across), at % 4 / 2, lane);
    const int column = column_at(at / 4 % Shape::across, lane) + at % 2;
    const double square = warp_exact_square(p, row, column);
    if (warp.lane == lane) {
      T& pair = out[(row - task.chunk.first) * stride + column];
      pair = copysign(static_cast<T>(sqrt(square)), pair);
      lost &= lost - 1;
    }
  }
}

namespace detail {

// What a thread has summed of its anchor, and then the block.
struct RowSums {
  double loss = 0, active = 0, positive_d = 0, negative_d = 0, weight = 0;
  int positives = 0, negatives = 0;

  __device__ void write(const AnchorSums& out, int i, int m) const {
    const double entries[] = {loss,       active,    static_cast<double>(positives), static_cast<double>(negatives),
                              positive_d, negative_d};
    for (int e = 0; e < 6; ++e) {
      const double total = block_sum(entries[e]);
      if (threadIdx.x == 0) out.sums[static_cast<long long>(e) * m + i] = total;
    }
    if (!out.weights) return;
    const double total = block_sum(weight);
    if (threadIdx.x == 0) out.weights[i] = total;
  }
};

// How many keys sorted[k] + shift are at most `key`.
template <typename T>
__device__ __forceinline__ int place(const T* sorted, int count, T shift, T key) {
  if (sorted[count - 1] + shift <= key) return count;  // as for most negatives, once training has begun
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

// A block per anchor. ACMR's structure preserving loss (Wang et al., ACM MM 2017, eq. 4–6) in both directions:
//
//   Σ_i Σ_jk (d_ij⁺ + γ max(0, μ − d_ik⁻)) = Σ_i (N⁻_i Σ_j d_ij⁺ + γ N⁺_i Σ_k max(0, μ − d_ik⁻))
//
// so a pair's weight is known from the labels alone.
template <typename T>
__global__ void __launch_bounds__(1024, 1) weigh_structure(const __grid_constant__ StructureTask task) {
  using namespace detail;
  const int i = task.chunk.first + static_cast<int>(blockIdx.x);
  T* const row = static_cast<T*>(task.chunk.pairs) + blockIdx.x * task.chunk.stride;
  const T* ref_pull = static_cast<const T*>(task.loss.ref_pull);
  const T* ref_push = static_cast<const T*>(task.loss.ref_push);
  const T pull = static_cast<const T*>(task.loss.anchor_pull)[i];
  const T push = static_cast<const T*>(task.loss.anchor_push)[i], margin = static_cast<T>(task.loss.margin);
  RowSums sums;
  int active = 0;
  for (int j = threadIdx.x; j < task.n; j += blockDim.x) {
    const T pair = row[j], d = fabs(pair);
    T slope = 0;
    if (signbit(pair) && pair == pair) {
      ++sums.negatives, sums.negative_d += d;
      const T gap = margin - d;
      if (gap > 0) ++active, slope = -(push + ref_push[j]), sums.loss -= static_cast<double>(slope) * gap;
    } else if (pair == pair) {
      ++sums.positives, sums.positive_d += d;
      slope = pull + ref_pull[j], sums.loss += static_cast<double>(slope) * d;
    }
    if (!task.out.weights) continue;
    const T weight = d > 0 ? slope / d : T(0);
    row[j] = weight, sums.weight += weight;
  }
  sums.active = active;
  sums.write(task.out, i, task.m);
}

// A block per anchor. The margin loss over all its triplets, without visiting them, with keys p⁺ = d⁺ + μ:
//
//   g⁺ = #negatives before p⁺,   g⁻ = −#positives whose p⁺ comes after d⁻        (ties: 0, inactive)
//   Σ max(0, p⁺ − d⁻) = Σ g⁺ p⁺ + Σ g⁻ d⁻,   ∂/∂d = g,   active triplets: Σ g⁺
//
// Hard triplets are those active at margin 0, semihard the others. Positives are sorted, negatives find their place.
template <typename T>
__global__ void __launch_bounds__(1024, 1) weigh_triplets(const __grid_constant__ MarginTask task) {
  using namespace detail;
  XMODAL_DYNAMIC_SHARED(T, shared);
  __shared__ int gathered;
  const int i = task.chunk.first + static_cast<int>(blockIdx.x), n = task.n, in_shared = task.loss.in_shared;
  T* const row = static_cast<T*>(task.chunk.pairs) + blockIdx.x * task.chunk.stride;
  RowSums sums;
  if (threadIdx.x == 0) gathered = 0;
  for (int j = threadIdx.x; j < n; j += blockDim.x) {
    const T pair = row[j];
    if (pair != pair) continue;
    if (signbit(pair))
      ++sums.negatives, sums.negative_d -= pair;
    else
      ++sums.positives, sums.positive_d += pair;
  }
  const int positives = block_sum(sums.positives), negatives = block_sum(sums.negatives);
  const bool ranked = positives > 0 && negatives > 0;

  // One margin, or for semihard triplets two: counts[k] negatives have their place among the keys at k or below.
  const int terms = task.loss.triplets == Triplets::semihard ? 2 : 1;
  int size = 1;
  while (size < positives) size *= 2;
  const long long at = static_cast<long long>(blockIdx.x) * task.capacity;
  T* const sorted = size <= in_shared ? shared : static_cast<T*>(task.loss.ranked) + at;
  int* const counts = size <= in_shared ? reinterpret_cast<int*>(shared + in_shared) : task.loss.counts + terms * at;
  const auto shift = [&](int term) {
    return task.loss.triplets == Triplets::hard || term == 1 ? T(0) : static_cast<T>(task.loss.margin);
  };
  if (ranked) {
    for (int j = threadIdx.x; j < n; j += blockDim.x)
      if (!signbit(row[j]) && row[j] == row[j]) sorted[atomicAdd(&gathered, 1)] = row[j];
    for (int k = positives + static_cast<int>(threadIdx.x); k < size; k += blockDim.x)
      sorted[k] = static_cast<T>(INFINITY);
    for (int k = threadIdx.x; k < terms * positives; k += blockDim.x) counts[k] = 0;
    sort(sorted, size);
    for (int term = 0; term < terms; ++term) {
      for (int j = threadIdx.x; j < n; j += blockDim.x)
        if (signbit(row[j]) && row[j] == row[j]) {
          const int k = place(sorted, positives, shift(term), -row[j]);
          if (k < positives) atomicAdd(&counts[term * positives + k], 1);  // behind all of them, none asks for it
        }
      running_sums(counts + term * positives, positives);
    }
  }

  const double scale = task.loss.weight ? task.loss.weight[i] : 1.0;
  for (int j = threadIdx.x; j < n; j += blockDim.x) {
    const T pair = row[j], d = fabs(pair);
    int g = 0;
    if (ranked && pair == pair) {
      for (int term = 0; term < terms; ++term) {
        const int k = place(sorted, positives, shift(term), signbit(pair) ? d : d + shift(term));
        const int found = signbit(pair) ? k - positives : counts[term * positives + k - 1];
        g += term == 0 ? found : -found;
      }
      const double key = signbit(pair) ? static_cast<double>(d) : d + task.loss.margin;
      sums.loss += g * key;
      if (!signbit(pair)) sums.active += g;
    }
    if (!task.out.weights) continue;
    const T weight = d > 0 ? static_cast<T>(g * scale) / d : T(0);
    row[j] = weight, sums.weight += weight;
  }
  sums.write(task.out, i, task.m);
}

}  // namespace xmodal::cuda
