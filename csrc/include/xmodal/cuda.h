// What the CUDA side of the module offers; no CUDA header is needed to read it.
//
// Everything runs on `stream` (a cudaStream_t), allocates nothing and waits for nothing. A function returns the
// cudaError_t of its launches, 0 for success. Where `wide` is given it says which numbers are computed with:
// false: fp32 (data in f32, f16 or bf16), true: fp64 (data of any kind). Shifts and addends are of those numbers.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace xmodal::cuda {

// The compute capabilities, as CMake names them, that this binary holds code for: "80-real", "90a-real", …
std::vector<std::string> architectures();

// Empty where a device can run these kernels; otherwise one line that says what is missing.
std::string unavailable();

// Makes the launches of this thread go to a device: this module's CUDA runtime is not torch's, and has a current
// device of its own.
int set_device(int index);

// What an error that a launch returned means.
std::string error_string(int error);

enum class Kind : int { f32, f16, bf16, f64 };

// A matrix with columns next to each other and rows `stride` elements apart. `shift` (null for none) holds
// 2·columns numbers: column j is read as (x − shift[j]) − shift[columns + j].
// Of a batch of problems it is the first one's: those of the others lie `batch` elements apart, shifts and results
// (unless said otherwise) without gaps.
struct Matrix {
  const void* data = nullptr;
  std::int64_t stride = 0;
  int rows = 0, columns = 0;
  Kind kind = Kind::f32;
  const void* shift = nullptr;
  std::int64_t batch = 0;
};

// shifts[v] = the column means of one or two views as Matrix::shift wants them, 2·columns numbers each. Partial
// sums go to `partials`, problems · splits · (columns of all views) numbers.
int column_means(const Matrix* views, int count, int problems, bool wide, int splits, double* partials,
                 void* const* shifts, void* stream);

// How the factors of C = A·B lie in memory, each stored by rows: a as A or (t) Aᵀ, b as B or (t) Bᵀ.
enum class Layout : int { nn, tn, nt };

// out = alpha · (a[0]·b[0] + a[1]·b[1]) + beta · add + gamma · I, the second term only where `terms` is 2.
// A symmetric out costs its lower triangle, and is mirrored: bitwise symmetric. `add` and `out` may not overlap,
// but where out is not symmetric be the same.
// In a batch the outs lie rows·out_stride elements apart, and `add` is the same for all.
struct Product {
  Matrix a[2], b[2];
  int terms = 1;
  int rows = 0, columns = 0;
  bool symmetric = false;
  double alpha = 1, beta = 0, gamma = 0;
  const void* add = nullptr;  // of the numbers computed with
  std::int64_t add_stride = 0;
  void* out = nullptr;
  std::int64_t out_stride = 0;
  Kind out_kind = Kind::f32;
};

// How products run. `splits` blocks share the inner dimension of each tile; more than one need `partials`,
// problems · splits · product_tiles · tile² numbers, which are added in a fixed order.
struct Plan {
  int problems = 1;
  bool wide = false;
  Layout layout = Layout::nn;
  int tile = 64;  // 64, or 128 for fp32
  int splits = 1;
  void* partials = nullptr;
  // For iterations that end on the device, with one problem and one split. Where *active is 0, out becomes a copy of
  // `previous` (out's shape and stride; one product only), or is left as it is without one. Elsewhere change[2 t] and
  // change[2 t + 1], unless null, become tile t's Σ(out − previous)² and Σ out².
  const int* active = nullptr;
  const void* previous = nullptr;
  double* change = nullptr;
};

// Up to three products that share a layout, in one launch (and one more where splits > 1).
int products(const Product* list, int count, const Plan& plan, void* stream);
int product_tiles(const Product* list, int count, int tile);

// *active = 0 where Σ(out − previous)² ≤ tolerance² Σ out², from the `tiles` pairs in change.
int settle(const double* change, int tiles, double tolerance, int* active, void* stream);

// The polar factor of T with ‖T‖ < 1 is the limit of P ← P (a I + b PᵀP + c (PᵀP)²) from P = T: first these
// (a, b, c), which lift singular values from 1e-3 to 1 (Polar Express, Amsel et al. 2025, divided by 1.01, 1.01³,
// 1.01⁵ for rounding), then polar_last until P rests.
// Few of the last in fp32: 4 take 1e-4 to 1 − 5e-7, more would raise rounding's 1e-7 to 1, too.
constexpr int polar_steps = 8;
constexpr int polar_last_steps(bool wide) { return wide ? 16 : 4; }
struct Quintic {
  double a, b, c;
};
extern const Quintic polar_express[polar_steps];
constexpr Quintic polar_last = {1.875, -1.25, 0.375};

// Trace norm ‖T‖_* of views of at most 128 columns, by one block a problem: covariances → Cholesky → T → polar factor →
// value and the adjoints that gradients are made of,
//   dX = Xc·gxx + Yc·gyx,  dY = Yc·gyy + Xc·gxy   (gxx = 2 Gxx/(m − 1), gxy = Gxy/(m − 1), gyx = gxyᵀ, …).
// All results are numbers computed with, matrices without gaps between rows.
struct SmallTraceNorm {
  Matrix x, y;                                             // shift: where the means go, where xx is null
  const void *xx = nullptr, *xy = nullptr, *yy = nullptr;  // covariances with their ridges, or null: from x and y
  double rx = 0, ry = 0;
  // 0: all canonical pairs, by the polar factor. Else the leading ones, by Jacobi's SVD, which also gives the
  // correlations in descending order, min(dx, dy) of them, and nothing else where `value` is null.
  int top_k = 0;
  void* sigma = nullptr;
  void *value = nullptr, *gxx = nullptr, *gxy = nullptr, *gyx = nullptr, *gyy = nullptr;
  void* workspace = nullptr;     // blocks · small_workspace(…) numbers
  int problems = 1, blocks = 1;  // fewer blocks than problems take turns
};
constexpr int small_columns = 128;
std::int64_t small_workspace(int dx, int dy, bool wide);
int small_trace_norm(const SmallTraceNorm& task, bool wide, void* stream);

// Rotates `count` rows of `length` numbers, without gaps, until each two are orthogonal, in at most so many sweeps;
// they are then σᵢ vᵢᵀ in any order. Groups of up to rotation_width(length) rows (0: too long) are worked on together.
// The `sweeps` numbers of `rotated` must be 0; launches after a sweep that had nothing to do find so there, and do
// nothing.
int rotation_width(int length);
int orthogonalise_rows(double* rows, int count, int length, int width, int sweeps, int* rotated, void* stream);

}  // namespace xmodal::cuda
