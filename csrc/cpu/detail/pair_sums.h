// Sums over all pairs with a weight for each, and their gradients, in one sweep.
#pragma once

#include "pairs.h"

namespace xmodal::cpu::XMODAL_CPU_SET {
namespace {

// What a loss says of one anchor.
struct RowSums {
  double loss = 0, active = 0, positive_d = 0, negative_d = 0;
};

template <class T>
void fill_not_a_number(const Pairs& pairs, const Sums& out) {
  const T nan = std::numeric_limits<T>::quiet_NaN();
  for (int64_t i = 0; i < 6 * pairs.m; ++i) out.sums[i] = nan;
  for (int64_t i = 0; out.anchor && i < pairs.m * pairs.d; ++i) static_cast<T*>(out.anchor)[i] = nan;
  for (int64_t j = 0; out.ref && j < pairs.n * pairs.d; ++j) static_cast<T*>(out.ref)[j] = nan;
}

// x's gradient from [Σ v y | Σ v], v = −w: Σ w (x − y).
template <class T>
inline void finish_gradient(const T* sum, const T* x, int64_t d, T* gradient) {
  for (int64_t k = 0; k < d; ++k) gradient[k] = sum[k] - sum[d] * x[k];
}

// Calls weigh(thread, i, distances, kind) for every anchor: it returns the sums of its row, and leaves −w in
// place of the distances. Then the gradients are products of the weights with the rows of either side; those
// of the references are taken block after block, so that results do not depend on the number of threads.
template <class T, class Weigh>
void sweep(const Prepared<T>& p, const Sums& out, const Weigh& weigh) {
  const int threads = static_cast<int>(p.threads);
  const int64_t chunks = p.stride / kChunk + 1;
  auto rows_from = [&p](int64_t first) { return p.m - first < p.block ? p.m - first : p.block; };
  if (out.ref) std::memset(p.r_sum, 0, p.padded * p.ld * sizeof(T));
  for (int64_t start = 0; start < p.m; start += threads * p.block) {
    const int64_t rest = (p.m - start + p.block - 1) / p.block;
    const int blocks = rest < threads ? static_cast<int>(rest) : threads;
    parallel(blocks, [&](int part, int) {
      const int64_t first = start + part * p.block, rows = rows_from(first);
      T* weights = p.products + part * p.block * p.stride;
      unsigned char* busy = p.busy + part * chunks;
      Int<T>* kind = p.kind + part * p.stride;
      block_of_products(p, first, rows, weights);
      std::memset(busy, 0, chunks);
      for (int64_t i = first; i < first + rows; ++i) {
        T* row = weights + (i - first) * p.stride;
        int64_t positives, negatives;
        relate(p, i, kind, positives, negatives);
        measure(p, i, kind, row);
        const RowSums sums = weigh(part, i, row, kind, positives, negatives);
        const double entries[] = {
            sums.loss,       sums.active,    static_cast<double>(positives), static_cast<double>(negatives),
            sums.positive_d, sums.negative_d};
        for (int entry = 0; entry < 6; ++entry) out.sums[entry * p.m + i] = entries[entry];
        for (int64_t j = 0; j < p.padded; j += kPanel<T>) {
          const auto some = (load<Vector<T>>(row + j) != 0) | (load<Vector<T>>(row + j + kWidth<T>) != 0);
          busy[j / kChunk] |= lane_sum(some) != 0;
        }
      }
      if (!out.anchor) return;
      T* sum = p.a_sum + part * p.block * p.ld;
      std::memset(sum, 0, rows * p.ld * sizeof(T));
      for (int64_t j = 0; j < p.padded; j += kChunk)
        if (busy[j / kChunk])
          product<T, Layout::rows>(weights + j, p.stride, p.r + j * p.ld, kPanel<T>, p.ld, rows, p.d + 1,
                                   p.padded - j < kChunk ? p.padded - j : kChunk, true, sum, p.ld);
      for (int64_t i = 0; i < rows; ++i)
        finish_gradient(sum + i * p.ld, p.a + (first + i) * p.ld, p.d, static_cast<T*>(out.anchor) + (first + i) * p.d);
    });
    if (!out.ref) continue;
    parallel(threads, [&](int part, int parts) {
      const int64_t all = (p.padded + kChunk - 1) / kChunk;
      for (int64_t chunk = all * part / parts; chunk < all * (part + 1) / parts; ++chunk) {
        const int64_t j = chunk * kChunk, columns = p.padded - j < kChunk ? p.padded - j : kChunk;
        for (int block = 0; block < blocks; ++block)
          if (p.busy[block * chunks + chunk])
            product<T, Layout::columns>(p.products + block * p.block * p.stride + j, p.stride,
                                        p.a + (start + block * p.block) * p.ld, kPanel<T>, p.ld, columns, p.d + 1,
                                        rows_from(start + block * p.block), true, p.r_sum + j * p.ld, p.ld);
      }
    });
  }
  for (int64_t j = 0; out.ref && j < p.n; ++j)
    finish_gradient(p.r_sum + j * p.ld, p.r + j * p.ld, p.d, static_cast<T*>(out.ref) + j * p.d);
}

}  // namespace
}  // namespace xmodal::cpu::XMODAL_CPU_SET
