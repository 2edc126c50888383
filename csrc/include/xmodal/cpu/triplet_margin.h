// The margin loss over all triplets.
#pragma once

#include "xmodal/cpu/pairs.h"

namespace xmodal::cpu {

// Σ_i weight_i Σ_jk max(0, margin + d_ij − d_ik), over positives j and negatives k
struct TripletMargin {
  Triplets triplets;               // the triplets that count
  double margin;                   //
  const double* weight = nullptr;  // [m], null for 1; scales the gradients, not the sums
};

void triplet_margin(const Pairs& pairs, const TripletMargin& loss, const PairSums& results);

}  // namespace xmodal::cpu
