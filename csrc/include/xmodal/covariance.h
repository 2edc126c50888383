// Covariances of one view or two, and their gradient, on the CPU.
#pragma once

#include <cstddef>
#include <cstdint>

namespace xmodal::cpu {

// Samples of two views, or of one where dy is 0: rows of fp64 if `wide`, else fp32, any distance apart.
struct Views {
  const void* x;  // [m, dx]
  const void* y;  // [m, dy]
  std::int64_t m, dx, dy, x_stride, y_stride;
  bool wide;
  int threads;      // at most so many
  void* workspace;  // covariance_workspace() bytes, aligned to 64
};

// Where the results go, contiguous, of the views' type; without a second view the fields of y are not written.
struct Moments {
  void *xx, *xy, *yy;  // [dx, dx] and [dy, dy] with the ridges on the diagonals, [dx, dy]
  void *mean_x, *mean_y;
};

std::size_t covariance_workspace(const Views& views, bool backward);
void covariance(const Views& views, double rx, double ry, const Moments& moments);

// [∂X ∂Y] = [Xc Yc] weights + offset: weights [dx + dy, dx + dy], offset [dx + dy], contiguous, of the views' type.
void covariance_backward(const Views& views, const void* weights, const void* offset, void* grad_x, void* grad_y);

}  // namespace xmodal::cpu
