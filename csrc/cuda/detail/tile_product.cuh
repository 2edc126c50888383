// The main loop of all products: a TILE×TILE tile of A·B, slice by slice along the depth. While one slice is multiplied
// from shared memory, the next one is loaded from global memory into registers.
#pragma once

#include "mma.cuh"
#include "portable.cuh"
#include "tile.cuh"
#include "xmodal/cuda/products.h"

namespace xmodal::cuda {

template <typename T, int TILE>
struct TileShape {
  static constexpr int warps_down = 2, warps_across = TILE / 32, threads = 32 * warps_down * warps_across;
  static constexpr int down = TILE / warps_down / 16, across = 4;  // 16×8 fragments of a warp
  // Leading dimensions of a slice stored k by k and row by row: fragments are then free of bank conflicts.
  static constexpr int by_depth = TILE + (sizeof(T) == 4 ? 8 : 4), by_row = slice + 4;
};

namespace detail {

// The sums of a thread: sum[d][j][i] is at row(d, i / 2) and column(j, i) of WarpPlace.
template <typename T, int TILE>
using TileSums = T[TileShape<T, TILE>::down][TileShape<T, TILE>::across][4];

// Where a thread's sums are in the tile.
template <typename T, int TILE>
struct WarpPlace {
  static constexpr int across = TileShape<T, TILE>::across;
  int lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
  int row0 = static_cast<int>(threadIdx.x) / 32 / TileShape<T, TILE>::warps_across * (TILE / 2);
  int column0 = static_cast<int>(threadIdx.x) / 32 % TileShape<T, TILE>::warps_across * 32;

  __device__ __forceinline__ int row(int d, int half) const { return row0 + 16 * d + g + 8 * half; }
  __device__ __forceinline__ int column(int j, int i) const { return column0 + 8 * j + 2 * t + i % 2; }

  // Masks over the thread's sums give sum[d][j][i] this bit; the two functions below undo that.
  static constexpr int bit(int d, int j, int i) { return (d * across + j) * 4 + i; }
  __device__ __forceinline__ int row_of(int bit) const { return row(bit / (4 * across), bit % 4 / 2); }
  __device__ __forceinline__ int column_of(int bit) const { return column(bit / 4 % across, bit); }
  static_assert(TileShape<T, TILE>::down * across * 4 <= 64);

  // The place of another lane of the warp.
  __device__ __forceinline__ WarpPlace of_lane(int other) const {
    WarpPlace place = *this;
    place.lane = other, place.g = other / 4, place.t = other % 4;
    return place;
  }
};

// Calls use(row, column, sum) for each of the thread's sums, rows and columns counted within the tile.
template <typename T, int TILE, typename Use>
__device__ __forceinline__ void each_sum(const TileSums<T, TILE>& sum, const WarpPlace<T, TILE>& warp, const Use& use) {
  using Shape = TileShape<T, TILE>;
#pragma unroll
  for (int d = 0; d < Shape::down; ++d)
#pragma unroll
    for (int j = 0; j < Shape::across; ++j)
#pragma unroll
      for (int i = 0; i < 4; ++i) use(warp.row(d, i / 2), warp.column(j, i), sum[d][j][i]);
}

// Adds the products of the slices [begin, end) to sum: fetch(s) loads slice s into registers, put(s) stores it to half
// (s − begin) % 2 of the shared arrays, k by k or row by row. Ends with a barrier.
template <typename T, int TILE, bool A_BY_DEPTH, bool B_BY_DEPTH, int A_SIZE, int B_SIZE, typename Fetch, typename Put>
__device__ __forceinline__ void multiply_slices(int begin, int end, const WarpPlace<T, TILE>& warp,
                                                const T (&a_shared)[2][A_SIZE], const T (&b_shared)[2][B_SIZE],
                                                TileSums<T, TILE>& sum, const Fetch& fetch, const Put& put) {
  using Shape = TileShape<T, TILE>;
  constexpr int a_ld = A_BY_DEPTH ? Shape::by_depth : Shape::by_row;
  constexpr int b_ld = B_BY_DEPTH ? Shape::by_depth : Shape::by_row;
  const int g = warp.g, t = warp.t;
  if (begin < end) {
    fetch(begin);
    put(begin);
  }
  __syncthreads();
  for (int s = begin; s < end; ++s) {
    if (s + 1 < end) fetch(s + 1);
    const T* a = a_shared[(s - begin) % 2];
    const T* b = b_shared[(s - begin) % 2];
    // Tensor cores truncate fp32 sums: each covers one slice only, and they are added up with rounding.
    TileSums<T, TILE> part = {};
    auto& into = sizeof(T) == 4 ? part : sum;
#pragma unroll
    for (int k = 0; k < slice; k += 8) {
      Fragment<T, 2> right[Shape::across];
#pragma unroll
      for (int j = 0; j < Shape::across; ++j)
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          const int column = warp.column0 + 8 * j + g, at = k + t + 4 * i;
          right[j].set(i, B_BY_DEPTH ? b[at * b_ld + column] : b[column * b_ld + at]);
        }
#pragma unroll
      for (int d = 0; d < Shape::down; ++d) {
        Fragment<T, 4> left;
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const int row = warp.row(d, i % 2), at = k + t + 4 * (i / 2);
          left.set(i, A_BY_DEPTH ? a[at * a_ld + row] : a[row * a_ld + at]);
        }
#pragma unroll
        for (int j = 0; j < Shape::across; ++j) multiply_add(into[d][j], left, right[j]);
      }
    }
    if constexpr (sizeof(T) == 4) {
#pragma unroll
      for (int d = 0; d < Shape::down; ++d)
#pragma unroll
        for (int j = 0; j < Shape::across; ++j)
#pragma unroll
          for (int i = 0; i < 4; ++i) sum[d][j][i] += part[d][j][i];
    }
    if (s + 1 < end) put(s + 1);
    __syncthreads();
  }
}

}  // namespace detail
}  // namespace xmodal::cuda
