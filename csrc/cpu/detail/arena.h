// A bump allocator over the caller's workspace. Without memory it only measures how much is needed.
#pragma once

#include <cstddef>

#include "integers.h"

namespace xmodal::cpu::XMODAL_CPU_SET {
namespace {

class Arena {
 public:
  explicit Arena(void* memory) : memory_(static_cast<char*>(memory)) {}

  // The next `count` elements, aligned to a cache line; null without memory.
  template <class U>
  U* take(int64_t count) {
    U* piece = memory_ ? reinterpret_cast<U*>(memory_ + used_) : nullptr;
    used_ += round_up(count * static_cast<int64_t>(sizeof(U)), 64);
    return piece;
  }
  std::size_t used() const { return used_; }

 private:
  char* memory_;
  std::size_t used_ = 0;
};

}  // namespace
}  // namespace xmodal::cpu::XMODAL_CPU_SET
