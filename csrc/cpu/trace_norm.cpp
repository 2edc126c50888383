// Value and gradients of the total correlation of two small views, in one call (Yan & Mikolajczyk, CVPR 2015).
//   S = ZᵀZ / (m − 1) + ridge, Z = [Xc Yc];  J = L⁻¹ for the Cholesky factor L of Sxx, of Syy;  T = Jx Sxy Jyᵀ
//   value = ⟨P, T⟩, P the polar factor of T;  Gxy = JxᵀP Jy,  2 Gxx = −Jxᵀ P Tᵀ Jx,  2 Gyy = −Jyᵀ Pᵀ T Jy
//   [∂X ∂Y] = Z [2Gxx Gxy; Gxyᵀ 2Gyy] / (m − 1)
// Products over the m rows use the type of the input, the algebra of d × d matrices uses fp64. If fp32 products would
// cost more than about three digits of the gradient, they use fp64 as well.
#include "xmodal/cpu/trace_norm.h"

#include "detail/arena.h"
#include "detail/register_product.h"
#include "detail/views.h"
#include "xmodal/cpu/runtime.h"

namespace xmodal::cpu::XMODAL_CPU_SET {
namespace {

constexpr int64_t kSliceRows = 128;  // rows of Z per step: a slice stays in the second-level cache

// An fp64 matrix in the workspace, its rows padded to kPad.
struct PaddedMatrix {
  double* data;
  int64_t ld;
  double& operator()(int64_t i, int64_t j) const { return data[i * ld + j]; }
  Operand<double> operand() const { return {data, ld, 1}; }
  Operand<double> transposed() const { return operand().transposed(); }
  PaddedMatrix reshaped(int64_t stride) const { return {data, stride}; }
};

// C (m, n) = α A B
void multiply(int64_t m, int64_t n, int64_t k, Operand<double> a, PaddedMatrix b, PaddedMatrix c, double alpha = 1,
              Shape shape = Shape::full, Tiles tiles = Tiles::all) {
  register_product<double, double>(m, round_up(n, kPad), k, a, b.data, b.ld, c.data, c.ld, alpha, Store::replace, shape,
                                   tiles);
}

// The Cholesky factor of a matrix, through its inverse J; the pivots are the squares of the diagonal.
struct Pivots {
  double smallest, largest;
  bool positive() const { return smallest > 0; }
};

// One diagonal block of the factorisation, columns [s, s + w): L of the block, and its inverse into J.
// False if a pivot is not positive.
bool factor_diagonal(int64_t s, int64_t w, PaddedMatrix a, PaddedMatrix j, Pivots& pivots) {
  double l[kPad][kPad];
  for (int64_t i = 0; i < w; ++i) {
    for (int64_t c = 0; c <= i; ++c) {
      double sum = a(s + i, s + c);
      for (int64_t k = 0; k < c; ++k) sum -= l[i][k] * l[c][k];
      if (c < i) {
        l[i][c] = sum * j(s + c, s + c);
      } else {
        if (!(sum > 0)) return false;
        pivots.smallest = sum < pivots.smallest ? sum : pivots.smallest;
        pivots.largest = sum > pivots.largest ? sum : pivots.largest;
        l[i][i] = __builtin_sqrt(sum);
        j(s + i, s + i) = 1 / l[i][i];
      }
    }
  }
  for (int64_t i = 1; i < w; ++i) {  // row by row: J[i] = −J[i,i] Σ L[i,k] J[k]
    double row[kPad] = {};
    for (int64_t k = 0; k < i; ++k)
      for (int64_t c = 0; c < kPad; ++c) row[c] += l[i][k] * j(s + k, s + c);
    for (int64_t c = 0; c < i; ++c) j(s + i, s + c) = -j(s + i, s + i) * row[c];
  }
  return true;
}

// The panel below it, L[e:, s:e] = a[e:, s:e] J[s:e, s:e]ᵀ, left in a; then a[e:, e:] −= L[e:, s:e] L[e:, s:e]ᵀ.
void eliminate_panel(int64_t n, int64_t s, int64_t e, PaddedMatrix a, PaddedMatrix j, PaddedMatrix scratch) {
  double jt[kPad * kPad], lt[kPad * (kTraceNormMaxDim + kPad)];
  const int64_t w = e - s, width = round_up(n - e, kPad);
  for (int64_t r = 0; r < kPad; ++r)
    for (int64_t c = 0; c < kPad; ++c) jt[c * kPad + r] = r < w && c < w ? j(s + r, s + c) : 0;
  register_product<double, double>(n - e, kPad, w, {&a(e, s), a.ld, 1}, jt, kPad, scratch.data, kPad);
  for (int64_t r = 0; r < n - e; ++r)
    for (int64_t c = 0; c < kPad; ++c) a(e + r, s + c) = lt[c * width + r] = scratch.data[r * kPad + c];
  for (int64_t c = 0; c < kPad; ++c)
    for (int64_t r = n - e; r < width; ++r) lt[c * width + r] = 0;
  register_product<double, double>(n - e, width, kPad, {scratch.data, kPad, 1}, lt, width, &a(e, e), a.ld, -1,
                                   Store::add, Shape::full, Tiles::lower);
}

// The inverse J of the Cholesky factor of a (n, n), lower, kPad columns at a time. a is overwritten; its elements above
// the diagonal are ignored. The smallest pivot is 0 if a is not positive definite.
Pivots cholesky_inverse(int64_t n, PaddedMatrix a, PaddedMatrix j, PaddedMatrix scratch) {
  Pivots pivots{__builtin_inf(), 0};
  for (int64_t i = 0; i < n; ++i)
    for (int64_t c = 0; c < round_up(n, kPad); ++c) j(i, c) = 0;
  for (int64_t s = 0; s < n; s += kPad) {
    const int64_t e = at_most(s + kPad, n), w = e - s;
    if (!factor_diagonal(s, w, a, j, pivots)) return {0, pivots.largest};
    if (s) {  // J[s:e, :s] = −J[s:e, s:e] (L[s:e, :s] J[:s, :s])
      multiply(w, s, s, {&a(s, 0), a.ld, 1}, j, scratch);
      register_product<double, double>(w, s, w, {&j(s, s), j.ld, 1}, scratch.data, scratch.ld, &j(s, 0), j.ld, -1,
                                       Store::replace, Shape::lower);
    }
    if (e < n) eliminate_panel(n, s, e, a, j, scratch);
  }
  return pivots;
}

// Buffers of the polar iteration: (p, q) next, all others (q, q).
struct PolarBuffers {
  PaddedMatrix gram, inverse, step, next, scratch;
};

// The orthogonal polar factor of x (p, q), p >= q, σ <= 1, by dynamically weighted Halley steps (QDWH; Nakatsukasa, Bai
// & Gygi, SIAM J. Matrix Anal. 2010):
//   X ← X ((b/c) I + (a − b/c) (I + c XᵀX)⁻¹)
// Returns its buffer, that of x or `next`. Singular values far below `low` stay small: they take the subgradient 0.
PaddedMatrix polar(int64_t p, int64_t q, PaddedMatrix x, PolarBuffers buffers, double low, double tolerance) {
  auto& [gram, inverse, step, next, scratch] = buffers;
  for (int iteration = 0; iteration < 20; ++iteration) {
    multiply(q, q, p, x.transposed(), x, gram, 1, Shape::full, Tiles::lower);
    double trace = 0, square = 0;
    for (int64_t i = 0; i < q; ++i) {
      double off = 0;
      for (int64_t j = 0; j < i; ++j) off += gram(i, j) * gram(i, j);
      trace += gram(i, i);
      square += 2 * off + gram(i, i) * gram(i, i);
    }
    if (trace - square <= tolerance * q) break;  // Σ σ²(1 − σ²): every σ is 1, or too small to count
    const double l2 = low * low;
    const double d = l2 < 1 ? __builtin_cbrt(4 * (1 - l2) / (l2 * l2)) : 0, root = __builtin_sqrt(1 + d);
    const double inner = 8 - 4 * d + 8 * (2 - l2) / (l2 * root);
    const double a = root + __builtin_sqrt(inner > 0 ? inner : 0) / 2, b = (a - 1) * (a - 1) / 4, c = a + b - 1;
    for (int64_t i = 0; i < q; ++i) {
      for (int64_t j = 0; j <= i; ++j) gram(i, j) *= c;
      gram(i, i) += 1;
    }
    if (!cholesky_inverse(q, gram, inverse, scratch).positive()) break;  // only for NaN
    multiply(q, q, q, inverse.transposed(), inverse, step, a - b / c, Shape::upper, Tiles::lower);
    mirror(q, step.data, step.ld);
    for (int64_t i = 0; i < q; ++i) step(i, i) += b / c;
    multiply(p, q, q, x.operand(), step, next);
    const PaddedMatrix stepped = next;
    next = x, x = stepped;
    low = low * (a + b * l2) / (1 + c * l2);
    if (low > 1) low = 1;
  }
  return x;
}

// How the problems of a batch are worked on. The larger view of a problem comes first: p >= q columns.
struct Plan {
  int64_t p, q;           // columns of the larger and of the smaller view
  int64_t dp, dq, width;  // padded: of the larger view, of the smaller one, and of both
  int threads;            // threads that share one problem
  int problems;           // problems in progress at a time: 1 if threads > 1

  explicit Plan(const TraceNorm& batch) : p(at_least(batch.dx, batch.dy)), q(at_most(batch.dx, batch.dy)) {
    dp = round_up(p, kPad), dq = round_up(q, kPad), width = dp + dq;
    // A thread costs up to 100 µs to start, the time of some ten million multiply-adds.
    const auto worth = [&](int64_t rows, int64_t limit) {
      return static_cast<int>(at_least(1, at_most(rows * width * width / 30000000, limit)));
    };
    threads = worth(batch.m, batch.threads);
    problems = threads > 1 ? 1 : worth(batch.problems * (batch.m + 8 * width), at_most(batch.problems, batch.threads));
  }
};

// One view of a problem.
template <class In>
struct Side {
  View<In> view;
  double ridge;
  In* grad;  // [m, d], or null
};

template <class In>
struct Problem {
  Side<In> side[2];  // the larger view first
  int64_t m;
  double* value;
};

template <class In>
Problem<In> problem_of(const TraceNorm& batch, const Plan& plan, int64_t i) {
  const auto side = [&](const void* data, int64_t stride, int64_t step, int64_t d, double ridge, void* grad) {
    const View<In> view{static_cast<const In*>(data) + i * step, stride, d, 0, round_up(d, kPad)};
    return Side<In>{view, ridge, grad ? static_cast<In*>(grad) + i * batch.m * d : nullptr};
  };
  const Side<In> x = side(batch.x, batch.x_stride, batch.x_problem_stride, batch.dx, batch.rx, batch.grad_x);
  const Side<In> y = side(batch.y, batch.y_stride, batch.y_problem_stride, batch.dy, batch.ry, batch.grad_y);
  const bool swapped = batch.dx < batch.dy;
  Problem<In> problem{{swapped ? y : x, swapped ? x : y}, batch.m, batch.value + i};
  problem.side[1].view.begin = plan.dp;
  return problem;
}

// Buffers of one problem. Those of T have the size of fp64, so that a second attempt in fp64 fits.
template <class T>
struct Workspace {
  double* mean;                  // [width]
  T* shift;                      // [2, width]: coarse and fine means
  double* moments;               // [width, width]: ZᵀZ / (m − 1), lower triangle
  T* weights;                    // [width, width]: those of the gradient, in place of the moments
  T* slices;                     // [threads, 2, kSliceRows, width]: rows of Z, and of the gradient
  double* partial;               // [threads, width, width]: each thread's part of the moments
  PaddedMatrix sxx, syy, sxy;    // covariances with their ridges
  PaddedMatrix jx, jy;           // inverse Cholesky factors
  PaddedMatrix t, polar, spare;  // T, its polar factor, and the other buffer of the iteration
  PaddedMatrix scratch[5];       // (p, p)
  std::size_t bytes;

  Workspace(const Plan& plan, void* memory) {
    Arena arena(memory);
    const int64_t square = (plan.width + kPad) * plan.width;
    const auto matrix = [&](int64_t ld) { return PaddedMatrix{arena.take<double>((plan.dp + kPad) * plan.dp), ld}; };
    mean = arena.take<double>(plan.width);
    shift = reinterpret_cast<T*>(arena.take<double>(2 * plan.width));
    moments = arena.take<double>(square);
    weights = reinterpret_cast<T*>(moments);
    slices = reinterpret_cast<T*>(arena.take<double>(plan.threads * 2 * kSliceRows * plan.width));
    partial = arena.take<double>(plan.threads * square);
    sxx = matrix(plan.dp), syy = matrix(plan.dq), sxy = matrix(plan.dq);
    jx = matrix(plan.dp), jy = matrix(plan.dq);
    t = matrix(plan.dq), polar = matrix(plan.dq), spare = matrix(plan.dq);
    for (PaddedMatrix& each : scratch) each = matrix(plan.dp);
    bytes = arena.used();
  }
};

template <class T, class In>
void find_means(const Problem<In>& problem, const Plan& plan, const Workspace<T>& ws) {
  for (int64_t c = 0; c < plan.width; ++c) ws.mean[c] = 0;
  for (const Side<In>& side : problem.side) {
    const View<In>& v = side.view;
    double* mean = ws.mean + v.begin;
    for (int64_t r = 0; r < problem.m; ++r)
      for (int64_t c = 0; c < v.d; ++c) mean[c] += v.data[r * v.stride + c];
    for (int64_t c = 0; c < v.d; ++c) mean[c] /= problem.m;
  }
  for (int64_t c = 0; c < plan.width; ++c) split_mean<In>(ws.mean[c], ws.shift[c], ws.shift[plan.width + c]);
}

// Calls body(part, z, begin, rows) for every slice of Z, centred; threads get runs of adjacent slices.
template <class T, class In, class Body>
void each_slice(const Problem<In>& problem, const Plan& plan, const Workspace<T>& ws, const Body& body) {
  parallel(plan.threads, [&](int part, int parts) {
    T* z = ws.slices + part * 2 * kSliceRows * plan.width * static_cast<int64_t>(sizeof(double) / sizeof(T));
    const Range slices = share(divide_up(problem.m, kSliceRows), part, parts);
    for (int64_t slice = slices.begin; slice < slices.end; ++slice) {
      const int64_t begin = slice * kSliceRows, rows = at_most(kSliceRows, problem.m - begin);
      for (int64_t r = 0; r < rows; ++r)
        for (const Side<In>& side : problem.side) {
          const T* coarse = ws.shift + side.view.begin;
          centre_row(side.view, begin + r, coarse, coarse + plan.width, z + r * plan.width + side.view.begin);
        }
      body(part, z, begin, rows);
    }
  });
}

template <class T, class In>
void find_moments(const Problem<In>& problem, const Plan& plan, const Workspace<T>& ws) {
  const int64_t width = plan.width, square = (width + kPad) * width;
  for (int64_t i = 0; i < plan.threads * square; ++i) ws.partial[i] = 0;
  each_slice(problem, plan, ws, [&](int part, const T* z, int64_t, int64_t rows) {
    register_product<T, double>(width, width, rows, {z, 1, width}, z, width, ws.partial + part * square, width, 1,
                                Store::add, Shape::full, Tiles::lower);
  });
  for (int64_t i = 0; i < width * width; ++i) {
    double sum = ws.partial[i];
    for (int t = 1; t < plan.threads; ++t) sum += ws.partial[t * square + i];
    ws.moments[i] = sum / (problem.m - 1);
  }
}

// The views' own parts of the algebra run side by side if that is worth a thread.
template <class First, class Second>
void side_by_side(const Plan& plan, First first, Second second) {
  parallel(plan.threads > 1 && plan.q >= 128 ? 2 : 1, [&](int part, int parts) {
    if (part == 0) first();
    if (part == parts - 1) second();
  });
}

// Covariances from the moments, and their inverse Cholesky factors. False if they do not factorise, or are too ill
// conditioned for moments of type T.
template <class T, class In>
bool factorise(const Problem<In>& problem, const Plan& plan, const Workspace<T>& ws) {
  const auto moment = [&](int64_t i, int64_t j) { return ws.moments[i * plan.width + j]; };
  double trace = 0;
  for (int64_t i = 0; i < plan.p; ++i) {
    for (int64_t j = 0; j <= i; ++j) ws.sxx(i, j) = moment(i, j);
    ws.sxx(i, i) += problem.side[0].ridge;
    trace += ws.sxx(i, i);
    for (int64_t j = 0; j < plan.dq; ++j) ws.sxy(i, j) = j < plan.q ? moment(plan.dp + j, i) : 0;
  }
  for (int64_t i = 0; i < plan.q; ++i) {
    for (int64_t j = 0; j <= i; ++j) ws.syy(i, j) = moment(plan.dp + i, plan.dp + j);
    ws.syy(i, i) += problem.side[1].ridge;
    trace += ws.syy(i, i);
  }
  if (!(trace - trace == 0)) return false;  // not finite
  Pivots x, y;
  side_by_side(
      plan, [&] { x = cholesky_inverse(plan.p, ws.sxx, ws.jx, ws.scratch[0]); },
      [&] { y = cholesky_inverse(plan.q, ws.syy, ws.jy, ws.scratch[1]); });
  const double eps = sizeof(T) == 4 ? 1.2e-7 : 2.3e-16, tolerance = sizeof(T) == 4 ? 1e-3 : 1e-6;
  const auto well_conditioned = [&](Pivots pivots) { return !(eps * pivots.largest > tolerance * pivots.smallest); };
  return x.positive() && y.positive() && well_conditioned(x) && well_conditioned(y);
}

// T = Jx Sxy Jyᵀ and its polar factor P; returns ⟨P, T⟩. `low` and `tolerance` are those of polar().
template <class T>
double correlate(const Plan& plan, Workspace<T>& ws, double low, double tolerance) {
  const int64_t p = plan.p, q = plan.q, dq = plan.dq;
  const PaddedMatrix jx_sxy = ws.scratch[0], jy_t = ws.scratch[1];
  multiply(p, q, p, ws.jx.operand(), ws.sxy, jx_sxy, 1, Shape::lower);
  for (int64_t i = 0; i < q; ++i)
    for (int64_t j = 0; j < dq; ++j) jy_t(i, j) = j < q ? ws.jy(j, i) : 0;
  multiply(p, q, q, jx_sxy.operand(), jy_t, ws.t);
  for (int64_t i = 0; i < p * dq; ++i) ws.polar.data[i] = ws.t.data[i];
  const PolarBuffers buffers{ws.scratch[0].reshaped(dq), ws.scratch[1].reshaped(dq), ws.scratch[2].reshaped(dq),
                             ws.spare, ws.scratch[4]};
  ws.polar = polar(p, q, ws.polar, buffers, low, tolerance);
  double value = 0;
  for (int64_t i = 0; i < p; ++i)
    for (int64_t j = 0; j < q; ++j) value += ws.polar(i, j) * ws.t(i, j);
  return value;
}

// [2Gxx Gxy; Gxyᵀ 2Gyy] / (m − 1), in T.
template <class T, class In>
void find_weights(const Problem<In>& problem, const Plan& plan, const Workspace<T>& ws) {
  const int64_t p = plan.p, q = plan.q, dp = plan.dp, dq = plan.dq, width = plan.width;
  const auto write = [&](int64_t rows, int64_t columns, PaddedMatrix from, int64_t row, int64_t column) {
    for (int64_t i = 0; i < rows; ++i)
      for (int64_t j = 0; j < columns; ++j) ws.weights[(row + i) * width + column + j] = static_cast<T>(from(i, j));
  };
  for (int64_t i = 0; i < width * width; ++i) ws.weights[i] = 0;
  const double scale = 1.0 / (problem.m - 1);
  const PaddedMatrix v = ws.scratch[0].reshaped(dq), gxy = ws.scratch[1].reshaped(dq);
  multiply(p, q, p, ws.jx.transposed(), ws.polar, v, 1, Shape::upper);  // V = JxᵀP
  multiply(p, q, q, v.operand(), ws.jy, gxy, scale);
  write(p, q, gxy, 0, dp);
  for (int64_t i = 0; i < p; ++i)
    for (int64_t j = 0; j < q; ++j) ws.weights[(dp + j) * width + i] = static_cast<T>(gxy(i, j));
  side_by_side(
      plan,
      [&] {  // 2Gxx = −V (TᵀJx)
        if (!problem.side[0].grad) return;
        const PaddedMatrix t_jx = ws.scratch[2], gxx = ws.scratch[3];
        multiply(q, p, p, ws.t.transposed(), ws.jx, t_jx);
        multiply(p, p, q, v.operand(), t_jx, gxx, -scale);
        write(p, p, gxx, 0, 0);
      },
      [&] {  // 2Gyy = −Jyᵀ (Pᵀ (T Jy)), in the buffers of the covariances, which are not needed any more
        if (!problem.side[1].grad) return;
        const PaddedMatrix t_jy = ws.sxy, p_t_jy = ws.sxx.reshaped(dq), gyy = ws.syy;
        multiply(p, q, q, ws.t.operand(), ws.jy, t_jy);
        multiply(q, q, p, ws.polar.transposed(), t_jy, p_t_jy);
        multiply(q, q, q, ws.jy.transposed(), p_t_jy, gyy, -scale, Shape::upper);
        write(q, q, gyy, dp, dp);
      });
}

// Z times the weights.
template <class T, class In>
void write_gradients(const Problem<In>& problem, const Plan& plan, const Workspace<T>& ws) {
  const int64_t width = plan.width;
  const int64_t first = problem.side[0].grad ? 0 : plan.dp, last = problem.side[1].grad ? width : plan.dp;
  each_slice(problem, plan, ws, [&](int, T* z, int64_t begin, int64_t rows) {
    T* out = z + kSliceRows * width;
    register_product<T, T>(rows, last - first, width, {z, width, 1}, ws.weights + first, width, out + first, width);
    for (const Side<In>& side : problem.side) {
      const int64_t d = side.view.d;
      if (!side.grad) continue;
      for (int64_t r = 0; r < rows; ++r)
        for (int64_t c = 0; c < d; ++c)
          side.grad[(begin + r) * d + c] = static_cast<In>(out[r * width + side.view.begin + c]);
    }
  });
}

// Value and gradients of one problem, with products in T. False if a covariance does not factorise.
template <class T, class In>
bool attempt(const Problem<In>& problem, const Plan& plan, void* memory) {
  Workspace<T> ws(plan, memory);
  find_means(problem, plan, ws);
  find_moments(problem, plan, ws);
  if (!factorise(problem, plan, ws)) return false;
  constexpr bool kWide = sizeof(In) == 8;
  *problem.value = correlate(plan, ws, kWide ? 1e-8 : 1e-6, kWide ? 1e-15 : 1e-8);
  if (problem.side[0].grad || problem.side[1].grad) {
    find_weights(problem, plan, ws);
    write_gradients(problem, plan, ws);
  }
  return true;
}

// Small problems run side by side on the threads, larger ones use all threads in turn.
template <class In>
bool each_problem(const TraceNorm& batch) {
  const Plan plan(batch);
  const std::size_t bytes = Workspace<double>(plan, nullptr).bytes;
  parallel(plan.problems, [&](int part, int parts) {
    void* memory = static_cast<char*>(batch.workspace) + part * bytes;
    const Range mine = share(batch.problems, part, parts);
    for (int64_t i = mine.begin; i < mine.end; ++i) {
      const Problem<In> problem = problem_of<In>(batch, plan, i);
      bool served = attempt<In>(problem, plan, memory);
      if constexpr (sizeof(In) == 4) served = served || attempt<double>(problem, plan, memory);
      if (!served) *problem.value = __builtin_nan("");
    }
  });
  bool all = true;
  for (int64_t i = 0; i < batch.problems; ++i) all = all && batch.value[i] == batch.value[i];
  return all;
}

}  // namespace

std::size_t trace_norm_workspace(const TraceNorm& batch) {
  const Plan plan(batch);
  return plan.problems * Workspace<double>(plan, nullptr).bytes;
}

bool trace_norm(const TraceNorm& batch) {
  return batch.wide ? each_problem<double>(batch) : each_problem<float>(batch);
}

}  // namespace xmodal::cpu::XMODAL_CPU_SET
