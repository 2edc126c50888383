// Chooses an instruction set once, and sends every kernel to its copy for that set.
#include <cstdlib>
#include <cstring>
#include <thread>
#include <vector>

#include "detail/sets.h"
#include "xmodal/covariance.h"
#include "xmodal/cpu.h"
#include "xmodal/trace_norm.h"
#include "xmodal/triplets.h"

namespace xmodal::cpu {

XMODAL_DECLARE_FOR_SETS(std::size_t, covariance_workspace, const Views&, bool)
XMODAL_DECLARE_FOR_SETS(void, covariance, const Views&, double, double, const Moments&)
XMODAL_DECLARE_FOR_SETS(void, covariance_backward, const Views&, const void*, const void*, void*, void*)
XMODAL_DECLARE_FOR_SETS(int64_t, trace_norm_workspace_bytes, const TraceNorm&)
XMODAL_DECLARE_FOR_SETS(bool, trace_norm_f32, const TraceNorm&)
XMODAL_DECLARE_FOR_SETS(bool, trace_norm_f64, const TraceNorm&)
XMODAL_DECLARE_FOR_SETS(std::size_t, workspace_size, const Pairs&, bool)
XMODAL_DECLARE_FOR_SETS(void, mine_triplets, const Pairs&, const Mining&)
XMODAL_DECLARE_FOR_SETS(void, structure_preserving, const Pairs&, const StructurePreserving&, const Sums&)
XMODAL_DECLARE_FOR_SETS(void, triplet_margin, const Pairs&, const TripletMargin&, const Sums&)

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
  if (const char* wish = std::getenv("XMODAL_CPU_SET")) {
    if (!std::strcmp(wish, "baseline")) best = Set::baseline;
    if (!std::strcmp(wish, "avx2") && best == Set::avx512) best = Set::avx2;
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
  threads.reserve(parts - 1);
  for (int part = 0; part + 1 < parts; ++part) threads.emplace_back(body, context, part, parts);
  body(context, parts - 1, parts);
  for (auto& thread : threads) thread.join();
}

#if defined(XMODAL_HAS_AVX512)
#define XMODAL_CHOSEN(name) \
  (current() == Set::avx512 ? avx512::name : current() == Set::avx2 ? avx2::name : baseline::name)
#else
#define XMODAL_CHOSEN(name) baseline::name
#endif

std::size_t covariance_workspace(const Views& views, bool backward) {
  return XMODAL_CHOSEN(covariance_workspace)(views, backward);
}

void covariance(const Views& views, double rx, double ry, const Moments& moments) {
  XMODAL_CHOSEN(covariance)(views, rx, ry, moments);
}

void covariance_backward(const Views& views, const void* weights, const void* offset, void* grad_x, void* grad_y) {
  XMODAL_CHOSEN(covariance_backward)(views, weights, offset, grad_x, grad_y);
}

int64_t trace_norm_workspace_bytes(const TraceNorm& batch) { return XMODAL_CHOSEN(trace_norm_workspace_bytes)(batch); }

bool trace_norm_f32(const TraceNorm& batch) { return XMODAL_CHOSEN(trace_norm_f32)(batch); }

bool trace_norm_f64(const TraceNorm& batch) { return XMODAL_CHOSEN(trace_norm_f64)(batch); }

std::size_t workspace_size(const Pairs& pairs, bool weights) { return XMODAL_CHOSEN(workspace_size)(pairs, weights); }

void mine_triplets(const Pairs& pairs, const Mining& mining) { XMODAL_CHOSEN(mine_triplets)(pairs, mining); }

void structure_preserving(const Pairs& pairs, const StructurePreserving& loss, const Sums& sums) {
  XMODAL_CHOSEN(structure_preserving)(pairs, loss, sums);
}

void triplet_margin(const Pairs& pairs, const TripletMargin& loss, const Sums& sums) {
  XMODAL_CHOSEN(triplet_margin)(pairs, loss, sums);
}

}  // namespace xmodal::cpu
