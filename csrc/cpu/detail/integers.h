// Integer arithmetic of sizes, in place of std::min and its relatives (see sets.h).
#pragma once

#include <cstdint>

#include "sets.h"

namespace xmodal::cpu::XMODAL_CPU_SET {
namespace {

using std::int64_t;

inline int64_t at_most(int64_t value, int64_t limit) { return value < limit ? value : limit; }
inline int64_t at_least(int64_t value, int64_t limit) { return value > limit ? value : limit; }
inline int64_t divide_up(int64_t value, int64_t by) { return (value + by - 1) / by; }
inline int64_t round_up(int64_t value, int64_t step) { return divide_up(value, step) * step; }

struct Range {
  int64_t begin, end;
};

// The items that one of several equal parts gets.
inline Range share(int64_t count, int part, int parts) { return {count * part / parts, count * (part + 1) / parts}; }

}  // namespace
}  // namespace xmodal::cpu::XMODAL_CPU_SET
