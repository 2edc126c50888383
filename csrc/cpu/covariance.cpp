// Covariances of two views side by side, Z = [X Y], and their gradient.
//   S = Σ_i (z_i − μ)(z_i − μ)ᵀ / (m − 1) + ridge,  blocks on and below the diagonal only
//   ∂Z = (Z − μ) H + offset,  where H holds the gradients of all blocks of S
// Rows are centred as they are packed into panels (see views.h); each view starts a panel of its own.
#include "xmodal/cpu/covariance.h"

#include "detail/arena.h"
#include "detail/blocked_product.h"
#include "detail/views.h"
#include "xmodal/cpu/runtime.h"

namespace xmodal::cpu::XMODAL_CPU_SET {
namespace {

constexpr int64_t kGradientRows = 192;  // rows of a gradient per step: a multiple of kBlockRows

template <class T>
struct JointWorkspace {
  View<T> view[2];
  int64_t m, panels, width;
  int threads;
  int partials;  // threads that share the rows, each with its own sum of products; if 1, threads share the blocks of S
  double* sums;  // [threads, width]
  T* shift;      // [2, width]: coarse and fine means
  T* packed;     // [threads, panels, kDepth, kPanel] centred rows, or [panels, width, kPanel] weights
  T* products;   // forward: [partials, width, width], blocks on and below the diagonal
  T* rows;       // backward: [threads, kGradientRows, width] centred rows
  T* out;        // backward: [threads, kGradientRows, width] gradients
  std::size_t bytes;

  JointWorkspace(const Views& views, bool backward, void* memory) : m(views.m) {
    const int64_t first = round_up(views.dx, kPanel<T>), second = round_up(views.dy, kPanel<T>);
    view[0] = {static_cast<const T*>(views.x), views.x_stride, views.dx, 0, first};
    view[1] = {static_cast<const T*>(views.y), views.y_stride, views.dy, first, second};
    width = first + second, panels = width / kPanel<T>;
    // A thread costs up to 100 µs to start, the time of some twenty million multiply-adds.
    threads = static_cast<int>(at_least(1, at_most(m * width * width / 20000000, views.threads)));
    // Sharing the rows is faster, but takes width² elements for each thread.
    partials = backward || width <= 1024 ? threads : 1;
    Arena arena(memory);
    sums = arena.take<double>(threads * width);
    shift = arena.take<T>(2 * width);
    packed = arena.take<T>(backward ? width * width : threads * width * kDepth);
    products = arena.take<T>(backward ? 0 : partials * width * width);
    rows = arena.take<T>(backward ? threads * kGradientRows * width : 0);
    out = arena.take<T>(backward ? threads * kGradientRows * width : 0);
    bytes = arena.used();
  }

  const T* coarse(const View<T>& v) const { return shift + v.begin; }
  const T* fine(const View<T>& v) const { return shift + width + v.begin; }
};

template <class T>
void find_means(const JointWorkspace<T>& ws) {
  parallel(ws.threads, [&](int part, int parts) {
    double* sums = ws.sums + part * ws.width;
    for (int64_t c = 0; c < ws.width; ++c) sums[c] = 0;
    const Range rows = share(ws.m, part, parts);
    for (const View<T>& v : ws.view) {
      double* __restrict sum = sums + v.begin;
      for (int64_t i = rows.begin; i < rows.end; ++i) {
        const T* row = v.data + i * v.stride;
        for (int64_t c = 0; c < v.d; ++c) sum[c] += static_cast<double>(row[c]);
      }
    }
  });
  for (int64_t c = 0; c < ws.width; ++c) {
    double sum = 0;
    for (int t = 0; t < ws.threads; ++t) sum += ws.sums[t * ws.width + c];
    split_mean<T>(sum / static_cast<double>(ws.m), ws.shift[c], ws.shift[ws.width + c]);
  }
}

// Rows [first, first + count) of Z, centred, in panels: column c of row i goes to panel c / kPanel, row i, c % kPanel.
template <class T>
void pack_rows(const JointWorkspace<T>& ws, int64_t first, int64_t count, T* packed) {
  using V = Vector<T>;
  for (const View<T>& v : ws.view) {
    for (int64_t c = 0; c < v.width; c += kPanel<T>) {
      const T *coarse = ws.coarse(v) + c, *fine = ws.fine(v) + c;
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

// A kPanel × kPanel block of C (+)= Aᵀ B, of two panels of packed rows.
template <class T>
inline void panel_pair(const T* a, const T* b, int64_t depth, bool add, T* c, int64_t ldc) {
  constexpr int kRest = kPanel<T> % kBlockRows;
  int i = 0;
  for (; i + kBlockRows <= kPanel<T>; i += kBlockRows)
    register_block<T, Storage::columns, kBlockRows, 2>(a + i, kPanel<T>, b, kPanel<T>, depth, add, c + i * ldc, ldc);
  if constexpr (kRest > 0)
    register_block<T, Storage::columns, kRest, 2>(a + i, kPanel<T>, b, kPanel<T>, depth, add, c + i * ldc, ldc);
}

// Products of the centred rows, block by block: threads share either the rows or the blocks.
template <class T>
void accumulate(const JointWorkspace<T>& ws) {
  const int64_t width = ws.width, panel = kPanel<T> * kDepth, blocks = ws.panels * (ws.panels + 1) / 2;
  parallel(ws.threads, [&](int part, int parts) {
    const bool by_rows = ws.partials > 1;
    const Range rows = by_rows ? share(ws.m, part, parts) : Range{0, ws.m};
    const Range mine = by_rows ? Range{0, blocks} : share(blocks, part, parts);
    T* packed = ws.packed + part * ws.panels * panel;
    T* products = ws.products + (by_rows ? part * width * width : 0);
    for (int64_t i = rows.begin; i < rows.end; i += kDepth) {
      const int64_t depth = at_most(rows.end - i, kDepth);
      pack_rows(ws, i, depth, packed);
      int64_t block = 0;
      for (int64_t right = 0; right < ws.panels; ++right)  // its panel stays in the first-level cache
        for (int64_t left = right; left < ws.panels; ++left, ++block)
          if (block >= mine.begin && block < mine.end)
            panel_pair(packed + left * panel, packed + right * panel, depth, i > rows.begin,
                       products + left * kPanel<T> * width + right * kPanel<T>, width);
    }
  });
}

// Adds up the partial products, scales them and writes each block to its matrix, transposed too within xx and yy.
template <class T>
void write_blocks(const JointWorkspace<T>& ws, T* xx, T* xy, T* yy) {
  const View<T>&x = ws.view[0], &y = ws.view[1];
  const int64_t width = ws.width;
  const T scale = static_cast<T>(1.0 / static_cast<double>(ws.m - 1));
  parallel(ws.threads, [&](int part, int parts) {
    for (int64_t left = part; left < ws.panels; left += parts)
      for (int64_t right = 0; right <= left; ++right) {
        const bool low = left * kPanel<T> >= y.begin, across = low && right * kPanel<T> < y.begin;
        const View<T>&down = low ? y : x, &along = across ? x : down;
        const int64_t i0 = left * kPanel<T> - down.begin, j0 = right * kPanel<T> - along.begin;
        const int64_t rows = at_most(kPanel<T>, down.d - i0), columns = at_most(kPanel<T>, along.d - j0);
        T* const to = across ? xy : low ? yy : xx;
        for (int64_t i = 0; i < rows; ++i) {
          const int64_t at = (left * kPanel<T> + i) * width + right * kPanel<T>;
          for (int64_t j = 0; j < columns; ++j) {
            T sum = ws.products[at + j];
            for (int64_t t = 1; t < ws.partials; ++t) sum += ws.products[t * width * width + at + j];
            to[(j0 + j) * down.d + i0 + i] = sum * scale;
            if (!across) to[(i0 + i) * down.d + j0 + j] = sum * scale;
          }
        }
      }
  });
}

template <class T>
void forward(const Views& views, const CovarianceForward& results) {
  const JointWorkspace<T> ws(views, false, views.workspace);
  auto *xx = static_cast<T*>(results.xx), *xy = static_cast<T*>(results.xy), *yy = static_cast<T*>(results.yy);
  auto *mean_x = static_cast<T*>(results.mean_x), *mean_y = static_cast<T*>(results.mean_y);
  find_means(ws);
  accumulate(ws);
  write_blocks(ws, xx, xy, yy);
  const View<T>&x = ws.view[0], &y = ws.view[1];
  for (int64_t i = 0; i < x.d; ++i) mean_x[i] = ws.coarse(x)[i], xx[i * x.d + i] += static_cast<T>(results.rx);
  for (int64_t i = 0; i < y.d; ++i) mean_y[i] = ws.coarse(y)[i], yy[i * y.d + i] += static_cast<T>(results.ry);
}

// Weights in panels, with the rows and columns of the padding of Z as zeros.
template <class T>
void pack_weights(const JointWorkspace<T>& ws, const T* weights) {
  const int64_t d = ws.view[0].d + ws.view[1].d;
  const auto source = [&](int64_t c) {  // the column of the weights for column c of Z, −1 for padding
    const int side = c >= ws.view[1].begin;
    const int64_t own = c - ws.view[side].begin;
    return own < ws.view[side].d ? own + (side ? ws.view[0].d : 0) : -1;
  };
  parallel(ws.threads, [&](int part, int parts) {
    for (int64_t panel = part; panel < ws.panels; panel += parts)
      for (int64_t i = 0; i < ws.width; ++i)
        for (int64_t k = 0; k < kPanel<T>; ++k) {
          const int64_t row = source(i), column = source(panel * kPanel<T> + k);
          ws.packed[(panel * ws.width + i) * kPanel<T> + k] = row < 0 || column < 0 ? T(0) : weights[row * d + column];
        }
  });
}

template <class T>
void backward(const Views& views, const CovarianceBackward& gradient) {
  const JointWorkspace<T> ws(views, true, views.workspace);
  find_means(ws);
  pack_weights(ws, static_cast<const T*>(gradient.weights));
  parallel(ws.threads, [&](int part, int parts) {
    T *rows = ws.rows + part * kGradientRows * ws.width, *out = ws.out + part * kGradientRows * ws.width;
    const Range all = share(ws.m, part, parts);
    for (int64_t first = all.begin; first < all.end; first += kGradientRows) {
      const int64_t count = at_most(kGradientRows, all.end - first);
      for (const View<T>& v : ws.view)
        for (int64_t i = 0; i < count; ++i)
          centre_row(v, first + i, ws.coarse(v), ws.fine(v), rows + i * ws.width + v.begin);
      blocked_product<T, Storage::rows>({count, ws.width, ws.width}, rows, ws.width,
                                        {ws.packed, kPanel<T> * ws.width, kPanel<T>}, false, out, ws.width);
      const T* offset = static_cast<const T*>(gradient.offset);
      T* grad[] = {static_cast<T*>(gradient.grad_x), static_cast<T*>(gradient.grad_y)};
      for (int side = 0; side < 2; offset += ws.view[side].d, ++side) {
        const View<T>& v = ws.view[side];
        for (int64_t i = 0; i < count; ++i) {
          T* to = grad[side] + (first + i) * v.d;
          for (int64_t c = 0; c < v.d; ++c) to[c] = out[i * ws.width + v.begin + c] + offset[c];
        }
      }
    }
  });
}

}  // namespace

std::size_t covariance_workspace(const Views& views, bool backward) {
  return views.wide ? JointWorkspace<double>(views, backward, nullptr).bytes
                    : JointWorkspace<float>(views, backward, nullptr).bytes;
}

void covariance(const Views& views, const CovarianceForward& results) {
  views.wide ? forward<double>(views, results) : forward<float>(views, results);
}

void covariance_backward(const Views& views, const CovarianceBackward& gradient) {
  views.wide ? backward<double>(views, gradient) : backward<float>(views, gradient);
}

}  // namespace xmodal::cpu::XMODAL_CPU_SET
