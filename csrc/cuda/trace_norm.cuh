// ‖T‖_* and its adjoints for small views, T = Lx⁻¹ Sxy Ly⁻ᵀ with Sxx = Lx Lxᵀ, Syy = Ly Lyᵀ; P = polar(T):
//
//   value = ⟨P, T⟩    Gxy = Lx⁻ᵀ P Ly⁻¹    Gxx = −½ Lx⁻ᵀ sym(P Tᵀ) Lx⁻¹    Gyy = −½ Ly⁻ᵀ sym(Pᵀ T) Ly⁻¹
//
// For top_k, P is built from the leading k singular pairs. One block solves a problem in six square matrices, of which
// as many as fit are in shared memory. Matrices are padded with zeros to multiples of 16, the covariances with ones on
// the diagonal, so that products have no edges.
#pragma once

#include "detail/mma.cuh"
#include "detail/portable.cuh"
#include "detail/reduce.cuh"
#include "detail/rotations.cuh"
#include "detail/tile.cuh"
#include "xmodal/cuda/trace_norm.h"

namespace xmodal::cuda {

struct SmallTask {
  SmallTraceNorm call;
  bool x_vectors, y_vectors;
  int edge, shared_squares;
  double scale;      // 1/(m − 1)
  double tolerance;  // of the polar iteration: relative change in the Frobenius norm
  Quintic steps[polar_express_steps];
};

namespace detail {

constexpr int small_threads = 512, small_warps = small_threads / 32, small_squares = 6;

template <typename T>
__host__ __device__ constexpr int small_stride(int edge) {
  return edge + (sizeof(T) == 4 ? 8 : 4);  // the rows of a fragment are free of bank conflicts
}

// A matrix as a product reads it: element (i, j) at data[i * row + j * column].
template <typename T>
struct Factor {
  const T* data;
  int row, column;
};

template <typename T>
__device__ __forceinline__ Factor<T> plain(const T* data, int stride) {
  return {data, stride, 1};
}

template <typename T>
__device__ __forceinline__ Factor<T> transposed(const T* data, int stride) {
  return {data, 1, stride};
}

// sum += a·b for the 16×16 tile at (row0, column0), by one warp.
template <typename T>
__device__ __forceinline__ void warp_product(T (&sum)[2][4], Factor<T> a, Factor<T> b, int row0, int column0,
                                             int depth) {
  const int lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
  for (int k0 = 0; k0 < depth; k0 += 16) {
    T part[2][4] = {};  // short sums, since tensor cores truncate; they are added up with rounding
#pragma unroll
    for (int k = k0; k < k0 + 16; k += 8) {
      Fragment<T, 4> left;
#pragma unroll
      for (int i = 0; i < 4; ++i)
        left.set(i, a.data[(row0 + g + 8 * (i % 2)) * a.row + (k + t + 4 * (i / 2)) * a.column]);
#pragma unroll
      for (int j = 0; j < 2; ++j) {
        Fragment<T, 2> right;
#pragma unroll
        for (int i = 0; i < 2; ++i) right.set(i, b.data[(k + t + 4 * i) * b.row + (column0 + 8 * j + g) * b.column]);
        multiply_add(part[j], left, right);
      }
    }
#pragma unroll
    for (int j = 0; j < 2; ++j)
#pragma unroll
      for (int i = 0; i < 4; ++i) sum[j][i] += part[j][i];
  }
}

// Calls use(row, column, value) for this lane's elements of a warp's tile.
template <typename T, typename Use>
__device__ __forceinline__ void each_element(const T (&sum)[2][4], int row0, int column0, Use use) {
  const int lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
#pragma unroll
  for (int j = 0; j < 2; ++j)
#pragma unroll
    for (int i = 0; i < 4; ++i) use(row0 + g + 8 * (i / 2), column0 + 8 * j + 2 * t + i % 2, sum[j][i]);
}

// out = alpha·a·b + beta·add + gamma·I by the whole block; rows of out and add are `stride` apart. Ends with a barrier.
template <typename T>
__device__ __noinline__ void block_multiply(T* out, Factor<T> a, Factor<T> b, int rows, int columns, int depth,
                                            int stride, T alpha = 1, T beta = 0, const T* add = nullptr, T gamma = 0) {
  const int across = columns / 16, tiles = rows / 16 * across;
  for (int tile = threadIdx.x / 32; tile < tiles; tile += small_warps) {
    T sum[2][4] = {};
    const int row0 = tile / across * 16, column0 = tile % across * 16;
    warp_product(sum, a, b, row0, column0, depth);
    each_element(sum, row0, column0, [&](int row, int column, T value) {
      value *= alpha;
      if (add) value += beta * add[row * stride + column];
      if (row == column) value += gamma;
      out[row * stride + column] = value;
    });
  }
  __syncthreads();
}

// Writes the column means of x and y to their shifts. A thread sums one column over a share of the rows.
template <typename T>
__device__ __noinline__ void block_means(const Matrix& x, const Matrix& y) {
  __shared__ double sums[small_threads];
  const int columns = x.columns + y.columns, width = ceil_div(columns, 32) * 32, lanes = small_threads / width;
  const int column = threadIdx.x % width, lane = threadIdx.x / width;
  const bool second = column >= x.columns;
  const Matrix& m = second ? y : x;
  const int own = second ? column - x.columns : column;
  double sum = 0;
  if (column < columns && lane < lanes)
#pragma unroll 8
    for (int row = lane; row < m.rows; row += lanes) sum += read<T>(m.data, row * m.stride + own, m.dtype);
  sums[threadIdx.x] = sum;
  __syncthreads();
  if (column < columns && lane == 0) {
    for (int l = 1; l < lanes; ++l) sum += sums[l * width + column];
    const double mean = sum / m.rows;
    T* shift = static_cast<T*>(const_cast<void*>(m.shift));
    const T high = static_cast<T>(mean);
    shift[own] = high;
    shift[m.columns + own] = static_cast<T>(mean - high);
  }
  __syncthreads();
}

// Stages rows row0 … row0 + edge − 1 of a view, centred and padded with zeros, k by k.
template <typename T>
__device__ __forceinline__ void stage_rows(T* out, const Matrix& m, bool vectors, int row0, int edge, int stride) {
  const T* shift = static_cast<const T*>(m.shift);
#pragma unroll 2
  for (int q = threadIdx.x; q < edge * edge / 4; q += small_threads) {
    const int in_chunk = q / (edge / 4), column = q % (edge / 4) * 4, row = row0 + in_chunk;
    const long long index = row * m.stride + column;
    Quad<T> quad;
    quad.clear();
    if (row < m.rows) {
      if (vectors && column + 4 <= m.columns) {
        quad.load(m.data, index, m.dtype);
      } else {
#pragma unroll
        for (int i = 0; i < 4; ++i)
          if (column + i < m.columns) quad.load_one(i, m.data, index + i, m.dtype);
      }
    }
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int c = column + i;
      out[in_chunk * stride + c] =
          row < m.rows && c < m.columns ? (quad.get(i, m.dtype) - shift[c]) - shift[m.columns + c] : T(0);
    }
  }
}

// Adds scale · the moments of `edge` staged rows to xx, yy (lower triangles of 16×16 tiles) and xy.
template <typename T>
__device__ __noinline__ void add_moments(const T* xs, const T* ys, T* xx, T* xy, T* yy, int px, int py, int edge,
                                         int stride, T scale) {
  const int nx = px / 16, ny = py / 16, in_xx = nx * (nx + 1) / 2, in_xy = nx * ny, in_yy = ny * (ny + 1) / 2;
  for (int tile = threadIdx.x / 32; tile < in_xx + in_xy + in_yy; tile += small_warps) {
    const bool cross = tile >= in_xx && tile < in_xx + in_xy, second = tile >= in_xx + in_xy;
    int down = 0, across = tile - (second ? in_xx + in_xy : cross ? in_xx : 0);
    if (cross) {
      down = across / ny, across %= ny;
    } else {
      while (across > down) across -= ++down;
    }
    T* out = second ? yy : cross ? xy : xx;
    const T *left = second ? ys : xs, *right = second || cross ? ys : xs;
    T sum[2][4] = {};
    warp_product(sum, transposed(left, stride), plain(right, stride), 16 * down, 16 * across, edge);
    each_element(sum, 16 * down, 16 * across,
                 [&](int row, int column, T value) { out[row * stride + column] += scale * value; });
  }
  __syncthreads();
}

// Replaces the lower triangles of a (na×na) and b (nb×nb), symmetric and positive definite, by the inverses of their
// Cholesky factors, with zeros above. Elimination by columns; the unit inverse grows in place of the eliminated
// columns. A pivot below rounding, n·ε times its original diagonal, is raised to that: a ridge only where one is
// needed.
template <typename T>
__device__ __noinline__ void invert_factors(T* a, int na, T* b, int nb, int stride) {
  __shared__ T columns[2][2][small_columns], diagonals[2][small_columns], pivots[2][small_columns];
  constexpr int half = small_threads / 2, warps = half / 32;
  constexpr T epsilon = sizeof(T) == 4 ? T(1.1920929e-7) : T(2.220446049250313e-16);
  const int view = threadIdx.x / half, own = threadIdx.x % half, warp = own / 32, lane = own % 32;
  T* m = view ? b : a;
  const int n = view ? nb : na;
  if (own < n) columns[0][view][own] = m[own * stride], diagonals[view][own] = m[own * stride + own];
  __syncthreads();
  for (int j = 0; j < max(na, nb); ++j) {
    if (j < n) {
      const T* column = columns[j % 2][view];
      T* next = columns[(j + 1) % 2][view];
      const T least = n * epsilon * diagonals[view][j];
      const T pivot = column[j] <= least ? least : column[j];  // NaN stays NaN
      const T inverse = 1 / pivot;
      if (own == 0) pivots[view][j] = pivot;
      for (int row = j + 1 + warp; row < n; row += warps) {
        const T factor = column[row] * inverse;
        for (int c = lane; c <= row; c += 32) {
          T* element = m + row * stride + c;
          const T value = c < j    ? *element - factor * m[j * stride + c]
                          : c == j ? -factor
                                   : *element - factor * column[c];
          *element = value;
          if (c == j + 1) next[row] = value;
        }
      }
    }
    __syncthreads();
  }
  for (int i = own; i < n * n; i += half) {
    const int row = i / n, column = i % n;
    const T scale = 1 / sqrt(pivots[view][row]);
    T* element = m + row * stride + column;
    *element = column < row ? *element * scale : column == row ? scale : T(0);
  }
  __syncthreads();
}

// Returns the limit of P ← P q(PᵀP) from P = T, which is in p or in u. The other one and v are scratch.
template <typename T>
__device__ __noinline__ void polar_factor(const T* t, T*& p, T*& u, T* v, int px, int py, int stride,
                                          const SmallTask& task) {
  const int thread = threadIdx.x;
  const auto as_is = [&](const T* m) { return plain(m, stride); };
  const auto flipped = [&](const T* m) { return transposed(m, stride); };
  // ‖T‖ ≤ min(1, ‖T‖_F): if all of T is small, the iteration starts from T/‖T‖_F.
  double norm = 0;
  for (int i = thread; i < px * py; i += small_threads) {
    const double value = t[i / py * stride + i % py];
    norm += value * value;
  }
  norm = sqrt(block_sum(norm));
  const T up = norm > 0 && norm < 1 ? static_cast<T>(1 / norm) : T(1);
  for (int i = thread; i < px * py; i += small_threads) p[i / py * stride + i % py] = up * t[i / py * stride + i % py];
  __syncthreads();
  const bool tall = px >= py;  // use PᵀP, otherwise PPᵀ: the smaller of the two
  for (int step = 0; step < polar_express_steps + polar_last_steps(sizeof(T) == 8); ++step) {
    const Quintic q = step < polar_express_steps ? task.steps[step] : polar_last;
    const int side = tall ? py : px;
    block_multiply(u, tall ? flipped(p) : as_is(p), tall ? as_is(p) : flipped(p), side, side, tall ? px : py, stride);
    block_multiply(v, as_is(u), as_is(u), side, side, side, stride, T(q.c), T(q.b), u, T(q.a));
    block_multiply(u, as_is(tall ? p : v), as_is(tall ? v : p), px, py, side, stride);
    T* const previous = p;
    p = u, u = previous;
    if (step < polar_express_steps) continue;
    double moved = 0, size = 0;
    for (int i = thread; i < px * py; i += small_threads) {
      const double now = p[i / py * stride + i % py], change = now - u[i / py * stride + i % py];
      moved += change * change, size += now * now;
    }
    moved = block_sum(moved), size = block_sum(size);
    if (moved <= task.tolerance * task.tolerance * size) break;
  }
}

// p = Σ uᵢ vᵢᵀ over the leading k singular triples of t. Writes all σ to `sigma`, unless it is null, in descending
// order. One-sided Jacobi rotates the vectors of the shorter side until all are orthogonal; u then holds σᵢ uᵢ and v
// the rotations. p leaves out σ that are 0 up to rounding.
template <typename T>
__device__ __noinline__ void leading_pairs(const T* t, T* p, T* u, T* v, int dx, int dy, int px, int py, int stride,
                                           int k, T* sigma) {
  __shared__ T lengths[small_columns];
  constexpr T nothing = sizeof(T) == 4 ? T(1e-6) : T(1e-14);
  constexpr int max_sweeps = 20;
  const bool tall = dx >= dy;
  const int vectors = tall ? dy : dx, length = tall ? px : py, padded = tall ? py : px;
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  for (int i = threadIdx.x; i < padded * length; i += small_threads) {
    const int j = i / length, at = i % length;
    u[j * stride + at] = tall ? t[at * stride + j] : t[j * stride + at];
  }
  for (int i = threadIdx.x; i < padded * padded; i += small_threads)
    v[i / padded * stride + i % padded] = i / padded == i % padded ? T(1) : T(0);
  __syncthreads();

  for (int sweep = 0; sweep < max_sweeps; ++sweep)
    if (block_sum(sweep_rows<small_warps>(u, vectors, length, stride, v, padded)) == 0) break;

  for (int j = warp; j < vectors; j += small_warps) {
    T sum = 0;
    for (int i = lane; i < length; i += 32) sum += u[j * stride + i] * u[j * stride + i];
    sum = warp_sum(sum);
    if (lane == 0) lengths[j] = sqrt(sum);
  }
  __syncthreads();
  T largest = 0, total = 0;
  for (int j = 0; j < vectors; ++j) largest = max(largest, lengths[j]), total += lengths[j];
  for (int j = warp; j < vectors; j += small_warps) {
    const T mine = lengths[j];
    int rank = 0;
    for (int i = 0; i < vectors; ++i) rank += lengths[i] > mine || (lengths[i] == mine && i < j);
    if (sigma && lane == 0) sigma[total == total ? rank : j] = total == total ? mine : total;  // NaNs are not ranked
    const T weight = rank < k && mine > nothing * largest ? 1 / mine : T(0);
    for (int i = lane; i < length; i += 32) u[j * stride + i] *= weight;
  }
  __syncthreads();
  block_multiply(p, transposed(tall ? u : v, stride), plain(tall ? v : u, stride), px, py, padded, stride);
}

// One problem, its sizes, and the block's square matrices for it.
template <typename T>
struct SmallProblem {
  const SmallTask& task;
  const SmallTraceNorm& call;
  int number, edge, stride;
  int dx, dy, px, py;        // columns, and columns padded to multiples of 16
  T *p, *u, *v, *t, *a, *b;  // most used first: the last ones may be outside shared memory

  __device__ __forceinline__ SmallProblem(const SmallTask& task, int number, T* shared)
      : task(task),
        call(task.call),
        number(number),
        edge(task.edge),
        stride(small_stride<T>(edge)),
        dx(call.x.columns),
        dy(call.y.columns),
        px(ceil_div(dx, 16) * 16),
        py(ceil_div(dy, 16) * 16) {
    const int area = edge * stride;
    const auto square = [&](int i) {
      const long long outside = small_squares - task.shared_squares;
      return i < task.shared_squares
                 ? shared + i * area
                 : static_cast<T*>(call.workspace) + (blockIdx.x * outside + i - task.shared_squares) * area;
    };
    p = square(0), u = square(1), v = square(2), t = square(3), a = square(4), b = square(5);
    for (int i = threadIdx.x; i < area; i += small_threads) p[i] = u[i] = v[i] = t[i] = a[i] = b[i] = 0;
    __syncthreads();
  }

  // This problem's part of an input or output with `size` elements per problem.
  template <typename Data>
  __device__ __forceinline__ T* own(Data* data, long long size) const {
    return static_cast<T*>(const_cast<void*>(static_cast<const void*>(data))) + number * size;
  }
  __device__ __forceinline__ Factor<T> as_is(const T* m) const { return plain(m, stride); }
  __device__ __forceinline__ Factor<T> flipped(const T* m) const { return transposed(m, stride); }
};

// a, t, b = Sxx, Sxy, Syy with their ridges, given or computed from the views.
template <typename T>
__device__ __forceinline__ void load_covariances(const SmallProblem<T>& s) {
  const Matrix x = of_problem<T>(s.call.x, s.number), y = of_problem<T>(s.call.y, s.number);
  const int thread = threadIdx.x, dx = s.dx, dy = s.dy, stride = s.stride;
  if (s.call.xx) {
    const T *xx = s.own(s.call.xx, dx * dx), *xy = s.own(s.call.xy, dx * dy), *yy = s.own(s.call.yy, dy * dy);
    for (int i = thread; i < dx * dx; i += small_threads) s.a[i / dx * stride + i % dx] = xx[i];
    for (int i = thread; i < dy * dy; i += small_threads) s.b[i / dy * stride + i % dy] = yy[i];
    for (int i = thread; i < dx * dy; i += small_threads) s.t[i / dy * stride + i % dy] = xy[i];
  } else {
    block_means<T>(x, y);
    for (int row0 = 0; row0 < x.rows; row0 += s.edge) {
      stage_rows(s.u, x, s.task.x_vectors, row0, s.edge, stride);
      stage_rows(s.v, y, s.task.y_vectors, row0, s.edge, stride);
      __syncthreads();
      add_moments(s.u, s.v, s.a, s.t, s.b, s.px, s.py, s.edge, stride, static_cast<T>(s.task.scale));
    }
    for (int i = thread; i < dx; i += small_threads) s.a[i * stride + i] += static_cast<T>(s.call.rx);
    for (int i = thread; i < dy; i += small_threads) s.b[i * stride + i] += static_cast<T>(s.call.ry);
  }
  for (int i = dx + thread; i < s.px; i += small_threads) s.a[i * stride + i] = 1;
  for (int i = dy + thread; i < s.py; i += small_threads) s.b[i * stride + i] = 1;
  __syncthreads();
}

// value = ⟨P, T⟩
template <typename T>
__device__ __forceinline__ void write_value(const SmallProblem<T>& s) {
  double value = 0;
  for (int i = threadIdx.x; i < s.px * s.py; i += small_threads)
    value += static_cast<double>(s.p[i / s.py * s.stride + i % s.py]) * s.t[i / s.py * s.stride + i % s.py];
  value = block_sum(value);
  if (threadIdx.x == 0) *s.own(s.call.value, 1) = static_cast<T>(value);
}

// Gxy = Lx⁻ᵀ P Ly⁻¹ and its transpose, scaled by 1/(m − 1).
template <typename T>
__device__ __forceinline__ void write_cross_adjoint(const SmallProblem<T>& s) {
  const int dx = s.dx, dy = s.dy, stride = s.stride;
  block_multiply(s.u, s.as_is(s.p), s.as_is(s.b), s.px, s.py, s.py, stride);
  block_multiply(s.v, s.flipped(s.a), s.as_is(s.u), s.px, s.py, s.px, stride, static_cast<T>(s.task.scale));
  T *gxy = s.own(s.call.gxy, dx * dy), *gyx = s.own(s.call.gyx, dx * dy);
  for (int i = threadIdx.x; i < dx * dy; i += small_threads)
    gxy[i] = gyx[i % dy * dx + i / dy] = s.v[i / dy * stride + i % dy];
  __syncthreads();
}

// 2 G/(m − 1) with −2 G = L⁻ᵀ sym(M) L⁻¹, M = left·right: P Tᵀ for x, Pᵀ T for y.
template <typename T>
__device__ __forceinline__ void write_own_adjoint(const SmallProblem<T>& s, Factor<T> left, Factor<T> right, int depth,
                                                  const T* inverse, int n, int d, T* out) {
  block_multiply(s.u, left, right, n, n, depth, s.stride);
  block_multiply(s.v, s.as_is(s.u), s.as_is(inverse), n, n, n, s.stride);
  block_multiply(s.u, s.flipped(inverse), s.as_is(s.v), n, n, n, s.stride, static_cast<T>(s.task.scale));
  for (int i = threadIdx.x; i < d * d; i += small_threads) {
    const int row = i / d, column = i % d;
    out[i] = T(-0.5) * (s.u[row * s.stride + column] + s.u[column * s.stride + row]);
  }
  __syncthreads();
}

template <typename T>
__device__ __forceinline__ void solve_small(const SmallTask& task, int problem, T* shared) {
  SmallProblem<T> s(task, problem, shared);
  const SmallTraceNorm& call = task.call;
  const int dx = s.dx, dy = s.dy, px = s.px, py = s.py, stride = s.stride;

  load_covariances(s);
  invert_factors(s.a, px, s.b, py, stride);  // a = Lx⁻¹, b = Ly⁻¹
  block_multiply(s.u, s.as_is(s.a), s.as_is(s.t), px, py, px, stride);
  block_multiply(s.t, s.as_is(s.u), s.flipped(s.b), px, py, py, stride);  // t = T
  if (call.top_k) {
    leading_pairs(s.t, s.p, s.u, s.v, dx, dy, px, py, stride, call.top_k,
                  call.sigma ? s.own(call.sigma, min(dx, dy)) : nullptr);
    if (!call.value) return;
  } else {
    T *p = s.p, *u = s.u;
    polar_factor(s.t, p, u, s.v, px, py, stride, task);
    s.p = p, s.u = u;
  }
  write_value(s);
  write_cross_adjoint(s);
  write_own_adjoint(s, s.as_is(s.p), s.flipped(s.t), py, s.a, px, dx, s.own(call.gxx, dx * dx));
  write_own_adjoint(s, s.flipped(s.p), s.as_is(s.t), px, s.b, py, dy, s.own(call.gyy, dy * dy));
}

}  // namespace detail

// One block per problem, or several problems per block. A problem ends with a barrier, so that the next may reuse its
// memory.
template <typename T>
__global__ void __launch_bounds__(detail::small_threads)
    small_trace_norm_kernel(const __grid_constant__ SmallTask task) {
  XMODAL_DYNAMIC_SHARED(T, shared);
  for (int problem = blockIdx.x; problem < task.call.problems; problem += gridDim.x)
    detail::solve_small(task, problem, shared);
}

}  // namespace xmodal::cuda
