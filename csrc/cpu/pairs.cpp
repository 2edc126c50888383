// The workspace of the triplet ops.
#include "detail/pairs.h"

namespace xmodal::cpu::XMODAL_CPU_SET {

std::size_t pairs_workspace(const Pairs& pairs, bool weights) {
  return pairs.wide ? PairWorkspace<double>(pairs, weights, nullptr).bytes
                    : PairWorkspace<float>(pairs, weights, nullptr).bytes;
}

}  // namespace xmodal::cpu::XMODAL_CPU_SET
