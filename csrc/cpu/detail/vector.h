// Vectors as wide as the instruction set that this source is compiled for.
#pragma once

#include <cstdint>

#include "sets.h"

namespace xmodal::cpu::XMODAL_CPU_SET {
namespace {

#if defined(__AVX512F__)
constexpr int kVectorBytes = 64, kTileRows = 12;
#elif defined(__AVX__)
constexpr int kVectorBytes = 32, kTileRows = 6;
#else
constexpr int kVectorBytes = 16, kTileRows = 6;
#endif

template <typename T>
constexpr int kLanes = kVectorBytes / sizeof(T);

// One register of T; loads and stores need no alignment.
template <typename T>
struct VectorOf {
  typedef T type __attribute__((vector_size(kVectorBytes)));
  typedef T unaligned __attribute__((vector_size(kVectorBytes), aligned(sizeof(T)), may_alias));
};
template <typename T>
using Vector = typename VectorOf<T>::type;

template <typename T>
inline Vector<T> load(const T* from) {
  return *reinterpret_cast<const typename VectorOf<T>::unaligned*>(from);
}

template <typename T>
inline void store(T* to, Vector<T> value) {
  *reinterpret_cast<typename VectorOf<T>::unaligned*>(to) = value;
}

// Rows of every work matrix are padded to this many elements, so that no kernel has a ragged right edge.
constexpr int64_t kPad = 16;
inline int64_t padded(int64_t n) { return (n + kPad - 1) / kPad * kPad; }

}  // namespace
}  // namespace xmodal::cpu::XMODAL_CPU_SET
