// One source, several instruction sets: each kernel source is compiled once per set, into its own namespace.
// Such a source keeps everything else in an anonymous namespace and uses no std containers or algorithms: the linker
// may keep the AVX-512 copy of an inline std function for every caller.
#pragma once

#ifndef XMODAL_CPU_SET
#define XMODAL_CPU_SET baseline
#endif
