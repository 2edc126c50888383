// What the CPU can do, and how work is spread over its cores.
#pragma once

#include <cstdint>
#include <functional>

namespace xmodal::cpu {

// The instruction set that the kernels run with: "baseline", "avx2" or "avx512".
// The environment variable XMODAL_CPU_SET=baseline|avx2 lowers it, for tests and for comparisons.
const char* instruction_set();

// Calls body(part, parts) for part = 0 … parts − 1, each on a thread of its own, the last on the caller's.
// Threads live for the call only: work worth splitting outlasts the 20 µs that one costs to start.
void parallel(int parts, const std::function<void(int part, int parts)>& body);

}  // namespace xmodal::cpu
