// Sums of matrix products in fp32 or fp64 accuracy on tensor cores, centring folded into the loads:
//
//   C = alpha · (A₀ B₀ + A₁ B₁) + beta · D + gamma · I,    A, B read as (x − mean).
//
// A block makes a TILE×TILE tile of C, or of a share of its depth.
#pragma once

#include "detail/portable.cuh"
#include "detail/reduce.cuh"
#include "detail/tile_product.cuh"

namespace xmodal::cuda {

constexpr int max_products = 3;

// What the kernel sees; tiles are counted through the products one after the other.
struct ProductGroup {
  Product product[max_products];
  bool a_vectors[max_products][2], b_vectors[max_products][2];
  int count;
  int tiles;
  Plan plan;
};

namespace detail {

__host__ __device__ inline int tiles_of(const Product& p, int tile) {
  const int down = ceil_div(p.rows, tile), across = ceil_div(p.columns, tile);
  return p.symmetric ? down * (down + 1) / 2 : down * across;
}

// The product that a tile belongs to, and the tile's first row and column.
struct Place {
  int product, row0, column0;
};

__device__ inline Place place(const ProductGroup& group, int tile, int edge) {
  int p = 0;
  while (p + 1 < group.count && tile >= tiles_of(group.product[p], edge)) tile -= tiles_of(group.product[p++], edge);
  int down, across;
  if (group.product[p].symmetric) {
    down = static_cast<int>((sqrtf(8.0f * static_cast<float>(tile) + 1.0f) - 1.0f) * 0.5f);
    while (down * (down + 1) / 2 > tile) --down;  // the root is rounded
    while ((down + 1) * (down + 2) / 2 <= tile) ++down;
    across = tile - down * (down + 1) / 2;
  } else {
    const int columns = ceil_div(group.product[p].columns, edge);
    down = tile / columns, across = tile % columns;
  }
  return {p, down * edge, across * edge};
}

// What becomes of the sums, read once from the kernel's parameters.
template <typename T>
class Epilogue {
 public:
  __device__ __forceinline__ Epilogue(const Product& p, int problem)
      : alpha_(static_cast<T>(p.alpha)),
        beta_(static_cast<T>(p.beta)),
        gamma_(static_cast<T>(p.gamma)),
        rows_(p.rows),
        columns_(p.columns),
        symmetric_(p.symmetric),
        kind_(p.out_kind),
        add_(p.beta != 0 ? static_cast<const T*>(p.add) : nullptr),
        out_(advanced(p.out, problem * (p.rows * p.out_stride), p.out_kind)),
        add_stride_(p.add_stride),
        out_stride_(p.out_stride) {}

  __device__ __forceinline__ bool wants(int row, int column) const {
    return row < rows_ && column < columns_ && !(symmetric_ && column > row);
  }

  // Writes one element, and its mirror image; returns what was written.
  __device__ __forceinline__ T write(int row, int column, T sum) const {
    T value = alpha_ * sum;
    if (add_) value += beta_ * add_[row * add_stride_ + column];
    if (row == column) value += gamma_;
    detail::write<T>(out_, row * out_stride_ + column, kind_, value);
    if (symmetric_ && row != column) detail::write<T>(out_, column * out_stride_ + row, kind_, value);
    return value;
  }

 private:
  T alpha_, beta_, gamma_;
  int rows_, columns_;
  bool symmetric_;
  Kind kind_;
  const T* add_;
  void* out_;
  long long add_stride_, out_stride_;
};

}  // namespace detail

template <typename T, int TILE, Layout LAYOUT>
__global__ void __launch_bounds__(TileShape<T, TILE>::threads) multiply(const __grid_constant__ ProductGroup group) {
  using namespace detail;
  using Shape = TileShape<T, TILE>;
  constexpr bool a_by_depth = LAYOUT == Layout::tn, b_by_depth = LAYOUT != Layout::nt;
  constexpr int a_rows = a_by_depth ? slice : TILE, b_rows = b_by_depth ? slice : TILE;
  constexpr int a_columns = a_by_depth ? TILE : slice, b_columns = b_by_depth ? TILE : slice;
  constexpr int a_ld = a_by_depth ? Shape::by_depth : Shape::by_row,
                b_ld = b_by_depth ? Shape::by_depth : Shape::by_row;
  alignas(16) __shared__ T a_shared[2][a_rows * a_ld];
  alignas(16) __shared__ T b_shared[2][b_rows * b_ld];

  const int problem = blockIdx.x / group.tiles, tile = blockIdx.x % group.tiles;
  const Place where = place(group, tile, TILE);
  const Product& p = group.product[where.product];
  const WarpPlace<T, TILE> warp;

  if (group.plan.active && *group.plan.active == 0) {  // the iteration has ended: hand its result on
    if (!group.plan.previous) return;
    for (int i = threadIdx.x; i < TILE * TILE; i += Shape::threads) {
      const int row = where.row0 + i / TILE, column = where.column0 + i % TILE;
      if (row >= p.rows || column >= p.columns) continue;
      const auto copy = [&](long long at) {
        static_cast<T*>(p.out)[at] = static_cast<const T*>(group.plan.previous)[at];
      };
      copy(row * p.out_stride + column);
      if (p.symmetric) copy(column * p.out_stride + row);
    }
    return;
  }

  const auto depth = [&](int term) { return a_by_depth ? p.a[term].rows : p.a[term].columns; };
  const int slices0 = ceil_div(depth(0), slice);
  const int slices = slices0 + (p.terms > 1 ? ceil_div(depth(1), slice) : 0);
  const int share = ceil_div(slices, group.plan.splits);
  const int begin = min(static_cast<int>(blockIdx.y) * share, slices), end = min(begin + share, slices);

  Rectangle<T, a_rows, a_columns, a_ld, Shape::threads> a_next;
  Rectangle<T, b_rows, b_columns, b_ld, Shape::threads> b_next;
  const auto fetch = [&](int s) {
    const int term = s >= slices0, k = (s - (term ? slices0 : 0)) * slice;
    a_next.fetch(of_problem<T>(p.a[term], problem), group.a_vectors[where.product][term], a_by_depth ? k : where.row0,
                 a_by_depth ? where.row0 : k);
    b_next.fetch(of_problem<T>(p.b[term], problem), group.b_vectors[where.product][term],
                 b_by_depth ? k : where.column0, b_by_depth ? where.column0 : k);
  };
  const auto put = [&](int s) {
    const int term = s >= slices0, k = (s - (term ? slices0 : 0)) * slice, stage = (s - begin) % 2;
    a_next.put(a_shared[stage], p.a[term], a_by_depth ? k : where.row0, a_by_depth ? where.row0 : k);
    b_next.put(b_shared[stage], p.b[term], b_by_depth ? k : where.column0, b_by_depth ? where.column0 : k);
  };

  TileSums<T, TILE> sum = {};
  multiply_slices<T, TILE, a_by_depth, b_by_depth>(begin, end, warp, a_shared, b_shared, sum, fetch, put);

  double moved = 0, size = 0;
  const Epilogue<T> epilogue(p, problem);
  const T* previous = static_cast<const T*>(group.plan.previous);
  const bool watched = group.plan.change != nullptr;
  T* partial = nullptr;
  if (group.plan.splits > 1)
    partial = static_cast<T*>(group.plan.partials) +
              ((static_cast<long long>(problem) * group.plan.splits + blockIdx.y) * group.tiles + tile) * (TILE * TILE);
#pragma unroll
  for (int d = 0; d < Shape::down; ++d)
#pragma unroll
    for (int j = 0; j < Shape::across; ++j)
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int in_row = warp.row + 16 * d + warp.g + 8 * (i / 2),
                  in_column = warp.column + 8 * j + 2 * warp.t + i % 2;
        const int row = where.row0 + in_row, column = where.column0 + in_column;
        if (partial) {
          partial[in_row * TILE + in_column] = sum[d][j][i];
        } else if (epilogue.wants(row, column)) {
          const T value = epilogue.write(row, column, sum[d][j][i]);
          if (watched) {
            const double old = previous[row * p.out_stride + column];
            moved += (value - old) * (value - old);
            size += static_cast<double>(value) * value;
          }
        }
      }
  if (watched) {
    moved = block_sum(moved);
    size = block_sum(size);
    if (threadIdx.x == 0) group.plan.change[2 * tile] = moved, group.plan.change[2 * tile + 1] = size;
  }
}

// Adds up the shares of the inner dimension, in fp64 and in order, a block for each 16 rows of a tile.
template <typename T>
__global__ void add_shares(const __grid_constant__ ProductGroup group) {
  using namespace detail;
  const int edge = group.plan.tile;
  const int problem = blockIdx.x / group.tiles, tile = blockIdx.x % group.tiles;
  const Place where = place(group, tile, edge);
  const Epilogue<T> epilogue(group.product[where.product], problem);
  const T* partials = static_cast<const T*>(group.plan.partials) +
                      (static_cast<long long>(problem) * group.plan.splits * group.tiles + tile) * (edge * edge);
  for (int i = threadIdx.x; i < 16 * edge; i += blockDim.x) {
    const int at = 16 * edge * blockIdx.y + i;
    const int row = where.row0 + at / edge, column = where.column0 + at % edge;
    if (!epilogue.wants(row, column)) continue;
    double sum = 0;
    for (int split = 0; split < group.plan.splits; ++split)
      sum += partials[static_cast<long long>(split) * group.tiles * (edge * edge) + at];
    epilogue.write(row, column, static_cast<T>(sum));
  }
}

// One block: has the iteration come to rest?
__global__ void settle_kernel(const double* change, int tiles, double tolerance, int* active) {
  if (*active == 0) return;
  double moved = 0, size = 0;
  for (int tile = threadIdx.x; tile < tiles; tile += blockDim.x)
    moved += change[2 * tile], size += change[2 * tile + 1];
  moved = detail::block_sum(moved);
  size = detail::block_sum(size);
  if (threadIdx.x == 0 && moved <= tolerance * tolerance * size) *active = 0;
}

}  // namespace xmodal::cuda
