// Sums of matrix products, and the convergence test of the iterations made of them.
#pragma once

#include "xmodal/cuda/matrix.h"

namespace xmodal::cuda {

constexpr int slice = 16;        // depth of a product that is in shared memory at a time
constexpr int max_products = 3;  // in one launch

// Which factors of C = A·B are stored transposed: nn stores A and B, tn stores Aᵀ and B, nt stores A and Bᵀ.
enum class ProductLayout : int { nn, tn, nt };

// One product a·b of a sum.
struct Term {
  Matrix a;  // as stored: Aᵀ in the layout tn
  Matrix b;  // Bᵀ in the layout nt
};

// out = alpha · (a·b of both terms) + beta · add + gamma · I. `add` and `out` may be the same matrix if `symmetric` is
// false; otherwise they must not overlap.
struct Product {
  Term first;
  Term second;             // no data: one term only
  int rows = 0;            // of out
  int columns = 0;         // of out
  bool symmetric = false;  // compute the lower triangle and mirror it: symmetric to the bit
  double alpha = 1;
  double beta = 0;
  double gamma = 0;
  const void* add = nullptr;    // of the working precision, the same for all problems of a batch
  std::int64_t add_stride = 0;  // 0: a vector that is added to every row
  void* out = nullptr;          // the outs of a batch lie rows · out_stride elements apart
  std::int64_t out_stride = 0;
  DType out_dtype = DType::f32;
};

// Number of tiles of a result.
int product_tiles(int rows, int columns, bool symmetric, int tile);

// The state of an iteration that ends on the device. It takes one problem, one product and one split.
struct Iteration {
  int* active = nullptr;           // 0 once the iteration has converged; products then copy or do nothing
  const void* previous = nullptr;  // the previous result, of out's shape and stride, copied to out when not active
  double* change = nullptr;        // out: [tiles, 2], per tile Σ(out − previous)² and Σ out²
};

// How products run.
struct Plan {
  int problems = 1;
  bool wide = false;
  ProductLayout layout = ProductLayout::nn;
  int tile = 64;             // edge of a tile: 64, or 128 for fp32
  int splits = 1;            // blocks that share the depth of a tile
  void* partials = nullptr;  // workspace if splits > 1: [problems, splits, tiles, tile²] of the working precision
  Iteration iteration;
};

// Runs up to max_products in one launch. If there are splits, a second launch adds them up in a fixed order.
int products(const Product* list, int count, const Plan& plan, void* stream);

// Sets *active = 0 if Σ(out − previous)² ≤ tolerance² Σ out², summed over the tiles of `change`.
int test_convergence(const Iteration& iteration, int tiles, double tolerance, void* stream);

}  // namespace xmodal::cuda
