// What the triplet ops share on every device.
//
// A reference is positive to an anchor if they have a label in common, otherwise negative. Pairs on the diagonal (on
// request), and rows that are not finite or whose squared norm overflows, do not count.
#pragma once

namespace xmodal {

// The triplets of an anchor a, a positive p and a negative n that a margin loss counts.
enum class Triplets : int {
  all,
  hard,      // d(a, n) < d(a, p)
  semihard,  // d(a, n) >= d(a, p)
};

// The rows of the [kPairSums, m] per-anchor sums that the losses over all pairs return.
enum class PairSum : int {
  loss,               // without the weights of the anchors
  active,             // number of terms above 0
  positives,          // number of positives
  negatives,          // number of negatives
  positive_distance,  // sum of the distances to positives
  negative_distance,  // sum of the distances to negatives
};
constexpr int kPairSums = 6;

}  // namespace xmodal
