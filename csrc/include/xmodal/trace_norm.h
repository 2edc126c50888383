// The trace norm objective of two views with small dimensions, on the CPU.
#pragma once

#include <cstdint>

namespace xmodal {

struct TraceNorm {
  const void* x;                          // [m, dx] fp32 or fp64, rows x_stride elements apart
  const void* y;                          // [m, dy]
  int64_t m, dx, dy, x_stride, y_stride;  // m > dx, dy: fewer rows are a matter for the dual side
  double rx, ry;                          // ridges
  double value;                           // out: ‖T‖_*
  void* grad_x;                           // out: [m, dx] contiguous, of x's type; null where not needed
  void* grad_y;                           // out: [m, dy]
  void* workspace;                        // of workspace_bytes(), 64-byte aligned
  int threads;                            // at most so many
};

namespace cpu {

// The largest dimension of a view that trace_norm takes.
constexpr int64_t kTraceNormMaxDim = 256;

int64_t trace_norm_workspace_bytes(const TraceNorm& problem);

// Fills value and the gradients. False where this path cannot serve (a covariance that is not positive definite
// to fp64, or non-finite input): nothing that it wrote counts then.
bool trace_norm_f32(TraceNorm& problem);
bool trace_norm_f64(TraceNorm& problem);

}  // namespace cpu
}  // namespace xmodal
