// One kernel source for two compilers: nvcc for the device, g++ for the emulation in tests/host.
// Host code calls launch(kernel, grid, threads, shared bytes, stream, arguments…) instead of <<<…>>>.
#pragma once

#ifdef XMODAL_HOST_EMULATION
#include "host_cuda.h"
#else
#include <cuda_runtime.h>

#include <cstdint>
#include <mutex>
#include <set>
#include <utility>

// Dynamic shared memory as an array of `type`, aligned to 16 bytes.
#define XMODAL_DYNAMIC_SHARED(type, name)                                \
  extern __shared__ __align__(16) unsigned char xmodal_dynamic_shared[]; \
  type* const name = reinterpret_cast<type*>(xmodal_dynamic_shared)
#endif

namespace xmodal::cuda::detail {

template <typename T, typename U>
__host__ __device__ constexpr T ceil_div(T a, U b) {
  return (a + static_cast<T>(b) - 1) / static_cast<T>(b);
}

// The dynamic shared memory available to a block of the current device beside `own` bytes of static shared memory.
inline std::size_t shared_limit(std::size_t own) {
#ifdef XMODAL_HOST_EMULATION
  return (227 << 10) - own;
#else
  int device = 0, bytes = 48 << 10;
  cudaGetDevice(&device);
  cudaDeviceGetAttribute(&bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
  return static_cast<std::size_t>(bytes) - own;
#endif
}

#ifdef XMODAL_HOST_EMULATION
template <typename... P, typename... A>
int launch(void (*kernel)(P...), dim3 grid, dim3 threads, std::size_t shared, cudaStream_t, A... arguments) {
  host_cuda::launch(kernel, grid, threads, shared, arguments...);
  return 0;
}
#else
// Raises the kernel's limit of 48 KiB to what the current device has, once: a captured graph or another thread may rely
// on the limit, which must therefore never fall.
inline cudaError_t raise_shared_limit(const void* kernel) {
  static std::mutex mutex;
  static std::set<std::pair<const void*, int> > raised;
  int device = 0;
  cudaFuncAttributes attributes{};
  cudaError_t error = cudaGetDevice(&device);
  const std::lock_guard<std::mutex> lock(mutex);
  if (error != cudaSuccess || raised.count({kernel, device})) return error;
  error = cudaFuncGetAttributes(&attributes, kernel);
  if (error == cudaSuccess)
    error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                 static_cast<int>(shared_limit(attributes.sharedSizeBytes)));
  if (error == cudaSuccess) raised.insert({kernel, device});
  return error;
}

// Returns the launch's cudaError_t. Raises the kernel's limit first if its shared memory may exceed it.
template <typename... P, typename... A>
int launch(void (*kernel)(P...), dim3 grid, dim3 threads, std::size_t shared, cudaStream_t stream, A... arguments) {
  if (shared > (32u << 10)) {
    const cudaError_t error = raise_shared_limit(reinterpret_cast<const void*>(kernel));
    if (error != cudaSuccess) {
      cudaGetLastError();  // not sticky: clear it for the next caller
      return error;
    }
  }
  cudaLaunchConfig_t config{};
  config.gridDim = grid;
  config.blockDim = threads;
  config.dynamicSmemBytes = shared;
  config.stream = stream;
  const cudaError_t error = cudaLaunchKernelEx(&config, kernel, static_cast<P>(arguments)...);
  if (error != cudaSuccess) cudaGetLastError();
  return error;
}
#endif

}  // namespace xmodal::cuda::detail
