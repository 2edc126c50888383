// Triplet mining: the farthest, nearest or a random positive or negative of every anchor.
#pragma once

#include "xmodal/cuda/pairs.h"

namespace xmodal::cuda {

// What to mine for every anchor, and the state of the search.
struct Choice {
  bool positive = true;                 // among the positives, otherwise among the negatives
  bool farthest = true;                 // otherwise the nearest
  const double* floor = nullptr;        // [m] squared distances that the choice must exceed, or null
  unsigned long long* bound = nullptr;  // [m], 0 before the call
  unsigned long long* key = nullptr;    // [m], 0 before the call; read_mined() decodes it
};

// The mined references.
struct Mined {
  std::int64_t* index = nullptr;  // [m], −1 if there is none
  void* distance = nullptr;       // [m] of the working precision, 0 if there is none
  double* square = nullptr;       // [m] squared distances, infinity if there is none; or null
};

// Searches for one or two choices per anchor. Unless `counts` is null, adds the number of positives to counts[0, m) and
// of negatives to counts[m, 2 m).
int mine(const LabelledPairs& pairs, const Choice* choices, int count, int* counts, void* stream);

// The references that a search has found.
int read_mined(const LabelledPairs& pairs, const Choice& choice, const Mined& mined, void* stream);

// A uniformly random negative of every anchor, the same as on the CPU. Leaves mined.square unwritten.
int draw_negatives(const LabelledPairs& pairs, std::int64_t seed, const Mined& mined, void* stream);

}  // namespace xmodal::cuda
