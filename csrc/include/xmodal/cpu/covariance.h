// Covariances of one or two views, and their gradient.
#pragma once

#include <cstddef>
#include <cstdint>

namespace xmodal::cpu {

// Samples of two views, or of one if dy is 0. Columns are adjacent.
struct Views {
  const void* x;              // [m, dx]
  const void* y;              // [m, dy], null if dy is 0
  std::int64_t m;             // samples
  std::int64_t dx;            // columns of x
  std::int64_t dy;            // columns of y
  std::int64_t x_stride;      // elements from row to row of x
  std::int64_t y_stride;      // elements from row to row of y
  bool wide;                  // all data is fp64, otherwise fp32
  int threads;                // upper limit
  void* workspace = nullptr;  // covariance_workspace() bytes, aligned to 64
};

std::size_t covariance_workspace(const Views& views, bool backward);

// Ridges, and the results: contiguous, in the type of the views. Without a second view xy, yy and mean_y are not
// written.
struct CovarianceForward {
  double rx;     // ridge, added to the diagonal of xx
  double ry;     // ridge, added to the diagonal of yy
  void* xx;      // [dx, dx]
  void* xy;      // [dx, dy]
  void* yy;      // [dy, dy]
  void* mean_x;  // [dx]
  void* mean_y;  // [dy]
};

void covariance(const Views& views, const CovarianceForward& results);

// [∂X ∂Y] = [Xc Yc] weights + offset. Everything is contiguous and has the type of the views.
struct CovarianceBackward {
  const void* weights;  // [dx + dy, dx + dy]
  const void* offset;   // [dx + dy]
  void* grad_x;         // [m, dx]
  void* grad_y;         // [m, dy]
};

void covariance_backward(const Views& views, const CovarianceBackward& gradient);

}  // namespace xmodal::cpu
