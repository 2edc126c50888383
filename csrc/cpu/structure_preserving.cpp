// ACMR's structure preserving loss (Wang et al., ACM MM 2017, eq. 4–6), over all triplets in both directions:
//
//   Σ_i Σ_jk (d_ij⁺ + γ max(0, μ − d_ik⁻)) = Σ_i (N⁻_i Σ_j d_ij⁺ + γ N⁺_i Σ_k max(0, μ − d_ik⁻))
//
// so a pair's weight is known from the labels alone, and the sweep that sums also forms the gradient.
#include "detail/pair_sums.h"

namespace xmodal::cpu::XMODAL_CPU_SET {
namespace {

template <class T>
void structure(const Pairs& pairs, const StructurePreserving& loss, const Sums& out) {
  using V = Vector<T>;
  using I = IntVector<T>;
  Prepared<T> p;
  if (!prepare(pairs, true, p)) return fill_not_a_number<T>(pairs, out);
  for (int64_t j = 0; j < p.padded; ++j) {
    p.r_first[j] = j < p.n ? static_cast<T>(loss.ref_positive[j]) : T(0);
    p.r_second[j] = j < p.n ? static_cast<T>(loss.ref_negative[j]) : T(0);
  }
  const T margin = static_cast<T>(loss.margin);
  sweep(p, out, [&](int, int64_t i, T* row, const Int<T>* kind, int64_t, int64_t) {
    const T pull = static_cast<T>(loss.anchor_positive[i]), push = static_cast<T>(loss.anchor_negative[i]);
    DoubleVector value{}, positive_d{}, negative_d{};
    I active{};
    for (int64_t j = 0; j < p.padded; j += kWidth<T>) {
      const V d = load<V>(row + j), gap = margin - d, zero{};
      const I kinds = load<I>(kind + j), positive = kinds == kPositive, negative = kinds == kNegative;
      const I hinge = negative & (gap > 0);
      const V pulled = load<V>(p.r_first + j) + pull, pushed = load<V>(p.r_second + j) + push;
      widen_add(value, positive ? pulled * d : hinge ? pushed * gap : zero);
      widen_add(positive_d, positive ? d : zero);
      widen_add(negative_d, negative ? d : zero);
      active -= hinge;
      store(row + j, d > 0 ? (positive ? -pulled : hinge ? pushed : zero) / d : zero);
    }
    return RowSums{lane_sum(value), static_cast<double>(lane_sum(active)), lane_sum(positive_d), lane_sum(negative_d)};
  });
}

}  // namespace

void structure_preserving(const Pairs& pairs, const StructurePreserving& loss, const Sums& sums) {
  pairs.wide ? structure<double>(pairs, loss, sums) : structure<float>(pairs, loss, sums);
}

}  // namespace xmodal::cpu::XMODAL_CPU_SET
