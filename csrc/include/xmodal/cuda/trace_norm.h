// The trace norm of views with few columns in one launch, and the polynomials of the polar iteration.
#pragma once

#include "xmodal/cuda/matrix.h"

namespace xmodal::cuda {

// The polar factor of T with ‖T‖ < 1 is the limit of P ← P (a I + b PᵀP + c (PᵀP)²), starting at P = T.
struct Quintic {
  double a, b, c;
};

// The first steps lift singular values from 1e-3 to 1 (Polar Express, Amsel et al. 2025, whose coefficients are divided
// by 1.01, 1.01³, 1.01⁵ as a margin for rounding). polar_last is then repeated until P converges. fp32 gets few of
// these: 4 take 1e-4 to 1 − 5e-7, and more would lift the rounding errors of 1e-7 to 1, too.
constexpr int polar_express_steps = 8;
extern const Quintic polar_express[polar_express_steps];
constexpr Quintic polar_last = {1.875, -1.25, 0.375};
constexpr int polar_last_steps(bool wide) { return wide ? 16 : 4; }

constexpr int small_columns = 128;  // columns of a view that small_trace_norm takes

// ‖T‖_* and its adjoints by one block per problem: covariances → Cholesky → T → polar factor → value and adjoints, with
//   dX = Xc·gxx + Yc·gyx,  dY = Yc·gyy + Xc·gxy   (gxx = 2 Gxx/(m − 1), gxy = Gxy/(m − 1), gyx = gxyᵀ, …).
// Outputs have the working precision, and no gaps between rows or problems.
struct SmallTraceNorm {
  Matrix x;
  Matrix y;
  const void* xx = nullptr;  // [dx, dx] covariance with its ridge; null: computed from x and y
  const void* xy = nullptr;  // [dx, dy]
  const void* yy = nullptr;  // [dy, dy]
  double rx = 0;             // ridges; ignored if the covariances are given
  double ry = 0;
  int top_k = 0;          // 0: all canonical pairs, by the polar factor; otherwise the leading ones, by Jacobi's SVD
  void* sigma = nullptr;  // out, if top_k > 0: [min(dx, dy)] correlations, descending; or null
  void* value = nullptr;  // out: []; null: `sigma` is the only output
  void* gxx = nullptr;    // out: [dx, dx]
  void* gxy = nullptr;    // out: [dx, dy]
  void* gyx = nullptr;    // out: [dy, dx]
  void* gyy = nullptr;    // out: [dy, dy]
  void* workspace = nullptr;  // blocks · small_workspace() numbers of the working precision
  int problems = 1;
  int blocks = 1;  // if fewer than problems, a block solves several of them
  bool wide = false;
};
std::int64_t small_workspace(int dx, int dy, bool wide);

// If the covariances are not given, the means are written to the shifts of x and y first.
int small_trace_norm(const SmallTraceNorm& task, void* stream);

}  // namespace xmodal::cuda
