// Triplet mining: one positive and one negative per anchor.
#pragma once

#include "xmodal/cpu/pairs.h"

namespace xmodal::cpu {

enum class Positive : int {
  hard,  // the farthest
  easy,  // the nearest
};
enum class Negative : int {
  hard,      // the nearest
  easy,      // the farthest
  semihard,  // the nearest that is strictly farther than a positive
  random,    // any, with equal probability
};

// Distances are exact to double precision; the lowest index wins a tie.
struct Mining {
  Positive positive;
  Negative negative;
  bool beyond_hardest;         // semihard negatives are farther than the hardest positive, not than the chosen one
  double margin;               // a semihard negative is at most this much farther than that positive; may be infinite
  std::int64_t seed;           // of random negatives
  std::int64_t* positive_idx;  // [m], −1 if there is none
  std::int64_t* negative_idx;  // [m], −1 if there is none
  double* d_ap;                // [m] distance to the positive, 0 if there is none
  double* d_an;                // [m] distance to the negative, 0 if there is none
  std::int64_t* n_pos;         // [m] number of positives
  std::int64_t* n_neg;         // [m] number of negatives
};

void mine_triplets(const Pairs& pairs, const Mining& mining);

}  // namespace xmodal::cpu
