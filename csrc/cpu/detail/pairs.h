// All pairs of two sets of embeddings, a block of anchors against all references at a time.
//
//   |a − r|² = |a|² + |r|² − 2 a·r   of shifted rows; pairs where that cancels are measured anew from their difference.
//   ∂/∂a_i Σ_ij f(d_ij) = Σ_j w_ij (a_i − r_j),  w = f'(d) / d,  0 where d = 0: a product of W and R.
//
// Rows are kept as [a | 1]: the product of W and R then holds Σ_j w_ij in its last column.
#pragma once

#include <limits>

#include "product.h"
#include "xmodal/cpu.h"
#include "xmodal/triplets.h"

namespace xmodal::cpu::XMODAL_CPU_SET {
namespace {

using std::int64_t;

constexpr int64_t kBlock = 96;                  // anchors at a time: a multiple of kRows
constexpr int64_t kChunk = 256;                 // references at a time where a block is looked at piece by piece
constexpr int64_t kBuffers = int64_t{1} << 28;  // bytes that the blocks of all threads may take together

constexpr int kNeither = 0, kPositive = 1, kNegative = 2;

// A row length of an odd number of cache lines: adjacent rows then fall into different cache sets.
template <class T>
inline int64_t row_length(int64_t columns) {
  constexpr int64_t line = 64 / sizeof(T);
  return (round_up(columns, kPanel<T> > line ? kPanel<T> : line) / line | 1) * line;
}

// Hands out pieces of the workspace; with a null one it measures how much is needed.
class Arena {
 public:
  explicit Arena(void* memory) : memory_(static_cast<char*>(memory)) {}
  template <class U>
  U* take(int64_t count) {
    U* piece = memory_ ? reinterpret_cast<U*>(memory_ + used_) : nullptr;
    used_ += round_up(count * static_cast<int64_t>(sizeof(U)), 64);
    return piece;
  }
  std::size_t used() const { return used_; }

 private:
  char* memory_;
  std::size_t used_ = 0;
};

template <class T>
struct Prepared {
  int64_t m, n, d, words, block, threads;
  int64_t padded;  // references, to whole panels
  int64_t ld;      // of rows
  int64_t stride;  // of a block of products
  bool equal, exclude_diagonal;
  const T *anchor, *ref;     // as they came
  double* columns;           // [4, d]: sums of anchors and of references, and of their squares
  T* shift;                  // [d], see choose_shift
  T *a, *r;                  // [m, ld], [padded, ld]: shifted, then 1, then 0; r only with weights
  T* packed;                 // [padded / kPanel, d, kPanel]: shifted references
  T *a_norm, *r_norm;        // [m], [padded]: squared, of shifted rows
  Int<T>*a_alive, *r_alive;  // [m], [padded]: −1 where a row is finite
  Int<T>*a_words, *r_words;  // [m, words], [words, padded]
  T* line;                   // [threads, ld]
  T* products;               // [threads, block, stride]
  Int<T>* kind;              // [threads, stride]
  T *a_sum, *r_sum;          // [threads, block, ld], [padded, ld]: products of weights and rows
  T *r_first, *r_second;     // [padded]: per reference coefficients of a loss
  T* scratch;                // [threads, 5, stride]
  unsigned char* busy;       // [threads, stride / kChunk + 1]: chunks with a weight that is not 0

  std::size_t lay_out(const Pairs& pairs, bool weights) {
    Arena arena(pairs.workspace);
    m = pairs.m, n = pairs.n, d = pairs.d;
    anchor = static_cast<const T*>(pairs.anchor), ref = static_cast<const T*>(pairs.ref);
    equal = pairs.words == 0, exclude_diagonal = pairs.exclude_diagonal;
    words = (equal ? 1 : pairs.words) * static_cast<int64_t>(sizeof(int64_t) / sizeof(Int<T>));
    threads = pairs.threads;
    padded = round_up(n, kPanel<T>);
    ld = row_length<T>(d + 1);
    stride = row_length<T>(padded);
    int64_t most = kBuffers / (threads * stride * static_cast<int64_t>(sizeof(T)));
    most = most < kBlock ? (most < kRows ? kRows : most / kRows * kRows) : kBlock;
    const int64_t share = (m + threads - 1) / threads;
    const int64_t blocks = (share + most - 1) / most;
    block = round_up((share + blocks - 1) / blocks, kRows);
    columns = arena.take<double>(4 * d), shift = arena.take<T>(d);
    a = arena.take<T>(m * ld);
    packed = arena.take<T>(padded * d);
    a_norm = arena.take<T>(m), r_norm = arena.take<T>(padded);
    a_alive = arena.take<Int<T>>(m), r_alive = arena.take<Int<T>>(padded);
    a_words = arena.take<Int<T>>(m * words), r_words = arena.take<Int<T>>(words * padded);
    line = arena.take<T>(threads * ld);
    products = arena.take<T>(threads * block * stride);
    kind = arena.take<Int<T>>(threads * stride);
    if (weights) {
      r = arena.take<T>(padded * ld);
      a_sum = arena.take<T>(threads * block * ld), r_sum = arena.take<T>(padded * ld);
      r_first = arena.take<T>(padded), r_second = arena.take<T>(padded);
      scratch = arena.take<T>(threads * 5 * stride);
      busy = arena.take<unsigned char>(threads * (stride / kChunk + 1));
    } else {
      r = nullptr;
    }
    return arena.used();
  }
};

template <class T>
inline void copy_words(const int64_t* from, int64_t words, Int<T>* to, int64_t step) {
  for (int64_t w = 0; w < words; ++w)
    to[w * step] =
        sizeof(Int<T>) == 8 ? static_cast<Int<T>>(from[w]) : static_cast<Int<T>>(from[w / 2] >> (w % 2 * 32));
}

// |a − r|² from the rows as they came, to double precision.
template <class T>
inline double exact_square(const T* a, const T* r, int64_t d) {
  DoubleVector sums{};
  int64_t k = 0;
  for (; k + kWidth<double> <= d; k += kWidth<double>) {
    const DoubleVector difference = load_wide(a + k) - load_wide(r + k);
    sums += difference * difference;
  }
  double total = lane_sum(sums);
  for (; k < d; ++k) {
    const double difference = static_cast<double>(a[k]) - static_cast<double>(r[k]);
    total += difference * difference;
  }
  return total;
}

// About the mean row, which distances do not depend on: less is then lost in |a|² + |r|² − 2 a·r. A multiple of a power
// of two, some half or quarter of the spread: integers stay exact. Where a row is not finite any shift will do.
template <class T>
void choose_shift(const Prepared<T>& p) {
  const T* origin = p.anchor;  // sums of differences from it: nothing cancels where the mean is far from 0
  double *a_sum = p.columns, *r_sum = a_sum + p.d, *a_squares = r_sum + p.d, *r_squares = a_squares + p.d;
  parallel(static_cast<int>(p.threads), [&](int part, int parts) {
    const int64_t first = p.d * part / parts, last = p.d * (part + 1) / parts;
    auto add = [&](const T* rows, int64_t count, double* __restrict sum, double* __restrict squares) {
      for (int64_t k = first; k < last; ++k) sum[k] = squares[k] = 0;
      for (int64_t i = 0; i < count; ++i)
        for (int64_t k = first; k < last; ++k) {
          const double x = static_cast<double>(rows[i * p.d + k]) - static_cast<double>(origin[k]);
          sum[k] += x, squares[k] += x * x;
        }
    };
    add(p.anchor, p.m, a_sum, a_squares), add(p.ref, p.n, r_sum, r_squares);
  });
  const auto m = static_cast<double>(p.m), n = static_cast<double>(p.n);
  double variance = 0;
  for (int64_t k = 0; k < p.d; ++k)
    variance += (a_squares[k] - a_sum[k] * a_sum[k] / m) / m + (r_squares[k] - r_sum[k] * r_sum[k] / n) / n;
  variance /= static_cast<double>(p.d);
  int exponent = 0;
  std::frexp(variance > 0 ? std::sqrt(variance) : 0.0, &exponent);
  const double step = std::ldexp(1.0, exponent - 2);
  for (int64_t k = 0; k < p.d; ++k) {
    const double mean = static_cast<double>(origin[k]) + (a_sum[k] + r_sum[k]) / (m + n);
    const double multiple = std::nearbyint(mean / step) * step;
    p.shift[k] = std::isfinite(multiple) ? static_cast<T>(multiple) : T(0);
  }
}

// [x − shift | 1 | 0], its squared norm, and whether it is finite; a row that is not has the norm 0.
template <class T>
inline void shift_row(const T* x, const T* shift, int64_t d, int64_t ld, T* row, T& norm, Int<T>& alive) {
  const double square = exact_square(x, shift, d);
  const bool finite = square < static_cast<double>(std::numeric_limits<T>::max()) / 16;
  for (int64_t k = 0; k < d; ++k) row[k] = x[k] - shift[k];
  row[d] = 1;
  for (int64_t k = d + 1; k < ld; ++k) row[k] = 0;
  norm = finite ? static_cast<T>(square) : T(0);
  alive = finite ? -1 : 0;
}

// Fills the workspace; false if a row is not finite.
template <class T>
bool prepare(const Pairs& pairs, bool weights, Prepared<T>& p) {
  p.lay_out(pairs, weights);
  choose_shift(p);
  const int64_t words = p.equal ? 1 : pairs.words;
  parallel(static_cast<int>(p.threads), [&](int part, int parts) {
    for (int64_t i = p.m * part / parts; i < p.m * (part + 1) / parts; ++i) {
      shift_row(p.anchor + i * p.d, p.shift, p.d, p.ld, p.a + i * p.ld, p.a_norm[i], p.a_alive[i]);
      copy_words<T>(pairs.anchor_labels + i * words, p.words, p.a_words + i * p.words, 1);
    }
    const int64_t panels = p.padded / kPanel<T>;
    for (int64_t j = panels * part / parts * kPanel<T>; j < panels * (part + 1) / parts * kPanel<T>; ++j) {
      T* row = p.r ? p.r + j * p.ld : p.line + part * p.ld;
      if (j < p.n) {
        shift_row(p.ref + j * p.d, p.shift, p.d, p.ld, row, p.r_norm[j], p.r_alive[j]);
        copy_words<T>(pairs.ref_labels + j * words, p.words, p.r_words + j, p.padded);
      } else {
        for (int64_t k = 0; k < p.ld; ++k) row[k] = 0;
        for (int64_t w = 0; w < p.words; ++w) p.r_words[w * p.padded + j] = 0;
        p.r_norm[j] = 0, p.r_alive[j] = 0;
      }
      T* column = p.packed + j / kPanel<T> * kPanel<T> * p.d + j % kPanel<T>;
      for (int64_t k = 0; k < p.d; ++k) column[k * kPanel<T>] = row[k];
    }
  });
  bool finite = true;
  for (int64_t i = 0; i < p.m; ++i) finite &= p.a_alive[i] != 0;
  for (int64_t j = 0; j < p.n; ++j) finite &= p.r_alive[j] != 0;
  return finite;
}

// The products of `rows` anchors from `first` on with all references.
template <class T>
inline void block_of_products(const Prepared<T>& p, int64_t first, int64_t rows, T* products) {
  product<T, Layout::rows>(p.a + first * p.ld, p.ld, p.packed, kPanel<T> * p.d, kPanel<T>, rows, p.padded, p.d, false,
                           products, p.stride);
}

// What every reference is to anchor i: kPositive, kNegative or kNeither; and how many there are of each.
template <class T>
inline void relate(const Prepared<T>& p, int64_t i, Int<T>* kind, int64_t& positives, int64_t& negatives) {
  using I = IntVector<T>;
  I positive{}, negative{};
  for (int64_t j = 0; j < p.padded; j += kWidth<T>) {
    I bits{};
    for (int64_t w = 0; w < p.words; ++w) {
      const I other = load<I>(p.r_words + w * p.padded + j);
      bits |= p.equal ? other ^ p.a_words[i * p.words + w] : other & p.a_words[i * p.words + w];
    }
    const I alive = load<I>(p.r_alive + j) & p.a_alive[i];
    const I same = (p.equal ? bits == 0 : bits != 0) & alive, other = ~same & alive;
    positive -= same, negative -= other;
    store(kind + j, (same & kPositive) | (other & kNegative));
  }
  positives = lane_sum(positive), negatives = lane_sum(negative);
  if (p.exclude_diagonal && i < p.n) {
    positives -= kind[i] == kPositive, negatives -= kind[i] == kNegative;
    kind[i] = kNeither;
  }
}

// Distances in place of products. Where |a − r|² is lost in |a|² + |r|², it is measured from the difference.
template <class T>
inline void measure(const Prepared<T>& p, int64_t i, const Int<T>* kind, T* row) {
  using V = Vector<T>;
  using I = IntVector<T>;
  constexpr T kLost = T(1) / 256;
  for (int64_t first = 0; first < p.padded; first += kChunk) {
    const int64_t last = first + kChunk < p.padded ? first + kChunk : p.padded;
    I lost{};
    for (int64_t j = first; j < last; j += kWidth<T>) {
      const V norms = load<V>(p.r_norm + j) + p.a_norm[i];
      const V square = norms - 2 * load<V>(row + j);
      lost |= (square < norms * kLost) & load<I>(kind + j);
      store(row + j, square > 0 ? square : V{});
    }
    if (lane_sum(lost))
      for (int64_t j = first; j < last; ++j)
        if (kind[j] && row[j] < (p.r_norm[j] + p.a_norm[i]) * kLost)
          row[j] = static_cast<T>(exact_square(p.anchor + i * p.d, p.ref + j * p.d, p.d));
  }
  for (int64_t j = 0; j < p.padded; ++j) row[j] = std::sqrt(row[j]);
}

}  // namespace
}  // namespace xmodal::cpu::XMODAL_CPU_SET
