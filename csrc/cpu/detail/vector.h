// Vectors as wide as the instruction set that this source is compiled for.
#pragma once

#include <cstdint>
#include <type_traits>

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

// Integers of T's width: a comparison of two Vector<T> gives a Vector<Int<T>>, 0 or −1 by lane.
template <typename T>
using Int = std::conditional_t<sizeof(T) == 4, std::int32_t, std::int64_t>;

template <typename V>
inline auto lane_sum(V vector) {
  auto total = vector[0];
  for (unsigned lane = 1; lane < sizeof(V) / sizeof(vector[0]); ++lane) total += vector[lane];
  return total;
}

// As many numbers as a vector of doubles holds, widened.
inline Vector<double> load_wide(const double* from) { return load(from); }
inline Vector<double> load_wide(const float* from) {
  typedef float Half __attribute__((vector_size(kVectorBytes / 2), aligned(4), may_alias));
  return __builtin_convertvector(*reinterpret_cast<const Half*>(from), Vector<double>);
}

// Adds all lanes to a vector of doubles.
inline void widen_add(Vector<double>& total, Vector<double> values) { total += values; }
inline void widen_add(Vector<double>& total, Vector<float> values) {
  float lanes[kLanes<float>];
  store(lanes, values);
  total += load_wide(lanes) + load_wide(lanes + kLanes<double>);
}

// Rows of every work matrix are padded to this many elements, so that no kernel has a ragged right edge.
constexpr int64_t kPad = 16;
inline int64_t padded(int64_t n) { return (n + kPad - 1) / kPad * kPad; }

}  // namespace
}  // namespace xmodal::cpu::XMODAL_CPU_SET
