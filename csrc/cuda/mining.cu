#include "mining.cuh"

namespace xmodal::cuda {

namespace {

MiningTask task_of(const LabelledPairs& pairs, const Choice* choices, int count, int* counts) {
  MiningTask task{};
  task.pairs = pairs;
  task.vectors[0] = detail::vector_loads(pairs.anchor), task.vectors[1] = detail::vector_loads(pairs.ref);
  for (int c = 0; c < count; ++c) task.choice[c] = choices[c];
  task.choices = count, task.counts = counts;
  while (1ll << task.index_bits <= pairs.ref.rows) ++task.index_bits;
  return task;
}

template <typename T, int TILE>
int run(const MiningTask& task, cudaStream_t stream) {
  const int tiles = detail::ceil_div(task.pairs.anchor.rows, TILE) * detail::ceil_div(task.pairs.ref.rows, TILE);
  return detail::launch(mine_tile<T, TILE>, tiles, TileShape<T, TILE>::threads, 0, stream, task);
}

constexpr int warps = 8;  // of a block where each takes a row

}  // namespace

int squared_norms(const Matrix& rows, bool wide, void* norms, void* stream) {
  const auto queue = static_cast<cudaStream_t>(stream);
  const int blocks = detail::ceil_div(rows.rows, warps);
  return wide ? detail::launch(sum_squares<double>, blocks, 32 * warps, 0, queue, rows, static_cast<double*>(norms))
              : detail::launch(sum_squares<float>, blocks, 32 * warps, 0, queue, rows, static_cast<float*>(norms));
}

int mine(const LabelledPairs& pairs, const Choice* choices, int count, int* counts, bool wide, int tile, void* stream) {
  const MiningTask task = task_of(pairs, choices, count, counts);
  const auto queue = static_cast<cudaStream_t>(stream);
  if (wide) return run<double, 64>(task, queue);
  return tile == 128 ? run<float, 128>(task, queue) : run<float, 64>(task, queue);
}

int mined(const LabelledPairs& pairs, const Choice& choice, std::int64_t* index, void* distance, double* square,
          bool wide, void* stream) {
  const MiningTask task = task_of(pairs, &choice, 1, nullptr);
  const auto queue = static_cast<cudaStream_t>(stream);
  constexpr int threads = 64;  // few to a block: each reads rows of its own
  const int blocks = detail::ceil_div(pairs.anchor.rows, threads);
  return wide ? detail::launch(read_keys<double>, blocks, threads, 0, queue, task, index,
                               static_cast<double*>(distance), square)
              : detail::launch(read_keys<float>, blocks, threads, 0, queue, task, index, static_cast<float*>(distance),
                               square);
}

int draw_negatives(const LabelledPairs& pairs, std::int64_t seed, std::int64_t* index, void* distance, bool wide,
                   void* stream) {
  const auto queue = static_cast<cudaStream_t>(stream);
  const auto bits = static_cast<unsigned long long>(seed);
  const int blocks = detail::ceil_div(pairs.anchor.rows, warps);
  return wide ? detail::launch(draw_negatives<double>, blocks, 32 * warps, 0, queue, pairs, bits, index,
                               static_cast<double*>(distance))
              : detail::launch(draw_negatives<float>, blocks, 32 * warps, 0, queue, pairs, bits, index,
                               static_cast<float*>(distance));
}

}  // namespace xmodal::cuda
