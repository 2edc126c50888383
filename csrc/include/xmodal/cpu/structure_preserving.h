// ACMR's structure preserving loss.
#pragma once

#include "xmodal/cpu/pairs.h"

namespace xmodal::cpu {

// Σ_ij positive ? (anchor_pull_i + ref_pull_j) d_ij : (anchor_push_i + ref_push_j) max(0, margin − d_ij)
struct StructurePreserving {
  const double* anchor_pull;  // [m]
  const double* anchor_push;  // [m]
  const double* ref_pull;     // [n]
  const double* ref_push;     // [n]
  double margin;
};

void structure_preserving(const Pairs& pairs, const StructurePreserving& loss, const PairSums& results);

}  // namespace xmodal::cpu
