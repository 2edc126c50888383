// C (+)= A B on one thread, for many rows and any depth: samples times weights, weights times embeddings.
// Use this when B is used by many rows, so that packing it into panels pays, and everything has one type.
// Use register_product.h for operands that fit the second-level cache, or for a scaled, triangular or symmetric
// product.
//
// A block of kBlockRows × kPanel<T> of C stays in registers over the depth. B lies in panels of kPanel columns, so each
// step of the depth reads adjacent vectors of B and one scalar of A per row.
#pragma once

#include "integers.h"
#include "vector.h"

namespace xmodal::cpu::XMODAL_CPU_SET {
namespace {

constexpr int kBlockRows = kVectorBytes == 64 ? 8 : 6;  // two vectors per row: 16 of 32 registers, or 12 of 16
template <class T>
constexpr int kPanel = 2 * kWidth<T>;
constexpr int64_t kDepth = 256;  // a panel of B this deep stays in the first-level cache

enum class Storage { rows, columns };  // A(i, k) is a[i·lda + k], or a[k·lda + i]

// B(k, j) is data[(j / kPanel)·panel + k·row + j % kPanel].
template <class T>
struct Panels {
  const T* data;
  int64_t panel;  // elements from panel to panel
  int64_t row;    // elements from row to row of a panel
};

struct Extent {
  int64_t rows, columns, depth;
};

template <class T, Storage kStorage, int kM, int kVectors>
inline void register_block(const T* a, int64_t lda, const T* b, int64_t ldb, int64_t depth, bool add, T* c,
                           int64_t ldc) {
  using V = Vector<T>;
  V sum[kM][kVectors];
  for (int i = 0; i < kM; ++i)
    for (int v = 0; v < kVectors; ++v) sum[i][v] = V{};
  for (int64_t k = 0; k < depth; ++k) {
    V right[kVectors];
    for (int v = 0; v < kVectors; ++v) right[v] = load<V>(b + k * ldb + v * kWidth<T>);
#pragma GCC unroll 8
    for (int i = 0; i < kM; ++i) {
      const T left = kStorage == Storage::rows ? a[i * lda + k] : a[k * lda + i];
#pragma GCC unroll 2
      for (int v = 0; v < kVectors; ++v) sum[i][v] += right[v] * left;
    }
  }
  // C is added last: a sum of partial sums loses fewer digits than one long sum.
  for (int i = 0; i < kM; ++i)
    for (int v = 0; v < kVectors; ++v) {
      T* to = c + i * ldc + v * kWidth<T>;
      store(to, add ? load<V>(to) + sum[i][v] : sum[i][v]);
    }
}

template <class T, Storage kStorage, int kVectors>
inline void panel_product(const T* a, int64_t lda, const T* b, int64_t ldb, int64_t rows, int64_t depth, bool add, T* c,
                          int64_t ldc) {
  const int64_t step = kStorage == Storage::rows ? lda : 1;
  int64_t i = 0;
  for (; i + kBlockRows <= rows; i += kBlockRows)
    register_block<T, kStorage, kBlockRows, kVectors>(a + i * step, lda, b, ldb, depth, add, c + i * ldc, ldc);
  for (; i < rows; ++i)
    register_block<T, kStorage, 1, kVectors>(a + i * step, lda, b, ldb, depth, add, c + i * ldc, ldc);
}

// B and C are padded: columns up to the next multiple of the vector width are read and written.
template <class T, Storage kStorage>
inline void blocked_product(Extent extent, const T* a, int64_t lda, Panels<T> b, bool add, T* c, int64_t ldc) {
  for (int64_t k = 0; k < extent.depth; k += kDepth) {
    const int64_t depth = at_most(extent.depth - k, kDepth);
    const T* left = a + (kStorage == Storage::rows ? k : k * lda);
    for (int64_t j = 0; j < extent.columns; j += kPanel<T>) {
      const T* right = b.data + j / kPanel<T> * b.panel + k * b.row;
      if (extent.columns - j > kWidth<T>)
        panel_product<T, kStorage, 2>(left, lda, right, b.row, extent.rows, depth, add || k, c + j, ldc);
      else
        panel_product<T, kStorage, 1>(left, lda, right, b.row, extent.rows, depth, add || k, c + j, ldc);
    }
  }
}

}  // namespace
}  // namespace xmodal::cpu::XMODAL_CPU_SET
