// Two views as the joint matrix Z = [X Y], whose rows are centred as they are read.
//   z − μ = (z − coarse) − fine, with coarse the mean rounded to the type of the data and fine the remainder:
//   the first difference is exact for values near the mean, so a large common offset costs no digits.
#pragma once

#include "integers.h"

namespace xmodal::cpu::XMODAL_CPU_SET {
namespace {

template <class In>
struct View {
  const In* data;
  int64_t stride;  // elements from row to row
  int64_t d;       // columns
  int64_t begin;   // its first column in Z
  int64_t width;   // its columns in Z: d, and padding
};

template <class In, class T>
inline void split_mean(double mean, T& coarse, T& fine) {
  const In rounded = static_cast<In>(mean);
  coarse = static_cast<T>(rounded), fine = static_cast<T>(mean - static_cast<double>(rounded));
}

// Row i of a view, centred and padded with zeros; `coarse` and `fine` are those of its own columns.
template <class T, class In>
inline void centre_row(const View<In>& view, int64_t i, const T* coarse, const T* fine, T* __restrict to) {
  const In* from = view.data + i * view.stride;
  for (int64_t c = 0; c < view.d; ++c) to[c] = (static_cast<T>(from[c]) - coarse[c]) - fine[c];
  for (int64_t c = view.d; c < view.width; ++c) to[c] = 0;
}

}  // namespace
}  // namespace xmodal::cpu::XMODAL_CPU_SET
