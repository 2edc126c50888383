// C (+)= α A B on one thread, for operands that fit the second-level cache: the algebra of d × d matrices.
// Use this when A may be transposed, triangular or scaled, when C is symmetric, or when C has another type than A and
// B. Use blocked_product.h when B is used by many rows, or is deep.
//
// Nothing is packed: A(i, k) lies at data[i·row + k·column], so A and Aᵀ cost the same. Rows of B and C are padded to
// kPad elements, so that no tile of C has a ragged right edge.
#pragma once

#include "integers.h"
#include "vector.h"

namespace xmodal::cpu::XMODAL_CPU_SET {
namespace {

constexpr int kTileRows = kVectorBytes == 64 ? 12 : 6;
constexpr int64_t kPad = 16;

enum class Shape { full, lower, upper };  // of A: lower is A(i, k) = 0 for k > i, upper for k < i
enum class Store { replace, add };        // C = α A B, or C += α A B
enum class Tiles { all, lower };          // of C: lower leaves the tiles right of the diagonal as they are

template <typename T>
struct Operand {
  const T* data;
  int64_t row;     // elements from row to row
  int64_t column;  // elements from column to column
  Operand transposed() const { return {data, column, row}; }
};

template <int kRows, int kVectors, typename T, typename Out>
inline void tile(Operand<T> a, Range depth, const T* b, int64_t ldb, Out* c, int64_t ldc, T alpha, Store mode) {
  Vector<T> sum[kRows][kVectors] = {};
  for (int64_t k = depth.begin; k < depth.end; ++k) {
    Vector<T> right[kVectors];
    for (int v = 0; v < kVectors; ++v) right[v] = load<Vector<T>>(b + k * ldb + v * kWidth<T>);
    for (int i = 0; i < kRows; ++i) {
      const T left = a.data[i * a.row + k * a.column];
      for (int v = 0; v < kVectors; ++v) sum[i][v] += left * right[v];
    }
  }
  for (int i = 0; i < kRows; ++i)
    for (int v = 0; v < kVectors; ++v) {
      Out* to = c + i * ldc + v * kWidth<T>;
      const Vector<T> scaled = alpha * sum[i][v];
      for (int l = 0; l < kWidth<T>; ++l) to[l] = mode == Store::add ? to[l] + Out(scaled[l]) : Out(scaled[l]);
    }
}

template <int kRows, typename T, typename Out>
inline void tile_row(int64_t columns, Operand<T> a, Range depth, const T* b, int64_t ldb, Out* c, int64_t ldc, T alpha,
                     Store mode) {
  int64_t j = 0;
  for (; j + 2 * kWidth<T> <= columns; j += 2 * kWidth<T>)
    tile<kRows, 2>(a, depth, b + j, ldb, c + j, ldc, alpha, mode);
  for (; j < columns; j += kWidth<T>) tile<kRows, 1>(a, depth, b + j, ldb, c + j, ldc, alpha, mode);
}

// C is (m, n), A (m, k), B (k, n).
template <typename T, typename Out>
void register_product(int64_t m, int64_t n, int64_t k, Operand<T> a, const T* b, int64_t ldb, Out* c, int64_t ldc,
                      T alpha = 1, Store mode = Store::replace, Shape shape = Shape::full, Tiles tiles = Tiles::all) {
  for (int64_t i = 0; i < m;) {
    const int64_t rows = m - i >= kTileRows ? kTileRows : m - i >= 4 ? 4 : 1;
    const Range depth{shape == Shape::upper ? at_most(i, k) : 0, shape == Shape::lower ? at_most(i + rows, k) : k};
    const int64_t columns = tiles == Tiles::lower ? at_most(n, round_up(i + rows, kPad)) : n;
    const Operand<T> from{a.data + i * a.row, a.row, a.column};
    if (rows == kTileRows)
      tile_row<kTileRows>(columns, from, depth, b, ldb, c + i * ldc, ldc, alpha, mode);
    else if (rows == 4)
      tile_row<4>(columns, from, depth, b, ldb, c + i * ldc, ldc, alpha, mode);
    else
      tile_row<1>(columns, from, depth, b, ldb, c + i * ldc, ldc, alpha, mode);
    i += rows;
  }
}

// Copies the lower triangle of the (n, n) matrix c to its upper one.
template <typename T>
void mirror(int64_t n, T* c, int64_t ldc) {
  for (int64_t i = 0; i < n; ++i)
    for (int64_t j = 0; j < i; ++j) c[j * ldc + i] = c[i * ldc + j];
}

}  // namespace
}  // namespace xmodal::cpu::XMODAL_CPU_SET
