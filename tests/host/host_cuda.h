// A CUDA thread block on the host: every CUDA thread is a fibre, a barrier is a yield, one block runs at a time.
//
// It reveals wrong indices, fragment layouts and reductions, and missing or divergent barriers. It says nothing about
// speed, the memory model or asynchronous copies. If `seed` is set, a random warp runs as far as it can before the next
// warp gets its turn, so that a warp overtakes the others at a missing barrier.
#pragma once
#include <math.h>
#include <setjmp.h>
#include <sys/mman.h>
#include <ucontext.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <random>
#include <stdexcept>
#include <string>
#include <vector>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __noinline__ __attribute__((noinline))
#define __launch_bounds__(...)
#define __grid_constant__
#define __restrict__ __restrict
#define __shared__ static  // one block runs at a time, so a static is the block's own

struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};
struct alignas(8) float2 {
  float x, y;
};
struct alignas(16) float4 {
  float x, y, z, w;
};
struct alignas(16) double2 {
  double x, y;
};
struct alignas(8) int2 {
  int x, y;
};
struct alignas(16) int4 {
  int x, y, z, w;
};
struct alignas(8) uint2 {
  unsigned x, y;
};
struct alignas(16) uint4 {
  unsigned x, y, z, w;
};
inline float2 make_float2(float x, float y) { return {x, y}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }
inline uint2 make_uint2(unsigned x, unsigned y) { return {x, y}; }
inline int2 make_int2(int x, int y) { return {x, y}; }

using cudaStream_t = void*;
using cudaError_t = int;
constexpr cudaError_t cudaSuccess = 0;

namespace host_cuda {

enum class Wait { none, warp, block, done };

struct Fibre {
  ucontext_t start;
  jmp_buf state;
  bool started = false;
  dim3 thread;
  unsigned rank = 0;
  Wait wait = Wait::done;
  unsigned collectives = 0;  // number of warp collectives so far; their exchange buffers alternate
};

struct Exchange {
  unsigned char bytes[2][64];
};

constexpr std::size_t stack_bytes = 128 << 10;

// Fibres are reused by later launches: starting one takes system calls, resuming one does not.
struct Pool {
  std::vector<std::unique_ptr<Fibre>> fibres;
  std::vector<void*> stacks;
  std::vector<Exchange> exchange;
  std::function<void()> body;
  jmp_buf scheduler;
  Fibre* current = nullptr;

  void grow(unsigned threads);
  ~Pool() { clear(); }
  void clear() {
    for (void* stack : stacks) munmap(stack, stack_bytes);
    fibres.clear(), stacks.clear(), exchange.clear();
  }
};

inline Pool pool;
inline unsigned seed = 0;  // 0: warps and lanes run in order; otherwise in random order
inline std::vector<unsigned char> dynamic_shared;

inline void yield(Wait wait) {
  Fibre* fibre = pool.current;
  fibre->wait = wait;
  if (_setjmp(fibre->state) == 0) _longjmp(pool.scheduler, 1);
}

inline void entry() {
  for (;;) {
    pool.body();
    yield(Wait::done);
  }
}

__attribute__((noinline)) inline void resume(Fibre* fibre) {
  pool.current = fibre;
  if (_setjmp(pool.scheduler) == 0) {
    if (fibre->started) _longjmp(fibre->state, 1);
    fibre->started = true;
    setcontext(&fibre->start);
  }
}

inline void Pool::grow(unsigned threads) {
  while (fibres.size() < threads) {
    auto fibre = std::make_unique<Fibre>();
    void* stack = mmap(nullptr, stack_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (stack == MAP_FAILED) throw std::runtime_error("no memory for a fibre's stack");
    fibre->rank = static_cast<unsigned>(fibres.size());
    getcontext(&fibre->start);
    fibre->start.uc_stack.ss_sp = stack;
    fibre->start.uc_stack.ss_size = stack_bytes;
    fibre->start.uc_link = nullptr;
    makecontext(&fibre->start, entry, 0);
    stacks.push_back(stack);
    fibres.push_back(std::move(fibre));
  }
  exchange.resize((fibres.size() + 31) / 32 * 32);
}

// Every lane of a warp deposits a value and reads those of the others: the basis of shuffles, ballots and mma.
// Two buffers alternate, so that a lane that is one collective ahead does not overwrite what a slower one still reads.
template <typename T>
class Gather {
 public:
  explicit Gather(const T& mine) {
    static_assert(sizeof(T) <= sizeof(Exchange::bytes[0]));
    Fibre* fibre = pool.current;
    buffer_ = fibre->collectives++ & 1u;
    base_ = fibre->rank & ~31u;
    std::memcpy(pool.exchange[fibre->rank].bytes[buffer_], &mine, sizeof(T));
    yield(Wait::warp);
  }
  T operator[](unsigned lane) const {
    T value;
    std::memcpy(&value, pool.exchange[base_ + (lane & 31u)].bytes[buffer_], sizeof(T));
    return value;
  }

 private:
  unsigned buffer_, base_;
};

}  // namespace host_cuda

inline dim3 gridDim, blockDim, blockIdx;
#define threadIdx (host_cuda::pool.current->thread)
// Of zero size if the launch gives no bytes; filled with 0xff (NaN) before every block.
#define XMODAL_DYNAMIC_SHARED(type, name) type* const name = reinterpret_cast<type*>(host_cuda::shared_base())

inline void __syncthreads() { host_cuda::yield(host_cuda::Wait::block); }
inline void __syncwarp(unsigned = ~0u) { host_cuda::yield(host_cuda::Wait::warp); }
inline void __threadfence() {}

template <typename T>
T __shfl_sync(unsigned, T value, unsigned lane) {
  return host_cuda::Gather<T>(value)[lane];
}
template <typename T>
T __shfl_xor_sync(unsigned, T value, unsigned mask) {
  return host_cuda::Gather<T>(value)[(host_cuda::pool.current->rank & 31u) ^ mask];
}
template <typename T>
T __shfl_down_sync(unsigned, T value, unsigned delta) {
  const unsigned lane = host_cuda::pool.current->rank & 31u;
  return host_cuda::Gather<T>(value)[lane + delta < 32 ? lane + delta : lane];
}
inline unsigned __ballot_sync(unsigned, bool predicate) {
  const host_cuda::Gather<int> all(predicate);
  unsigned bits = 0;
  for (unsigned lane = 0; lane < 32; ++lane) bits |= static_cast<unsigned>(all[lane] != 0) << lane;
  return bits;
}
inline bool __any_sync(unsigned mask, bool predicate) { return __ballot_sync(mask, predicate) != 0; }
inline bool __all_sync(unsigned mask, bool predicate) { return __ballot_sync(mask, predicate) == ~0u; }

template <typename T>
T atomicAdd(T* address, T value) {
  const T old = *address;
  *address = static_cast<T>(old + value);
  return old;
}
template <typename T>
T atomicMax(T* address, T value) {
  const T old = *address;
  *address = std::max(old, value);
  return old;
}
template <typename T>
T atomicMin(T* address, T value) {
  const T old = *address;
  *address = std::min(old, value);
  return old;
}
template <typename T>
T atomicOr(T* address, T value) {
  const T old = *address;
  *address = static_cast<T>(old | value);
  return old;
}
template <typename T>
T __ldg(const T* address) {
  return *address;
}
inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __popcll(unsigned long long x) { return __builtin_popcountll(x); }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline unsigned __float_as_uint(float x) {
  unsigned bits;
  std::memcpy(&bits, &x, 4);
  return bits;
}
inline float __uint_as_float(unsigned bits) {
  float x;
  std::memcpy(&x, &bits, 4);
  return x;
}
inline int __float_as_int(float x) { return static_cast<int>(__float_as_uint(x)); }
inline float __int_as_float(int bits) { return __uint_as_float(static_cast<unsigned>(bits)); }
using std::max;
using std::min;
inline float rsqrtf(float x) { return 1.0f / std::sqrt(x); }

namespace host_cuda {

inline unsigned char* shared_base() {
  const auto address = reinterpret_cast<std::uintptr_t>(dynamic_shared.data());
  return dynamic_shared.data() + (16 - address % 16) % 16;
}

// Runs the fibres of one block until all have finished.
inline void run_block(unsigned threads, std::mt19937& random) {
  const unsigned warps = (threads + 31) / 32;
  const auto end = [&](unsigned warp) { return std::min(threads, 32 * warp + 32); };
  const auto count = [&](unsigned warp, Wait wait) {
    unsigned n = 0;
    for (unsigned r = 32 * warp; r < end(warp); ++r) n += pool.fibres[r]->wait == wait;
    return n;
  };
  const auto release = [&](unsigned warp, Wait wait) {
    for (unsigned r = 32 * warp; r < end(warp); ++r)
      if (pool.fibres[r]->wait == wait) pool.fibres[r]->wait = Wait::none;
  };
  unsigned done = 0, warp = seed ? random() % warps : 0;
  std::vector<unsigned> runnable;
  while (done < threads) {
    // One warp runs until all its lanes wait or have finished.
    const unsigned lanes = end(warp) - 32 * warp, first = seed ? random() % lanes : 0;
    for (unsigned i = 0; i < lanes; ++i) {
      Fibre* fibre = pool.fibres[32 * warp + (first + i) % lanes].get();
      if (fibre->wait != Wait::none) continue;
      resume(fibre);
      done += fibre->wait == Wait::done;
    }
    if (count(warp, Wait::warp)) {
      if (count(warp, Wait::block))
        throw std::runtime_error(
            "divergent barrier: lanes of one warp wait at a warp barrier and at the block barrier");
      release(warp, Wait::warp);
      continue;
    }
    runnable.clear();
    for (unsigned w = 0; w < warps; ++w)
      if (count(w, Wait::none)) runnable.push_back(w);
    if (runnable.empty()) {
      if (done == threads) break;
      if (done) throw std::runtime_error("divergent barrier: some threads of the block have exited");
      for (unsigned w = 0; w < warps; ++w) release(w, Wait::block), runnable.push_back(w);
    }
    warp = runnable[seed ? random() % runnable.size() : 0];
  }
}

template <typename... P, typename... A>
void launch(void (*kernel)(P...), dim3 grid, dim3 threads, std::size_t shared, A... arguments) {
  const unsigned n = threads.x * threads.y * threads.z;
  if (n == 0 || n > 1024) throw std::runtime_error("a block has 1 to 1024 threads, got " + std::to_string(n));
  if (grid.x == 0 || grid.y == 0 || grid.z == 0 || grid.y > 65535 || grid.z > 65535)
    throw std::runtime_error("invalid grid");
  if (shared > 227u << 10) throw std::runtime_error("a block has at most 227 KiB of shared memory");
  pool.grow(n);
  gridDim = grid, blockDim = threads;
  pool.body = [&] { kernel(arguments...); };
  std::mt19937 random(seed);
  for (unsigned z = 0; z < grid.z; ++z)
    for (unsigned y = 0; y < grid.y; ++y)
      for (unsigned x = 0; x < grid.x; ++x) {
        blockIdx = dim3(x, y, z);
        dynamic_shared.assign(shared + 32, 0xff);
        for (unsigned r = 0; r < n; ++r) {
          Fibre* fibre = pool.fibres[r].get();
          fibre->wait = Wait::none;
          fibre->collectives = 0;
          fibre->thread = dim3(r % threads.x, r / threads.x % threads.y, r / threads.x / threads.y);
        }
        try {
          run_block(n, random);
          const unsigned char* past = shared_base() + shared;
          for (const unsigned char* p = past; p < dynamic_shared.data() + dynamic_shared.size(); ++p)
            if (*p != 0xff) throw std::runtime_error("write past the end of dynamic shared memory");
        } catch (...) {
          pool.clear();  // some fibres have stopped in the middle of the kernel
          throw;
        }
      }
}

}  // namespace host_cuda
