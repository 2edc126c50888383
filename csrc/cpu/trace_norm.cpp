// Value and gradients of the total correlation of two small views, in one call (Yan & Mikolajczyk, CVPR 2015).
//   S = ZᵀZ / (m − 1) + ridge, Z = [Xc Yc];  J = L⁻¹ of either block;  T = Jx Sxy Jyᵀ;  P = polar factor of T
//   value = ⟨P, T⟩,  Gxy = JxᵀP Jy,  2 Gxx = −Jxᵀ P Tᵀ Jx,  2 Gyy = −Jyᵀ Pᵀ T Jy
//   [∂X ∂Y] = Z [2Gxx Gxy; Gxyᵀ 2Gyy] / (m − 1)
// The products over the m rows run in the inputs' type, the algebra of d × d matrices in fp64. Where fp32 products
// would lose more than about three digits of the gradient, they run in fp64, too.
#include "xmodal/trace_norm.h"

#include "detail/sets.h"
#include "detail/small_product.h"
#include "xmodal/cpu.h"

namespace xmodal::cpu::XMODAL_CPU_SET {
namespace {

constexpr int64_t kRows = 128;  // rows of Z in work at a time, so that a block stays in the second-level cache

// A square or rectangular fp64 matrix in the workspace, rows padded.
struct Matrix {
  double* data;
  int64_t ld;
  double& operator()(int64_t i, int64_t j) const { return data[i * ld + j]; }
  Operand<double> operand() const { return {data, ld, 1}; }
};

void multiply(int64_t m, int64_t n, int64_t k, Operand<double> a, Matrix b, Matrix c, double alpha = 1,
              Shape shape = Shape::full, bool add = false, bool symmetric = false) {
  product<double, double>(m, padded(n), k, a, b.data, b.ld, c.data, c.ld, alpha, add, shape, symmetric);
}

void transpose(int64_t m, int64_t n, Matrix a, Matrix at) {
  for (int64_t i = 0; i < m; ++i)
    for (int64_t j = 0; j < n; ++j) at(j, i) = a(i, j);
}

// The inverse J of the Cholesky factor of a (n, n), lower; a is overwritten, what lies above its diagonal is ignored.
// Sixteen columns at a time: eliminate in the diagonal block, then two products with the panel below. Returns the
// smallest pivot L[i,i]², 0 where a is not positive definite; largest pivot in *largest.
double cholesky_inverse(int64_t n, Matrix a, Matrix j, Matrix scratch, double* largest) {
  double smallest = __builtin_inf();
  *largest = 0;
  for (int64_t i = 0; i < n; ++i)
    for (int64_t c = 0; c < padded(n); ++c) j(i, c) = 0;
  for (int64_t s = 0; s < n; s += kPad) {
    const int64_t e = s + kPad < n ? s + kPad : n, w = e - s;
    // a[s:e, s:e] −= L[s:e, :s] L[s:e, :s]ᵀ, where L[s:e, :s] = a[s:e, :s] J[:s, :s]ᵀ was left in a.
    double l[kPad][kPad];
    for (int64_t i = 0; i < w; ++i) {
      for (int64_t c = 0; c <= i; ++c) {
        double sum = a(s + i, s + c);
        for (int64_t k = 0; k < c; ++k) sum -= l[i][k] * l[c][k];
        if (c < i) {
          l[i][c] = sum * j(s + c, s + c);
        } else {
          if (!(sum > 0)) return 0;
          smallest = sum < smallest ? sum : smallest;
          *largest = sum > *largest ? sum : *largest;
          l[i][i] = __builtin_sqrt(sum);
          j(s + i, s + i) = 1 / l[i][i];
        }
      }
    }
    for (int64_t i = 1; i < w; ++i) {  // J of the diagonal block, row by row: J[i] = −J[i,i] Σ L[i,k] J[k]
      double row[kPad] = {};
      for (int64_t k = 0; k < i; ++k)
        for (int64_t c = 0; c < kPad; ++c) row[c] += l[i][k] * j(s + k, s + c);
      for (int64_t c = 0; c < i; ++c) j(s + i, s + c) = -j(s + i, s + i) * row[c];
    }
    if (s) {  // J[s:e, :s] = −J[s:e, s:e] (L[s:e, :s] J[:s, :s])
      multiply(w, s, s, {&a(s, 0), a.ld, 1}, j, scratch);
      product<double, double>(w, s, w, {&j(s, s), j.ld, 1}, scratch.data, scratch.ld, &j(s, 0), j.ld, -1, false,
                              Shape::lower);
    }
    if (e < n) {
      // Panel L[e:, s:e] = a[e:, s:e] J[s:e, s:e]ᵀ, then a[e:, e:] −= L[e:, s:e] L[e:, s:e]ᵀ.
      double jt[kPad * kPad], lt[kPad * (kTraceNormMaxDim + kPad)];
      for (int64_t r = 0; r < kPad; ++r)
        for (int64_t c = 0; c < kPad; ++c) jt[c * kPad + r] = r < w && c < w ? j(s + r, s + c) : 0;
      product<double, double>(n - e, kPad, w, {&a(e, s), a.ld, 1}, jt, kPad, scratch.data, kPad);
      const int64_t width = padded(n - e);
      for (int64_t r = 0; r < n - e; ++r)
        for (int64_t c = 0; c < kPad; ++c) a(e + r, s + c) = lt[c * width + r] = scratch.data[r * kPad + c];
      for (int64_t c = 0; c < kPad; ++c)
        for (int64_t r = n - e; r < width; ++r) lt[c * width + r] = 0;
      product<double, double>(n - e, width, kPad, {scratch.data, kPad, 1}, lt, width, &a(e, e), a.ld, -1, true,
                              Shape::full, true);
    }
  }
  return smallest;
}

// The orthogonal polar factor of t (p, q), p ≥ q, σ ≤ 1, by dynamically weighted Halley steps
//   X ← X ((b/c) I + (a − b/c) (I + c XᵀX)⁻¹)                (QDWH; Nakatsukasa, Bai & Gygi, SIAM J. Matrix Anal.
//   2010).
// Singular values far below `low` stay small: they take the subgradient 0.
void polar(int64_t p, int64_t q, Matrix& x, Matrix gram, Matrix inverse, Matrix step, Matrix next, Matrix scratch,
           double low, double tolerance) {
  for (int iteration = 0; iteration < 20; ++iteration) {
    multiply(q, q, p, x.operand().transposed(), x, gram, 1, Shape::full, false, true);
    double trace = 0, square = 0;
    for (int64_t i = 0; i < q; ++i) {
      double off = 0;
      for (int64_t j = 0; j < i; ++j) off += gram(i, j) * gram(i, j);
      trace += gram(i, i);
      square += 2 * off + gram(i, i) * gram(i, i);
    }
    if (trace - square <= tolerance * q) return;  // Σ σ²(1 − σ²): every σ is 1, or too small to count
    const double l2 = low * low;
    const double d = l2 < 1 ? __builtin_cbrt(4 * (1 - l2) / (l2 * l2)) : 0, root = __builtin_sqrt(1 + d);
    const double inner = 8 - 4 * d + 8 * (2 - l2) / (l2 * root);
    const double a = root + __builtin_sqrt(inner > 0 ? inner : 0) / 2, b = (a - 1) * (a - 1) / 4, c = a + b - 1;
    for (int64_t i = 0; i < q; ++i) {
      for (int64_t j = 0; j <= i; ++j) gram(i, j) *= c;
      gram(i, i) += 1;
    }
    double largest;
    if (!(cholesky_inverse(q, gram, inverse, scratch, &largest) > 0)) return;  // only NaN gets here
    multiply(q, q, q, inverse.operand().transposed(), inverse, step, a - b / c, Shape::upper, false, true);
    mirror(q, step.data, step.ld);
    for (int64_t i = 0; i < q; ++i) step(i, i) += b / c;
    multiply(p, q, q, x.operand(), step, next);
    const Matrix stepped = next;
    next = x, x = stepped;
    low = low * (a + b * l2) / (1 + c * l2);
    if (low > 1) low = 1;
  }
}

// A view as the caller gave it.
template <typename In>
struct View {
  const In* data;
  int64_t stride, d;
};

// Rows [begin, end) of Z = [Xc Yc], in T, each view padded with zeros to a multiple of kPad.
template <typename T, typename In>
void gather(View<In> x, View<In> y, const double* mean, int64_t begin, int64_t end, T* z, int64_t dp, int64_t width) {
  for (int64_t r = begin; r < end; ++r, z += width) {
    const View<In> views[] = {x, y};
    for (int v = 0; v < 2; ++v) {
      const In* row = views[v].data + r * views[v].stride;
      const double* shift = mean + v * dp;
      T* to = z + v * dp;
      // In fp32 the nearby difference is exact, and what rounding took from the mean follows.
      for (int64_t c = 0; c < views[v].d; ++c) {
        const In coarse = In(shift[c]);
        to[c] = (T(row[c]) - T(coarse)) - T(shift[c] - coarse);
      }
      const int64_t stop = v ? width - dp : dp;
      for (int64_t c = views[v].d; c < stop; ++c) to[c] = 0;
    }
  }
}

template <typename In>
void column_means(View<In> v, int64_t m, double* mean) {
  for (int64_t c = 0; c < v.d; ++c) mean[c] = 0;
  for (int64_t r = 0; r < m; ++r)
    for (int64_t c = 0; c < v.d; ++c) mean[c] += v.data[r * v.stride + c];
  for (int64_t c = 0; c < v.d; ++c) mean[c] /= m;
}

// The workspace of a problem, laid out for the wider type, so that a second attempt in fp64 fits, too.
struct Layout {
  int64_t dp, dq, width;  // padded dimensions of the larger view, the smaller one, and both
  int64_t matrix, rows, moments;
  int threads, parts;  // that share a problem; where that is one, problems that are worked on at a time
  explicit Layout(const TraceNorm& t)
      : dp(padded(t.dx > t.dy ? t.dx : t.dy)), dq(padded(t.dx > t.dy ? t.dy : t.dx)), width(dp + dq) {
    matrix = (dp + kPad) * dp;
    rows = kRows * width;
    moments = (width + kPad) * width;
    // A thread costs up to 100 µs to start, the time of some ten million multiply-adds.
    const auto worth = [&](int64_t rows, int64_t most) {
      const int64_t count = rows * width * width / 30000000;
      return int(count < 1 ? 1 : count < most ? count : most);
    };
    threads = worth(t.m, t.threads);
    parts = threads > 1 ? 1 : worth(t.problems * (t.m + 8 * width), t.problems < t.threads ? t.problems : t.threads);
  }
  int64_t doubles() const { return width + 13 * matrix + moments + threads * (2 * rows + moments); }
};

// Value and gradients of one problem.
template <typename T, typename In>
bool attempt(const TraceNorm& problem, const Layout& layout) {
  // x is the larger view from here on.
  const bool swapped = problem.dx < problem.dy;
  View<In> x{static_cast<const In*>(problem.x), problem.x_stride, problem.dx};
  View<In> y{static_cast<const In*>(problem.y), problem.y_stride, problem.dy};
  double rx = problem.rx, ry = problem.ry;
  void *grad_x = problem.grad_x, *grad_y = problem.grad_y;
  if (swapped) {
    const View<In> other = x;
    x = y, y = other;
    rx = problem.ry, ry = problem.rx;
    grad_x = problem.grad_y, grad_y = problem.grad_x;
  }
  const int64_t m = problem.m, p = x.d, q = y.d, dp = layout.dp, dq = layout.dq, width = layout.width;
  double* free = static_cast<double*>(problem.workspace);
  const auto take = [&](int64_t count) {
    double* mine = free;
    free += count;
    return mine;
  };
  const auto matrix = [&](int64_t ld) { return Matrix{take(layout.matrix), ld}; };
  double* mean = take(width);
  const Matrix s{take(layout.moments), width};
  double* rows = take(layout.threads * 2 * layout.rows);
  double* partial = take(layout.threads * layout.moments);

  for (int64_t c = 0; c < width; ++c) mean[c] = 0;
  column_means(x, m, mean);
  column_means(y, m, mean + dp);

  parallel(layout.threads, [&](int part, int parts) {
    T* z = reinterpret_cast<T*>(rows + part * 2 * layout.rows);
    double* sum = partial + part * layout.moments;
    for (int64_t i = 0; i < width * width; ++i) sum[i] = 0;
    const int64_t blocks = (m + kRows - 1) / kRows;
    for (int64_t block = blocks * part / parts; block < blocks * (part + 1) / parts; ++block) {
      const int64_t begin = block * kRows, end = begin + kRows < m ? begin + kRows : m;
      gather<T, In>(x, y, mean, begin, end, z, dp, width);
      product<T, double>(width, width, end - begin, {z, 1, width}, z, width, sum, width, 1, true, Shape::full, true);
    }
  });
  for (int64_t i = 0; i < width * width; ++i) {
    double sum = partial[i];
    for (int t = 1; t < layout.threads; ++t) sum += partial[t * layout.moments + i];
    s.data[i] = sum / (m - 1);
  }

  const Matrix sxx = matrix(dp), syy = matrix(dq), sxy = matrix(dq), jx = matrix(dp), jy = matrix(dq), t = matrix(dq);
  Matrix polar_factor = matrix(dq), spare = matrix(dq);
  const Matrix a = matrix(dp), b = matrix(dp), c = matrix(dp), d = matrix(dp);
  const Matrix scratch = matrix(dp);
  double trace = 0;
  for (int64_t i = 0; i < p; ++i) {
    for (int64_t j = 0; j <= i; ++j) sxx(i, j) = s(i, j);
    sxx(i, i) += rx;
    trace += sxx(i, i);
    for (int64_t j = 0; j < dq; ++j) sxy(i, j) = j < q ? s(dp + j, i) : 0;
  }
  for (int64_t i = 0; i < q; ++i) {
    for (int64_t j = 0; j <= i; ++j) syy(i, j) = s(dp + i, dp + j);
    syy(i, i) += ry;
    trace += syy(i, i);
  }
  if (!(trace - trace == 0)) return false;
  // The views' own halves of the algebra stand side by side where that pays for a thread.
  const int halves = layout.threads > 1 && q >= 128 ? 2 : 1;
  const auto side_by_side = [&](auto&& first, auto&& second) {
    parallel(halves, [&](int part, int parts) {
      if (part == 0) first();
      if (part == parts - 1) second();
    });
  };
  double most_x, most_y, least_x, least_y;
  side_by_side([&] { least_x = cholesky_inverse(p, sxx, jx, scratch, &most_x); },
               [&] { least_y = cholesky_inverse(q, syy, jy, d, &most_y); });
  if (!(least_x > 0 && least_y > 0)) return false;
  const double eps = sizeof(T) == 4 ? 1.2e-7 : 2.3e-16;
  const double tolerance = sizeof(T) == 4 ? 1e-3 : 1e-6;
  if (eps * most_x > tolerance * least_x || eps * most_y > tolerance * least_y) return false;

  // T = Jx Sxy Jyᵀ
  multiply(p, q, p, jx.operand(), sxy, a, 1, Shape::lower);
  transpose(q, q, jy, b);
  for (int64_t i = 0; i < q; ++i)
    for (int64_t j = q; j < dq; ++j) b(i, j) = 0;
  multiply(p, q, q, Operand<double>{a.data, a.ld, 1}, Matrix{b.data, b.ld}, t);
  for (int64_t i = 0; i < p * dq; ++i) polar_factor.data[i] = t.data[i];
  polar(p, q, polar_factor, Matrix{a.data, dq}, Matrix{b.data, dq}, Matrix{c.data, dq}, spare, scratch,
        sizeof(In) == 4 ? 1e-6 : 1e-8, sizeof(In) == 4 ? 1e-8 : 1e-15);
  double value = 0;
  for (int64_t i = 0; i < p; ++i)
    for (int64_t j = 0; j < q; ++j) value += polar_factor(i, j) * t(i, j);
  *problem.value = value;
  if (!grad_x && !grad_y) return true;

  // The blocks of M = [2Gxx Gxy; Gxyᵀ 2Gyy] / (m − 1), in T.
  T* weights = reinterpret_cast<T*>(s.data);
  const auto place = [&](int64_t n, int64_t k, Matrix from, int64_t row, int64_t column, bool transposed) {
    for (int64_t i = 0; i < n; ++i)
      for (int64_t j = 0; j < k; ++j)
        (transposed ? weights[(row + j) * width + column + i] : weights[(row + i) * width + column + j]) =
            T(from(i, j));
  };
  for (int64_t i = 0; i < width * width; ++i) weights[i] = 0;
  const double scale = 1.0 / (m - 1);
  const Matrix v{a.data, dq}, w{b.data, dq};
  multiply(p, q, p, jx.operand().transposed(), polar_factor, v, 1, Shape::upper);  // V = JxᵀP
  multiply(p, q, q, v.operand(), jy, w, scale);                                    // Gxy = V Jy
  place(p, q, w, 0, dp, false);
  place(p, q, w, dp, 0, true);
  side_by_side(
      [&] {  // 2Gxx = −V (TᵀJx)
        if (!grad_x) return;
        multiply(q, p, p, t.operand().transposed(), jx, c);
        multiply(p, p, q, v.operand(), c, d, -scale);
        place(p, p, d, 0, 0, false);
      },
      [&] {  // 2Gyy = −Jyᵀ (Pᵀ (T Jy)); the covariances have done their part and lend their room
        if (!grad_y) return;
        const Matrix e{sxx.data, dq}, f{syy.data, dq};
        multiply(p, q, q, t.operand(), jy, sxy);
        multiply(q, q, p, polar_factor.operand().transposed(), sxy, e);
        multiply(q, q, q, jy.operand().transposed(), e, f, -scale, Shape::upper);
        place(q, q, f, dp, dp, false);
      });

  parallel(layout.threads, [&](int part, int parts) {
    T* z = reinterpret_cast<T*>(rows + part * 2 * layout.rows);
    T* out = z + kRows * width;
    const int64_t blocks = (m + kRows - 1) / kRows;
    for (int64_t block = blocks * part / parts; block < blocks * (part + 1) / parts; ++block) {
      const int64_t begin = block * kRows, end = begin + kRows < m ? begin + kRows : m;
      gather<T, In>(x, y, mean, begin, end, z, dp, width);
      const int64_t first = grad_x ? 0 : dp, last = grad_y ? width : dp;
      product<T, T>(end - begin, last - first, width, {z, width, 1}, weights + first, width, out + first, width);
      for (int view = 0; view < 2; ++view) {
        In* to = static_cast<In*>(view ? grad_y : grad_x);
        const int64_t n = view ? q : p;
        if (!to) continue;
        for (int64_t r = begin; r < end; ++r)
          for (int64_t col = 0; col < n; ++col) to[r * n + col] = In(out[(r - begin) * width + view * dp + col]);
      }
    }
  });
  return true;
}

// Small problems stand side by side on the threads, larger ones have all of them in turn.
template <typename In, typename Solve>
bool each_problem(const TraceNorm& batch, Solve solve) {
  const Layout layout(batch);
  parallel(layout.parts, [&](int part, int parts) {
    TraceNorm problem = batch;
    problem.workspace = static_cast<double*>(batch.workspace) + part * layout.doubles();
    for (int64_t i = batch.problems * part / parts; i < batch.problems * (part + 1) / parts; ++i) {
      problem.x = static_cast<const In*>(batch.x) + i * batch.x_problem_stride;
      problem.y = static_cast<const In*>(batch.y) + i * batch.y_problem_stride;
      problem.value = batch.value + i;
      if (batch.grad_x) problem.grad_x = static_cast<In*>(batch.grad_x) + i * batch.m * batch.dx;
      if (batch.grad_y) problem.grad_y = static_cast<In*>(batch.grad_y) + i * batch.m * batch.dy;
      if (!solve(problem, layout)) *problem.value = __builtin_nan("");
    }
  });
  bool served = true;
  for (int64_t i = 0; i < batch.problems; ++i) served = served && batch.value[i] == batch.value[i];
  return served;
}

}  // namespace

int64_t trace_norm_workspace_bytes(const TraceNorm& batch) {
  const Layout layout(batch);
  return layout.parts * layout.doubles() * 8;
}

bool trace_norm_f32(const TraceNorm& batch) {
  return each_problem<float>(batch, [](const TraceNorm& problem, const Layout& layout) {
    return attempt<float, float>(problem, layout) || attempt<double, float>(problem, layout);
  });
}

bool trace_norm_f64(const TraceNorm& batch) { return each_problem<double>(batch, attempt<double, double>); }

}  // namespace xmodal::cpu::XMODAL_CPU_SET
