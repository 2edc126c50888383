#include "triplets.cuh"

namespace xmodal::cuda {

namespace {

// Threads of a block that takes an anchor: with many references a chunk has few anchors.
constexpr int threads_for(int references) { return references > 16384 ? 1024 : 256; }

template <typename T, int TILE>
int run(const MeasureTask& task, cudaStream_t stream) {
  const int tiles =
      detail::ceil_div(task.chunk.rows, TILE) * static_cast<int>(detail::ceil_div(task.chunk.stride, TILE));
  return detail::launch(measure_tile<T, TILE>, tiles, TileShape<T, TILE>::threads, 0, stream, task);
}

template <typename T>
int run(const MarginTask& task, cudaStream_t stream) {
  const int counts = task.loss.triplets == Triplets::semihard ? 2 : 1;
  const std::size_t shared = task.loss.in_shared * (sizeof(T) + counts * sizeof(int));
  return detail::launch(weigh_margin<T>, task.chunk.rows, threads_for(task.n), shared, stream, task);
}

}  // namespace

int measure_pairs(const LabelledPairs& pairs, const Chunk& chunk, void* stream) {
  const MeasureTask task{pairs, {detail::vector_loads(pairs.anchor), detail::vector_loads(pairs.ref)}, chunk};
  const auto queue = static_cast<cudaStream_t>(stream);
  if (pairs.wide) return run<double, 64>(task, queue);
  return pairs.tile == 128 ? run<float, 128>(task, queue) : run<float, 64>(task, queue);
}

int structure_loss(const LabelledPairs& pairs, const Chunk& chunk, const StructureLoss& loss, void* stream) {
  const StructureTask task{chunk, pairs.anchor.rows, pairs.ref.rows, loss};
  return detail::launch(pairs.wide ? weigh_structure<double> : weigh_structure<float>, chunk.rows, threads_for(task.n),
                        0, static_cast<cudaStream_t>(stream), task);
}

int margin_loss(const LabelledPairs& pairs, const Chunk& chunk, const MarginLoss& loss, void* stream) {
  const MarginTask task{chunk, pairs.anchor.rows, pairs.ref.rows, loss};
  const auto queue = static_cast<cudaStream_t>(stream);
  return pairs.wide ? run<double>(task, queue) : run<float>(task, queue);
}

}  // namespace xmodal::cuda
