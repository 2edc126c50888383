"""The trace norm by the CUDA kernels; see csrc/cuda/trace_norm.cuh and portable/trace_norm.py for the formulas.

Views with few columns go to one kernel (`small`). For others there are three sides, by which of the two views has more
rows than columns: `Primal` (both), `Dual` (none) and `Mixed`. A side prepares its matrices and offers `trace_norm` and
`singular_values`; each gives a `Result`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from ..._dtypes import accumulation_dtype
from .._library import implement
from ..portable import canonical_correlations as portable_correlations
from ..portable import trace_norm as portable
from . import driver
from .covariance import factor, inverse_factor, moments
from .driver import Product, Term, column_means, matrix, product, products, rows, stream
from .iterations import polar, roots, rotates, singular_pairs

ONE_LAUNCH_ROWS = 512  # rows up to which its kernel computes the covariances, too; any number if problems fill the GPU

Adjoints = tuple[Tensor, Tensor, Tensor, Tensor]  # 2 Gxx/(m − 1), Gxy/(m − 1), its transpose, 2 Gyy/(m − 1)


@dataclass(frozen=True)
class Views:
    """Two views, their ridges, and which gradients are needed."""

    x: Tensor  # (m, dx), or (B, m, dx) for a batch
    y: Tensor  # (m, dy), or (B, m, dy)
    rx: float
    ry: float
    need_x: bool
    need_y: bool

    def swapped(self) -> Views:
        return Views(self.y, self.x, self.ry, self.rx, self.need_y, self.need_x)

    def gradients(self) -> tuple[Tensor, Tensor]:
        """Uninitialised gradients, empty if not needed."""
        x, y = self.x, self.y
        return (
            torch.empty(x.shape if self.need_x else (0,), dtype=x.dtype, device=x.device),
            torch.empty(y.shape if self.need_y else (0,), dtype=y.dtype, device=y.device),
        )


class Result(NamedTuple):
    value: Tensor  # the trace norm, () or (B,); or all singular values, descending, fp64
    grad_x: Tensor  # (m, dx) or (B, m, dx); empty if not needed
    grad_y: Tensor  # (m, dy) or (B, m, dy); empty if not needed


@implement("trace_norm", "CUDA", "kernels")
def trace_norm(
    x: Tensor, y: Tensor, rx: float, ry: float, top_k: int, need_x: bool, need_y: bool
) -> tuple[Tensor, Tensor, Tensor]:
    if x.ndim == 3 and not by_one_block(x, y):
        return portable.each_problem(trace_norm, x, y, rx, ry, top_k, need_x, need_y)
    some = top_k < min(x.shape[-1], y.shape[-1])
    views = Views(rows(x), rows(y), rx, ry, need_x, need_y)
    if by_one_block(x, y):
        return small(views, top_k if some else 0)
    if not some:
        return _by_side(views, False, lambda side: side.trace_norm())
    if not rotates(x, y):
        return portable.trace_norm(x, y, rx, ry, top_k, need_x, need_y)
    sigma, gx, gy = singular_values(views, _ones(x, top_k))
    return sigma[:top_k].sum().to(accumulation_dtype(x.dtype)), gx, gy


@implement("canonical_correlations", "CUDA", "kernels")
def canonical_correlations(x: Tensor, y: Tensor, rx: float, ry: float, top_k: int) -> Tensor:
    if by_one_block(x, y):
        sigma = x.new_empty(min(x.shape[1], y.shape[1]), dtype=_small_type(x))
        _one_block(rows(x), rows(y), rx, ry, top_k, sigma=sigma)
    elif rotates(x, y):
        found = singular_values(Views(rows(x), rows(y), rx, ry, False, False), _ones(x, 1)).value
        sigma = torch.nn.functional.pad(found, (0, max(0, top_k - len(found))))
    else:
        return portable_correlations.canonical_correlations(x, y, rx, ry, top_k)
    return sigma[:top_k].to(accumulation_dtype(x.dtype))


@implement("canonical_correlations_backward", "CUDA", "kernels")
def canonical_correlations_backward(grad: Tensor, x: Tensor, y: Tensor, rx: float, ry: float) -> tuple[Tensor, Tensor]:
    if not rotates(x, y):
        return portable_correlations.canonical_correlations_backward(grad, x, y, rx, ry)
    _, gx, gy = singular_values(Views(rows(x), rows(y), rx, ry, True, True), grad.double())
    return gx, gy


def _ones(x: Tensor, count: int) -> Tensor:
    return torch.ones(count, dtype=torch.float64, device=x.device)


def singular_values(
    views: Views,
    weights: Tensor,  # (k,) fp64
) -> Result:
    """All singular values σ of T, and the gradients of Σ wᵢ σᵢ over the leading k.

    fp64 throughout, since a singular pair is as sensitive as the gaps around it.
    """
    return _by_side(views, True, lambda side: side.singular_values(weights))


def _by_side(views: Views, fp64: bool, solve: Callable[[Primal | Dual | Mixed], Result]) -> Result:
    """Solves with each view on its primal or its dual side, whichever is smaller."""
    (m, dx), dy = views.x.shape, views.y.shape[1]
    if m <= min(dx, dy):
        return solve(Dual(views, fp64))
    if m <= dx:
        return solve(Mixed(views, fp64))
    if m <= dy:
        value, gy, gx = solve(Mixed(views.swapped(), fp64))
        return Result(value, gx, gy)
    return solve(Primal(views, fp64))


def _apply(views: Views, adjoints: Adjoints, shifts: list[Tensor]) -> tuple[Tensor, Tensor]:
    """∂/∂X = Xc·gxx + Yc·gyx and ∂/∂Y = Yc·gyy + Xc·gxy, in one launch."""
    x, y = views.x, views.y
    gxx, gxy, gyx, gyy = adjoints
    sx, sy = shifts
    gx, gy = views.gradients()
    list_ = []
    if views.need_x:
        list_.append(Product((Term(x, gxx, sx), Term(y, gyx, sy)), gx))
    if views.need_y:
        list_.append(Product((Term(y, gyy, sy), Term(x, gxy, sx)), gy))
    if list_:
        products("nn", *list_)
    return gx, gy


def by_one_block(
    x: Tensor,  # (..., m, dx)
    y: Tensor,  # (..., m, dy)
) -> bool:
    """Whether `small` serves these views."""
    return max(x.shape[-1], y.shape[-1]) <= min(driver.native.SMALL_COLUMNS, x.shape[-2] - 1)


def small(views: Views, top_k: int) -> Result:
    """Views of few columns: all algebra in one launch, including the covariances if rows are few; top_k = 0 is all."""
    x, y = views.x, views.y
    batch, dx, dy, dtype = x.shape[:-2], x.shape[-1], y.shape[-1], _small_type(x)
    value = x.new_empty(batch, dtype=dtype)
    shapes = (dx, dx), (dx, dy), (dy, dx), (dy, dy)
    gxx, gxy, gyx, gyy = (x.new_empty((*batch, *shape), dtype=dtype) for shape in shapes)
    shifts = _one_block(x, y, views.rx, views.ry, top_k, value=value, gxx=gxx, gxy=gxy, gyx=gyx, gyy=gyy)
    return Result(value.to(accumulation_dtype(x.dtype)), *_apply(views, (gxx, gxy, gyx, gyy), shifts))


def _small_type(x: Tensor) -> torch.dtype:
    return torch.float64 if driver.fast_double(x) else accumulation_dtype(x.dtype)


def _one_block(
    x: Tensor,  # (m, dx) or (B, m, dx)
    y: Tensor,  # (m, dy) or (B, m, dy)
    rx: float,
    ry: float,
    top_k: int,
    **results: Tensor,  # outputs of the kernel by their names in SmallTraceNorm: sigma, value, gxx, …
) -> list[Tensor]:
    """Runs the kernel behind `small`. Returns the views' shifts, (2, d) or (B, 2, d) each."""
    dtype = _small_type(x)
    wide = dtype == torch.float64
    problems, processors = driver.problems_of(x), driver.processors(x)
    outside = driver.native.small_workspace(x.shape[-1], y.shape[-1], wide)
    blocks = min(problems, processors) if outside else problems  # there is one workspace per block
    workspace = x.new_empty(blocks * outside, dtype=dtype)
    given: dict[str, Tensor | None] = {}
    if x.shape[-2] <= ONE_LAUNCH_ROWS or problems >= processors:
        shifts = [v.new_empty((*v.shape[:-2], 2, v.shape[-1]), dtype=dtype) for v in (x, y)]
    else:
        given["xx"], given["xy"], given["yy"], shifts = moments(x, y, rx, ry, dtype)
    task = driver.native.SmallTraceNorm(
        x=matrix(x, shifts[0]),
        y=matrix(y, shifts[1]),
        rx=rx,
        ry=ry,
        top_k=top_k,
        workspace=workspace.data_ptr(),
        problems=problems,
        blocks=blocks,
        wide=wide,
        **{name: driver.address(tensor) for name, tensor in (given | results).items()},
    )
    driver.native.small_trace_norm(task, stream(x))
    return shifts


class Primal:
    """Both views have more rows than columns: T = Lx⁻¹ Sxy Ly⁻ᵀ in device memory.

    The errors of T and of the gradients grow with the condition of S, and a T of norm above 1 diverges in the polar
    iteration. If fp64 is fast, the iteration alone therefore runs in the working precision, where it costs no digits.
    """

    def __init__(self, views: Views, fp64: bool) -> None:
        x, y = views.x, views.y
        dtype = torch.float64 if fp64 or driver.fast_double(x) else accumulation_dtype(x.dtype)
        sxx, sxy, syy, self.shifts = moments(x, y, views.rx, views.ry, dtype)
        assert sxy is not None and syy is not None
        self.views = views
        self.ix, self.iy = inverse_factor(sxx), inverse_factor(syy)
        self.t = product("nt", product("nn", self.ix, sxy), self.iy)  # (dx, dy)

    def trace_norm(self) -> Result:
        dtype = accumulation_dtype(self.views.x.dtype)
        p = polar(self.t.to(dtype)).to(self.t.dtype)
        value = (p * self.t).sum(dtype=torch.float64).to(dtype)
        return Result(value, *self.gradients(p))

    def singular_values(
        self,
        weights: Tensor,  # (k,)
    ) -> Result:
        sigma, u, v = singular_pairs(self.t, len(weights))
        return Result(sigma, *self.gradients(product("nt", (u * weights).contiguous(), v.contiguous())))

    def gradients(
        self,
        p: Tensor,  # (dx, dy), ∂f/∂T
    ) -> tuple[Tensor, Tensor]:
        ix, iy, t, scale = self.ix, self.iy, self.t, 1.0 / (self.views.x.shape[0] - 1)
        gxy = product("tn", ix, product("nn", p, iy), alpha=scale)
        gxx = product("tn", ix, product("nn", product("nt", p, t, symmetric=True), ix), symmetric=True, alpha=-scale)
        gyy = product("tn", iy, product("nn", product("tn", p, t, symmetric=True), iy), symmetric=True, alpha=-scale)
        return _apply(self.views, (gxx, gxy, gxy.mT.contiguous(), gyy), self.shifts)


class Dual:
    """No view has more rows than columns. With H = K (K + r I)⁻¹ = K M⁻¹ of each view and N = Hx Hy,

        value = tr N^½    ∂f/∂Hx = ½ sym(Hy N^−½)    ∂f/∂Hy = ½ sym(N^−½ Hx)    ∂f/∂X = 2 r/(m − 1) M⁻¹ ∂f/∂Hx M⁻¹ Xc

    N has eigenvalues σ² in [0, 1), so products give its roots; all m×m matrices are in fp64. With H = F Fᵀ and
    Fxᵀ Fy = U Σ Vᵀ, Hy N^−½ is Fy V Σ⁻¹ Vᵀ Fyᵀ; for a weighted sum, each pair in it gets its weight.
    """

    def __init__(self, views: Views, fp64: bool) -> None:
        x, y = views.x, views.y
        self.views = views
        self.sx, self.sy = column_means(x, y, dtype=_kernel_type(x, fp64))
        self.hx, self.ix = hat_matrix(kernel_matrix(x, self.sx), views.rx)
        self.hy, self.iy = hat_matrix(kernel_matrix(y, self.sy), views.ry)

    # Centring makes (1, …, 1) a null vector of Hx and Hy. Both functions give it the eigenvalue 1, so that its inverse
    # cannot grow, and subtract it again.
    def trace_norm(self) -> Result:
        root, inverse = roots(self.hx @ self.hy + 1.0 / len(self.hx))
        value = (root.diagonal().sum() - 1.0).to(accumulation_dtype(self.views.x.dtype))
        return Result(value, *self.gradients(self.hy @ inverse, inverse @ self.hx))

    def singular_values(
        self,
        weights: Tensor,  # (k,)
    ) -> Result:
        m = len(self.hx)
        fx, fy = factor(self.hx + 1.0 / m), factor(self.hy + 1.0 / m)
        sigma, u, v, over_sigma = _weighted_pairs(fx.mT @ fy - torch.outer(fx.sum(0), fy.sum(0)) / m, weights)
        u, v = fx @ u, fy @ v
        return Result(sigma, *self.gradients(v * over_sigma @ v.mT, u * over_sigma @ u.mT))

    def gradients(
        self,
        for_x: Tensor,  # (m, m), 2 ∂f/∂Hx before it is made symmetric
        for_y: Tensor,  # (m, m)
    ) -> tuple[Tensor, Tensor]:
        views = self.views
        gx, gy = views.gradients()
        list_ = []
        if views.need_x:
            list_.append(_dual_gradient(for_x, self.ix, views.rx, views.x, self.sx, gx))
        if views.need_y:
            list_.append(_dual_gradient(for_y, self.iy, views.ry, views.y, self.sy, gy))
        if list_:
            products("nn", *list_)
        return gx, gy


class Mixed:
    """x on its dual, y on its primal side: dy < m <= dx. With B = Ly⁻¹ Ycᵀ/√(m − 1) and A = B Hx Bᵀ = Z⁻²,

        value = tr A^½    ∂f/∂Hx = ½ Bᵀ Z B    ∂f/∂Y = (I − BᵀB) Hx Bᵀ Z Ly⁻¹ / √(m − 1)

    The factor I − BᵀB cancels most digits, so the side of y is in fp64 throughout.
    """

    def __init__(self, views: Views, fp64: bool) -> None:
        x, y = views.x, views.y
        self.views, self.scale = views, (x.shape[0] - 1) ** -0.5
        (self.sx,) = column_means(x, dtype=_kernel_type(x, fp64))
        self.hx, self.ix = hat_matrix(kernel_matrix(x, self.sx), views.rx)
        yc = y.double() - y.mean(0, dtype=torch.float64)
        yc = (yc - yc.mean(0)) * self.scale
        ridge = views.ry * torch.eye(y.shape[1], dtype=yc.dtype, device=y.device)
        self.lower_inverse = inverse_factor(yc.mT @ yc + ridge)
        self.b = self.lower_inverse @ yc.mT  # (dy, m)
        self.bh = self.b @ self.hx

    def trace_norm(self) -> Result:
        root, inverse = roots(self.bh @ self.b.mT)
        value = root.diagonal().sum().to(accumulation_dtype(self.views.x.dtype))
        return Result(value, *self.gradients(inverse))

    def singular_values(
        self,
        weights: Tensor,  # (k,)
    ) -> Result:
        # A = T Tᵀ with T = B F, H = F Fᵀ. The columns of B sum to 0, so H may get the eigenvalue 1 as in Dual.
        sigma, u, _, over_sigma = _weighted_pairs(self.b @ factor(self.hx + 1.0 / len(self.hx)), weights)
        return Result(sigma, *self.gradients(u * over_sigma @ u.mT))

    def gradients(
        self,
        z: Tensor,  # (dy, dy)
    ) -> tuple[Tensor, Tensor]:
        views, b = self.views, self.b
        gx, gy = views.gradients()
        if views.need_x:
            products("nn", _dual_gradient(b.mT @ z @ b, self.ix, views.rx, views.x, self.sx, gx))
        if views.need_y:
            inner = self.bh.mT @ z @ self.lower_inverse
            gy = ((inner - b.mT @ (b @ inner)) * self.scale).to(views.y.dtype)
        return gx, gy


def _weighted_pairs(
    t: Tensor,  # (p, q)
    weights: Tensor,  # (k,)
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """All σ of t, its leading U and V, and weights / σ, 0 if σ is."""
    weights = weights[: min(t.shape)]
    sigma, u, v = singular_pairs(t, len(weights))
    leading = sigma[: len(weights)]
    return sigma, u, v, torch.where(leading > 1e-14 * sigma[0], weights / leading, 0.0)


def _kernel_type(x: Tensor, fp64: bool) -> torch.dtype:
    """fp64 if it is fast: K loses m·ε of its smallest eigenvalues, and takes a small part of the time."""
    return torch.float64 if fp64 or driver.fast_double(x) else accumulation_dtype(x.dtype)


def kernel_matrix(
    x: Tensor,  # (m, d)
    shift: Tensor,  # (2, d)
) -> Tensor:
    """K = Xc Xcᵀ/(m − 1), (m, m) in fp64, with its null vector (1, …, 1) exact."""
    m = x.shape[0]
    k = torch.empty((m, m), dtype=torch.float64, device=x.device)
    products("nt", Product((Term(x, x, shift, shift),), k, True, 1.0 / (m - 1)))
    mean = k.mean(0)
    return k - mean - mean[:, None] + mean.mean()


def hat_matrix(
    k: Tensor,  # (m, m), a kernel matrix
    ridge: float,
) -> tuple[Tensor, Tensor]:
    """H = K (K + r I)⁻¹ and (K + r I)⁻¹, in which K's null vector is moved to the middle of the spectrum."""
    m = k.shape[0]
    shifted = k + k.diagonal().sum() / m**2
    shifted.diagonal().add_(ridge)
    lower_inverse = inverse_factor(shifted)
    inverse = lower_inverse.mT @ lower_inverse
    h = k @ inverse
    return 0.5 * (h + h.mT), inverse


def _dual_gradient(
    cotangent: Tensor,  # (m, m), 2 ∂f/∂H before it is made symmetric
    inverse: Tensor,  # (m, m), (K + r I)⁻¹
    ridge: float,
    x: Tensor,  # (m, d)
    shift: Tensor,  # (2, d)
    out: Tensor,  # (m, d)
) -> Product:
    """The product that gives ∂f/∂X."""
    core = inverse @ (cotangent + cotangent.mT) @ inverse * (0.5 * ridge / (x.shape[0] - 1))
    return Product((Term(core.to(shift.dtype), x, None, shift),), out)
