// Which devices this binary can serve.
#include <cuda_runtime.h>

#include <sstream>

#include "xmodal/cuda.h"

namespace xmodal::cuda {

std::vector<std::string> architectures() {
  std::vector<std::string> names;
  std::istringstream list(XMODAL_CUDA_ARCHS);
  for (std::string name; std::getline(list, name, ',');) names.push_back(name);
  return names;
}

std::string error_string(int error) { return cudaGetErrorString(static_cast<cudaError_t>(error)); }

std::string unavailable() {
  int devices = 0;
  const cudaError_t error = cudaGetDeviceCount(&devices);
  if (error == cudaErrorInsufficientDriver)
    return "the NVIDIA driver is too old for CUDA " + std::to_string(CUDART_VERSION / 1000) +
           " (it needs 580 or newer)";
  if (error != cudaSuccess) {
    cudaGetLastError();  // not sticky: leave no trace for the next caller
    return cudaGetErrorString(error);
  }
  return devices ? "" : "no CUDA device";
}

}  // namespace xmodal::cuda
