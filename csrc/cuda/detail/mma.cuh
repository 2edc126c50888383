// A warp multiplies a 16×8 by an 8×8 tile in the full accuracy of the working precision.
//
//   fp64: tensor-core products m16n8k8 on sm_90, four m8n8k4 before.
//   fp32: x = high + low with high in TF32 (11 bits); a·b ≈ low·high + high·low + high·high.
//
// Fragments, with g = lane / 4 and t = lane % 4:
//   a[i] is A(g + 8 (i % 2), t + 4 (i / 2))    b[i] is B(t + 4 i, g)    d[i] is D(g + 8 (i / 2), 2 t + i % 2)
// Tensor cores truncate their sums: a caller accumulates only a few steps in one accumulator.
#pragma once

#include "portable.cuh"

namespace xmodal::cuda::detail {

// To nearest, ties away from zero. Integers take two instructions; cvt.rna takes four, and leaves the lower 13 bits
// unspecified. Infinities and NaN may lose their value here: the difference x − to_tf32(x) is then NaN.
__device__ __forceinline__ float to_tf32(float x) { return __uint_as_float((__float_as_uint(x) + 0x1000u) & ~0x1fffu); }

#ifdef XMODAL_HOST_EMULATION
inline float truncated(double x) {
  const float nearest = static_cast<float>(x);
  return std::fabs(static_cast<double>(nearest)) > std::fabs(x) ? std::nextafter(nearest, 0.0f) : nearest;
}
inline double operand(double x) { return x; }
inline double operand(float x) { return __uint_as_float(__float_as_uint(x) & ~0x1fffu); }  // tensor cores read TF32
inline double truncated_to(double x, double) { return x; }
inline float truncated_to(double x, float) { return truncated(x); }

template <typename T>
void mma_16x8x8(T (&d)[4], const T (&a)[4], const T (&b)[2]) {
  struct Operands {
    T a[4], b[2];
  };
  const host_cuda::Gather<Operands> warp({{a[0], a[1], a[2], a[3]}, {b[0], b[1]}});
  const unsigned lane = threadIdx.x & 31u, g = lane >> 2, t = lane & 3u;
  for (unsigned i = 0; i < 4; ++i) {
    double sum = d[i];
    for (unsigned k = 0; k < 8; ++k)
      sum += operand(warp[g * 4 + (k & 3u)].a[(i >> 1) + 2 * (k >> 2)]) *
             operand(warp[(2 * t + (i & 1u)) * 4 + (k & 3u)].b[k >> 2]);
    d[i] = truncated_to(sum, T());
  }
}
#else
__device__ __forceinline__ void mma_16x8x8(float (&d)[4], const float (&a)[4], const float (&b)[2]) {
  asm volatile(
      "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(__float_as_uint(a[0])), "r"(__float_as_uint(a[1])), "r"(__float_as_uint(a[2])), "r"(__float_as_uint(a[3])),
        "r"(__float_as_uint(b[0])), "r"(__float_as_uint(b[1])));
}

#if __CUDA_ARCH__ >= 900
__device__ __forceinline__ void mma_16x8x8(double (&d)[4], const double (&a)[4], const double (&b)[2]) {
  asm volatile("mma.sync.aligned.m16n8k8.row.col.f64.f64.f64.f64 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
               : "+d"(d[0]), "+d"(d[1]), "+d"(d[2]), "+d"(d[3])
               : "d"(a[0]), "d"(a[1]), "d"(a[2]), "d"(a[3]), "d"(b[0]), "d"(b[1]));
}
#else
__device__ __forceinline__ void mma_8x8x4(double& d0, double& d1, double a, double b) {
  asm volatile("mma.sync.aligned.m8n8k4.row.col.f64.f64.f64.f64 {%0,%1}, {%2}, {%3}, {%0,%1};"
               : "+d"(d0), "+d"(d1)
               : "d"(a), "d"(b));
}

__device__ __forceinline__ void mma_16x8x8(double (&d)[4], const double (&a)[4], const double (&b)[2]) {
  mma_8x8x4(d[0], d[1], a[0], b[0]);
  mma_8x8x4(d[2], d[3], a[1], b[0]);
  mma_8x8x4(d[0], d[1], a[2], b[1]);
  mma_8x8x4(d[2], d[3], a[3], b[1]);
}
#endif
#endif

// A fragment of N numbers, split for multiply_add.
template <typename T, int N>
struct Fragment;

template <int N>
struct Fragment<float, N> {
  float high[N], low[N];
  __device__ __forceinline__ void set(int i, float x) {
    high[i] = to_tf32(x);
    low[i] = x - high[i];  // the tensor core drops the lower 13 bits, at most one of which is not 0
  }
};

template <int N>
struct Fragment<double, N> {
  double value[N];
  __device__ __forceinline__ void set(int i, double x) { value[i] = x; }
};

__device__ __forceinline__ void multiply_add(float (&d)[4], const Fragment<float, 4>& a, const Fragment<float, 2>& b) {
  mma_16x8x8(d, a.low, b.high);
  mma_16x8x8(d, a.high, b.low);
  mma_16x8x8(d, a.high, b.high);
}

__device__ __forceinline__ void multiply_add(double (&d)[4], const Fragment<double, 4>& a,
                                             const Fragment<double, 2>& b) {
  mma_16x8x8(d, a.value, b.value);
}

}  // namespace xmodal::cuda::detail
