// Loads rectangles of a row-major matrix into shared memory: four elements per load, converted and centred.
//
// T is the working precision, float or double, here and in every file of this folder.
#pragma once

#include "portable.cuh"
#include "xmodal/cuda/matrix.h"

namespace xmodal::cuda::detail {

__device__ __forceinline__ float half_to_float(unsigned bits) {
#ifdef XMODAL_HOST_EMULATION
  _Float16 half;
  std::memcpy(&half, &bits, 2);
  return half;
#else
  float x;
  asm("cvt.f32.f16 %0, %1;" : "=f"(x) : "h"(static_cast<unsigned short>(bits)));
  return x;
#endif
}

__device__ __forceinline__ unsigned short float_to_half(float x) {
#ifdef XMODAL_HOST_EMULATION
  const _Float16 half = static_cast<_Float16>(x);
  unsigned short bits;
  std::memcpy(&bits, &half, 2);
  return bits;
#else
  unsigned short bits;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(x));
  return bits;
#endif
}

__device__ __forceinline__ float bfloat_to_float(unsigned bits) { return __uint_as_float(bits << 16); }

__device__ __forceinline__ unsigned short float_to_bfloat(float x) {
  const unsigned bits = __float_as_uint(x);
  if (x != x) return 0x7fc0;
  return static_cast<unsigned short>((bits + 0x7fffu + (bits >> 16 & 1u)) >> 16);
}

__device__ __forceinline__ double double_of(unsigned low, unsigned high) {
#ifdef XMODAL_HOST_EMULATION
  const std::uint64_t bits = static_cast<std::uint64_t>(high) << 32 | low;
  double x;
  std::memcpy(&x, &bits, 8);
  return x;
#else
  return __hiloint2double(static_cast<int>(high), static_cast<int>(low));
#endif
}

// One element of a matrix; slow, for places where that does not matter.
template <typename T>
__device__ __forceinline__ T read(const void* data, long long index, DType dtype) {
  switch (dtype) {
    case DType::f64:
      return static_cast<T>(static_cast<const double*>(data)[index]);
    case DType::f16:
      return half_to_float(static_cast<const unsigned short*>(data)[index]);
    case DType::bf16:
      return bfloat_to_float(static_cast<const unsigned short*>(data)[index]);
    default:
      return static_cast<const float*>(data)[index];
  }
}

template <typename T>
__device__ __forceinline__ void write(void* data, long long index, DType dtype, T value) {
  switch (dtype) {
    case DType::f64:
      static_cast<double*>(data)[index] = value;
      break;
    case DType::f16:
      static_cast<unsigned short*>(data)[index] = float_to_half(static_cast<float>(value));
      break;
    case DType::bf16:
      static_cast<unsigned short*>(data)[index] = float_to_bfloat(static_cast<float>(value));
      break;
    default:
      static_cast<float*>(data)[index] = static_cast<float>(value);
  }
}

__device__ __forceinline__ void* advanced(void* data, long long elements, DType dtype) {
  return static_cast<char*>(data) + elements * (dtype == DType::f64 ? 8 : dtype == DType::f32 ? 4 : 2);
}

// The matrix of one problem of a batch; its shift consists of T.
template <typename T>
__device__ __forceinline__ Matrix of_problem(Matrix m, int problem) {
  m.data = advanced(const_cast<void*>(m.data), problem * m.batch, m.dtype);
  if (m.shift) m.shift = static_cast<const T*>(m.shift) + 2LL * m.columns * problem;
  return m;
}

// Four adjacent elements of a row as stored. They are converted when used, so that loads overlap.
// T = float reads f32, f16 and bf16; T = double reads f64 as well.
template <typename T>
struct Quad {
  unsigned word[sizeof(T)];  // two words per f64, one per f32, half of one per f16 or bf16

  __device__ __forceinline__ void load(const void* data, long long index, DType dtype) {
    if (dtype == DType::f32) {
      put<0>(*reinterpret_cast<const uint4*>(static_cast<const float*>(data) + index));
    } else if (dtype == DType::f64) {
      if constexpr (sizeof(T) == 8) {
        const auto* from = reinterpret_cast<const uint4*>(static_cast<const double*>(data) + index);
        const uint4 low = from[0], high = from[1];
        put<0>(low);
        put<4>(high);
      }
    } else {
      const uint2 v = *reinterpret_cast<const uint2*>(static_cast<const unsigned short*>(data) + index);
      word[0] = v.x, word[1] = v.y;
    }
  }
  __device__ __forceinline__ void clear() {
#pragma unroll
    for (unsigned& w : word) w = 0;
  }
  __device__ __forceinline__ void load_one(int i, const void* data, long long index, DType dtype) {
    if (dtype == DType::f32) {
      word[i] = static_cast<const unsigned*>(data)[index];
    } else if (dtype == DType::f64) {
      if constexpr (sizeof(T) == 8) {
        const uint2 v = static_cast<const uint2*>(data)[index];
        word[2 * i] = v.x, word[2 * i + 1] = v.y;
      }
    } else {
      word[i / 2] |= static_cast<unsigned>(static_cast<const unsigned short*>(data)[index]) << 16 * (i % 2);
    }
  }
  __device__ __forceinline__ T get(int i, DType dtype) const {
    if (dtype == DType::f32) return __uint_as_float(word[i]);
    if constexpr (sizeof(T) == 8)
      if (dtype == DType::f64) return double_of(word[2 * i], word[2 * i + 1]);
    const unsigned bits = word[i / 2] >> 16 * (i % 2) & 0xffffu;
    return dtype == DType::f16 ? half_to_float(bits) : bfloat_to_float(bits);
  }

 private:
  template <int FROM>
  __device__ __forceinline__ void put(const uint4& v) {
    word[FROM] = v.x, word[FROM + 1] = v.y, word[FROM + 2] = v.z, word[FROM + 3] = v.w;
  }
};

// Four numbers that are stored to shared memory in one or two instructions.
template <typename T>
struct alignas(16) Four {
  T value[4];
};

// Whether every quad of a matrix may be loaded at once: all rows of all problems are aligned to four elements.
inline bool vector_loads(const Matrix& matrix) {
  const auto address = reinterpret_cast<std::uintptr_t>(matrix.data);
  const int align = matrix.dtype == DType::f16 || matrix.dtype == DType::bf16 ? 8 : 16;
  return address % align == 0 && matrix.stride % 4 == 0 && matrix.batch % 4 == 0;
}

// A ROWS×COLUMNS rectangle of a matrix: fetched into the registers of THREADS threads, then put into shared memory with
// rows LD apart. Elements outside the matrix are 0, also after centring. The Matrix is passed by value: it is then read
// once from the kernel's parameters, not once per element.
template <typename T, int ROWS, int COLUMNS, int LD, int THREADS>
class Rectangle {
  static constexpr int across = COLUMNS / 4, each = ROWS * across / THREADS;
  static_assert(each * THREADS == ROWS * across && THREADS % across == 0 && LD % 4 == 0);

 public:
  __device__ __forceinline__ void fetch(const Matrix m, bool vectors, int row0, int column0) {
    const int column = column0 + 4 * (static_cast<int>(threadIdx.x) % across);
    const bool whole = vectors && column + 4 <= m.columns;
#pragma unroll
    for (int q = 0; q < each; ++q) {
      const int row = row0 + (static_cast<int>(threadIdx.x) + q * THREADS) / across;
      const long long index = row * m.stride + column;
      if (row < m.rows && whole) {
        quad_[q].load(m.data, index, m.dtype);
      } else {
        quad_[q].clear();
        if (row < m.rows)
#pragma unroll
          for (int i = 0; i < 4; ++i)
            if (column + i < m.columns) quad_[q].load_one(i, m.data, index + i, m.dtype);
      }
    }
    if (m.shift) {
      const T* shift = static_cast<const T*>(m.shift);
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int c = column + i < m.columns ? column + i : m.columns - 1;
        high_[i] = shift[c];
        low_[i] = shift[m.columns + c];
      }
    }
  }

  __device__ __forceinline__ void put(T* shared, const Matrix m, int row0, int column0) const {
    const int in_row = 4 * (static_cast<int>(threadIdx.x) % across), column = column0 + in_row;
#pragma unroll
    for (int q = 0; q < each; ++q) {
      const int in_tile = (static_cast<int>(threadIdx.x) + q * THREADS) / across;
      const bool inside = row0 + in_tile < m.rows;
      Four<T> four;
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        T x = quad_[q].get(i, m.dtype);
        if (m.shift) x = inside && column + i < m.columns ? (x - high_[i]) - low_[i] : T(0);
        four.value[i] = x;
      }
      *reinterpret_cast<Four<T>*>(shared + in_tile * LD + in_row) = four;
    }
  }

 private:
  Quad<T> quad_[each];
  T high_[4], low_[4];  // the shifts of the thread's columns
};

}  // namespace xmodal::cuda::detail
