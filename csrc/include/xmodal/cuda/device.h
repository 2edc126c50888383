// The devices that this binary serves.
#pragma once

#include <string>
#include <vector>

namespace xmodal::cuda {

// The compute capabilities that this binary holds code for, in CMake's notation: "80-real", "90a-real", …
std::vector<std::string> architectures();

// Empty if the driver can run these kernels; otherwise one line that says what is missing. It does not count devices:
// that would initialise CUDA, which processes forked later could then not use.
std::string unavailable();

// Selects the device for this thread's launches. The module has a CUDA runtime of its own, hence a current device of
// its own, which torch does not set.
int set_device(int index);

// The message for an error that a launch returned.
std::string error_string(int error);

}  // namespace xmodal::cuda
