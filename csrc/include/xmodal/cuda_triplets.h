// Triplet mining and losses on CUDA; see cuda.h for the rules that hold for every function.
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

// index[i] = a negative of every anchor with equal chances, the same as on the CPU, or −1; its distance, or 0.
int draw_negatives(const LabelledPairs& pairs, std::int64_t seed, std::int64_t* index, void* distance, bool wide,
                   void* stream);

// The losses over all pairs take the anchors in chunks, `rows` of them from `first` on. A pair is its distance, with
// the sign bit set where it is negative, or NaN where it does not count; and then its weight f'(d) / d, of which
// gradients are made.
struct Chunk {
  int first = 0, rows = 0;
  void* pairs = nullptr;    // [rows, stride]
  std::int64_t stride = 0;  // at least the number of references, and even
};

// The pairs of a chunk as distances. Tiles of 64, or 128 for fp32.
int measure(const LabelledPairs& pairs, const Chunk& chunk, bool wide, int tile, void* stream);

// Where a loss writes what it says of an anchor. Where `weights` is null it leaves the distances as they are.
struct AnchorSums {
  double* sums = nullptr;     // [6, m]: loss, active, positives, negatives, distances of positives, of negatives
  double* weights = nullptr;  // [m]
};

// Σ_ij positive ? (anchor_pull_i + ref_pull_j) d_ij : (anchor_push_i + ref_push_j) max(0, margin − d_ij); the
// coefficients are of the numbers computed with.
struct StructurePreserving {
  const void *anchor_pull = nullptr, *anchor_push = nullptr, *ref_pull = nullptr, *ref_push = nullptr;
  double margin = 0;
};
int structure_preserving(const LabelledPairs& pairs, const Chunk& chunk, const StructurePreserving& loss,
                         const AnchorSums& out, bool wide, void* stream);

// Σ_i weight_i Σ_jk max(0, margin + d_ij − d_ik), over positives j and negatives k of which all count, those with
// d_ik < d_ij (hard), or the others (semihard). The sums do not contain the weights (null for 1), the gradients do.
//
// Up to `in_shared` positives of an anchor, a power of two, are ranked in shared memory. Where there are more
// references than that, workspace is needed: ranked [chunk rows, capacity] numbers and counts [chunk rows, terms,
// capacity], with capacity the number of references rounded up to a power of two, and 2 terms for semihard triplets,
// else 1.
enum class Triplets : int { all, hard, semihard };
struct TripletMargin {
  Triplets triplets = Triplets::all;
  double margin = 0;
  const double* weight = nullptr;  // [m]
  int in_shared = 0;
  void* ranked = nullptr;
  int* counts = nullptr;
};
int triplet_margin(const LabelledPairs& pairs, const Chunk& chunk, const TripletMargin& loss, const AnchorSums& out,
                   bool wide, void* stream);

}  // namespace xmodal::cuda
