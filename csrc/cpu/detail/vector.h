// SIMD vectors by the extensions of GCC and Clang: arithmetic, comparison and selection by lane.
// Only for sources that are compiled once per instruction set (see sets.h).
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#include "sets.h"

namespace xmodal::cpu::XMODAL_CPU_SET {
namespace {

#if defined(__AVX512F__)
#define XMODAL_VECTOR __attribute__((vector_size(64)))
constexpr int kVectorBytes = 64;
#elif defined(__AVX__)
#define XMODAL_VECTOR __attribute__((vector_size(32)))
constexpr int kVectorBytes = 32;
#else
#define XMODAL_VECTOR __attribute__((vector_size(16)))
constexpr int kVectorBytes = 16;
#endif

typedef float FloatVector XMODAL_VECTOR;
typedef double DoubleVector XMODAL_VECTOR;
typedef std::int32_t Int32Vector XMODAL_VECTOR;
typedef std::int64_t Int64Vector XMODAL_VECTOR;

// Vector<T>, and IntVector<T> with lanes of the same width: the result of a comparison, 0 or −1.
template <class T>
struct Lanes;
template <>
struct Lanes<float> {
  using Int = std::int32_t;
  using Vector = FloatVector;
  using IntVector = Int32Vector;
};
template <>
struct Lanes<double> {
  using Int = std::int64_t;
  using Vector = DoubleVector;
  using IntVector = Int64Vector;
};
template <class T>
using Vector = typename Lanes<T>::Vector;
template <class T>
using Int = typename Lanes<T>::Int;
template <class T>
using IntVector = typename Lanes<T>::IntVector;
template <class T>
constexpr int kWidth = kVectorBytes / static_cast<int>(sizeof(T));

template <class V, class T>
inline V load(const T* from) {
  V v;
  std::memcpy(&v, from, sizeof(V));
  return v;
}

template <class V, class T>
inline void store(T* to, V v) {
  std::memcpy(to, &v, sizeof(V));
}

template <class V>
inline auto lane_sum(V v) {
  auto total = v[0];
  for (unsigned lane = 1; lane < sizeof(V) / sizeof(v[0]); ++lane) total += v[lane];
  return total;
}

// Loads kWidth<double> numbers as doubles.
inline DoubleVector load_wide(const double* from) { return load<DoubleVector>(from); }
inline DoubleVector load_wide(const float* from) {
  typedef float Half __attribute__((vector_size(kVectorBytes / 2)));
  return __builtin_convertvector(load<Half>(from), DoubleVector);
}

// Adds every lane of v to a vector of doubles.
inline void widen_add(DoubleVector& total, DoubleVector v) { total += v; }
inline void widen_add(DoubleVector& total, FloatVector v) {
  float lanes[kWidth<float>];
  store(lanes, v);
  total += load_wide(lanes) + load_wide(lanes + kWidth<double>);
}

}  // namespace
}  // namespace xmodal::cpu::XMODAL_CPU_SET
