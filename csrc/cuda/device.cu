#include <cuda_runtime.h>

#include <sstream>

#include "xmodal/cuda/device.h"

namespace xmodal::cuda {

std::vector<std::string> architectures() {
  std::vector<std::string> names;
  std::istringstream list(XMODAL_CUDA_ARCHS);
  for (std::string name; std::getline(list, name, ',');) names.push_back(name);
  return names;
}

int set_device(int index) { return cudaSetDevice(index); }

std::string error_string(int error) { return cudaGetErrorString(static_cast<cudaError_t>(error)); }

std::string unavailable() {
  constexpr int toolkit = CUDART_VERSION / 1000;
  int driver = 0;
  if (cudaDriverGetVersion(&driver) != cudaSuccess || !driver) return "no NVIDIA driver";
  if (driver >= 1000 * toolkit) return "";
  return "the NVIDIA driver is too old for CUDA " + std::to_string(toolkit) +
         (toolkit == 13 ? " (it needs 580 or newer)" : "");
}

}  // namespace xmodal::cuda
