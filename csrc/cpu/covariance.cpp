// Covariances of two views side by side, Z = [X Y], and their gradient.
//   S = Σ_i (z_i − μ)(z_i − μ)ᵀ / (m − 1) + ridge:  blocks on and below the diagonal; rows are centred as packed
//
//   ∂Z = (Z − μ) H + offset:  H holds the gradients of all blocks of S
//
//   z − μ = (z − coarse) − fine:  the nearby difference is exact, and what rounding took from the mean follows
#include "xmodal/covariance.h"

#include "detail/product.h"
#include "xmodal/cpu.h"

namespace xmodal::cpu::XMODAL_CPU_SET {
namespace {

using std::int64_t;

constexpr int64_t kBlock = 192;  // rows of a gradient in work at a time: a multiple of kRows

inline int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

template <class T>
struct View {
  const T* data;
  int64_t stride, d, begin;  // begin: its first column in Z, where each view fills whole panels
};

template <class T>
struct Work {
  View<T> view[2];
  int64_t m, panels, width, threads, by_rows;
  double* sums;   // [by_rows, width]
  T* shift;       // [2, width]: coarse and fine means
  T* packed;      // [threads, panels, kDepth, kPanel] centred rows, or [panels, width, kPanel] weights
  T* products;    // [by_rows, width, width], the blocks of which on and below the diagonal count
  T *rows, *out;  // [threads, kBlock, width] each, of backward
  std::size_t used = 0;

  Work(const Views& v, bool backward) : m(v.m) {
    const int64_t first = round_up(v.dx, kPanel<T>);
    view[0] = {static_cast<const T*>(v.x), v.x_stride, v.dx, 0};
    view[1] = {static_cast<const T*>(v.y), v.y_stride, v.dy, first};
    width = first + round_up(v.dy, kPanel<T>), panels = width / kPanel<T>;
    // A thread costs up to 100 µs to start, the time of some twenty million multiply-adds.
    const int64_t worth = m * width * width / 20000000;
    threads = worth < 1 ? 1 : smaller(worth, v.threads);
    // Threads share the rows where each can have products of its own; otherwise the blocks of products.
    by_rows = backward || width <= 1024 ? threads : 1;
    sums = take<double>(v, threads * width);
    shift = take<T>(v, 2 * width);
    packed = take<T>(v, backward ? width * width : threads * width * kDepth);
    products = take<T>(v, backward ? 0 : by_rows * width * width);
    rows = take<T>(v, backward ? threads * kBlock * width : 0);
    out = take<T>(v, backward ? threads * kBlock * width : 0);
  }

  int64_t columns(int side) const { return side ? width - view[1].begin : view[1].begin; }  // with padding

 private:
  template <class U>
  U* take(const Views& v, int64_t count) {
    U* piece = v.workspace ? reinterpret_cast<U*>(static_cast<char*>(v.workspace) + used) : nullptr;
    used += static_cast<std::size_t>(round_up(count * static_cast<int64_t>(sizeof(U)), 64));
    return piece;
  }
};

template <class T>
void find_means(const Work<T>& l) {
  parallel(static_cast<int>(l.threads), [&](int part, int parts) {
    double* sums = l.sums + part * l.width;
    for (int64_t c = 0; c < l.width; ++c) sums[c] = 0;
    for (const View<T>& v : l.view) {
      double* __restrict sum = sums + v.begin;
      for (int64_t i = l.m * part / parts; i < l.m * (part + 1) / parts; ++i) {
        const T* row = v.data + i * v.stride;
        for (int64_t c = 0; c < v.d; ++c) sum[c] += static_cast<double>(row[c]);
      }
    }
  });
  for (int64_t c = 0; c < l.width; ++c) {
    double sum = 0;
    for (int64_t t = 0; t < l.threads; ++t) sum += l.sums[t * l.width + c];
    const double mean = sum / static_cast<double>(l.m);
    l.shift[c] = static_cast<T>(mean);
    l.shift[l.width + c] = static_cast<T>(mean - static_cast<double>(l.shift[c]));
  }
}

// Rows [first, first + count) of Z, centred, in panels: column c of row i goes to panel c / kPanel, row i, c % kPanel.
template <class T>
void pack_rows(const Work<T>& l, int64_t first, int64_t count, T* packed) {
  using V = Vector<T>;
  for (int side = 0; side < 2; ++side) {
    const View<T>& v = l.view[side];
    for (int64_t c = 0; c < l.columns(side); c += kPanel<T>) {
      const T *coarse = l.shift + v.begin + c, *fine = coarse + l.width;
      T* to = packed + (v.begin + c) * kDepth;
      const T* from = v.data + first * v.stride + c;
      if (c + kPanel<T> <= v.d) {
        for (int64_t i = 0; i < count; ++i)
          for (int64_t k = 0; k < kPanel<T>; k += kWidth<T>)
            store(to + i * kPanel<T> + k, (load<V>(from + i * v.stride + k) - load<V>(coarse + k)) - load<V>(fine + k));
      } else {
        for (int64_t i = 0; i < count; ++i)
          for (int64_t k = 0; k < kPanel<T>; ++k)
            to[i * kPanel<T> + k] = c + k < v.d ? (from[i * v.stride + k] - coarse[k]) - fine[k] : T(0);
      }
    }
  }
}

// One block of products, kPanel × kPanel, of two panels of packed rows.
template <class T>
inline void panel_pair(const T* a, const T* b, int64_t depth, bool add, T* c, int64_t ldc) {
  constexpr int kRest = kPanel<T> % kRows;
  int i = 0;
  for (; i + kRows <= kPanel<T>; i += kRows)
    block_product<T, Layout::columns, kRows, 2>(a + i, kPanel<T>, b, kPanel<T>, depth, add, c + i * ldc, ldc);
  if constexpr (kRest > 0)
    block_product<T, Layout::columns, kRest, 2>(a + i, kPanel<T>, b, kPanel<T>, depth, add, c + i * ldc, ldc);
}

template <class T>
void moments_of(const Views& views, double rx, double ry, const Moments& results) {
  const Work<T> l(views, false);
  find_means(l);
  const int64_t width = l.width, block = kPanel<T> * kDepth, square = width * width;
  parallel(static_cast<int>(l.threads), [&](int part, int parts) {
    const int64_t pairs = l.panels * (l.panels + 1) / 2;
    const bool rows = l.by_rows > 1;
    const int64_t begin = rows ? l.m * part / parts : 0, end = rows ? l.m * (part + 1) / parts : l.m;
    const int64_t first = rows ? 0 : pairs * part / parts, last = rows ? pairs : pairs * (part + 1) / parts;
    T* packed = l.packed + part * l.panels * block;
    T* products = l.products + (rows ? part * square : 0);
    for (int64_t i = begin; i < end; i += kDepth) {
      const int64_t depth = smaller(kDepth, end - i);
      pack_rows(l, i, depth, packed);
      int64_t pair = 0;
      for (int64_t right = 0; right < l.panels; ++right)  // its panel stays in the first-level cache
        for (int64_t left = right; left < l.panels; ++left, ++pair)
          if (pair >= first && pair < last)
            panel_pair(packed + left * block, packed + right * block, depth, i > begin,
                       products + left * kPanel<T> * width + right * kPanel<T>, width);
    }
  });
  const View<T>&x = l.view[0], &y = l.view[1];
  auto *xx = static_cast<T*>(results.xx), *xy = static_cast<T*>(results.xy), *yy = static_cast<T*>(results.yy);
  const T scale = static_cast<T>(1.0 / static_cast<double>(l.m - 1));
  parallel(static_cast<int>(l.threads), [&](int part, int parts) {
    for (int64_t left = part; left < l.panels; left += parts)
      for (int64_t right = 0; right <= left; ++right) {
        const bool low = left * kPanel<T> >= y.begin, across = low && right * kPanel<T> < y.begin;
        const View<T>&down = low ? y : x, &along = across ? x : down;
        const int64_t i0 = left * kPanel<T> - down.begin, j0 = right * kPanel<T> - along.begin;
        const int64_t rows = smaller(kPanel<T>, down.d - i0), columns = smaller(kPanel<T>, along.d - j0);
        T* const to = across ? xy : low ? yy : xx;
        for (int64_t i = 0; i < rows; ++i) {
          const int64_t at = (left * kPanel<T> + i) * width + right * kPanel<T>;
          for (int64_t j = 0; j < columns; ++j) {
            T sum = l.products[at + j];
            for (int64_t t = 1; t < l.by_rows; ++t) sum += l.products[t * square + at + j];
            to[(j0 + j) * down.d + i0 + i] = sum * scale;
            if (!across) to[(i0 + i) * down.d + j0 + j] = sum * scale;
          }
        }
      }
  });
  auto *mean_x = static_cast<T*>(results.mean_x), *mean_y = static_cast<T*>(results.mean_y);
  for (int64_t i = 0; i < x.d; ++i) mean_x[i] = l.shift[i], xx[i * x.d + i] += static_cast<T>(rx);
  for (int64_t i = 0; i < y.d; ++i) mean_y[i] = l.shift[y.begin + i], yy[i * y.d + i] += static_cast<T>(ry);
}

// Weights in panels, their rows and columns where the views' columns are in Z, zeros between.
template <class T>
void pack_weights(const Work<T>& l, const T* weights) {
  const int64_t d = l.view[0].d + l.view[1].d;
  const auto source = [&](int64_t c) {  // the column of the weights that column c of Z has, or −1
    const int side = c >= l.view[1].begin;
    const int64_t own = c - l.view[side].begin;
    return own < l.view[side].d ? own + (side ? l.view[0].d : 0) : -1;
  };
  parallel(static_cast<int>(l.threads), [&](int part, int parts) {
    for (int64_t panel = part; panel < l.panels; panel += parts)
      for (int64_t i = 0; i < l.width; ++i)
        for (int64_t k = 0; k < kPanel<T>; ++k) {
          const int64_t row = source(i), column = source(panel * kPanel<T> + k);
          l.packed[(panel * l.width + i) * kPanel<T> + k] = row < 0 || column < 0 ? T(0) : weights[row * d + column];
        }
  });
}

template <class T>
void gradient(const Views& views, const T* weights, const T* offset, T* grad_x, T* grad_y) {
  const Work<T> l(views, true);
  find_means(l);
  pack_weights(l, weights);
  parallel(static_cast<int>(l.threads), [&](int part, int parts) {
    T *rows = l.rows + part * kBlock * l.width, *out = l.out + part * kBlock * l.width;
    const int64_t end = l.m * (part + 1) / parts;
    for (int64_t first = l.m * part / parts; first < end; first += kBlock) {
      const int64_t count = smaller(kBlock, end - first);
      for (const View<T>& v : l.view) {
        const T *coarse = l.shift + v.begin, *fine = coarse + l.width;
        for (int64_t i = 0; i < count; ++i) {
          T* to = rows + i * l.width + v.begin;
          const T* from = v.data + (first + i) * v.stride;
          for (int64_t c = 0; c < v.d; ++c) to[c] = (from[c] - coarse[c]) - fine[c];
          for (int64_t c = v.d; c < round_up(v.d, kPanel<T>); ++c) to[c] = 0;
        }
      }
      product<T, Layout::rows>(rows, l.width, l.packed, kPanel<T> * l.width, kPanel<T>, count, l.width, l.width, false,
                               out, l.width);
      for (int side = 0; side < 2; ++side) {
        const View<T>& v = l.view[side];
        const T* more = offset + (side ? l.view[0].d : 0);
        for (int64_t i = 0; i < count; ++i) {
          T* to = (side ? grad_y : grad_x) + (first + i) * v.d;
          for (int64_t c = 0; c < v.d; ++c) to[c] = out[i * l.width + v.begin + c] + more[c];
        }
      }
    }
  });
}

}  // namespace

std::size_t covariance_workspace(const Views& views, bool backward) {
  Views empty = views;
  empty.workspace = nullptr;
  return views.wide ? Work<double>(empty, backward).used : Work<float>(empty, backward).used;
}

void covariance(const Views& views, double rx, double ry, const Moments& results) {
  views.wide ? moments_of<double>(views, rx, ry, results) : moments_of<float>(views, rx, ry, results);
}

void covariance_backward(const Views& views, const void* weights, const void* offset, void* grad_x, void* grad_y) {
  if (views.wide)
    gradient(views, static_cast<const double*>(weights), static_cast<const double*>(offset),
             static_cast<double*>(grad_x), static_cast<double*>(grad_y));
  else
    gradient(views, static_cast<const float*>(weights), static_cast<const float*>(offset), static_cast<float*>(grad_x),
             static_cast<float*>(grad_y));
}

}  // namespace xmodal::cpu::XMODAL_CPU_SET
