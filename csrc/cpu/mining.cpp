// Triplet mining: one positive and one negative per anchor, exact to double precision.
//
//   |d̃² − d²| ≤ κ (|a|² + |r|²) for d̃² = |a|² + |r|² − 2 a·r in working precision, κ = (d + 16) ε / 2
//
// The best reference of an anchor is therefore one of those whose bound reaches the best certain value. Only these few
// are measured in double precision, from the rows as given.
#include "xmodal/cpu/mining.h"

#include "detail/pairs.h"

namespace xmodal::cpu::XMODAL_CPU_SET {
namespace {

struct Found {
  int64_t index = -1;
  double square = 0;
};

// The farthest (sign 1) or nearest (sign −1) reference of a kind, of those with a square above `floor`.
template <class T>
Found extreme(const PairWorkspace<T>& ws, int64_t i, const T* products, const Int<T>* kind, Int<T> wanted, T sign,
              double floor) {
  using V = Vector<T>;
  using I = IntVector<T>;
  constexpr T kInfinity = std::numeric_limits<T>::infinity();
  const T slack = static_cast<T>(ws.d + 16) * std::numeric_limits<T>::epsilon() / 2;
  const T above = static_cast<T>(floor), norm = ws.anchor.norm[i];
  V certain = V{} - kInfinity;  // the best lower bound of a value
  for (int64_t j = 0; j < ws.padded; j += kWidth<T>) {
    const V norms = load<V>(ws.ref.norm + j) + norm;
    const V square = norms - 2 * load<V>(products + j), error = norms * slack;
    const V value = square * sign - error;
    const I counts = (load<I>(kind + j) == wanted) & (square - error > above) & (value > certain);
    certain = counts ? value : certain;
  }
  T best = certain[0];
  for (int lane = 1; lane < kWidth<T>; ++lane) best = certain[lane] > best ? certain[lane] : best;
  Found found;
  for (int64_t first = 0; first < ws.padded; first += kPanel<T>) {
    I candidates[2];
    for (int v = 0; v < 2; ++v) {
      const int64_t j = first + v * kWidth<T>;
      const V norms = load<V>(ws.ref.norm + j) + norm;
      const V square = norms - 2 * load<V>(products + j), error = norms * slack;
      candidates[v] = (load<I>(kind + j) == wanted) & (square + error > above) & (square * sign + error >= best);
    }
    if (!lane_sum(candidates[0] | candidates[1])) continue;
    for (int64_t j = first; j < first + kPanel<T>; ++j) {
      if (!candidates[(j - first) / kWidth<T>][(j - first) % kWidth<T>]) continue;
      const double square = exact_square(ws, i, j);
      if (square > floor && (found.index < 0 || sign * square > sign * found.square)) found = {j, square};
    }
  }
  return found;
}

// A pseudorandom number >= 0 for the pair (i, j): the finaliser of splitmix64 over seed and indices.
inline int64_t pair_hash(std::uint64_t seed, std::uint64_t i, std::uint64_t j) {
  std::uint64_t x = seed + i * 0x9e3779b97f4a7c15u + j * 0xd1b54a32d192ed03u;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
  return static_cast<int64_t>((x ^ (x >> 31)) >> 1);
}

// The negative of the least hash: all have equal probability, and the order of the work does not matter.
template <class T>
Found random_negative(const PairWorkspace<T>& ws, int64_t i, const Int<T>* kind, int64_t seed) {
  Found found;
  int64_t least = 0;
  for (int64_t j = 0; j < ws.ref.count; ++j) {
    if (kind[j] != kNegative) continue;
    const int64_t hash = pair_hash(seed, i, j);
    if (found.index < 0 || hash < least) found.index = j, least = hash;
  }
  if (found.index >= 0) found.square = exact_square(ws, i, found.index);
  return found;
}

template <class T>
Found semihard_negative(const PairWorkspace<T>& ws, int64_t i, const T* products, const Int<T>* kind,
                        const Mining& mining, Found positive) {
  if (mining.beyond_hardest && mining.positive != Positive::hard)
    positive = extreme<T>(ws, i, products, kind, kPositive, 1, -1);
  if (positive.index < 0) return {};
  const Found found = extreme<T>(ws, i, products, kind, kNegative, -1, positive.square);
  const bool near = std::sqrt(found.square) - std::sqrt(positive.square) <= mining.margin;
  return near ? found : Found{};
}

template <class T>
Found chosen_positive(const PairWorkspace<T>& ws, int64_t i, const T* products, const Int<T>* kind,
                      const Mining& mining) {
  return extreme<T>(ws, i, products, kind, kPositive, mining.positive == Positive::hard ? 1 : -1, -1);
}

template <class T>
Found chosen_negative(const PairWorkspace<T>& ws, int64_t i, const T* products, const Int<T>* kind,
                      const Mining& mining, Found positive) {
  switch (mining.negative) {
    case Negative::semihard:
      return semihard_negative(ws, i, products, kind, mining, positive);
    case Negative::random:
      return random_negative(ws, i, kind, mining.seed);
    default:
      return extreme<T>(ws, i, products, kind, kNegative, mining.negative == Negative::easy ? 1 : -1, -1);
  }
}

template <class T>
void mine(const Pairs& pairs, const Mining& mining) {
  const PairWorkspace<T> ws(pairs, false, pairs.workspace);
  prepare(pairs, ws);
  parallel(ws.threads, [&](int part, int parts) {
    T* products = ws.products + part * ws.block * ws.stride;
    Int<T>* kind = ws.kind + part * ws.stride;
    for (int64_t first = part * ws.block; first < ws.anchor.count; first += parts * ws.block) {
      const int64_t rows = ws.block_rows(first);
      multiply_block(ws, first, rows, products);
      for (int64_t i = first; i < first + rows; ++i) {
        const T* row = products + (i - first) * ws.stride;
        classify(ws, i, kind, mining.n_pos[i], mining.n_neg[i]);
        Found positive, negative;
        if (mining.n_pos[i]) positive = chosen_positive(ws, i, row, kind, mining);
        if (mining.n_neg[i]) negative = chosen_negative(ws, i, row, kind, mining, positive);
        mining.positive_idx[i] = positive.index, mining.d_ap[i] = std::sqrt(positive.square);
        mining.negative_idx[i] = negative.index, mining.d_an[i] = std::sqrt(negative.square);
      }
    }
  });
}

}  // namespace

void mine_triplets(const Pairs& pairs, const Mining& mining) {
  pairs.wide ? mine<double>(pairs, mining) : mine<float>(pairs, mining);
}

}  // namespace xmodal::cpu::XMODAL_CPU_SET
