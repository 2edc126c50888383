// What the emulated module adds to the kernels: the scheduler's seed, and fenced memory.
#include <pybind11/pybind11.h>

#include "host_cuda.h"
#include "xmodal/cuda/device.h"

namespace py = pybind11;

namespace {

constexpr std::size_t page = 4096;

// Memory that ends at an inaccessible page: an access past its end kills the process.
py::memoryview fenced(std::size_t bytes) {
  const std::size_t pages = (bytes + page - 1) / page;
  void* base = mmap(nullptr, (pages + 1) * page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (base == MAP_FAILED) throw std::bad_alloc();
  auto* start = static_cast<unsigned char*>(base);
  mprotect(start + pages * page, page, PROT_NONE);
  std::memset(start, 0xff, pages * page);
  return py::memoryview::from_memory(start + pages * page - bytes, static_cast<py::ssize_t>(bytes));
}

}  // namespace

// Replaces csrc/cuda/device.cu.
namespace xmodal::cuda {
std::vector<std::string> architectures() { return {"host emulation"}; }
std::string unavailable() { return ""; }
int set_device(int) { return 0; }
std::string error_string(int error) { return "error " + std::to_string(error); }
}  // namespace xmodal::cuda

void bind_host(py::module_& module) {
  module.def(
      "seed", [](unsigned seed) { host_cuda::seed = seed; }, "0: threads take turns in order; otherwise at random.");
  module.def("fenced", &fenced, "Bytes of 0xff followed by an inaccessible page; never freed.");
}
