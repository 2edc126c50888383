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

constexpr int warps = 8;  // per block, if a warp takes a row

}  // namespace

int squared_norms(const Matrix& rows, bool wide, void* norms, void* stream) {
  const auto queue = static_cast<cudaStream_t>(stream);
  const int blocks = detail::ceil_div(rows.rows, warps);
  return wide ? detail::launch(sum_squares<double>, blocks, 32 * warps, 0, queue, rows, static_cast<double*>(norms))
              : detail::launch(sum_squares<float>, blocks, 32 * warps, 0, queue, rows, static_cast<float*>(norms));
}

int mine(const LabelledPairs& pairs, const Choice* choices, int count, int* counts, void* stream) {
  const MiningTask task = task_of(pairs, choices, count, counts);
  const auto queue = static_cast<cudaStream_t>(stream);
  if (pairs.wide) return run<double, 64>(task, queue);
  return pairs.tile == 128 ? run<float, 128>(task, queue) : run<float, 64>(task, queue);
}

int read_mined(const LabelledPairs& pairs, const Choice& choice, const Mined& mined, void* stream) {
  const MiningTask task = task_of(pairs, &choice, 1, nullptr);
  constexpr int threads = 64;  // small blocks, since every thread reads rows of its own
  return detail::launch(pairs.wide ? read_keys<double> : read_keys<float>, detail::ceil_div(pairs.anchor.rows, threads),
                        threads, 0, static_cast<cudaStream_t>(stream), task, mined);
}

int draw_negatives(const LabelledPairs& pairs, std::int64_t seed, const Mined& mined, void* stream) {
  return detail::launch(pairs.wide ? draw_negatives<double> : draw_negatives<float>,
                        detail::ceil_div(pairs.anchor.rows, warps), 32 * warps, 0, static_cast<cudaStream_t>(stream),
                        pairs, static_cast<unsigned long long>(seed), mined);
}

}  // namespace xmodal::cuda
