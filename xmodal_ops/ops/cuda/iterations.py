"""Iterations made of products and rotations, which end on the device.

The number of steps that an iteration needs depends on its data, which only the device knows. Reading it back would make
the host wait, and CUDA graphs could not capture it. So the host enqueues every step up to a fixed maximum, and an int32
flag in device memory, `active`, decides what a step does: the last product of a step writes how much its result has
changed, a small kernel clears the flag once the change is below the tolerance, and every later product reads the flag
and only copies the previous result, or returns at once. The two buffers that steps alternate between thus hold the same
result at the end, whichever step was the last to compute. Converged steps cost their launches, no arithmetic.

Polar factors, symmetric roots and Lyapunov equations consist of products alone; singular pairs of rotations.
"""

from __future__ import annotations

import torch
from torch import Tensor

from . import driver
from .driver import Iteration, Product, Term, count_tiles, product, products, stream

ROOT_STEPS = 16  # of `roots`: correlations down to 1e-6
SWEEPS = 20  # over all pairs of rows, at most; about ten are needed
ROTATION_WIDTH = 16  # rows of a group
TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-8}  # convergence is cubic: the error is far below the last change


class Convergence:
    """The flag of an iteration and the change that it is decided by; runs the products of the iteration's steps."""

    def __init__(
        self,
        result: Tensor,  # (rows, columns), of the results' shape and dtype
        symmetric: bool,
    ) -> None:
        shape, wide = (result.shape[0], result.shape[1]), result.dtype == torch.float64
        self.tile = driver.choose_tile([(shape, symmetric)], wide, driver.processors(result))
        self.tiles = count_tiles(shape, symmetric, self.tile)
        self.active = torch.ones(1, dtype=torch.int32, device=result.device)
        self.change = torch.empty(2 * self.tiles, dtype=torch.float64, device=result.device)
        self.tolerance = TOLERANCE[result.dtype]

    def run(
        self,
        layout: driver.Layout,
        product: Product,
        previous: Tensor | None = None,  # (rows, columns)
    ) -> None:
        """Runs a product of a step. Once converged, its `out` becomes `previous`, or is left as it is without one."""
        products(layout, product, may_split=False, iteration=Iteration(self.active, previous))

    def run_and_test(
        self,
        layout: driver.Layout,
        product: Product,
        previous: Tensor,  # (rows, columns)
    ) -> None:
        """Runs the last product of a step, and ends the iteration if its result hardly differs from `previous`."""
        iteration = Iteration(self.active, previous, self.change)
        products(layout, product, may_split=False, iteration=iteration, tile=self.tile)
        driver.native.test_convergence(iteration.to_native(), self.tiles, self.tolerance, stream(previous))


def polar(
    t: Tensor,  # (p, q), ‖t‖ ≤ 1
) -> Tensor:
    """The polar factor UVᵀ of t = UΣVᵀ by products alone; singular values that are 0 stay 0."""
    p, q = t.shape
    tall, side = p >= q, min(p, q)
    norm = torch.linalg.vector_norm(t)  # ‖t‖ ≤ min(1, ‖t‖_F): if all of t is small, start from t/‖t‖_F
    now = t / torch.where(norm > 0, norm, 1.0).clamp_max(1.0)
    following = torch.empty_like(t)
    gram, step = t.new_empty((side, side)), t.new_empty((side, side))
    convergence = Convergence(t, False)
    for i, (a, b, c) in enumerate(driver.native.polar_steps(t.dtype == torch.float64)):
        convergence.run("tn" if tall else "nt", Product((Term(now, now),), gram, True))
        convergence.run("nn", Product((Term(gram, gram),), step, True, c, b, a, gram))
        result = Product((Term(now, step) if tall else Term(step, now),), following)
        finish = convergence.run_and_test if i >= driver.native.POLAR_EXPRESS_STEPS else convergence.run
        finish("nn", result, now)
        now, following = following, now
    return now


def bound(
    t: Tensor,  # (p, q)
) -> Tensor:
    """√(‖t‖₁ ‖t‖_∞) ≥ ‖t‖."""
    return (t.abs().sum(0).amax() * t.abs().sum(1).amax()).sqrt()


def symmetric_roots(
    lower: Tensor,  # (d, d), triangular
) -> tuple[Tensor, Tensor]:
    """S^½ = L Qᵀ and its inverse Q L⁻¹ for S = L Lᵀ, with Q the polar factor of L; symmetric to the bit.

    The iteration for Q sees the square root of S's condition number. The result is as accurate as one from eigenvectors
    or from the coupled iteration for S^½ and S^−½, of which this is the factored form.
    """
    q = polar(lower / bound(lower))
    eye = torch.eye(lower.shape[0], dtype=lower.dtype, device=lower.device)
    inverse = torch.linalg.solve_triangular(lower, eye, upper=False).contiguous()
    return product("nt", lower, q, symmetric=True), product("nn", q, inverse, symmetric=True)


def roots(
    n: Tensor,  # (m, m), with real eigenvalues in [0, 1]
) -> tuple[Tensor, Tensor]:
    """N^½ and N^−½ by products. For an eigenvalue 0 the latter is large, not infinite."""
    root, inverse = n, torch.eye(n.shape[0], dtype=n.dtype, device=n.device)
    for a, b, c in driver.native.polar_steps(True)[:ROOT_STEPS]:
        square = inverse @ root
        step = torch.addmm(square, square, square, beta=b, alpha=c)
        step.diagonal().add_(a)
        root, inverse = root @ step, step @ inverse
    return root, inverse


def lyapunov(
    r: Tensor,  # (d, d), symmetric and positive definite
    right: Tensor,  # (d, d), symmetric: C below
) -> Tensor:
    """E with R E + E R = 2 C.

    sign [[R, C], [0, −R]] = [[I, E], [0, −I]] (Roberts 1980), by the odd polynomials of `polar` on the block matrix
    [[Y, E], [0, −Y]]: Y ← Y (a I + b Y² + c Y⁴), and E as follows from it, arranged so that all of it is symmetric.
    """
    scale = bound(r)
    y, e = r / scale, right / scale
    next_y, next_e = torch.empty_like(y), torch.empty_like(e)
    square, step, left, mixed, both = (torch.empty_like(y) for _ in range(5))
    convergence = Convergence(e, True)
    run = convergence.run
    for i, (a, b, c) in enumerate(driver.native.polar_steps(True)):
        run("nn", Product((Term(y, y),), square, True))
        run("nn", Product((Term(square, square),), step, True, c, b, a, square))
        run("nn", Product((Term(square, e),), left))
        run("nn", Product((Term(y, e),), mixed))
        run("nn", Product((Term(mixed, y),), both, True))
        inner = b * e - c * both + c * left + (0.5 * c) * left.mT
        terms = Term(square, inner), Term(inner.mT.contiguous(), square)
        result = Product(terms, next_e, True, beta=1.0, add=a * e - b * both)
        run("nn", Product((Term(y, step),), next_y, True), y)
        (convergence.run_and_test if i >= driver.native.POLAR_EXPRESS_STEPS else run)("nn", result, e)
        y, next_y, e, next_e = next_y, y, next_e, e
    return e


def rotates(
    x: Tensor,  # (..., m, dx)
    y: Tensor,  # (..., m, dy)
) -> bool:
    """Whether `singular_pairs` can serve views of these sizes: two rows must fit into a block's shared memory."""
    return driver.native.rotation_width(max(x.shape[1], y.shape[1])) > 0


def singular_pairs(
    t: Tensor,  # (p, q) fp64
    k: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """All σ of t = U Σ Vᵀ, descending, and the leading k columns of U and of V, which are 0 if σ is.

    One-sided Jacobi on the shorter side: rows become σᵢ vᵢᵀ, and uᵢ = t vᵢ / σᵢ.
    """
    if t.shape[0] > t.shape[1]:
        sigma, v, u = singular_pairs(t.mT, k)
        return sigma, u, v
    rows = t.clone(memory_format=torch.contiguous_format)
    count, length = t.shape
    rotated = torch.zeros(SWEEPS, dtype=torch.int32, device=t.device)
    rotations = driver.native.RowRotations(
        rows=rows.data_ptr(),
        count=count,
        length=length,
        width=min(driver.native.rotation_width(length), ROTATION_WIDTH, -(-count // 2)),
        sweeps=SWEEPS,
        rotated=rotated.data_ptr(),
    )
    driver.native.orthogonalise_rows(rotations, stream(t))
    sigma, order = torch.linalg.vector_norm(rows, dim=1).sort(descending=True)
    leading = sigma[:k]
    inverse = torch.where(leading > 1e-14 * sigma[0], 1.0 / leading, 0.0)
    vt = rows[order[:k]] * inverse[:, None]
    return sigma, product("nt", t.contiguous(), vt) * inverse, vt.mT
