#include "products.cuh"

namespace xmodal::cuda {

namespace {

template <typename T, int TILE, Layout LAYOUT>
int run(const ProductGroup& group, cudaStream_t stream) {
  const int tiles = group.tiles * group.plan.problems;
  const dim3 grid(tiles, group.plan.splits);
  const int error = detail::launch(multiply<T, TILE, LAYOUT>, grid, TileShape<T, TILE>::threads, 0, stream, group);
  if (error || group.plan.splits == 1) return error;
  return detail::launch(add_shares<T>, dim3(tiles, TILE / 16), 256, 0, stream, group);
}

template <typename T, int TILE>
int run(const ProductGroup& group, cudaStream_t stream) {
  switch (group.plan.layout) {
    case Layout::tn:
      return run<T, TILE, Layout::tn>(group, stream);
    case Layout::nt:
      return run<T, TILE, Layout::nt>(group, stream);
    default:
      return run<T, TILE, Layout::nn>(group, stream);
  }
}

}  // namespace

int product_tiles(const Product* list, int count, int tile) {
  int tiles = 0;
  for (int i = 0; i < count; ++i) tiles += detail::tiles_of(list[i], tile);
  return tiles;
}

int products(const Product* list, int count, const Plan& plan, void* stream) {
  ProductGroup group{};
  group.count = count;
  group.tiles = product_tiles(list, count, plan.tile);
  group.plan = plan;
  for (int i = 0; i < count; ++i) {
    group.product[i] = list[i];
    for (int term = 0; term < list[i].terms; ++term) {
      group.a_vectors[i][term] = detail::vector_loads(list[i].a[term]);
      group.b_vectors[i][term] = detail::vector_loads(list[i].b[term]);
    }
  }
  const auto queue = static_cast<cudaStream_t>(stream);
  if (plan.wide) return run<double, 64>(group, queue);
  return plan.tile == 128 ? run<float, 128>(group, queue) : run<float, 64>(group, queue);
}

int settle(const double* change, int tiles, double tolerance, int* active, void* stream) {
  return detail::launch(settle_kernel, 1, 256, 0, static_cast<cudaStream_t>(stream), change, tiles, tolerance, active);
}

}  // namespace xmodal::cuda
