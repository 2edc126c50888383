// Triplet mining: one positive and one negative per anchor, exact to double precision.
//
//   |d̃² − d²| ≤ κ (|a|² + |r|²) for d̃² = |a|² + |r|² − 2 a·r in working precision, κ = (d + 16) ε / 2
//
// so an anchor's best reference is one of those whose bound reaches the best certain value: only these few
// are measured in double precision, from the rows as they came.
#include "detail/pairs.h"

namespace xmodal::cpu::XMODAL_CPU_SET {
namespace {

struct Found {
  int64_t index = -1;
  double square = 0;
};

// The reference of a kind that is farthest (sign 1) or nearest (sign −1), among those farther than `floor`.
template <class T>
Found extreme(const Prepared<T>& p, int64_t i, const T* products, const Int<T>* kind, Int<T> wanted, T sign,
              double floor) {
  using V = Vector<T>;
  using I = IntVector<T>;
  constexpr T kInfinity = std::numeric_limits<T>::infinity();
  const T slack = static_cast<T>(p.d + 16) * std::numeric_limits<T>::epsilon() / 2;
  const T above = static_cast<T>(floor), norm = p.a_norm[i];
  V certain = V{} - kInfinity;  // the best value that some reference surely has
  for (int64_t j = 0; j < p.padded; j += kWidth<T>) {
    const V norms = load<V>(p.r_norm + j) + norm;
    const V square = norms - 2 * load<V>(products + j), error = norms * slack;
    const V value = square * sign - error;
    const I counts = (load<I>(kind + j) == wanted) & (square - error > above) & (value > certain);
    certain = counts ? value : certain;
  }
  T best = certain[0];
  for (int lane = 1; lane < kWidth<T>; ++lane) best = certain[lane] > best ? certain[lane] : best;
  Found found;
  for (int64_t first = 0; first < p.padded; first += kPanel<T>) {
    I candidates[2];
    for (int v = 0; v < 2; ++v) {
      const int64_t j = first + v * kWidth<T>;
      const V norms = load<V>(p.r_norm + j) + norm;
      const V square = norms - 2 * load<V>(products + j), error = norms * slack;
      candidates[v] = (load<I>(kind + j) == wanted) & (square + error > above) & (square * sign + error >= best);
    }
    if (!lane_sum(candidates[0] | candidates[1])) continue;
    for (int64_t j = first; j < first + kPanel<T>; ++j) {
      if (!candidates[(j - first) / kWidth<T>][(j - first) % kWidth<T>]) continue;
      const double square = exact_square(p.anchor + i * p.d, p.ref + j * p.d, p.d);
      if (square > floor && (found.index < 0 || sign * square > sign * found.square)) found = {j, square};
    }
  }
  return found;
}

// A number for the pair (i, j) that looks random, >= 0: splitmix64's finaliser over seed and indices.
inline int64_t pair_hash(std::uint64_t seed, std::uint64_t i, std::uint64_t j) {
  std::uint64_t x = seed + i * 0x9e3779b97f4a7c15u + j * 0xd1b54a32d192ed03u;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
  return static_cast<int64_t>((x ^ (x >> 31)) >> 1);
}

// A negative with equal chances, the same whatever the order of work: that of the least hash.
template <class T>
Found random_negative(const Prepared<T>& p, int64_t i, const Int<T>* kind, int64_t seed) {
  Found found;
  int64_t least = 0;
  for (int64_t j = 0; j < p.n; ++j) {
    if (kind[j] != kNegative) continue;
    const int64_t hash = pair_hash(seed, i, j);
    if (found.index < 0 || hash < least) found.index = j, least = hash;
  }
  if (found.index >= 0) found.square = exact_square(p.anchor + i * p.d, p.ref + found.index * p.d, p.d);
  return found;
}

template <class T>
Found semihard_negative(const Prepared<T>& p, int64_t i, const T* products, const Int<T>* kind, const Mining& mining,
                        Found positive) {
  if (mining.beyond_hardest && mining.positive != Positive::hard)
    positive = extreme<T>(p, i, products, kind, kPositive, 1, -1);
  if (positive.index < 0) return {};
  const Found found = extreme<T>(p, i, products, kind, kNegative, -1, positive.square);
  const bool near = std::sqrt(found.square) - std::sqrt(positive.square) <= mining.margin;
  return near ? found : Found{};
}

template <class T>
void mine(const Pairs& pairs, const Mining& mining) {
  Prepared<T> p;
  prepare(pairs, false, p);
  parallel(static_cast<int>(p.threads), [&](int part, int parts) {
    T* products = p.products + part * p.block * p.stride;
    Int<T>* kind = p.kind + part * p.stride;
    for (int64_t first = part * p.block; first < p.m; first += parts * p.block) {
      const int64_t rows = p.m - first < p.block ? p.m - first : p.block;
      block_of_products(p, first, rows, products);
      for (int64_t i = first; i < first + rows; ++i) {
        const T* row = products + (i - first) * p.stride;
        relate(p, i, kind, mining.positives[i], mining.negatives[i]);
        Found positive, negative;
        if (mining.positives[i])
          positive = extreme<T>(p, i, row, kind, kPositive, mining.positive == Positive::hard ? 1 : -1, -1);
        if (mining.negatives[i]) switch (mining.negative) {
            case Negative::hard:
            case Negative::easy:
              negative = extreme<T>(p, i, row, kind, kNegative, mining.negative == Negative::easy ? 1 : -1, -1);
              break;
            case Negative::semihard:
              negative = semihard_negative(p, i, row, kind, mining, positive);
              break;
            case Negative::random:
              negative = random_negative(p, i, kind, mining.seed);
          }
        mining.positive_idx[i] = positive.index, mining.positive_d[i] = std::sqrt(positive.square);
        mining.negative_idx[i] = negative.index, mining.negative_d[i] = std::sqrt(negative.square);
      }
    }
  });
}

template <class T>
std::size_t needed(Pairs pairs, bool weights) {
  pairs.workspace = nullptr;
  return Prepared<T>().lay_out(pairs, weights);
}

}  // namespace

std::size_t workspace_size(const Pairs& pairs, bool weights) {
  return pairs.wide ? needed<double>(pairs, weights) : needed<float>(pairs, weights);
}

void mine_triplets(const Pairs& pairs, const Mining& mining) {
  pairs.wide ? mine<double>(pairs, mining) : mine<float>(pairs, mining);
}

}  // namespace xmodal::cpu::XMODAL_CPU_SET
