// Matrix products on one thread: C (+)= A B, from registers.
//
// A block of kRows × kPanel<T> of C stays in registers while the depth runs; B lies in panels of kPanel
// columns, so that each step of the depth reads adjacent vectors of B and one scalar of A per row.
#pragma once

#include "vector.h"

namespace xmodal::cpu::XMODAL_CPU_SET {
namespace {

constexpr int kRows = kVectorBytes == 64 ? 8 : 6;  // 2 vectors per row: 16 of 32 registers, or 12 of 16
template <class T>
constexpr int kPanel = 2 * kWidth<T>;
constexpr std::int64_t kDepth = 256;  // a panel of B this deep stays in the first-level cache

inline std::int64_t round_up(std::int64_t value, std::int64_t step) { return (value + step - 1) / step * step; }

enum class Layout { rows, columns };  // A(i, k) is a[i·lda + k], or a[k·lda + i]

template <class T, Layout kLayout, int kM, int kVectors>
inline void block_product(const T* a, std::int64_t lda, const T* b, std::int64_t ldb, std::int64_t depth, bool add,
                          T* c, std::int64_t ldc) {
  using V = Vector<T>;
  V sum[kM][kVectors];
  for (int i = 0; i < kM; ++i)
    for (int v = 0; v < kVectors; ++v) sum[i][v] = V{};
  for (std::int64_t k = 0; k < depth; ++k) {
    V right[kVectors];
    for (int v = 0; v < kVectors; ++v) right[v] = load<V>(b + k * ldb + v * kWidth<T>);
#pragma GCC unroll 8
    for (int i = 0; i < kM; ++i) {
      const T left = kLayout == Layout::rows ? a[i * lda + k] : a[k * lda + i];
#pragma GCC unroll 2
      for (int v = 0; v < kVectors; ++v) sum[i][v] += right[v] * left;
    }
  }
  // Added up apart from what was there: a sum of sums loses less than one long one.
  for (int i = 0; i < kM; ++i)
    for (int v = 0; v < kVectors; ++v) {
      T* to = c + i * ldc + v * kWidth<T>;
      store(to, add ? load<V>(to) + sum[i][v] : sum[i][v]);
    }
}

template <class T, Layout kLayout, int kVectors>
inline void panel_product(const T* a, std::int64_t lda, const T* b, std::int64_t ldb, std::int64_t rows,
                          std::int64_t depth, bool add, T* c, std::int64_t ldc) {
  const std::int64_t step = kLayout == Layout::rows ? lda : 1;
  std::int64_t i = 0;
  for (; i + kRows <= rows; i += kRows)
    block_product<T, kLayout, kRows, kVectors>(a + i * step, lda, b, ldb, depth, add, c + i * ldc, ldc);
  for (; i < rows; ++i) block_product<T, kLayout, 1, kVectors>(a + i * step, lda, b, ldb, depth, add, c + i * ldc, ldc);
}

// C[rows, cols] (+)= A[rows, depth] B[depth, cols]; B(k, j) is b[(j / kPanel)·panel + k·ldb + j % kPanel].
// B and C are padded: columns up to the next multiple of the vector width are read and written.
template <class T, Layout kLayout>
inline void product(const T* a, std::int64_t lda, const T* b, std::int64_t panel, std::int64_t ldb, std::int64_t rows,
                    std::int64_t cols, std::int64_t depth, bool add, T* c, std::int64_t ldc) {
  for (std::int64_t k = 0; k < depth; k += kDepth) {
    const std::int64_t deep = depth - k < kDepth ? depth - k : kDepth;
    const T* left = a + (kLayout == Layout::rows ? k : k * lda);
    for (std::int64_t j = 0; j < cols; j += kPanel<T>) {
      const T* right = b + j / kPanel<T> * panel + k * ldb;
      if (cols - j > kWidth<T>)
        panel_product<T, kLayout, 2>(left, lda, right, ldb, rows, deep, add || k, c + j, ldc);
      else
        panel_product<T, kLayout, 1>(left, lda, right, ldb, rows, deep, add || k, c + j, ldc);
    }
  }
}

}  // namespace
}  // namespace xmodal::cpu::XMODAL_CPU_SET
