// C (+)= α A B for matrices that fit the second-level cache, from one register tile.
//   C[i, j] = α Σₖ A[i, k] B[k, j] — A(i, k) lies at a[i·ai + k·ak], so A and Aᵀ cost the same;
//   rows of B and C are padded to kPad, so a tile is a few rows by one or two whole registers;
//   a triangular A shortens the sum over k, a symmetric C leaves out the tiles above its diagonal.
#pragma once

#include "vector.h"

namespace xmodal::cpu::XMODAL_CPU_SET {
namespace {

constexpr int kTileRows = kVectorBytes == 64 ? 12 : 6;

// Rows of every matrix are padded to this many elements, so that no tile has a ragged right edge.
constexpr int64_t kPad = 16;
inline int64_t padded(int64_t n) { return (n + kPad - 1) / kPad * kPad; }

enum class Shape { full, lower, upper };  // A[i, k] = 0 for k > i, for k < i

template <typename T>
struct Operand {
  const T* data;
  int64_t row, column;  // distance of neighbours below, and to the right
  Operand transposed() const { return {data, column, row}; }
};

template <int Rows, int Registers, typename T, typename Out>
inline void tile(Operand<T> a, int64_t k_begin, int64_t k_end, const T* b, int64_t ldb, Out* c, int64_t ldc, T alpha,
                 bool add) {
  Vector<T> sum[Rows][Registers] = {};
  for (int64_t k = k_begin; k < k_end; ++k) {
    Vector<T> right[Registers];
    for (int j = 0; j < Registers; ++j) right[j] = load<Vector<T>>(b + k * ldb + j * kWidth<T>);
    for (int i = 0; i < Rows; ++i) {
      const T left = a.data[i * a.row + k * a.column];
      for (int j = 0; j < Registers; ++j) sum[i][j] += left * right[j];
    }
  }
  for (int i = 0; i < Rows; ++i)
    for (int j = 0; j < Registers; ++j) {
      Out* to = c + i * ldc + j * kWidth<T>;
      const Vector<T> scaled = alpha * sum[i][j];
      for (int l = 0; l < kWidth<T>; ++l) to[l] = add ? to[l] + Out(scaled[l]) : Out(scaled[l]);
    }
}

template <int Rows, typename T, typename Out>
inline void tile_row(int64_t n, Operand<T> a, int64_t k_begin, int64_t k_end, const T* b, int64_t ldb, Out* c,
                     int64_t ldc, T alpha, bool add) {
  int64_t j = 0;
  for (; j + 2 * kWidth<T> <= n; j += 2 * kWidth<T>)
    tile<Rows, 2>(a, k_begin, k_end, b + j, ldb, c + j, ldc, alpha, add);
  for (; j < n; j += kWidth<T>) tile<Rows, 1>(a, k_begin, k_end, b + j, ldb, c + j, ldc, alpha, add);
}

// C (m, n) = α A B, or C += α A B. With `symmetric`, C's tiles right of the diagonal are left as they are.
template <typename T, typename Out>
void product(int64_t m, int64_t n, int64_t k, Operand<T> a, const T* b, int64_t ldb, Out* c, int64_t ldc, T alpha = 1,
             bool add = false, Shape shape = Shape::full, bool symmetric = false) {
  const auto at_most = [](int64_t u, int64_t v) { return u < v ? u : v; };
  for (int64_t i = 0; i < m;) {
    const int64_t rows = m - i >= kTileRows ? kTileRows : m - i >= 4 ? 4 : 1;
    const int64_t begin = shape == Shape::upper ? at_most(i, k) : 0;
    const int64_t end = shape == Shape::lower ? at_most(i + rows, k) : k;
    const int64_t columns = symmetric ? at_most(n, padded(i + rows)) : n;
    const Operand<T> from{a.data + i * a.row, a.row, a.column};
    if (rows == kTileRows)
      tile_row<kTileRows>(columns, from, begin, end, b, ldb, c + i * ldc, ldc, alpha, add);
    else if (rows == 4)
      tile_row<4>(columns, from, begin, end, b, ldb, c + i * ldc, ldc, alpha, add);
    else
      tile_row<1>(columns, from, begin, end, b, ldb, c + i * ldc, ldc, alpha, add);
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
