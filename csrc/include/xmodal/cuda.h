// What the CUDA side of the module offers; no CUDA header is needed to read it.
#pragma once

#include <string>
#include <vector>

namespace xmodal::cuda {

// The compute capabilities, as CMake names them, that this binary holds code for: "80-real", "90a-real", …
std::vector<std::string> architectures();

// Empty where a device can run these kernels; otherwise one line that says what is missing.
std::string unavailable();

}  // namespace xmodal::cuda
