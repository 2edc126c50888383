// The margin loss over all triplets, without visiting them. Per anchor, with keys p⁺ = d⁺ + μ:
//
//   g⁺ = #negatives before p⁺,   g⁻ = −#positives whose p⁺ comes after d⁻        (ties: 0, inactive)
//   Σ max(0, p⁺ − d⁻) = Σ g⁺ p⁺ + Σ g⁻ d⁻,   ∂/∂d = g,   active triplets: Σ g⁺
//
// Only the positives are sorted; every reference finds its place among them by binary search.
#include <type_traits>

#include "detail/pair_sums.h"

namespace xmodal::cpu::XMODAL_CPU_SET {
namespace {

template <class T>
using Bits = std::conditional_t<sizeof(T) == 4, std::uint32_t, std::uint64_t>;

// Sorts numbers >= 0, whose bits are ordered as they are; `spare` has room for as many.
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

// One anchor's references, and room to rank them.
template <class T>
struct Row {
  const T* d;
  const Int<T>* kind;
  int64_t padded, positives;
  T* sorted;      // distances of the positives, ascending
  T* keys;        // the same, shifted
  Int<T>* place;  // of every reference: the number of keys <= its own
  Int<T>* count;  // of negatives at every place, then their running sum
  T* g;           // weights
};

// Every reference's place among the keys, by binary search; a group at a time, so that the searches overlap.
template <class T>
void find_places(const Row<T>& row, T shift) {
  constexpr int64_t kGroup = kPanel<T>;
  for (int64_t first = 0; first < row.padded; first += kGroup) {
    T key[kGroup];
    Int<T> place[kGroup];
    for (int64_t j = 0; j < kGroup; ++j) {
      key[j] = row.kind[first + j] == kPositive ? row.d[first + j] + shift : row.d[first + j];
      place[j] = 0;
    }
    Int<T> length = static_cast<Int<T>>(row.positives);
    for (; length > 1; length -= length / 2) {
      const Int<T> half = length / 2;
      for (int64_t j = 0; j < kGroup; ++j) place[j] += row.keys[place[j] + half - 1] <= key[j] ? half : 0;
    }
    for (int64_t j = 0; j < kGroup; ++j) row.place[first + j] = place[j] + (row.keys[place[j]] <= key[j] ? 1 : 0);
  }
}

// Adds sign × the margin loss with margin `shift` to g; returns its value and the number of active triplets.
template <class T>
RowSums add_margin(const Row<T>& row, T shift, T sign) {
  for (int64_t t = 0; t < row.positives; ++t) row.keys[t] = row.sorted[t] + shift;
  find_places(row, shift);
  std::memset(row.count, 0, (row.positives + 1) * sizeof(Int<T>));
  for (int64_t j = 0; j < row.padded; ++j) row.count[row.place[j]] += row.kind[j] == kNegative;
  for (int64_t t = 0; t < row.positives; ++t) row.count[t + 1] += row.count[t];
  using V = Vector<T>;
  using I = IntVector<T>;
  DoubleVector value{}, active{};
  for (int64_t j = 0; j < row.padded; j += kWidth<T>) {
    T before[kWidth<T>];
    for (int64_t lane = 0; lane < kWidth<T>; ++lane) {
      const Int<T> place = row.place[j + lane];
      before[lane] = static_cast<T>(row.count[place > 0 ? place - 1 : 0]);
    }
    const I kind = load<I>(row.kind + j), place = load<I>(row.place + j);
    const V d = load<V>(row.d + j), zero{};
    const V pull = kind == kPositive ? load<V>(before) : zero;
    const V push = kind == kNegative ? __builtin_convertvector(static_cast<Int<T>>(row.positives) - place, V) : zero;
    widen_add(value, pull * (d + shift) - push * d);
    widen_add(active, pull);
    store(row.g + j, load<V>(row.g + j) + (pull - push) * sign);
  }
  return {lane_sum(value), lane_sum(active), 0, 0};
}

template <class T>
void margin_loss(const Pairs& pairs, const TripletMargin& loss, const Sums& out) {
  using V = Vector<T>;
  using I = IntVector<T>;
  Prepared<T> p;
  if (!prepare(pairs, true, p)) return fill_not_a_number<T>(pairs, out);
  const T margin = static_cast<T>(loss.margin);
  sweep(p, out, [&](int thread, int64_t i, T* d, const Int<T>* kind, int64_t positives, int64_t negatives) {
    T* scratch = p.scratch + thread * 5 * p.stride;
    Row<T> row{d,
               kind,
               p.padded,
               positives,
               scratch,
               scratch + p.stride,
               reinterpret_cast<Int<T>*>(scratch + 2 * p.stride),
               reinterpret_cast<Int<T>*>(scratch + 3 * p.stride),
               scratch + 4 * p.stride};
    RowSums sums;
    DoubleVector positive_d{}, negative_d{};
    for (int64_t j = 0; j < p.padded; j += kWidth<T>) {
      const I kinds = load<I>(kind + j);
      const V distance = load<V>(d + j), zero{};
      widen_add(positive_d, kinds == kPositive ? distance : zero);
      widen_add(negative_d, kinds == kNegative ? distance : zero);
      store(row.g + j, zero);
    }
    if (positives && negatives) {
      int64_t t = 0;
      for (int64_t j = 0; t < positives; ++j)
        if (kind[j] == kPositive) row.sorted[t++] = d[j];
      sort(row.sorted, positives, row.keys);
      // With F(μ) the loss over all and c(μ) its active triplets: hard is F(0) + μ c(0), semihard the rest of F(μ).
      if (loss.triplets != Triplets::hard) sums = add_margin(row, margin, T(1));
      if (loss.triplets != Triplets::all) {
        const T sign = loss.triplets == Triplets::hard ? 1 : -1;
        const RowSums hard = add_margin(row, T(0), sign);
        sums.loss += static_cast<double>(sign) * (hard.loss + loss.margin * hard.active);
        sums.active += static_cast<double>(sign) * hard.active;
      }
    }
    const T weight = loss.weight ? static_cast<T>(loss.weight[i]) : T(1);
    for (int64_t j = 0; j < p.padded; j += kWidth<T>) {
      const V distance = load<V>(d + j), zero{};
      store(d + j, distance > 0 ? load<V>(row.g + j) * -weight / distance : zero);
    }
    sums.positive_d = lane_sum(positive_d), sums.negative_d = lane_sum(negative_d);
    return sums;
  });
}

}  // namespace

void triplet_margin(const Pairs& pairs, const TripletMargin& loss, const Sums& sums) {
  pairs.wide ? margin_loss<double>(pairs, loss, sums) : margin_loss<float>(pairs, loss, sums);
}

}  // namespace xmodal::cpu::XMODAL_CPU_SET
