"""Polar factors, symmetric roots and Lyapunov equations by products alone, singular pairs by rotations: iterations
that end on the device."""

from __future__ import annotations

import torch
from torch import Tensor

from . import driver
from .driver import Iteration, Product, Term, count_tiles, product, products, stream

POLAR_EXPRESS_STEPS = 8
ROOT_STEPS = 16  # of `roots`: correlations down to 1e-6
SWEEPS = 20  # over all pairs of rows; some ten are needed
ROTATION_WIDTH = 16  # rows of a group
TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-8}  # the iterations are cubic: the error is far below the change


class _Flag:
    """Device memory that says whether an iteration goes on, and what the change of its result is measured in.

    Always as many launches: those after the iteration has come to rest find so on the device, and only copy.
    """

    def __init__(self, result: Tensor, symmetric: bool) -> None:
        shape, wide = (result.shape[0], result.shape[1]), result.dtype == torch.float64
        self.tile = driver.choose_tile([(shape, symmetric)], wide, driver.processors(result))
        self.tiles = count_tiles(shape, symmetric, self.tile)
        self.active = torch.ones(1, dtype=torch.int32, device=result.device)
        self.change = torch.empty(2 * self.tiles, dtype=torch.float64, device=result.device)
        self.tolerance = TOLERANCE[result.dtype]

    def step(self, layout: driver.Layout, product: Product, previous: Tensor | None = None) -> None:
        """One product of a step; where the iteration has ended, out becomes `previous` or stays as it is."""
        products(layout, product, may_split=False, iteration=Iteration(self.active, previous))

    def judged_step(self, layout: driver.Layout, product: Product, previous: Tensor) -> None:
        """The step's result: the iteration ends where it hardly differs from the previous one."""
        watch = Iteration(self.active, previous, self.change)
        products(layout, product, may_split=False, iteration=watch, tile=self.tile)
        driver.native.cuda_settle(
            self.change.data_ptr(), self.tiles, self.tolerance, self.active.data_ptr(), stream(previous)
        )


def polar(t: Tensor) -> Tensor:
    """The polar factor UVᵀ of t = UΣVᵀ, ‖t‖ ≤ 1, by products alone; singular values that are 0 stay 0."""
    p, q = t.shape
    tall, side = p >= q, min(p, q)
    norm = torch.linalg.vector_norm(t)  # ‖t‖ ≤ min(1, ‖t‖_F): where t is small all over, start from t/‖t‖_F
    now = t / torch.where(norm > 0, norm, 1.0).clamp_max(1.0)
    following = torch.empty_like(t)
    gram, step = t.new_empty((side, side)), t.new_empty((side, side))
    flag = _Flag(t, False)
    for i, (a, b, c) in enumerate(driver.native.polar_steps(t.dtype == torch.float64)):
        flag.step("tn" if tall else "nt", Product((Term(now, now),), gram, True))
        flag.step("nn", Product((Term(gram, gram),), step, True, c, b, a, gram))
        result = Product((Term(now, step) if tall else Term(step, now),), following)
        (flag.judged_step if i >= POLAR_EXPRESS_STEPS else flag.step)("nn", result, now)
        now, following = following, now
    return now


def bound(t: Tensor) -> Tensor:
    """√(‖t‖₁ ‖t‖_∞) ≥ ‖t‖."""
    return (t.abs().sum(0).amax() * t.abs().sum(1).amax()).sqrt()


def symmetric_roots(lower: Tensor) -> tuple[Tensor, Tensor]:
    """S^½ = L Qᵀ and its inverse Q L⁻¹ for S = L Lᵀ, Q the polar factor of L; symmetric to the bit.

    Q takes the square root of S's condition number: as accurate as eigenvectors, and as the coupled iteration for
    S^½ and S^−½, of which it is the factored form.
    """
    q = polar(lower / bound(lower))
    eye = torch.eye(lower.shape[0], dtype=lower.dtype, device=lower.device)
    inverse = torch.linalg.solve_triangular(lower, eye, upper=False).contiguous()
    return product("nt", lower, q, symmetric=True), product("nn", q, inverse, symmetric=True)


def roots(n: Tensor) -> tuple[Tensor, Tensor]:
    """N^½ and N^−½ of a matrix with real eigenvalues in [0, 1], by products; of 0 the latter is large, not infinite."""
    root, inverse = n, torch.eye(n.shape[0], dtype=n.dtype, device=n.device)
    for a, b, c in driver.native.polar_steps(True)[:ROOT_STEPS]:
        square = inverse @ root
        step = torch.addmm(square, square, square, beta=b, alpha=c)
        step.diagonal().add_(a)
        root, inverse = root @ step, step @ inverse
    return root, inverse


def lyapunov(r: Tensor, right: Tensor) -> Tensor:
    """E with R E + E R = 2 C, R (r) symmetric and positive definite, C (right) symmetric.

    sign [[R, C], [0, −R]] = [[I, E], [0, −I]] (Roberts 1980), by the odd polynomials of `polar` on the block matrix
    [[Y, E], [0, −Y]]: Y ← Y (a I + b Y² + c Y⁴), and E as follows from it, arranged so that all of it is symmetric.
    """
    scale = bound(r)
    y, e = r / scale, right / scale
    next_y, next_e = torch.empty_like(y), torch.empty_like(e)
    square, step, left, mixed, both = (torch.empty_like(y) for _ in range(5))
    flag = _Flag(e, True)
    for i, (a, b, c) in enumerate(driver.native.polar_steps(True)):
        flag.step("nn", Product((Term(y, y),), square, True))
        flag.step("nn", Product((Term(square, square),), step, True, c, b, a, square))
        flag.step("nn", Product((Term(square, e),), left))
        flag.step("nn", Product((Term(y, e),), mixed))
        flag.step("nn", Product((Term(mixed, y),), both, True))
        inner = b * e - c * both + c * left + (0.5 * c) * left.mT
        terms = Term(square, inner), Term(inner.mT.contiguous(), square)
        result = Product(terms, next_e, True, beta=1.0, add=a * e - b * both)
        flag.step("nn", Product((Term(y, step),), next_y, True), y)
        (flag.judged_step if i >= POLAR_EXPRESS_STEPS else flag.step)("nn", result, e)
        y, next_y, e, next_e = next_y, y, next_e, e
    return e


def rotates(x: Tensor, y: Tensor) -> bool:
    """Whether `singular_pairs` can serve views of these sizes: two rows have to fit into a block's shared memory."""
    return bool(driver.native.cuda_rotation_width(max(x.shape[1], y.shape[1])) > 0)


def singular_pairs(t: Tensor, k: int) -> tuple[Tensor, Tensor, Tensor]:
    """σ of t = U Σ Vᵀ (fp64), descending, and the leading k columns of U and of V; columns are 0 where σ is.

    One-sided Jacobi on the shorter side: rows become σᵢ vᵢᵀ, and uᵢ = t vᵢ / σᵢ.
    """
    if t.shape[0] > t.shape[1]:
        sigma, v, u = singular_pairs(t.mT, k)
        return sigma, u, v
    rows = t.clone(memory_format=torch.contiguous_format)
    count, length = t.shape
    width = min(driver.native.cuda_rotation_width(length), ROTATION_WIDTH, -(-count // 2))
    rotated = torch.zeros(SWEEPS, dtype=torch.int32, device=t.device)
    driver.native.cuda_orthogonalise_rows(rows.data_ptr(), count, length, width, SWEEPS, rotated.data_ptr(), stream(t))
    sigma, order = torch.linalg.vector_norm(rows, dim=1).sort(descending=True)
    leading = sigma[:k]
    inverse = torch.where(leading > 1e-14 * sigma[0], 1.0 / leading, 0.0)
    v = rows[order[:k]].mT * inverse
    return sigma, t @ v * inverse, v
