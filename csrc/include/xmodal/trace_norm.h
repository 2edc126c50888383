// The trace norm objective of two views with small dimensions, on the CPU.
#pragma once

#include <cstdint>

namespace xmodal {

struct TraceNorm {
  const void* x;                // [problems, m, dx] fp32 or fp64
  const void* y;                // [problems, m, dy]
  int64_t problems, m, dx, dy;  // m > dx, dy: fewer rows are a matter for the dual side
  int64_t x_stride, y_stride, x_problem_stride, y_problem_stride;  // elements from row to row, problem to problem
  double rx, ry;                                                   // ridges
  double* value;                                                   // out: [problems] ‖T‖_*
  void* grad_x;     // out: [problems, m, dx] contiguous, of x's type, or null
  void* grad_y;     // out: [problems, m, dy]
  void* workspace;  // of workspace_bytes(), 64-byte aligned
  int threads;      // at most so many
};

namespace cpu {

// The largest dimension of a view that trace_norm takes.
constexpr int64_t kTraceNormMaxDim = 256;

int64_t trace_norm_workspace_bytes(const TraceNorm& problem);

// Fills values and gradients. The value is NaN where this path cannot serve (a covariance that is not positive
// definite to fp64, or non-finite input): the gradients do not count then. True where all were served.
bool trace_norm_f32(const TraceNorm& batch);
bool trace_norm_f64(const TraceNorm& batch);

}  // namespace cpu
}  // namespace xmodal
