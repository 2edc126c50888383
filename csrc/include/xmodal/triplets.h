// Triplets over two sets of embeddings: what the kernels of csrc/cpu read and write.
// A reference is positive to an anchor that it shares a label with, otherwise negative; left out are the
// diagonal, if asked, and rows that are not finite (or whose squared norm overflows).
#pragma once

#include <cstddef>
#include <cstdint>

namespace xmodal::cpu {

// Two sets of embeddings and their labels; contiguous, double if `wide`, else float.
struct Pairs {
  const void* anchor;                 // [m, d]
  const void* ref;                    // [n, d]
  const std::int64_t* anchor_labels;  // [m], compared for equality, if words is 0; otherwise
  const std::int64_t* ref_labels;     // [n, words] of bits
  std::int64_t m, n, d, words;
  bool exclude_diagonal;
  bool wide;
  int threads;
  void* workspace;  // workspace_size() bytes, aligned to 64
};

// What a kernel needs beside its outputs; `weights` for those that weigh every pair.
std::size_t workspace_size(const Pairs& pairs, bool weights);

enum class Positive { hard, easy };
enum class Negative { hard, easy, semihard, random };

// One triplet per anchor, chosen by distances that are exact to double precision; ties to the lowest index.
struct Mining {
  Positive positive;
  Negative negative;
  bool beyond_hardest;         // semihard negatives lie beyond the hardest positive, not beyond the chosen one
  double margin;               // and nearer than that by no more than this; may be infinite
  std::int64_t seed;           // of random negatives
  std::int64_t* positive_idx;  // [m], −1 where there is none
  std::int64_t* negative_idx;  // [m]
  double* positive_d;          // [m], 0 where there is none
  double* negative_d;          // [m]
  std::int64_t* positives;     // [m] how many there are
  std::int64_t* negatives;     // [m]
};
void mine_triplets(const Pairs& pairs, const Mining& mining);

// What the losses over all pairs give, per anchor, and their gradients, null where not wanted.
struct Sums {
  double* sums;  // [6, m]: loss, active, positives, negatives, distances of positives, of negatives
  void* anchor;  // [m, d] gradient
  void* ref;     // [n, d] gradient
};

// Σ_ij positive ? (anchor_positive_i + ref_positive_j) d_ij : (anchor_negative_i + ref_negative_j) max(0, margin −
// d_ij)
struct StructurePreserving {
  const double* anchor_positive;  // [m]
  const double* anchor_negative;  // [m]
  const double* ref_positive;     // [n]
  const double* ref_negative;     // [n]
  double margin;
};
void structure_preserving(const Pairs& pairs, const StructurePreserving& loss, const Sums& sums);

// Σ_i weight_i Σ_jk max(0, margin + d_ij − d_ik), over positives j and negatives k of which
// all count, those with d_ik < d_ij (hard), or those with d_ij <= d_ik (semihard).
enum class Triplets { all, hard, semihard };
struct TripletMargin {
  Triplets triplets;
  double margin;
  const double* weight;  // [m], or null for 1; the sums do not contain it, the gradients do
};
void triplet_margin(const Pairs& pairs, const TripletMargin& loss, const Sums& sums);

}  // namespace xmodal::cpu
