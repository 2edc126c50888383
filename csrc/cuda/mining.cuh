// Triplet mining in one pass over tiles of distances that stay in registers.
//
//   |d̃² − d²| ≤ κ (|a|² + |r|²) for d̃² = |a|² + |r|² − 2 a·r from split products
//
// Each anchor keeps a bound that all tiles share: the best distance that some reference is guaranteed to reach. Only a
// candidate, a reference whose own interval reaches the bound, is measured in fp64 from the rows as given. It enters by
// an atomic maximum of (distance, −index). Every possible best is measured, whatever the order of tiles: results are
// deterministic, and ties go to the lowest index. A key keeps the bits of the distance that the index leaves free: 36
// for 2¹⁷ rows.
#pragma once

#include "detail/pairs.cuh"
#include "xmodal/cuda/mining.h"

namespace xmodal::cuda {

struct MiningTask {
  LabelledPairs pairs;
  bool vectors[2];
  Choice choice[2];
  int choices;
  int* counts;
  int index_bits;
};

namespace detail {

constexpr unsigned long long infinity_bits = 0x7ff0000000000000ull;

template <typename To, typename From>
__device__ __forceinline__ To bits_as(From x) {
  static_assert(sizeof(To) == sizeof(From));
  To y;
  memcpy(&y, &x, sizeof(y));
  return y;
}

// Maps numbers to integers of the same order, none of them 0; number() is the inverse.
__device__ __forceinline__ unsigned long long ordered(double x) {
  const auto bits = bits_as<unsigned long long>(x);
  return bits >> 63 ? ~bits : bits | 1ull << 63;
}
__device__ __forceinline__ double number(unsigned long long order) {
  return bits_as<double>(order >> 63 ? order & ~(1ull << 63) : ~order);
}

__device__ __forceinline__ unsigned long long index_mask(const MiningTask& task) {
  return (1ull << task.index_bits) - 1;
}

// A larger key is better. Equal distances compare by index, the lower one is better. Never 0.
__device__ __forceinline__ unsigned long long key_of(const MiningTask& task, bool farthest, double square, int j) {
  const unsigned long long mask = index_mask(task), bits = bits_as<unsigned long long>(square) << 1;
  return ((farthest ? bits : ~bits) & ~mask) | (mask - static_cast<unsigned long long>(j));
}

// Masks of a thread's pairs, by WarpPlace::bit.
struct Relations {
  unsigned long long positive = 0, negative = 0;
};

// How a thread mines its part of a tile. The squared distances are arguments, not a member: the compiler keeps an
// object with an array in memory until it has unrolled all loops over it, and would optimise the other members too
// late.
template <typename T, int TILE>
struct MinedTile {
  using Shape = TileShape<T, TILE>;
  using Squares = TileSums<T, TILE>;
  using Bounds = unsigned long long (&)[TILE];  // per anchor of the tile, ordered()

  const MiningTask& task;
  const LabelledPairs& pairs;
  const int row0, column0;
  const WarpPlace<T, TILE> warp;
  const T slack;  // κ of the file's first formula

  __device__ __forceinline__ MinedTile(const MiningTask& task, int row0, int column0)
      : task(task),
        pairs(task.pairs),
        row0(row0),
        column0(column0),
        slack(static_cast<T>(pairs.anchor.columns + 32) * (sizeof(T) == 4 ? T(1.2e-7) : T(2.3e-16))) {}

  __device__ __forceinline__ T anchor_norm(int row, T outside) const {
    return row < pairs.anchor.rows ? static_cast<const T*>(pairs.anchor_norms)[row] : outside;
  }
  __device__ __forceinline__ const T* ref_norms() const { return static_cast<const T*>(pairs.ref_norms); }
  __device__ __forceinline__ T floor_of(const Choice& choice, int row) const {
    return choice.floor && row < pairs.anchor.rows ? static_cast<T>(choice.floor[row]) : T(-1);
  }

  // Products first, then distances and relations. Adds the positives and negatives of each anchor to `counts`.
  __device__ __forceinline__ void measure(Squares& square, Relations& related, int (&counts)[2][TILE]) const {
    pair_products(pairs, task.vectors, row0, column0, warp, square);
#pragma unroll
    for (int d = 0; d < Shape::down; ++d)
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int row = row0 + warp.row(d, half);
        const T a_norm = anchor_norm(row, T(-1));
#pragma unroll
        for (int j = 0; j < Shape::across; ++j)
#pragma unroll
          for (int i = 2 * half; i < 2 * half + 2; ++i) {
            const int column = column0 + warp.column(j, i);
            const T r_norm = column < pairs.ref.rows ? ref_norms()[column] : T(-1);
            square[d][j][i] = a_norm + r_norm - 2 * square[d][j][i];
            if (a_norm < 0 || r_norm < 0 || (pairs.exclude_diagonal && row == column)) continue;
            (share_a_label(pairs, row, column) ? related.positive : related.negative) |= 1ull << warp.bit(d, j, i);
          }
        if (task.counts) count_row(related, d, half, counts);
      }
  }

  __device__ __forceinline__ void count_row(const Relations& related, int d, int half, int (&counts)[2][TILE]) const {
    const unsigned long long row = 0x3333ull << 2 * half << warp.bit(d, 0, 0);  // the bits of this row
    int own[2] = {__popcll(related.positive & row), __popcll(related.negative & row)};
    for (int kind = 0; kind < 2; ++kind) {
      for (int offset = 1; offset < 4; offset <<= 1) own[kind] += __shfl_xor_sync(~0u, own[kind], offset);
      if (warp.t == 0) atomicAdd(&counts[kind][warp.row(d, half)], own[kind]);
    }
  }

  // Calls use(bit, square, error) for the eligible pairs of one row; the exact square is within square ± error.
  template <typename Use>
  __device__ __forceinline__ void each_eligible(const Squares& square, unsigned long long eligible, int d, int half,
                                                const Use& use) const {
    const T a_norm = anchor_norm(row0 + warp.row(d, half), T(0));
#pragma unroll
    for (int j = 0; j < Shape::across; ++j)
#pragma unroll
      for (int i = 2 * half; i < 2 * half + 2; ++i)
        if (eligible >> warp.bit(d, j, i) & 1)
          use(warp.bit(d, j, i), square[d][j][i], slack * (a_norm + ref_norms()[column0 + warp.column(j, i)]));
  }

  // Raises the tile's bounds to what its best pairs are guaranteed to reach.
  __device__ __forceinline__ void raise_bounds(const Squares& square, unsigned long long eligible, const Choice& choice,
                                               Bounds bounds) const {
    const T sign = choice.farthest ? T(1) : T(-1);
#pragma unroll
    for (int d = 0; d < Shape::down; ++d)
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const T floor = floor_of(choice, row0 + warp.row(d, half));
        unsigned long long best = 0;
        each_eligible(square, eligible, d, half, [&](int, T found, T error) {
          if (choice.floor && !(found - error > floor)) return;
          const unsigned long long value = ordered(static_cast<double>(sign * found - error));
          if (value > best) best = value;
        });
        for (int offset = 1; offset < 4; offset <<= 1) {
          const unsigned long long other = __shfl_xor_sync(~0u, best, offset);
          if (other > best) best = other;
        }
        if (warp.t == 0 && best) atomicMax(&bounds[warp.row(d, half)], best);
      }
  }

  // Exchanges the tile's bounds with those of the tiles before.
  __device__ __forceinline__ void exchange_bounds(const Choice& choice, Bounds bounds) const {
    for (int i = threadIdx.x; i < TILE; i += Shape::threads)
      if (row0 + i < pairs.anchor.rows) {
        const unsigned long long before = atomicMax(&choice.bound[row0 + i], bounds[i]);
        if (before > bounds[i]) bounds[i] = before;
      }
  }

  // A mask of the pairs that could reach the bound.
  __device__ __forceinline__ unsigned long long candidates(const Squares& square, unsigned long long eligible,
                                                           const Choice& choice, Bounds bounds) const {
    const T sign = choice.farthest ? T(1) : T(-1);
    unsigned long long mask = 0;
#pragma unroll
    for (int d = 0; d < Shape::down; ++d)
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const T floor = floor_of(choice, row0 + warp.row(d, half));
        const unsigned long long bound = bounds[warp.row(d, half)];
        const double least = bound ? number(bound) : -bits_as<double>(infinity_bits);
        each_eligible(square, eligible, d, half, [&](int bit, T found, T error) {
          if (choice.floor && !(found + error > floor)) return;
          if (static_cast<double>(sign * found + error) >= least) mask |= 1ull << bit;
        });
      }
    return mask;
  }

  // Measures the candidates in fp64 and enters them.
  __device__ __forceinline__ void enter(const Choice& choice, unsigned long long candidates) const {
    for (; candidates; candidates &= candidates - 1) {
      const int bit = __popcll((candidates & -candidates) - 1);
      const int row = row0 + warp.row_of(bit), column = column0 + warp.column_of(bit);
      const double exact = exact_square(pairs, row, column);
      if (!choice.floor || exact > choice.floor[row])
        atomicMax(&choice.key[row], key_of(task, choice.farthest, exact, column));
    }
  }
};

}  // namespace detail

template <typename T, int TILE>
__global__ void __launch_bounds__(TileShape<T, TILE>::threads) mine_tile(const __grid_constant__ MiningTask task) {
  using namespace detail;
  constexpr int threads = TileShape<T, TILE>::threads;
  __shared__ unsigned long long bounds[2][TILE];
  __shared__ int counts[2][TILE];
  for (int i = threadIdx.x; i < TILE; i += threads) bounds[0][i] = bounds[1][i] = 0, counts[0][i] = counts[1][i] = 0;

  // Neighbouring blocks take different anchors: when an anchor's later tiles run, its bound is already good.
  const int m = task.pairs.anchor.rows, tiles_down = ceil_div(m, TILE);
  const int row0 = static_cast<int>(blockIdx.x) % tiles_down * TILE;
  const MinedTile<T, TILE> tile(task, row0, static_cast<int>(blockIdx.x) / tiles_down * TILE);
  TileSums<T, TILE> square = {};
  Relations related;
  tile.measure(square, related, counts);
  for (int c = 0; c < task.choices; ++c) {
    const Choice& choice = task.choice[c];
    const unsigned long long eligible = choice.positive ? related.positive : related.negative;
    tile.raise_bounds(square, eligible, choice, bounds[c]);
    __syncthreads();
    tile.exchange_bounds(choice, bounds[c]);
    __syncthreads();
    tile.enter(choice, tile.candidates(square, eligible, choice, bounds[c]));
  }
  if (!task.counts) return;
  for (int i = threadIdx.x; i < TILE; i += threads)
    if (row0 + i < m) {
      if (counts[0][i]) atomicAdd(&task.counts[row0 + i], counts[0][i]);
      if (counts[1][i]) atomicAdd(&task.counts[m + row0 + i], counts[1][i]);
    }
}

// One thread per anchor: decodes the key, and measures the distance again by the same operations, hence the same bits.
template <typename T>
__global__ void read_keys(const __grid_constant__ MiningTask task, Mined mined) {
  using namespace detail;
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= task.pairs.anchor.rows) return;
  const unsigned long long key = task.choice[0].key[i], mask = index_mask(task);
  const long long j = key ? static_cast<long long>(mask - (key & mask)) : -1;
  const double exact = key ? exact_square(task.pairs, i, j) : 0.0;
  mined.index[i] = j;
  static_cast<T*>(mined.distance)[i] = static_cast<T>(sqrt(exact));
  if (mined.square) mined.square[i] = key ? exact : bits_as<double>(infinity_bits);
}

// A pseudo-random number of the pair (i, j): splitmix64's finaliser, as in csrc/cpu/mining.cpp.
__device__ __forceinline__ unsigned long long pair_hash(unsigned long long seed, unsigned long long i,
                                                        unsigned long long j) {
  unsigned long long x = seed + i * 0x9e3779b97f4a7c15ull + j * 0xd1b54a32d192ed03ull;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ull;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebull;
  return (x ^ (x >> 31)) >> 1;
}

// One warp per anchor: the negative with the least hash, ties to the lowest index, and its distance.
template <typename T>
__global__ void draw_negatives(const __grid_constant__ LabelledPairs pairs, unsigned long long seed, Mined mined) {
  using namespace detail;
  const int i = (blockIdx.x * blockDim.x + threadIdx.x) / 32, lane = threadIdx.x % 32;
  if (i >= pairs.anchor.rows) return;
  const T* r_norms = static_cast<const T*>(pairs.ref_norms);
  const bool alive = static_cast<const T*>(pairs.anchor_norms)[i] >= 0;
  unsigned long long least = ~0ull;  // larger than any hash
  int chosen = -1;
  for (int j = lane; alive && j < pairs.ref.rows; j += 32) {
    if (r_norms[j] < 0 || (pairs.exclude_diagonal && i == j) || share_a_label(pairs, i, j)) continue;
    const unsigned long long hash = pair_hash(seed, i, j);
    if (hash < least) least = hash, chosen = j;
  }
  for (int offset = 16; offset > 0; offset >>= 1) {
    const unsigned long long hash = __shfl_xor_sync(~0u, least, offset);
    const int other = __shfl_xor_sync(~0u, chosen, offset);
    if (hash < least || (hash == least && other < chosen)) least = hash, chosen = other;
  }
  const double square = chosen < 0 ? 0.0 : warp_exact_square(pairs, i, chosen);
  if (lane == 0) mined.index[i] = chosen, static_cast<T*>(mined.distance)[i] = static_cast<T>(sqrt(square));
}

// One warp per row: |x − shift|², −1 if it is not finite.
template <typename T>
__global__ void sum_squares(const __grid_constant__ Matrix x, T* norms) {
  using namespace detail;
  const int i = (blockIdx.x * blockDim.x + threadIdx.x) / 32, lane = threadIdx.x % 32;
  if (i >= x.rows) return;
  const T* shift = static_cast<const T*>(x.shift);
  double sum = 0;
  for (int k = lane; k < x.columns; k += 32) {
    T value = read<T>(x.data, i * x.stride + k, x.dtype);
    if (shift) value = (value - shift[k]) - shift[x.columns + k];
    sum += static_cast<double>(value) * static_cast<double>(value);
  }
  for (int offset = 16; offset > 0; offset >>= 1) sum += __shfl_xor_sync(~0u, sum, offset);
  constexpr double most = sizeof(T) == 4 ? 2e37 : 1e307;
  if (lane == 0) norms[i] = sum < most ? static_cast<T>(sum) : T(-1);
}

}  // namespace xmodal::cuda
