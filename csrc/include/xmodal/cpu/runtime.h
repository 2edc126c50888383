// The instruction set of the kernels, and how they spread work over threads.
#pragma once

namespace xmodal::cpu {

// The instruction set that the kernels use: "baseline", "avx2" or "avx512".
// The environment variable XMODAL_CPU_SET=baseline|avx2 lowers it, for tests and comparisons.
const char* instruction_set();

void run_parallel(int parts, void (*body)(void* context, int part, int parts), void* context);

// Calls body(part, parts) for part = 0 … parts − 1, each on its own thread, the last on the caller's. If the system
// grants fewer threads, the caller also runs the parts without one: results have the same bits with any number of
// threads granted. Parts must therefore not wait for each other. Threads live for one call only: work worth splitting
// outlasts the 20 µs that a thread costs to start. No std::function: kernel sources, compiled once per instruction set,
// must not emit code that others share.
template <typename Body>
inline void parallel(int parts, Body body) {
  run_parallel(parts, [](void* context, int part, int count) { (*static_cast<Body*>(context))(part, count); }, &body);
}

}  // namespace xmodal::cpu
