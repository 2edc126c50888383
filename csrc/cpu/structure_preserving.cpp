// ACMR's structure preserving loss (Wang et al., ACM MM 2017, eq. 4–6), over all triplets in both directions:
//
//   Σ_i Σ_jk (d_ij⁺ + γ max(0, μ − d_ik⁻)) = Σ_i (N⁻_i Σ_j d_ij⁺ + γ N⁺_i Σ_k max(0, μ − d_ik⁻))
//
// The weight of a pair depends on the labels alone, so one sweep forms both the sums and the gradient.
#include "xmodal/cpu/structure_preserving.h"

#include "detail/pair_sums.h"

namespace xmodal::cpu::XMODAL_CPU_SET {
namespace {

template <class T>
void structure(const Pairs& pairs, const StructurePreserving& loss, const PairSums& out) {
  using V = Vector<T>;
  using I = IntVector<T>;
  const PairWorkspace<T> ws(pairs, true, pairs.workspace);
  if (!prepare(pairs, ws)) return fill_with_nan<T>(pairs, out);
  for (int64_t j = 0; j < ws.padded; ++j) {
    ws.ref_first[j] = j < ws.ref.count ? static_cast<T>(loss.ref_pull[j]) : T(0);
    ws.ref_second[j] = j < ws.ref.count ? static_cast<T>(loss.ref_push[j]) : T(0);
  }
  const T margin = static_cast<T>(loss.margin);
  sweep(ws, out, [&](int, int64_t i, T* row, const Int<T>* kind, int64_t, int64_t) {
    const T pull = static_cast<T>(loss.anchor_pull[i]), push = static_cast<T>(loss.anchor_push[i]);
    DoubleVector value{}, positive_distance{}, negative_distance{};
    I active{};
    for (int64_t j = 0; j < ws.padded; j += kWidth<T>) {
      const V d = load<V>(row + j), gap = margin - d, zero{};
      const I kinds = load<I>(kind + j), positive = kinds == kPositive, negative = kinds == kNegative;
      const I hinge = negative & (gap > 0);
      const V pulled = load<V>(ws.ref_first + j) + pull, pushed = load<V>(ws.ref_second + j) + push;
      widen_add(value, positive ? pulled * d : hinge ? pushed * gap : zero);
      widen_add(positive_distance, positive ? d : zero);
      widen_add(negative_distance, negative ? d : zero);
      active -= hinge;
      store(row + j, d > 0 ? (positive ? -pulled : hinge ? pushed : zero) / d : zero);
    }
    return AnchorTerms{lane_sum(value), static_cast<double>(lane_sum(active)), lane_sum(positive_distance),
                       lane_sum(negative_distance)};
  });
}

}  // namespace

void structure_preserving(const Pairs& pairs, const StructurePreserving& loss, const PairSums& results) {
  pairs.wide ? structure<double>(pairs, loss, results) : structure<float>(pairs, loss, results);
}

}  // namespace xmodal::cpu::XMODAL_CPU_SET
