// A loss over all pairs in one sweep: sums per anchor, a weight per pair, and gradients from the weights.
#pragma once

#include "pairs.h"

namespace xmodal::cpu::XMODAL_CPU_SET {
namespace {

// What a loss computes for one anchor, see PairSum.
struct AnchorTerms {
  double loss = 0, active = 0, positive_distance = 0, negative_distance = 0;
};

template <class T>
void fill_with_nan(const Pairs& pairs, const PairSums& out) {
  const T nan = std::numeric_limits<T>::quiet_NaN();
  for (int64_t i = 0; i < kPairSums * pairs.m; ++i) out.sums[i] = nan;
  for (int64_t i = 0; out.anchor_grad && i < pairs.m * pairs.d; ++i) static_cast<T*>(out.anchor_grad)[i] = nan;
  for (int64_t j = 0; out.ref_grad && j < pairs.n * pairs.d; ++j) static_cast<T*>(out.ref_grad)[j] = nan;
}

// Σ w (x − y), the gradient of x, from sum = [Σ v y | Σ v] with v = −w.
template <class T>
inline void finish_gradient(const T* sum, const T* x, int64_t d, void* gradients, int64_t i) {
  T* gradient = static_cast<T*>(gradients) + i * d;
  for (int64_t k = 0; k < d; ++k) gradient[k] = sum[k] - sum[d] * x[k];
}

// One block of anchors: distances, the sums of the loss, and −w in place of the distances. Marks the chunks of
// references with a weight other than 0.
template <class T, class Weigh>
void weigh_block(const PairWorkspace<T>& ws, const PairSums& out, const Weigh& weigh, int thread, int64_t first,
                 T* weights) {
  const int64_t m = ws.anchor.count, rows = ws.block_rows(first);
  unsigned char* busy = ws.busy + thread * ws.chunks();
  Int<T>* kind = ws.kind + thread * ws.stride;
  multiply_block(ws, first, rows, weights);
  std::memset(busy, 0, ws.chunks());
  for (int64_t i = first; i < first + rows; ++i) {
    T* row = weights + (i - first) * ws.stride;
    int64_t positives, negatives;
    classify(ws, i, kind, positives, negatives);
    measure(ws, i, kind, row);
    const AnchorTerms terms = weigh(thread, i, row, kind, positives, negatives);
    const auto write = [&](PairSum sum, double value) { out.sums[static_cast<int>(sum) * m + i] = value; };
    write(PairSum::loss, terms.loss), write(PairSum::active, terms.active);
    write(PairSum::positives, static_cast<double>(positives));
    write(PairSum::negatives, static_cast<double>(negatives));
    write(PairSum::positive_distance, terms.positive_distance);
    write(PairSum::negative_distance, terms.negative_distance);
    for (int64_t j = 0; j < ws.padded; j += kPanel<T>) {
      const auto some = (load<Vector<T>>(row + j) != 0) | (load<Vector<T>>(row + j + kWidth<T>) != 0);
      busy[j / kChunk] |= lane_sum(some) != 0;
    }
  }
}

// The gradients of one block of anchors: its weights times the references.
template <class T>
void anchor_gradients(const PairWorkspace<T>& ws, const PairSums& out, int thread, int64_t first, const T* weights) {
  const int64_t rows = ws.block_rows(first);
  T* sum = ws.anchor_sum + thread * ws.block * ws.ld;
  std::memset(sum, 0, rows * ws.ld * sizeof(T));
  for (int64_t j = 0; j < ws.padded; j += kChunk)
    if (ws.busy[thread * ws.chunks() + j / kChunk])
      blocked_product<T, Storage::rows>({rows, ws.d + 1, at_most(ws.padded - j, kChunk)}, weights + j, ws.stride,
                                        {ws.ref.rows + j * ws.ld, kPanel<T>, ws.ld}, true, sum, ws.ld);
  for (int64_t i = 0; i < rows; ++i)
    finish_gradient(sum + i * ws.ld, ws.anchor.rows + (first + i) * ws.ld, ws.d, out.anchor_grad, first + i);
}

// Adds the part of several blocks of anchors, from `start` on, to the sums of a share of the references. Blocks are
// added one after the other, so results do not depend on the number of threads.
template <class T>
void add_to_references(const PairWorkspace<T>& ws, int64_t start, int blocks, Range chunks) {
  for (int64_t chunk = chunks.begin; chunk < chunks.end; ++chunk) {
    const int64_t j = chunk * kChunk, columns = at_most(ws.padded - j, kChunk);
    for (int block = 0; block < blocks; ++block) {
      const int64_t first = start + block * ws.block;
      if (ws.busy[block * ws.chunks() + chunk])
        blocked_product<T, Storage::columns>(
            {columns, ws.d + 1, ws.block_rows(first)}, ws.products + block * ws.block * ws.stride + j, ws.stride,
            {ws.anchor.rows + first * ws.ld, kPanel<T>, ws.ld}, true, ws.ref_sum + j * ws.ld, ws.ld);
    }
  }
}

// Calls weigh(thread, i, distances, kind, positives, negatives) for every anchor i. It returns the terms of the anchor,
// and replaces the distances by −w. The gradients are then products of the weights with the rows of either side.
template <class T, class Weigh>
void sweep(const PairWorkspace<T>& ws, const PairSums& out, const Weigh& weigh) {
  const int64_t m = ws.anchor.count;
  if (out.ref_grad) std::memset(ws.ref_sum, 0, ws.padded * ws.ld * sizeof(T));
  for (int64_t start = 0; start < m; start += ws.threads * ws.block) {
    const int blocks = static_cast<int>(at_most(divide_up(m - start, ws.block), ws.threads));
    parallel(blocks, [&](int thread, int) {
      const int64_t first = start + thread * ws.block;
      T* weights = ws.products + thread * ws.block * ws.stride;
      weigh_block(ws, out, weigh, thread, first, weights);
      if (out.anchor_grad) anchor_gradients(ws, out, thread, first, weights);
    });
    if (!out.ref_grad) continue;
    parallel(ws.threads, [&](int part, int parts) {
      add_to_references(ws, start, blocks, share(divide_up(ws.padded, kChunk), part, parts));
    });
  }
  for (int64_t j = 0; out.ref_grad && j < ws.ref.count; ++j)
    finish_gradient(ws.ref_sum + j * ws.ld, ws.ref.rows + j * ws.ld, ws.d, out.ref_grad, j);
}

}  // namespace
}  // namespace xmodal::cpu::XMODAL_CPU_SET
