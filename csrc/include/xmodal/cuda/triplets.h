// Losses over all pairs or triplets, a chunk of anchors at a time.
//
// measure_pairs() writes the distance of every pair; the sign bit marks a negative, NaN a pair that does not count. A
// loss then sums over each anchor's pairs and replaces their distances by weights f'(d) / d, which gradients are
// products of.
#pragma once

#include "xmodal/cuda/pairs.h"
#include "xmodal/triplets.h"

namespace xmodal::cuda {

// Some anchors, their pairs, and the outputs of a loss.
struct Chunk {
  int first = 0;            // first anchor
  int rows = 0;             // number of anchors
  void* pairs = nullptr;    // [rows, stride] of the working precision
  std::int64_t stride = 0;  // even, at least the number of references
  double* sums = nullptr;   // out: [kPairSums, m], see PairSum
  double* weights =
      nullptr;  // out: [m], the sums of the weights of an anchor's pairs; null: distances are not replaced
};
int measure_pairs(const LabelledPairs& pairs, const Chunk& chunk, void* stream);

// Σ_ij positive ? (anchor_pull_i + ref_pull_j) d_ij : (anchor_push_i + ref_push_j) max(0, margin − d_ij)
struct StructureLoss {
  const void* anchor_pull = nullptr;  // [m] of the working precision
  const void* anchor_push = nullptr;  // [m]
  const void* ref_pull = nullptr;     // [n]
  const void* ref_push = nullptr;     // [n]
  double margin = 0;
};
int structure_loss(const LabelledPairs& pairs, const Chunk& chunk, const StructureLoss& loss, void* stream);

// Σ_i weight_i Σ_jk max(0, margin + d_ij − d_ik) over positives j and negatives k. The sums leave the weights out, the
// gradients contain them. The positives of an anchor are ranked in shared memory if at most `in_shared` of them, else
// in the workspaces, which may be null if in_shared ≥ capacity.
struct MarginLoss {
  Triplets triplets = Triplets::all;
  double margin = 0;
  const double* weight = nullptr;  // [m], or null for 1
  int in_shared = 0;               // a power of two
  int capacity = 0;                // the number of references, rounded up to a power of two
  void* ranked = nullptr;          // workspace: [chunk rows, capacity] of the working precision
  int* counts = nullptr;           // workspace: [chunk rows, 2 for semihard or else 1, capacity]
};
int margin_loss(const LabelledPairs& pairs, const Chunk& chunk, const MarginLoss& loss, void* stream);

}  // namespace xmodal::cuda
