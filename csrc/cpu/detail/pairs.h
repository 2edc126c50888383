// All pairs of two sets of embeddings, one block of anchors against all references at a time.
//
//   |a − r|² = |a|² + |r|² − 2 a·r   of shifted rows; where that cancels, it is computed again from the difference.
//   ∂/∂a_i Σ_ij f(d_ij) = Σ_j w_ij (a_i − r_j),  w = f'(d) / d,  0 where d = 0: a product of W and R.
//
// Rows are stored as [a | 1]: the last column of the product of W and R is then Σ_j w_ij.
#pragma once

#include <limits>

#include "arena.h"
#include "blocked_product.h"
#include "xmodal/cpu/pairs.h"
#include "xmodal/cpu/runtime.h"

namespace xmodal::cpu::XMODAL_CPU_SET {
namespace {

constexpr int64_t kAnchors = 96;                // most anchors in a block: a multiple of kBlockRows
constexpr int64_t kChunk = 256;                 // references in a chunk, the unit in which zero weights are skipped
constexpr int64_t kBuffers = int64_t{1} << 28;  // most bytes for the blocks of all threads together

constexpr int kNeither = 0, kPositive = 1, kNegative = 2;  // kinds of pairs

// A row length of an odd number of cache lines: adjacent rows then fall into different cache sets.
template <class T>
inline int64_t row_length(int64_t columns) {
  constexpr int64_t line = 64 / sizeof(T);
  return (round_up(columns, at_least(kPanel<T>, line)) / line | 1) * line;
}

// One set of embeddings: count is m for anchors, n for references, which are padded to whole panels.
template <class T>
struct Embeddings {
  int64_t count;
  const T* given;  // [count, d], as the caller passed them
  T* rows;         // [count, ld]: shifted, then 1, then 0; of references only for losses
  T* norm;         // [count]: squared, of shifted rows
  Int<T>* alive;   // [count]: −1 if the row is finite
  Int<T>* words;   // labels: [count, words] of anchors, [words, count] of references
};

template <class T>
struct PairWorkspace {
  int64_t d, words, block;
  int threads;
  int64_t padded;  // references, to whole panels
  int64_t ld;      // elements from row to row of embeddings
  int64_t stride;  // elements from row to row of a block of products
  bool classes;    // labels are compared for equality, otherwise they are bit sets
  bool exclude_diagonal;
  Embeddings<T> anchor, ref;
  double* columns;            // [4, d]: sums of anchors and of references, and of their squares
  T* shift;                   // [d], see choose_shift
  T* packed;                  // [padded / kPanel, d, kPanel]: shifted references
  T* line;                    // [threads, ld]
  T* products;                // [threads, block, stride]
  Int<T>* kind;               // [threads, stride]
  T *anchor_sum, *ref_sum;    // [threads, block, ld], [padded, ld]: products of weights and rows
  T *ref_first, *ref_second;  // [padded]: coefficients of a loss
  T* scratch;                 // [threads, 5, stride]
  unsigned char* busy;        // [threads, stride / kChunk + 1]: chunks with a weight other than 0
  std::size_t bytes;

  PairWorkspace(const Pairs& pairs, bool weights, void* memory)
      : d(pairs.d), threads(pairs.threads), classes(pairs.words == 0), exclude_diagonal(pairs.exclude_diagonal) {
    words = (classes ? 1 : pairs.words) * static_cast<int64_t>(sizeof(int64_t) / sizeof(Int<T>));
    padded = round_up(pairs.n, kPanel<T>);
    ld = row_length<T>(d + 1);
    stride = row_length<T>(padded);
    block = anchors_per_block(pairs.m);
    Arena arena(memory);
    columns = arena.take<double>(4 * d), shift = arena.take<T>(d);
    anchor.count = pairs.m, anchor.given = static_cast<const T*>(pairs.anchor);
    ref.count = pairs.n, ref.given = static_cast<const T*>(pairs.ref);
    anchor.rows = arena.take<T>(pairs.m * ld);
    packed = arena.take<T>(padded * d);
    anchor.norm = arena.take<T>(pairs.m), ref.norm = arena.take<T>(padded);
    anchor.alive = arena.take<Int<T>>(pairs.m), ref.alive = arena.take<Int<T>>(padded);
    anchor.words = arena.take<Int<T>>(pairs.m * words), ref.words = arena.take<Int<T>>(words * padded);
    line = arena.take<T>(threads * ld);
    products = arena.take<T>(threads * block * stride);
    kind = arena.take<Int<T>>(threads * stride);
    ref.rows = weights ? arena.take<T>(padded * ld) : nullptr;
    if (weights) {
      anchor_sum = arena.take<T>(threads * block * ld), ref_sum = arena.take<T>(padded * ld);
      ref_first = arena.take<T>(padded), ref_second = arena.take<T>(padded);
      scratch = arena.take<T>(threads * 5 * stride);
      busy = arena.take<unsigned char>(threads * chunks());
    }
    bytes = arena.used();
  }

  int64_t chunks() const { return stride / kChunk + 1; }
  // The anchors of the block that starts at `first`.
  int64_t block_rows(int64_t first) const { return at_most(block, anchor.count - first); }

 private:
  // Blocks of equal size, as large as kBuffers allows.
  int64_t anchors_per_block(int64_t m) const {
    const int64_t fit = kBuffers / (threads * stride * static_cast<int64_t>(sizeof(T)));
    const int64_t most = fit < kAnchors ? at_least(kBlockRows, fit / kBlockRows * kBlockRows) : kAnchors;
    const int64_t each = divide_up(m, threads);
    return round_up(divide_up(each, divide_up(each, most)), kBlockRows);
  }
};

template <class T>
inline void copy_words(const int64_t* from, int64_t words, Int<T>* to, int64_t step) {
  for (int64_t w = 0; w < words; ++w)
    to[w * step] =
        sizeof(Int<T>) == 8 ? static_cast<Int<T>>(from[w]) : static_cast<Int<T>>(from[w / 2] >> (w % 2 * 32));
}

// |a − r|² of two rows, to double precision.
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

// The same of anchor i and reference j, from the rows as given.
template <class T>
inline double exact_square(const PairWorkspace<T>& ws, int64_t i, int64_t j) {
  return exact_square(ws.anchor.given + i * ws.d, ws.ref.given + j * ws.d, ws.d);
}

// A shift near the mean row: distances do not depend on it, and |a|² + |r|² − 2 a·r loses fewer digits. It is a
// multiple of a power of two, about a half or a quarter of the spread, so integers stay exact. If a row is not finite,
// any shift will do.
template <class T>
void choose_shift(const PairWorkspace<T>& ws) {
  const T* origin = ws.anchor.given;  // sums are of differences from it: nothing cancels if the mean is far from 0
  double *a_sum = ws.columns, *r_sum = a_sum + ws.d, *a_squares = r_sum + ws.d, *r_squares = a_squares + ws.d;
  parallel(ws.threads, [&](int part, int parts) {
    const Range mine = share(ws.d, part, parts);
    auto add = [&](const Embeddings<T>& set, double* __restrict sum, double* __restrict squares) {
      for (int64_t k = mine.begin; k < mine.end; ++k) sum[k] = squares[k] = 0;
      for (int64_t i = 0; i < set.count; ++i)
        for (int64_t k = mine.begin; k < mine.end; ++k) {
          const double x = static_cast<double>(set.given[i * ws.d + k]) - static_cast<double>(origin[k]);
          sum[k] += x, squares[k] += x * x;
        }
    };
    add(ws.anchor, a_sum, a_squares), add(ws.ref, r_sum, r_squares);
  });
  const auto m = static_cast<double>(ws.anchor.count), n = static_cast<double>(ws.ref.count);
  double variance = 0;
  for (int64_t k = 0; k < ws.d; ++k)
    variance += (a_squares[k] - a_sum[k] * a_sum[k] / m) / m + (r_squares[k] - r_sum[k] * r_sum[k] / n) / n;
  variance /= static_cast<double>(ws.d);
  int exponent = 0;
  std::frexp(variance > 0 ? std::sqrt(variance) : 0.0, &exponent);
  const double step = std::ldexp(1.0, exponent - 2);
  for (int64_t k = 0; k < ws.d; ++k) {
    const double mean = static_cast<double>(origin[k]) + (a_sum[k] + r_sum[k]) / (m + n);
    const double multiple = std::nearbyint(mean / step) * step;
    ws.shift[k] = std::isfinite(multiple) ? static_cast<T>(multiple) : T(0);
  }
}

// Row i of one set as [x − shift | 1 | 0], its squared norm, and whether it is finite; if not, its norm is 0.
template <class T>
inline void shift_row(const PairWorkspace<T>& ws, const Embeddings<T>& set, int64_t i, T* row) {
  const T* x = set.given + i * ws.d;
  const double square = exact_square(x, ws.shift, ws.d);
  const bool finite = square < static_cast<double>(std::numeric_limits<T>::max()) / 16;
  for (int64_t k = 0; k < ws.d; ++k) row[k] = x[k] - ws.shift[k];
  row[ws.d] = 1;
  for (int64_t k = ws.d + 1; k < ws.ld; ++k) row[k] = 0;
  set.norm[i] = finite ? static_cast<T>(square) : T(0);
  set.alive[i] = finite ? -1 : 0;
}

// Fills the workspace; false if a row is not finite.
template <class T>
bool prepare(const Pairs& pairs, const PairWorkspace<T>& ws) {
  choose_shift(ws);
  const int64_t words = ws.classes ? 1 : pairs.words;
  const Embeddings<T>&anchor = ws.anchor, &ref = ws.ref;
  parallel(ws.threads, [&](int part, int parts) {
    const Range anchors = share(anchor.count, part, parts), panels = share(ws.padded / kPanel<T>, part, parts);
    for (int64_t i = anchors.begin; i < anchors.end; ++i) {
      shift_row(ws, anchor, i, anchor.rows + i * ws.ld);
      copy_words<T>(pairs.anchor_labels + i * words, ws.words, anchor.words + i * ws.words, 1);
    }
    for (int64_t j = panels.begin * kPanel<T>; j < panels.end * kPanel<T>; ++j) {
      T* row = ref.rows ? ref.rows + j * ws.ld : ws.line + part * ws.ld;
      if (j < ref.count) {
        shift_row(ws, ref, j, row);
        copy_words<T>(pairs.ref_labels + j * words, ws.words, ref.words + j, ws.padded);
      } else {
        for (int64_t k = 0; k < ws.ld; ++k) row[k] = 0;
        for (int64_t w = 0; w < ws.words; ++w) ref.words[w * ws.padded + j] = 0;
        ref.norm[j] = 0, ref.alive[j] = 0;
      }
      T* column = ws.packed + j / kPanel<T> * kPanel<T> * ws.d + j % kPanel<T>;
      for (int64_t k = 0; k < ws.d; ++k) column[k * kPanel<T>] = row[k];
    }
  });
  bool finite = true;
  for (int64_t i = 0; i < anchor.count; ++i) finite &= anchor.alive[i] != 0;
  for (int64_t j = 0; j < ref.count; ++j) finite &= ref.alive[j] != 0;
  return finite;
}

// The products of `rows` anchors from `first` on with all references.
template <class T>
inline void multiply_block(const PairWorkspace<T>& ws, int64_t first, int64_t rows, T* products) {
  blocked_product<T, Storage::rows>({rows, ws.padded, ws.d}, ws.anchor.rows + first * ws.ld, ws.ld,
                                    {ws.packed, kPanel<T> * ws.d, kPanel<T>}, false, products, ws.stride);
}

// The kind of every reference to anchor i, kPositive, kNegative or kNeither, and the numbers of positives and
// negatives.
template <class T>
inline void classify(const PairWorkspace<T>& ws, int64_t i, Int<T>* kind, int64_t& positives, int64_t& negatives) {
  using I = IntVector<T>;
  I positive{}, negative{};
  for (int64_t j = 0; j < ws.padded; j += kWidth<T>) {
    I bits{};
    for (int64_t w = 0; w < ws.words; ++w) {
      const I other = load<I>(ws.ref.words + w * ws.padded + j);
      const Int<T> own = ws.anchor.words[i * ws.words + w];
      bits |= ws.classes ? other ^ own : other & own;
    }
    const I alive = load<I>(ws.ref.alive + j) & ws.anchor.alive[i];
    const I same = (ws.classes ? bits == 0 : bits != 0) & alive, other = ~same & alive;
    positive -= same, negative -= other;
    store(kind + j, (same & kPositive) | (other & kNegative));
  }
  positives = lane_sum(positive), negatives = lane_sum(negative);
  if (ws.exclude_diagonal && i < ws.ref.count) {
    positives -= kind[i] == kPositive, negatives -= kind[i] == kNegative;
    kind[i] = kNeither;
  }
}

// Replaces products by distances. Where |a − r|² is lost in |a|² + |r|², it is computed from the difference.
template <class T>
inline void measure(const PairWorkspace<T>& ws, int64_t i, const Int<T>* kind, T* row) {
  using V = Vector<T>;
  using I = IntVector<T>;
  constexpr T kLost = T(1) / 256;
  for (int64_t first = 0; first < ws.padded; first += kChunk) {
    const int64_t last = at_most(first + kChunk, ws.padded);
    I lost{};
    for (int64_t j = first; j < last; j += kWidth<T>) {
      const V norms = load<V>(ws.ref.norm + j) + ws.anchor.norm[i];
      const V square = norms - 2 * load<V>(row + j);
      lost |= (square < norms * kLost) & load<I>(kind + j);
      store(row + j, square > 0 ? square : V{});
    }
    if (lane_sum(lost))
      for (int64_t j = first; j < last; ++j)
        if (kind[j] && row[j] < (ws.ref.norm[j] + ws.anchor.norm[i]) * kLost)
          row[j] = static_cast<T>(exact_square(ws, i, j));
  }
  for (int64_t j = 0; j < ws.padded; ++j) row[j] = std::sqrt(row[j]);
}

}  // namespace
}  // namespace xmodal::cpu::XMODAL_CPU_SET
