// Chooses an instruction set once, and sends every call to the kernel that is compiled for it.
#include <cstdlib>
#include <cstring>
#include <exception>
#include <thread>
#include <vector>

#include "xmodal/cpu/covariance.h"
#include "xmodal/cpu/mining.h"
#include "xmodal/cpu/pairs.h"
#include "xmodal/cpu/runtime.h"
#include "xmodal/cpu/structure_preserving.h"
#include "xmodal/cpu/trace_norm.h"
#include "xmodal/cpu/triplet_margin.h"

namespace xmodal::cpu {
namespace {

enum class Set { baseline, avx2, avx512 };

Set choose() {
  Set best = Set::baseline;
#if defined(XMODAL_HAS_AVX512)
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) best = Set::avx2;
  if (best == Set::avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512cd"))
    best = Set::avx512;
#endif
  if (const char* limit = std::getenv("XMODAL_CPU_SET")) {
    if (!std::strcmp(limit, "baseline")) best = Set::baseline;
    if (!std::strcmp(limit, "avx2") && best == Set::avx512) best = Set::avx2;
  }
  return best;
}

Set current() {
  static const Set set = choose();
  return set;
}

}  // namespace

const char* instruction_set() {
  constexpr const char* names[] = {"baseline", "avx2", "avx512"};
  return names[static_cast<int>(current())];
}

void run_parallel(int parts, void (*body)(void*, int, int), void* context) {
  if (parts <= 1) return body(context, 0, 1);
  std::vector<std::thread> threads;
  int part = 0;
  try {
    threads.reserve(parts - 1);
    for (; part + 1 < parts; ++part) threads.emplace_back(body, context, part, parts);
  } catch (const std::exception&) {
    // The system grants no more threads, or no memory for them. The caller runs the parts that are left.
  }
  for (; part < parts; ++part) body(context, part, parts);
  for (auto& thread : threads) thread.join();
}

#if defined(XMODAL_HAS_AVX512)
#define XMODAL_CHOSEN(name) \
  (current() == Set::avx512 ? avx512::name : current() == Set::avx2 ? avx2::name : baseline::name)
#else
#define XMODAL_CHOSEN(name) baseline::name
#endif

// Declares a kernel for every set, and defines the function of the public header that calls the chosen one.
#define XMODAL_DISPATCH(result, name, parameters, arguments) \
  namespace baseline {                                       \
  result name parameters;                                    \
  }                                                          \
  namespace avx2 {                                           \
  result name parameters;                                    \
  }                                                          \
  namespace avx512 {                                         \
  result name parameters;                                    \
  }                                                          \
  result name parameters { return XMODAL_CHOSEN(name) arguments; }

// clang-format off
XMODAL_DISPATCH(std::size_t, covariance_workspace, (const Views& views, bool backward), (views, backward))
XMODAL_DISPATCH(void, covariance, (const Views& views, const CovarianceForward& results), (views, results))
XMODAL_DISPATCH(void, covariance_backward, (const Views& views, const CovarianceBackward& gradient), (views, gradient))
XMODAL_DISPATCH(std::size_t, trace_norm_workspace, (const TraceNorm& batch), (batch))
XMODAL_DISPATCH(bool, trace_norm, (const TraceNorm& batch), (batch))
XMODAL_DISPATCH(std::size_t, pairs_workspace, (const Pairs& pairs, bool weights), (pairs, weights))
XMODAL_DISPATCH(void, mine_triplets, (const Pairs& pairs, const Mining& mining), (pairs, mining))
XMODAL_DISPATCH(void, structure_preserving, (const Pairs& pairs, const StructurePreserving& loss, const PairSums& results), (pairs, loss, results))
XMODAL_DISPATCH(void, triplet_margin, (const Pairs& pairs, const TripletMargin& loss, const PairSums& results), (pairs, loss, results))
// clang-format on

}  // namespace xmodal::cpu
