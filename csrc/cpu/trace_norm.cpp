// placeholder until the CPU kernel lands
#include "detail/sets.h"
namespace xmodal::cpu::XMODAL_CPU_SET {}
