// The engine of all products: a TILE×TILE tile of A·B from slices 16 deep, the next slice on its way from global
// memory to registers while one in shared memory is multiplied.
#pragma once

#include "mma.cuh"
#include "portable.cuh"
#include "tile.cuh"

namespace xmodal::cuda {

namespace detail {

constexpr int slice = 16;  // depth that is in shared memory at once

}  // namespace detail

template <typename T, int TILE>
struct TileShape {
  static constexpr int warps_down = 2, warps_across = TILE / 32, threads = 32 * warps_down * warps_across;
  static constexpr int down = TILE / warps_down / 16, across = 4;  // 16×8 fragments of a warp
  // Rows of a slice stored k by k, and of one stored row by row, lie so that fragments meet no bank conflict.
  static constexpr int by_depth = TILE + (sizeof(T) == 4 ? 8 : 4), by_row = detail::slice + 4;
};

namespace detail {

// The sums of a thread: sum[d][j][i] belongs to row 16 d + g + 8 (i / 2) and column 8 j + 2 t + i % 2 of its warp.
template <typename T, int TILE>
using TileSums = T[TileShape<T, TILE>::down][TileShape<T, TILE>::across][4];

// Where the warp's part of the tile begins, and the lane's place in a fragment.
template <typename T, int TILE>
struct WarpPlace {
  int lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
  int row = static_cast<int>(threadIdx.x) / 32 / TileShape<T, TILE>::warps_across * (TILE / 2);
  int column = static_cast<int>(threadIdx.x) / 32 % TileShape<T, TILE>::warps_across * 32;
};

// Adds the slices [begin, end) to sum: fetch(s) loads slice s into registers, put(s) stores it to stage
// (s − begin) % 2 of shared memory, k by k or row by row. Ends with a barrier.
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
    // Tensor cores truncate fp32 sums: theirs are kept short, and added up rounded.
    TileSums<T, TILE> part = {};
    auto& into = sizeof(T) == 4 ? part : sum;
#pragma unroll
    for (int k = 0; k < slice; k += 8) {
      Terms<T, 2> right[Shape::across];
#pragma unroll
      for (int j = 0; j < Shape::across; ++j)
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          const int column = warp.column + 8 * j + g, at = k + t + 4 * i;
          right[j].set(i, B_BY_DEPTH ? b[at * b_ld + column] : b[column * b_ld + at]);
        }
#pragma unroll
      for (int d = 0; d < Shape::down; ++d) {
        Terms<T, 4> left;
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const int row = warp.row + 16 * d + g + 8 * (i % 2), at = k + t + 4 * (i / 2);
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
