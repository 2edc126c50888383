// The trace norm objective of pairs of views with small dimensions, on the CPU.
#pragma once

#include <cstdint>

namespace xmodal {

// A batch of problems. In: x [problems, m, dx] and y [problems, m, dy], fp32 or fp64, m > dx, dy (fewer rows are a
// matter for the dual side); strides count elements. Out: value [problems], gradients contiguous, of x's type.
struct TraceNorm {
  const void *x, *y;
  int64_t problems, m, dx, dy;
  int64_t x_stride, y_stride;                  // from row to row
  int64_t x_problem_stride, y_problem_stride;  // from problem to problem
  double rx, ry;                               // ridges
  double* value;
  void *grad_x, *grad_y;  // null where not needed
  void* workspace;        // of trace_norm_workspace_bytes(), 64-byte aligned
  int threads;            // at most so many
};

namespace cpu {

// The largest dimension of a view that trace_norm takes.
constexpr int64_t kTraceNormMaxDim = 256;

int64_t trace_norm_workspace_bytes(const TraceNorm& batch);

// Fills values and gradients. The value is NaN where this path cannot serve (a covariance that is not positive
// definite to fp64, or non-finite input): the gradients do not count then. True where all were served.
bool trace_norm_f32(const TraceNorm& batch);
bool trace_norm_f64(const TraceNorm& batch);

}  // namespace cpu
}  // namespace xmodal
