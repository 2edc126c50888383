// The input of the triplet ops, and what the losses over all pairs return.
#pragma once

#include <cstddef>
#include <cstdint>

#include "xmodal/triplets.h"

namespace xmodal::cpu {

// Two sets of embeddings and their labels, contiguous.
struct Pairs {
  const void* anchor;                 // [m, d]
  const void* ref;                    // [n, d]
  const std::int64_t* anchor_labels;  // [m] classes if words is 0, otherwise [m, words] bit sets
  const std::int64_t* ref_labels;     // [n] classes if words is 0, otherwise [n, words] bit sets
  std::int64_t m;                     // anchors
  std::int64_t n;                     // references
  std::int64_t d;                     // columns of either set
  std::int64_t words;                 // 64-bit words in a bit set, 0 for classes
  bool exclude_diagonal;              // ignore the pairs (i, i)
  bool wide;                          // embeddings and gradients are fp64, otherwise fp32
  int threads;                        // upper limit
  void* workspace = nullptr;          // pairs_workspace() bytes, aligned to 64
};

// Bytes that an op needs; `weights` for the losses, which weigh every pair.
std::size_t pairs_workspace(const Pairs& pairs, bool weights);

// The results of a loss over all pairs.
struct PairSums {
  double* sums;       // [kPairSums, m], see PairSum
  void* anchor_grad;  // [m, d], or null
  void* ref_grad;     // [n, d], or null
};

}  // namespace xmodal::cpu
