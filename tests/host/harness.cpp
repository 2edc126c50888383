// Tests of the emulation itself: kernels with known results, correct and with one bug each.
//   harness CASE SEED exits with 0 if the kernel's result is right.
#include <cstdio>
#include <cstdlib>
#include <numeric>

#include "detail/portable.cuh"

namespace {

using xmodal::cuda::detail::launch;

#ifdef MISSING_BARRIER
#define BARRIER()
#else
#define BARRIER() __syncthreads()
#endif
#ifdef OFF_BY_ONE
constexpr int last = 1;
#else
constexpr int last = 0;
#endif

// Sums each run of blockDim.x numbers: warps by shuffles, the block through shared memory.
__global__ void block_sum(const int* x, int* sums) {
  __shared__ int partial[4];
  int value = x[blockIdx.x * blockDim.x + threadIdx.x];
  for (unsigned offset = 16; offset > 0; offset >>= 1) value += __shfl_xor_sync(~0u, value, offset);
  if (threadIdx.x % 32 == 0) partial[threadIdx.x / 32] = value;
  BARRIER();
  if (threadIdx.x == 0) sums[blockIdx.x] = partial[0] + partial[1] + partial[2] + partial[3];
#ifdef DIVERGENT_BARRIER
  if (threadIdx.x < 40) __syncthreads();
#endif
}

// Reverses each run of blockDim.x numbers through dynamic shared memory.
__global__ void reverse(const int* x, int* y) {
  XMODAL_DYNAMIC_SHARED(int, shared);
  const int n = blockDim.x, i = threadIdx.x;
  shared[i + last] = x[blockIdx.x * n + i];
  BARRIER();
  y[blockIdx.x * n + i] = shared[n - 1 - i + last];
}

// The same with a static array, whose length the sanitizer knows.
__global__ void reverse_static(const int* x, int* y) {
  __shared__ int shared[128];
  const int n = blockDim.x, i = threadIdx.x;
  shared[i + last] = x[blockIdx.x * n + i];
  BARRIER();
  y[blockIdx.x * n + i] = shared[n - 1 - i + last];
}

__global__ void ballots(unsigned* bits) {
  const unsigned vote = __ballot_sync(~0u, threadIdx.x % 3 == 0);
  if (threadIdx.x % 32 == 0) atomicAdd(bits, static_cast<unsigned>(__popc(vote)));
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 3) return 2;
  const std::string name = argv[1];
  host_cuda::seed = static_cast<unsigned>(std::atoi(argv[2]));
  constexpr int blocks = 3, threads = 128;
  std::vector<int> x(blocks * threads), y(blocks * threads, -1), expected(blocks * threads, -1);
  std::iota(x.begin(), x.end(), 1);
  try {
    if (name == "block_sum") {
      for (int b = 0; b < blocks; ++b) expected[b] = std::accumulate(&x[b * threads], &x[b * threads] + threads, 0);
      launch(block_sum, blocks, threads, 0, nullptr, x.data(), y.data());
    } else if (name == "reverse" || name == "reverse_static") {
      for (int i = 0; i < blocks * threads; ++i) expected[i] = x[i / threads * threads + threads - 1 - i % threads];
      if (name == "reverse")
        launch(reverse, blocks, threads, threads * sizeof(int), nullptr, x.data(), y.data());
      else
        launch(reverse_static, blocks, threads, 0, nullptr, x.data(), y.data());
    } else if (name == "ballots") {
      unsigned bits = 0;
      launch(ballots, 2, 96, 0, nullptr, &bits);
      y[0] = static_cast<int>(bits), expected[0] = 64;
    } else {
      return 2;
    }
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
  if (y != expected) std::fprintf(stderr, "wrong result\n");
  return y == expected ? 0 : 1;
}
