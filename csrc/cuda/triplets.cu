#include "triplets.cuh"

namespace xmodal::cuda {

namespace {

// Threads of a block that takes an anchor: a chunk has few anchors where there are many references.
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
  return detail::launch(weigh_triplets<T>, task.chunk.rows, threads_for(task.n), shared, stream, task);
}

}  // namespace

int measure(const LabelledPairs& pairs, const Chunk& chunk, bool wide, int tile, void* stream) {
  const MeasureTask task{pairs, {detail::vector_loads(pairs.anchor), detail::vector_loads(pairs.ref)}, chunk};
  const auto queue = static_cast<cudaStream_t>(stream);
  if (wide) return run<double, 64>(task, queue);
  return tile == 128 ? run<float, 128>(task, queue) : run<float, 64>(task, queue);
}

int structure_preserving(const LabelledPairs& pairs, const Chunk& chunk, const StructurePreserving& loss,
                         const AnchorSums& out, bool wide, void* stream) {
  const StructureTask task{chunk, pairs.anchor.rows, pairs.ref.rows, loss, out};
  return detail::launch(wide ? weigh_structure<double> : weigh_structure<float>, chunk.rows, threads_for(task.n), 0,
                        static_cast<cudaStream_t>(stream), task);
}

int triplet_margin(const LabelledPairs& pairs, const Chunk& chunk, const TripletMargin& loss, const AnchorSums& out,
                   bool wide, void* stream) {
  MarginTask task{chunk, pairs.anchor.rows, pairs.ref.rows, 1, loss, out};
  while (task.capacity < task.n) task.capacity *= 2;
  const auto queue = static_cast<cudaStream_t>(stream);
  return wide ? run<double>(task, queue) : run<float>(task, queue);
}

}  // namespace xmodal::cuda
