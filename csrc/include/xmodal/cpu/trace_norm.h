// The trace norm objective of pairs of views with small dimensions.
#pragma once

#include <cstddef>
#include <cstdint>

namespace xmodal::cpu {

// The largest dimension of a view that trace_norm takes.
constexpr std::int64_t kTraceNormMaxDim = 256;

// A batch of problems with more rows than columns, m > dx and m > dy (the dual form serves fewer rows). Columns are
// adjacent; gradients are contiguous, in the type of the views.
struct TraceNorm {
  const void* x;                  // [problems, m, dx]
  const void* y;                  // [problems, m, dy]
  bool wide;                      // all data is fp64, otherwise fp32
  std::int64_t problems;          //
  std::int64_t m;                 // samples
  std::int64_t dx;                // columns of x
  std::int64_t dy;                // columns of y
  std::int64_t x_stride;          // elements from row to row of x
  std::int64_t y_stride;          // elements from row to row of y
  std::int64_t x_problem_stride;  // elements from problem to problem of x
  std::int64_t y_problem_stride;  // elements from problem to problem of y
  double rx;                      // ridge, added to the diagonal of the covariance of x
  double ry;                      // ridge, added to the diagonal of the covariance of y
  double* value;                  // [problems]
  void* grad_x;                   // [problems, m, dx], or null
  void* grad_y;                   // [problems, m, dy], or null
  int threads;                    // upper limit
  void* workspace = nullptr;      // trace_norm_workspace() bytes, aligned to 64
};

std::size_t trace_norm_workspace(const TraceNorm& batch);

// Fills values and gradients. A value is NaN, and its gradients are undefined, if a covariance is not positive definite
// in fp64 or the input is not finite. Returns whether no value is NaN.
bool trace_norm(const TraceNorm& batch);

}  // namespace xmodal::cpu
