// Triplet mining on CUDA; see cuda.h for the rules that hold for every function.
#pragma once

#include "xmodal/cuda.h"

namespace xmodal::cuda {

// Two sets of embeddings with one shift, and their labels: (rows,) compared for equality where words is 0,
// otherwise (rows, words) of bits. `norms` are those that squared_norms() leaves.
struct LabelledPairs {
  Matrix anchor, ref;
  const void *anchor_norms = nullptr, *ref_norms = nullptr;
  const std::int64_t *anchor_labels = nullptr, *ref_labels = nullptr;
  int words = 0;
  bool exclude_diagonal = false;
};

// norms[i] = |row i − shift|², −1 where it is not finite (or overflows): of the numbers computed with.
int squared_norms(const Matrix& rows, bool wide, void* norms, void* stream);

// What is looked for per anchor: the farthest or the nearest positive or negative, of those farther than floor.
struct Choice {
  bool positive = true, farthest = true;
  const double* floor = nullptr;        // [m] squared distances, or null
  unsigned long long* bound = nullptr;  // [m], 0 before the first call
  unsigned long long* key = nullptr;    // [m], 0 before the first call; read by mined()
};

// Every anchor's choices, one or two of them. Adds the numbers of positives and negatives to counts[0, m) and
// counts[m, 2 m), 0 before the call, unless null. Tiles of 64, or 128 for fp32.
int mine(const LabelledPairs& pairs, const Choice* choices, int count, int* counts, bool wide, int tile, void* stream);

// index[i] = the chosen reference or −1, distance[i] of the numbers computed with (0 where there is none), and its
// square (infinity where there is none) unless null.
int mined(const LabelledPairs& pairs, const Choice& choice, std::int64_t* index, void* distance, double* square,
          bool wide, void* stream);

}  // namespace xmodal::cuda
