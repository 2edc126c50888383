#include "products.cuh"

namespace xmodal::cuda {

namespace {

template <typename T, int TILE, ProductLayout LAYOUT>
int run(const ProductGroup& group, cudaStream_t stream) {
  const int tiles = group.tiles * group.plan.problems;
  const dim3 grid(tiles, group.plan.splits);
  const int error = detail::launch(multiply<T, TILE, LAYOUT>, grid, TileShape<T, TILE>::threads, 0, stream, group);
  if (error || group.plan.splits == 1) return error;
  return detail::launch(add_splits<T>, dim3(tiles, TILE / 16), 256, 0, stream, group);
}

template <typename T, int TILE>
int run(const ProductGroup& group, cudaStream_t stream) {
  switch (group.plan.layout) {
    case ProductLayout::tn:
      return run<T, TILE, ProductLayout::tn>(group, stream);
    case ProductLayout::nt:
      return run<T, TILE, ProductLayout::nt>(group, stream);
    default:
      return run<T, TILE, ProductLayout::nn>(group, stream);
  }
}

}  // namespace

int product_tiles(int rows, int columns, bool symmetric, int tile) {
  return detail::count_tiles(rows, columns, symmetric, tile);
}

int products(const Product* list, int count, const Plan& plan, void* stream) {
  ProductGroup group{};
  group.count = count;
  group.plan = plan;
  for (int i = 0; i < count; ++i) {
    const Product& p = group.product[i] = list[i];
    group.tiles += detail::count_tiles(p, plan.tile);
    group.a_vectors[i][0] = detail::vector_loads(p.first.a), group.a_vectors[i][1] = detail::vector_loads(p.second.a);
    group.b_vectors[i][0] = detail::vector_loads(p.first.b), group.b_vectors[i][1] = detail::vector_loads(p.second.b);
  }
  const auto queue = static_cast<cudaStream_t>(stream);
  if (plan.wide) return run<double, 64>(group, queue);
  return plan.tile == 128 ? run<float, 128>(group, queue) : run<float, 64>(group, queue);
}

int test_convergence(const Iteration& iteration, int tiles, double tolerance, void* stream) {
  return detail::launch(compare_change, 1, 256, 0, static_cast<cudaStream_t>(stream), iteration, tiles, tolerance);
}

}  // namespace xmodal::cuda
