// Singular values and vectors by one-sided Jacobi rotations in device memory.
#pragma once

namespace xmodal::cuda {

// Rotates pairs of rows until all are orthogonal. They are then σᵢ vᵢᵀ, in any order.
struct RowRotations {
  double* rows = nullptr;  // in, out: [count, length]
  int count = 0;
  int length = 0;
  int width = 0;           // rows of a group that a block rotates together, at most rotation_width(length)
  int sweeps = 0;          // at most; later launches return at once after a sweep without rotations
  int* rotated = nullptr;  // [sweeps], 0 before the call: whether a sweep rotated any rows
};
int orthogonalise_rows(const RowRotations& task, void* stream);

// The largest group that fits into shared memory, 0 if rows are too long.
int rotation_width(int length);

}  // namespace xmodal::cuda
