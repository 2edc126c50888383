// Column means, which the products subtract while they load: covariances are products of centred views.
#pragma once

#include "xmodal/cuda/matrix.h"

namespace xmodal::cuda {

constexpr int means_columns = 128;  // columns that a block sums

// The column means of one or two views, as Matrix::shift takes them: high + low has twice the working precision.
struct ColumnMeans {
  Matrix x;
  Matrix y;                 // no data: one view only
  void* x_shift = nullptr;  // out: [problems, 2, x.columns] of the working precision
  void* y_shift = nullptr;  // out: [problems, 2, y.columns]
  int problems = 1;
  bool wide = false;
  int splits = 1;              // blocks that share the rows of a column
  double* partials = nullptr;  // workspace: [problems · splits · columns of both views]
};
int column_means(const ColumnMeans& means, void* stream);

}  // namespace xmodal::cuda
