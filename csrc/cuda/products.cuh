// Sums of matrix products in fp32 or fp64 accuracy on tensor cores, centring folded into the loads:
//
//   C = alpha · (A₀ B₀ + A₁ B₁) + beta · D + gamma · I,    A, B read as (x − mean).
//
// A block computes a TILE×TILE tile of C, or one split of it: a share of the depth, which add_splits() sums up.
#pragma once

#include "detail/portable.cuh"
#include "detail/reduce.cuh"
#include "detail/tile_product.cuh"

namespace xmodal::cuda {

// The products of a launch. Their tiles are numbered consecutively.
struct ProductGroup {
  Product product[max_products];
  bool a_vectors[max_products][2], b_vectors[max_products][2];  // [product][term]
  int count;
  int tiles;
  Plan plan;
};

namespace detail {

__host__ __device__ inline int count_tiles(int rows, int columns, bool symmetric, int tile) {
  const int down = ceil_div(rows, tile), across = ceil_div(columns, tile);
  return symmetric ? down * (down + 1) / 2 : down * across;
}

__host__ __device__ inline int count_tiles(const Product& p, int tile) {
  return count_tiles(p.rows, p.columns, p.symmetric, tile);
}

// The product that a tile belongs to, and the tile's first row and column.
struct TilePlace {
  int product, row0, column0;
};

__device__ inline TilePlace locate_tile(const ProductGroup& group, int tile, int edge) {
  int p = 0;
  while (p + 1 < group.count && tile >= count_tiles(group.product[p], edge))
    tile -= count_tiles(group.product[p++], edge);
  int down, across;
  if (group.product[p].symmetric) {
    down = static_cast<int>((sqrtf(8.0f * static_cast<float>(tile) + 1.0f) - 1.0f) * 0.5f);
    while (down * (down + 1) / 2 > tile) --down;  // sqrtf rounds
    while ((down + 1) * (down + 2) / 2 <= tile) ++down;
    across = tile - down * (down + 1) / 2;
  } else {
    const int columns = ceil_div(group.product[p].columns, edge);
    down = tile / columns, across = tile % columns;
  }
  return {p, down * edge, across * edge};
}

// Turns sums into elements of C. Copies what it needs, so that the kernel's parameters are read once.
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
        dtype_(p.out_dtype),
        add_(p.beta != 0 ? static_cast<const T*>(p.add) : nullptr),
        out_(advanced(p.out, problem * (p.rows * p.out_stride), p.out_dtype)),
        add_stride_(p.add_stride),
        out_stride_(p.out_stride) {}

  __device__ __forceinline__ bool wants(int row, int column) const {
    return row < rows_ && column < columns_ && !(symmetric_ && column > row);
  }

  // Writes an element and its mirror image; returns its value.
  __device__ __forceinline__ T write(int row, int column, T sum) const {
    T value = alpha_ * sum;
    if (add_) value += beta_ * add_[row * add_stride_ + column];
    if (row == column) value += gamma_;
    detail::write<T>(out_, row * out_stride_ + column, dtype_, value);
    if (symmetric_ && row != column) detail::write<T>(out_, column * out_stride_ + row, dtype_, value);
    return value;
  }

 private:
  T alpha_, beta_, gamma_;
  int rows_, columns_;
  bool symmetric_;
  DType dtype_;
  const T* add_;
  void* out_;
  long long add_stride_, out_stride_;
};

// How a layout's factors lie in shared memory: k by k (by depth) or row by row.
template <typename T, int TILE, ProductLayout LAYOUT>
struct SliceShape {
  static constexpr bool a_by_depth = LAYOUT == ProductLayout::tn, b_by_depth = LAYOUT != ProductLayout::nt;
  static constexpr int a_rows = a_by_depth ? slice : TILE, a_columns = a_by_depth ? TILE : slice;
  static constexpr int b_rows = b_by_depth ? slice : TILE, b_columns = b_by_depth ? TILE : slice;
  static constexpr int a_ld = a_by_depth ? TileShape<T, TILE>::by_depth : TileShape<T, TILE>::by_row;
  static constexpr int b_ld = b_by_depth ? TileShape<T, TILE>::by_depth : TileShape<T, TILE>::by_row;
};

// The tile of an iteration that has converged: the previous result, if the plan has one.
template <typename T, int TILE>
__device__ __forceinline__ void copy_previous(const Product& p, const Plan& plan, const TilePlace& place) {
  if (!plan.iteration.previous) return;
  for (int i = threadIdx.x; i < TILE * TILE; i += TileShape<T, TILE>::threads) {
    const int row = place.row0 + i / TILE, column = place.column0 + i % TILE;
    if (row >= p.rows || column >= p.columns) continue;
    const auto copy = [&](long long at) {
      static_cast<T*>(p.out)[at] = static_cast<const T*>(plan.iteration.previous)[at];
    };
    copy(row * p.out_stride + column);
    if (p.symmetric) copy(column * p.out_stride + row);
  }
}

// Writes a tile of C, or the sums of one split to `partial` unless that is null, and the tile's change if it is wanted.
template <typename T, int TILE>
__device__ __forceinline__ void write_tile(const Product& p, const Plan& plan, int problem, int tile,
                                           const TilePlace& place, const WarpPlace<T, TILE>& warp,
                                           const TileSums<T, TILE>& sums, T* partial) {
  double moved = 0, size = 0;
  const Epilogue<T> epilogue(p, problem);
  const T* previous = static_cast<const T*>(plan.iteration.previous);
  const bool watched = plan.iteration.change != nullptr;
  each_sum<T, TILE>(sums, warp, [&](int in_row, int in_column, T sum) {
    const int row = place.row0 + in_row, column = place.column0 + in_column;
    if (partial) {
      partial[in_row * TILE + in_column] = sum;
    } else if (epilogue.wants(row, column)) {
      const T value = epilogue.write(row, column, sum);
      if (watched) {
        const double old = previous[row * p.out_stride + column];
        moved += (value - old) * (value - old);
        size += static_cast<double>(value) * value;
      }
    }
  });
  if (!watched) return;
  moved = block_sum(moved);
  size = block_sum(size);
  if (threadIdx.x == 0) plan.iteration.change[2 * tile] = moved, plan.iteration.change[2 * tile + 1] = size;
}

}  // namespace detail

template <typename T, int TILE, ProductLayout LAYOUT>
__global__ void __launch_bounds__(TileShape<T, TILE>::threads) multiply(const __grid_constant__ ProductGroup group) {
  using namespace detail;
  using Slices = SliceShape<T, TILE, LAYOUT>;
  constexpr int threads = TileShape<T, TILE>::threads;
  constexpr bool a_by_depth = Slices::a_by_depth, b_by_depth = Slices::b_by_depth;
  alignas(16) __shared__ T a_shared[2][Slices::a_rows * Slices::a_ld];
  alignas(16) __shared__ T b_shared[2][Slices::b_rows * Slices::b_ld];

  const Plan& plan = group.plan;
  const int problem = blockIdx.x / group.tiles, tile = blockIdx.x % group.tiles;
  const TilePlace place = locate_tile(group, tile, TILE);
  const Product& p = group.product[place.product];
  const WarpPlace<T, TILE> warp;
  if (plan.iteration.active && *plan.iteration.active == 0) return copy_previous<T, TILE>(p, plan, place);

  // The slices of both terms are numbered consecutively; this block takes [begin, end).
  const auto depth = [](const Term& term) { return a_by_depth ? term.a.rows : term.a.columns; };
  const int slices0 = ceil_div(depth(p.first), slice);
  const int slices = slices0 + (p.second.a.data ? ceil_div(depth(p.second), slice) : 0);
  const int share = ceil_div(slices, plan.splits);
  const int begin = min(static_cast<int>(blockIdx.y) * share, slices), end = min(begin + share, slices);

  Rectangle<T, Slices::a_rows, Slices::a_columns, Slices::a_ld, threads> a_next;
  Rectangle<T, Slices::b_rows, Slices::b_columns, Slices::b_ld, threads> b_next;
  const auto fetch = [&](int s) {
    const bool second = s >= slices0;
    const Term& term = second ? p.second : p.first;
    const int k = (s - (second ? slices0 : 0)) * slice;
    a_next.fetch(of_problem<T>(term.a, problem), group.a_vectors[place.product][second], a_by_depth ? k : place.row0,
                 a_by_depth ? place.row0 : k);
    b_next.fetch(of_problem<T>(term.b, problem), group.b_vectors[place.product][second], b_by_depth ? k : place.column0,
                 b_by_depth ? place.column0 : k);
  };
  const auto put = [&](int s) {
    const bool second = s >= slices0;
    const Term& term = second ? p.second : p.first;
    const int k = (s - (second ? slices0 : 0)) * slice, half = (s - begin) % 2;
    a_next.put(a_shared[half], term.a, a_by_depth ? k : place.row0, a_by_depth ? place.row0 : k);
    b_next.put(b_shared[half], term.b, b_by_depth ? k : place.column0, b_by_depth ? place.column0 : k);
  };
  TileSums<T, TILE> sums = {};
  multiply_slices<T, TILE, a_by_depth, b_by_depth>(begin, end, warp, a_shared, b_shared, sums, fetch, put);

  T* partial = nullptr;
  if (plan.splits > 1)
    partial = static_cast<T*>(plan.partials) +
              ((static_cast<long long>(problem) * plan.splits + blockIdx.y) * group.tiles + tile) * (TILE * TILE);
  write_tile<T, TILE>(p, plan, problem, tile, place, warp, sums, partial);
}

// Adds up the splits of a tile in fp64 and in a fixed order; a block takes 16 rows of it.
template <typename T>
__global__ void add_splits(const __grid_constant__ ProductGroup group) {
  using namespace detail;
  const int edge = group.plan.tile;
  const int problem = blockIdx.x / group.tiles, tile = blockIdx.x % group.tiles;
  const TilePlace place = locate_tile(group, tile, edge);
  const Epilogue<T> epilogue(group.product[place.product], problem);
  const T* partials = static_cast<const T*>(group.plan.partials) +
                      (static_cast<long long>(problem) * group.plan.splits * group.tiles + tile) * (edge * edge);
  for (int i = threadIdx.x; i < 16 * edge; i += blockDim.x) {
    const int at = 16 * edge * blockIdx.y + i;
    const int row = place.row0 + at / edge, column = place.column0 + at % edge;
    if (!epilogue.wants(row, column)) continue;
    double sum = 0;
    for (int split = 0; split < group.plan.splits; ++split)
      sum += partials[static_cast<long long>(split) * group.tiles * (edge * edge) + at];
    epilogue.write(row, column, static_cast<T>(sum));
  }
}

// The convergence test of an iteration, by one block.
__global__ void compare_change(Iteration iteration, int tiles, double tolerance) {
  if (*iteration.active == 0) return;
  double moved = 0, size = 0;
  for (int tile = threadIdx.x; tile < tiles; tile += blockDim.x)
    moved += iteration.change[2 * tile], size += iteration.change[2 * tile + 1];
  moved = detail::block_sum(moved);
  size = detail::block_sum(size);
  if (threadIdx.x == 0 && moved <= tolerance * tolerance * size) *iteration.active = 0;
}

}  // namespace xmodal::cuda
