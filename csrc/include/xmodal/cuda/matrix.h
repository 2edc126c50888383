// Matrices as the kernels read them.
//
// These rules hold for every function in this folder. It enqueues kernels on `stream` (a cudaStream_t), allocates
// nothing and never waits for the device. It returns the cudaError_t of its launches, 0 on success. The working
// precision is fp64 if `wide` is set, otherwise fp32, which takes f32, f16 and bf16 data.
#pragma once

#include <cstdint>

namespace xmodal::cuda {

enum class DType : int { f32, f16, bf16, f64 };

// A matrix stored by rows. In a batch it is the matrix of the first problem; results and shifts of the other problems
// follow without gaps.
struct Matrix {
  const void* data = nullptr;
  std::int64_t stride = 0;  // elements from one row to the next; the elements of a row are adjacent
  int rows = 0;
  int columns = 0;
  DType dtype = DType::f32;
  const void* shift =
      nullptr;             // [2, columns] of the working precision: x is read as (x − shift[0]) − shift[1]; or null
  std::int64_t batch = 0;  // elements from one problem to the next
};

}  // namespace xmodal::cuda
