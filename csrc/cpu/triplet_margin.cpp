// The margin loss over all triplets, without visiting each. Per anchor, with keys p⁺ = d⁺ + μ:
//
//   g⁺ = #negatives before p⁺,   g⁻ = −#positives whose p⁺ comes after d⁻        (ties: 0, inactive)
//   Σ max(0, p⁺ − d⁻) = Σ g⁺ p⁺ + Σ g⁻ d⁻,   ∂/∂d = g,   active triplets: Σ g⁺
//
// Only the positives are sorted; binary search finds the rank of every reference among them.
#include "xmodal/cpu/triplet_margin.h"

#include <type_traits>

#include "detail/pair_sums.h"

namespace xmodal::cpu::XMODAL_CPU_SET {
namespace {

template <class T>
using Bits = std::conditional_t<sizeof(T) == 4, std::uint32_t, std::uint64_t>;

// Sorts numbers >= 0, whose bit patterns have the same order; `spare` is a buffer of `count` elements.
// Insertion sort for few, radix sort for many.
template <class T>
void sort(T* keys, int64_t count, T* spare) {
  if (count <= 48) {
    for (int64_t t = 1; t < count; ++t) {
      const T key = keys[t];
      int64_t to = t;
      for (; to && keys[to - 1] > key; --to) keys[to] = keys[to - 1];
      keys[to] = key;
    }
    return;
  }
  auto digit = [](T key, int shift) {
    Bits<T> bits;
    std::memcpy(&bits, &key, sizeof(bits));
    return bits >> shift & 255;
  };
  T *from = keys, *to = spare;
  for (int shift = 0; shift < 8 * static_cast<int>(sizeof(T)); shift += 8) {
    int64_t start[256] = {};
    for (int64_t t = 0; t < count; ++t) ++start[digit(from[t], shift)];
    if (start[digit(from[0], shift)] == count) continue;
    int64_t total = 0;
    for (int64_t& entry : start) {
      const int64_t here = entry;
      entry = total, total += here;
    }
    for (int64_t t = 0; t < count; ++t) to[start[digit(from[t], shift)]++] = from[t];
    T* last = from;
    from = to, to = last;
  }
  if (from != keys) std::memcpy(keys, from, count * sizeof(T));
}

// The references of one anchor, and buffers to rank them.
template <class T>
struct Row {
  const T* d;
  const Int<T>* kind;
  int64_t padded, positives;
  T* sorted;      // distances of the positives, ascending
  T* keys;        // the same, plus the margin
  Int<T>* rank;   // for every reference, the number of keys <= its own
  Int<T>* count;  // for every rank, the number of negatives; then their running sum
  T* g;           // for every reference, ∂/∂d
};

// The rank of every reference among the keys, by binary search, a group at a time so that the searches overlap.
template <class T>
void find_ranks(const Row<T>& row, T shift) {
  constexpr int64_t kGroup = kPanel<T>;
  for (int64_t first = 0; first < row.padded; first += kGroup) {
    T key[kGroup];
    Int<T> rank[kGroup];
    for (int64_t j = 0; j < kGroup; ++j) {
      key[j] = row.kind[first + j] == kPositive ? row.d[first + j] + shift : row.d[first + j];
      rank[j] = 0;
    }
    Int<T> length = static_cast<Int<T>>(row.positives);
    for (; length > 1; length -= length / 2) {
      const Int<T> half = length / 2;
      for (int64_t j = 0; j < kGroup; ++j) rank[j] += row.keys[rank[j] + half - 1] <= key[j] ? half : 0;
    }
    for (int64_t j = 0; j < kGroup; ++j) row.rank[first + j] = rank[j] + (row.keys[rank[j]] <= key[j] ? 1 : 0);
  }
}

// Adds sign times ∂/∂d of the loss with margin `shift` to g. Returns the loss and the number of active triplets.
template <class T>
AnchorTerms add_margin(const Row<T>& row, T shift, T sign) {
  for (int64_t t = 0; t < row.positives; ++t) row.keys[t] = row.sorted[t] + shift;
  find_ranks(row, shift);
  std::memset(row.count, 0, (row.positives + 1) * sizeof(Int<T>));
  for (int64_t j = 0; j < row.padded; ++j) row.count[row.rank[j]] += row.kind[j] == kNegative;
  for (int64_t t = 0; t < row.positives; ++t) row.count[t + 1] += row.count[t];
  using V = Vector<T>;
  using I = IntVector<T>;
  DoubleVector value{}, active{};
  for (int64_t j = 0; j < row.padded; j += kWidth<T>) {
    T before[kWidth<T>];
    for (int64_t lane = 0; lane < kWidth<T>; ++lane) {
      const Int<T> rank = row.rank[j + lane];
      before[lane] = static_cast<T>(row.count[rank > 0 ? rank - 1 : 0]);
    }
    const I kind = load<I>(row.kind + j), rank = load<I>(row.rank + j);
    const V d = load<V>(row.d + j), zero{};
    const V pull = kind == kPositive ? load<V>(before) : zero;
    const V push = kind == kNegative ? __builtin_convertvector(static_cast<Int<T>>(row.positives) - rank, V) : zero;
    widen_add(value, pull * (d + shift) - push * d);
    widen_add(active, pull);
    store(row.g + j, load<V>(row.g + j) + (pull - push) * sign);
  }
  return {lane_sum(value), lane_sum(active), 0, 0};
}

// With F(μ) the loss over all triplets and c(μ) its active ones: hard is F(0) + μ c(0), semihard the rest of F(μ).
template <class T>
AnchorTerms add_triplets(const Row<T>& row, const TripletMargin& loss) {
  int64_t t = 0;
  for (int64_t j = 0; t < row.positives; ++j)
    if (row.kind[j] == kPositive) row.sorted[t++] = row.d[j];
  sort(row.sorted, row.positives, row.keys);
  AnchorTerms terms;
  if (loss.triplets != Triplets::hard) terms = add_margin(row, static_cast<T>(loss.margin), T(1));
  if (loss.triplets != Triplets::all) {
    const T sign = loss.triplets == Triplets::hard ? 1 : -1;
    const AnchorTerms hard = add_margin(row, T(0), sign);
    terms.loss += static_cast<double>(sign) * (hard.loss + loss.margin * hard.active);
    terms.active += static_cast<double>(sign) * hard.active;
  }
  return terms;
}

template <class T>
void margin_loss(const Pairs& pairs, const TripletMargin& loss, const PairSums& out) {
  using V = Vector<T>;
  using I = IntVector<T>;
  const PairWorkspace<T> ws(pairs, true, pairs.workspace);
  if (!prepare(pairs, ws)) return fill_with_nan<T>(pairs, out);
  sweep(ws, out, [&](int thread, int64_t i, T* d, const Int<T>* kind, int64_t positives, int64_t negatives) {
    T* scratch = ws.scratch + thread * 5 * ws.stride;
    Int<T>* ranks = reinterpret_cast<Int<T>*>(scratch + 2 * ws.stride);
    const Row<T> row{
        d, kind, ws.padded, positives, scratch, scratch + ws.stride, ranks, ranks + ws.stride, scratch + 4 * ws.stride};
    DoubleVector positive_distance{}, negative_distance{};
    for (int64_t j = 0; j < ws.padded; j += kWidth<T>) {
      const I kinds = load<I>(kind + j);
      const V distance = load<V>(d + j), zero{};
      widen_add(positive_distance, kinds == kPositive ? distance : zero);
      widen_add(negative_distance, kinds == kNegative ? distance : zero);
      store(row.g + j, zero);
    }
    AnchorTerms terms;
    if (positives && negatives) terms = add_triplets(row, loss);
    const T weight = loss.weight ? static_cast<T>(loss.weight[i]) : T(1);
    for (int64_t j = 0; j < ws.padded; j += kWidth<T>) {
      const V distance = load<V>(d + j), zero{};
      store(d + j, distance > 0 ? load<V>(row.g + j) * -weight / distance : zero);
    }
    terms.positive_distance = lane_sum(positive_distance), terms.negative_distance = lane_sum(negative_distance);
    return terms;
  });
}

}  // namespace

void triplet_margin(const Pairs& pairs, const TripletMargin& loss, const PairSums& results) {
  pairs.wide ? margin_loss<double>(pairs, loss, results) : margin_loss<float>(pairs, loss, results);
}

}  // namespace xmodal::cpu::XMODAL_CPU_SET
