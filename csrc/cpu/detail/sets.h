// One source, several instruction sets: a kernel source is compiled once per set into its own namespace.
// Such a source keeps everything else in an anonymous namespace and uses no std containers or algorithms:
// an inline std function compiled for AVX-512 could be the copy that the linker keeps for everyone.
#pragma once

#ifndef XMODAL_CPU_SET
#define XMODAL_CPU_SET baseline
#endif

// Declares `name` for every set; csrc/cpu/dispatch.cpp defines xmodal::cpu::name over them.
#define XMODAL_DECLARE_FOR_SETS(result, name, ...) \
  namespace baseline {                             \
  result name(__VA_ARGS__);                        \
  }                                                \
  namespace avx2 {                                 \
  result name(__VA_ARGS__);                        \
  }                                                \
  namespace avx512 {                               \
  result name(__VA_ARGS__);                        \
  }
