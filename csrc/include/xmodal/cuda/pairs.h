// Labelled embeddings as the mining and loss kernels read them.
#pragma once

#include "xmodal/cuda/matrix.h"

namespace xmodal::cuda {

// Two sets of embeddings with one shift, and their labels. A pair is positive if it shares a label, otherwise negative.
struct LabelledPairs {
  Matrix anchor;                                // m rows
  Matrix ref;                                   // n rows
  const void* anchor_norms = nullptr;           // [m], from squared_norms()
  const void* ref_norms = nullptr;              // [n]
  const std::int64_t* anchor_labels = nullptr;  // [m] compared for equality if words is 0, otherwise [m, words] of bits
  const std::int64_t* ref_labels = nullptr;     // [n] or [n, words]
  int words = 0;
  bool exclude_diagonal = false;  // leave out the pairs (i, i)
  bool wide = false;
  int tile = 64;  // edge of the tiles that pairs are visited in: 64, or 128 for fp32
};

// norms[i] = |row i − shift|² in the working precision, −1 if it is not finite or overflows.
int squared_norms(const Matrix& rows, bool wide, void* norms, void* stream);

}  // namespace xmodal::cuda
