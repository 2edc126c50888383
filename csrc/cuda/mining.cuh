// Triplet mining in one pass over tiles of distances that stay in registers.
//
//   |d̃² − d²| ≤ κ (|a|² + |r|²) for d̃² = |a|² + |r|² − 2 a·r from split products
//
// Each anchor keeps the best value that some reference surely has, a bound shared by all tiles. A reference whose
// own bound reaches it is measured in fp64, from the rows as they came, and enters by an atomic maximum of
// (distance, −index). Whatever the order of tiles, all that could be best are measured: results are deterministic,
// ties go to the lowest index. A key holds as many bits of the distance as the index leaves: 36 of 2¹⁷ rows.
#pragma once

#include "detail/pairs.cuh"

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

// Numbers as integers of the same order, none of them 0.
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

// Larger is better; of equal distances the lower index is. Never 0.
__device__ __forceinline__ unsigned long long key_of(const MiningTask& task, bool farthest, double square, int j) {
  const unsigned long long mask = index_mask(task), bits = bits_as<unsigned long long>(square) << 1;
  return ((farthest ? bits : ~bits) & ~mask) | (mask - static_cast<unsigned long long>(j));
}

}  // namespace detail

template <typename T, int TILE>
__global__ void __launch_bounds__(TileShape<T, TILE>::threads) mine_tile(const __grid_constant__ MiningTask task) {
  using namespace detail;
  using Shape = TileShape<T, TILE>;
  __shared__ unsigned long long bound[2][TILE];
  __shared__ int count[2][TILE];

  const LabelledPairs& p = task.pairs;
  const int m = p.anchor.rows, n = p.ref.rows, tiles_down = ceil_div(m, TILE);
  // Neighbouring blocks take different anchors: an anchor's later tiles then find a bound to go by.
  const int row0 = static_cast<int>(blockIdx.x) % tiles_down * TILE;
  const int column0 = static_cast<int>(blockIdx.x) / tiles_down * TILE;
  const WarpPlace<T, TILE> warp;
  const int g = warp.g, t = warp.t, warp_row = warp.row, warp_column = warp.column;
  for (int i = threadIdx.x; i < TILE; i += Shape::threads) bound[0][i] = bound[1][i] = 0, count[0][i] = count[1][i] = 0;

  TileSums<T, TILE> sum = {};
  pair_products(p, task.vectors, row0, column0, warp, sum);

  // From products to squared distances, and what each of the thread's pairs is: a bit for the fragment's number.
  const auto bit = [](int d, int j, int i) { return (d * Shape::across + j) * 4 + i; };
  static_assert(Shape::down * Shape::across * 4 <= 64);
  const T slack = static_cast<T>(p.anchor.columns + 32) * (sizeof(T) == 4 ? T(1.2e-7) : T(2.3e-16));
  const T* a_norms = static_cast<const T*>(p.anchor_norms);
  const T* r_norms = static_cast<const T*>(p.ref_norms);
  unsigned long long positive = 0, negative = 0;
#pragma unroll
  for (int d = 0; d < Shape::down; ++d)
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int in_row = warp_row + 16 * d + g + 8 * half, row = row0 + in_row;
      const T a_norm = row < m ? a_norms[row] : T(-1);
#pragma unroll
      for (int j = 0; j < Shape::across; ++j)
#pragma unroll
        for (int i = 2 * half; i < 2 * half + 2; ++i) {
          const int column = column0 + warp_column + 8 * j + 2 * t + i % 2;
          const T r_norm = column < n ? r_norms[column] : T(-1);
          sum[d][j][i] = a_norm + r_norm - 2 * sum[d][j][i];
          if (a_norm < 0 || r_norm < 0 || (p.exclude_diagonal && row == column)) continue;
          (share_a_label(p, row, column) ? positive : negative) |= 1ull << bit(d, j, i);
        }
      if (task.counts) {
        const unsigned long long here = 0x3333ull << 2 * half << bit(d, 0, 0);  // the row's bits
        int counts[2] = {__popcll(positive & here), __popcll(negative & here)};
        for (int kind = 0; kind < 2; ++kind) {
          for (int offset = 1; offset < 4; offset <<= 1) counts[kind] += __shfl_xor_sync(~0u, counts[kind], offset);
          if (t == 0) atomicAdd(&count[kind][in_row], counts[kind]);
        }
      }
    }

  for (int c = 0; c < task.choices; ++c) {
    const Choice& choice = task.choice[c];
    const unsigned long long wanted = choice.positive ? positive : negative;
    const T sign = choice.farthest ? T(1) : T(-1);
    // What the best of the tile surely reaches, and then the best of all tiles so far.
#pragma unroll
    for (int d = 0; d < Shape::down; ++d)
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int in_row = warp_row + 16 * d + g + 8 * half, row = row0 + in_row;
        const T a_norm = row < m ? a_norms[row] : T(0);
        const T floor = choice.floor && row < m ? static_cast<T>(choice.floor[row]) : T(-1);
        unsigned long long best = 0;
#pragma unroll
        for (int j = 0; j < Shape::across; ++j)
#pragma unroll
          for (int i = 2 * half; i < 2 * half + 2; ++i) {
            if (!(wanted >> bit(d, j, i) & 1)) continue;
            const T square = sum[d][j][i];
            const T error = slack * (a_norm + r_norms[column0 + warp_column + 8 * j + 2 * t + i % 2]);
            if (choice.floor && !(square - error > floor)) continue;
            const unsigned long long value = ordered(static_cast<double>(sign * square - error));
            if (value > best) best = value;
          }
        for (int offset = 1; offset < 4; offset <<= 1) {
          const unsigned long long other = __shfl_xor_sync(~0u, best, offset);
          if (other > best) best = other;
        }
        if (t == 0 && best) atomicMax(&bound[c][in_row], best);
      }
    __syncthreads();
    for (int i = threadIdx.x; i < TILE; i += Shape::threads)
      if (row0 + i < m) {
        const unsigned long long before = atomicMax(&choice.bound[row0 + i], bound[c][i]);
        if (before > bound[c][i]) bound[c][i] = before;
      }
    __syncthreads();
    unsigned long long candidates = 0;
#pragma unroll
    for (int d = 0; d < Shape::down; ++d)
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int in_row = warp_row + 16 * d + g + 8 * half, row = row0 + in_row;
        const T a_norm = row < m ? a_norms[row] : T(0);
        const T floor = choice.floor && row < m ? static_cast<T>(choice.floor[row]) : T(-1);
        const double least = bound[c][in_row] ? number(bound[c][in_row]) : -bits_as<double>(infinity_bits);
#pragma unroll
        for (int j = 0; j < Shape::across; ++j)
#pragma unroll
          for (int i = 2 * half; i < 2 * half + 2; ++i) {
            if (!(wanted >> bit(d, j, i) & 1)) continue;
            const T square = sum[d][j][i];
            const T error = slack * (a_norm + r_norms[column0 + warp_column + 8 * j + 2 * t + i % 2]);
            if (choice.floor && !(square + error > floor)) continue;
            if (static_cast<double>(sign * square + error) >= least) candidates |= 1ull << bit(d, j, i);
          }
      }
    for (; candidates; candidates &= candidates - 1) {
      const int at = __popcll((candidates & -candidates) - 1);
      const int row = row0 + warp_row + 16 * (at / (4 * Shape::across)) + g + 8 * (at % 4 / 2);
      const int column = column0 + warp_column + 8 * (at / 4 % Shape::across) + 2 * t + at % 2;
      const double exact = exact_square(p, row, column);
      if (!choice.floor || exact > choice.floor[row])
        atomicMax(&choice.key[row], key_of(task, choice.farthest, exact, column));
    }
  }
  if (task.counts)
    for (int i = threadIdx.x; i < TILE; i += Shape::threads)
      if (row0 + i < m) {
        if (count[0][i]) atomicAdd(&task.counts[row0 + i], count[0][i]);
        if (count[1][i]) atomicAdd(&task.counts[m + row0 + i], count[1][i]);
      }
}

// A thread per anchor: what its key says, measured as it was measured there, to the last bit.
template <typename T>
__global__ void read_keys(const __grid_constant__ MiningTask task, std::int64_t* index, T* distance, double* square) {
  using namespace detail;
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= task.pairs.anchor.rows) return;
  const unsigned long long key = task.choice[0].key[i], mask = index_mask(task);
  const long long j = key ? static_cast<long long>(mask - (key & mask)) : -1;
  const double exact = key ? exact_square(task.pairs, i, j) : 0.0;
  index[i] = j;
  distance[i] = static_cast<T>(sqrt(exact));
  if (square) square[i] = key ? exact : bits_as<double>(infinity_bits);
}

// A number for the pair (i, j) that looks random: splitmix64's finaliser, as in csrc/cpu/mining.cpp.
__device__ __forceinline__ unsigned long long pair_hash(unsigned long long seed, unsigned long long i,
                                                        unsigned long long j) {
  unsigned long long x = seed + i * 0x9e3779b97f4a7c15ull + j * 0xd1b54a32d192ed03ull;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ull;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebull;
  return (x ^ (x >> 31)) >> 1;
}

// A warp per anchor: the negative of the least hash, ties to the lowest index, and its distance.
template <typename T>
__global__ void draw_negatives(const __grid_constant__ LabelledPairs pairs, unsigned long long seed,
                               std::int64_t* index, T* distance) {
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
  if (lane == 0) index[i] = chosen, distance[i] = static_cast<T>(sqrt(square));
}

// A warp per row: |x − shift|², −1 where it is not finite.
template <typename T>
__global__ void sum_squares(const __grid_constant__ Matrix x, T* norms) {
  using namespace detail;
  const int i = (blockIdx.x * blockDim.x + threadIdx.x) / 32, lane = threadIdx.x % 32;
  if (i >= x.rows) return;
  const T* shift = static_cast<const T*>(x.shift);
  double sum = 0;
  for (int k = lane; k < x.columns; k += 32) {
    T value = read<T>(x.data, i * x.stride + k, x.kind);
    if (shift) value = (value - shift[k]) - shift[x.columns + k];
    sum += static_cast<double>(value) * static_cast<double>(value);
  }
  for (int offset = 16; offset > 0; offset >>= 1) sum += __shfl_xor_sync(~0u, sum, offset);
  constexpr double most = sizeof(T) == 4 ? 2e37 : 1e307;
  if (lane == 0) norms[i] = sum < most ? static_cast<T>(sum) : T(-1);
}

}  // namespace xmodal::cuda
