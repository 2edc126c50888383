"""The trace norm by the CUDA kernels; see csrc/cuda/trace_norm.cuh and portable/trace_norm.py for the formulas."""

from __future__ import annotations

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

SMALL = 128  # columns up to which one block does all the algebra
SMALL_DOUBLE = 64  # and up to which, where fp64 is fast, it does so in fp64: conditioning then costs no digits
ONE_LAUNCH_ROWS = 512  # rows up to which it does the covariances, too; any number where problems fill the chip

Adjoints = tuple[Tensor, Tensor, Tensor, Tensor]  # 2 Gxx/(m − 1), Gxy/(m − 1), its transpose, 2 Gyy/(m − 1)


@implement("trace_norm", "CUDA", "kernels")
def trace_norm(
    x: Tensor, y: Tensor, rx: float, ry: float, top_k: int, need_x: bool, need_y: bool
) -> tuple[Tensor, Tensor, Tensor]:
    if x.ndim == 3 and not by_one_block(x, y):
        return portable.each_problem(trace_norm, x, y, rx, ry, top_k, need_x, need_y)
    some = top_k < min(x.shape[-1], y.shape[-1])
    if by_one_block(x, y):
        x, y = rows(x), rows(y)
        value, adjoints, shifts = small(x, y, rx, ry, top_k if some else 0)
        return value, *_apply(x, y, adjoints, shifts, need_x, need_y)
    if not some:
        return _by_sides(x, y, rx, ry, None, need_x, need_y)
    if not rotates(x, y):
        return portable.trace_norm(x, y, rx, ry, top_k, need_x, need_y)
    sigma, gx, gy = _by_sides(x, y, rx, ry, _ones(x, top_k), need_x, need_y)
    return sigma[:top_k].sum().to(accumulation_dtype(x.dtype)), gx, gy


def _ones(x: Tensor, count: int) -> Tensor:
    return torch.ones(count, dtype=torch.float64, device=x.device)


def _by_sides(
    x: Tensor, y: Tensor, rx: float, ry: float, weights: Tensor | None, need_x: bool, need_y: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Value and gradients, each view on its primal or its dual side, whichever is smaller.

    Or, where there are weights, singular values in fp64, and the gradients of Σ wᵢ σᵢ over the leading of them: fp64
    throughout, since a singular pair is as sensitive as the gaps around it.
    """
    (m, dx), dy = x.shape, y.shape[1]
    x, y = rows(x), rows(y)
    if m <= min(dx, dy):
        return dual(x, y, rx, ry, weights, need_x, need_y)
    if m <= dx:
        return mixed(x, y, rx, ry, weights, need_x, need_y)
    if m <= dy:
        value, gy, gx = mixed(y, x, ry, rx, weights, need_y, need_x)
        return value, gx, gy
    value, adjoints, shifts = large(x, y, rx, ry, weights)
    return value, *_apply(x, y, adjoints, shifts, need_x, need_y)


def _apply(
    x: Tensor, y: Tensor, adjoints: Adjoints, shifts: list[Tensor], need_x: bool, need_y: bool
) -> tuple[Tensor, Tensor]:
    """∂/∂X = Xc·gxx + Yc·gyx and ∂/∂Y = Yc·gyy + Xc·gxy, in one launch."""
    gxx, gxy, gyx, gyy = adjoints
    sx, sy = shifts
    gx, gy = _results(x, y, need_x, need_y)
    list_ = []
    if need_x:
        list_.append(Product((Term(x, gxx, sx), Term(y, gyx, sy)), gx))
    if need_y:
        list_.append(Product((Term(y, gyy, sy), Term(x, gxy, sx)), gy))
    if list_:
        products("nn", *list_)
    return gx, gy


def by_one_block(x: Tensor, y: Tensor) -> bool:
    return max(x.shape[-1], y.shape[-1]) <= min(SMALL, x.shape[-2] - 1)


def small(x: Tensor, y: Tensor, rx: float, ry: float, top_k: int = 0) -> tuple[Tensor, Adjoints, list[Tensor]]:
    """Both views at most 128 wide: the algebra in one launch, and for few rows the covariances with it."""
    batch, dx, dy, dtype = x.shape[:-2], x.shape[-1], y.shape[-1], _small_type(x, y)
    value = x.new_empty(batch, dtype=dtype)
    shapes = (dx, dx), (dx, dy), (dy, dx), (dy, dy)
    gxx, gxy, gyx, gyy = (x.new_empty((*batch, *shape), dtype=dtype) for shape in shapes)
    shifts = _one_block(x, y, rx, ry, top_k, None, value, gxx, gxy, gyx, gyy)
    return value.to(accumulation_dtype(x.dtype)), (gxx, gxy, gyx, gyy), shifts


@implement("canonical_correlations", "CUDA", "kernels")
def canonical_correlations(x: Tensor, y: Tensor, rx: float, ry: float, top_k: int) -> Tensor:
    if by_one_block(x, y):
        sigma = x.new_empty(min(x.shape[1], y.shape[1]), dtype=_small_type(x, y))
        _one_block(rows(x), rows(y), rx, ry, top_k, sigma, *(None,) * 5)
    elif rotates(x, y):
        found = _by_sides(x, y, rx, ry, _ones(x, 1), False, False)[0]
        sigma = torch.nn.functional.pad(found, (0, max(0, top_k - len(found))))
    else:
        return portable_correlations.canonical_correlations(x, y, rx, ry, top_k)
    return sigma[:top_k].to(accumulation_dtype(x.dtype))


@implement("canonical_correlations_backward", "CUDA", "kernels")
def canonical_correlations_backward(grad: Tensor, x: Tensor, y: Tensor, rx: float, ry: float) -> tuple[Tensor, Tensor]:
    if not rotates(x, y):
        return portable_correlations.canonical_correlations_backward(grad, x, y, rx, ry)
    _, gx, gy = _by_sides(x, y, rx, ry, grad.double(), True, True)
    return gx, gy


def _small_type(x: Tensor, y: Tensor) -> torch.dtype:
    wide = max(x.shape[-1], y.shape[-1]) <= SMALL_DOUBLE and driver.fast_double(x)
    return torch.float64 if wide else accumulation_dtype(x.dtype)


def _one_block(
    x: Tensor, y: Tensor, rx: float, ry: float, top_k: int, sigma: Tensor | None, *results: Tensor | None
) -> list[Tensor]:
    """The kernel behind `small`; results are value, gxx, gxy, gyx, gyy. Gives the views' shifts."""
    dtype = _small_type(x, y)
    wide = dtype == torch.float64
    problems, processors = driver.problems_of(x), driver.processors(x)
    outside = driver.native.cuda_small_workspace(x.shape[-1], y.shape[-1], wide)
    blocks = min(problems, processors) if outside else problems  # what is outside is there once a block
    workspace = x.new_empty(blocks * outside, dtype=dtype)
    given: list[Tensor | None] = [None, None, None]
    if x.shape[-2] <= ONE_LAUNCH_ROWS or problems >= processors:
        shifts = [v.new_empty((*v.shape[:-2], 2, v.shape[-1]), dtype=dtype) for v in (x, y)]
    else:
        *given, shifts = moments(x, y, rx, ry, dtype)
    driver.native.cuda_small_trace_norm(
        matrix(x, shifts[0]),
        matrix(y, shifts[1]),
        *map(driver.address, given),
        rx,
        ry,
        top_k,
        *map(driver.address, (sigma, *results, workspace)),
        problems,
        blocks,
        wide,
        stream(x),
    )
    return shifts


def large(x: Tensor, y: Tensor, rx: float, ry: float, weights: Tensor | None) -> tuple[Tensor, Adjoints, list[Tensor]]:
    """Primal side with matrices in device memory."""
    scale = 1.0 / (x.shape[0] - 1)
    dtype = accumulation_dtype(x.dtype) if weights is None else torch.float64
    sxx, sxy, syy, shifts = moments(x, y, rx, ry, dtype)
    assert sxy is not None and syy is not None
    ix, iy = inverse_factor(sxx), inverse_factor(syy)
    t = product("nt", product("nn", ix, sxy), iy)
    if weights is None:
        p = polar(t)
        value = (p * t).sum(dtype=torch.float64).to(t.dtype)
    else:
        value, u, v = singular_pairs(t, len(weights))
        p = product("nt", (u * weights).contiguous(), v.contiguous())
    gxy = product("tn", ix, product("nn", p, iy), alpha=scale)
    gxx = product("tn", ix, product("nn", product("nt", p, t, symmetric=True), ix), symmetric=True, alpha=-scale)
    gyy = product("tn", iy, product("nn", product("tn", p, t, symmetric=True), iy), symmetric=True, alpha=-scale)
    return value, (gxx, gxy, gxy.mT.contiguous(), gyy), shifts


def dual(
    x: Tensor, y: Tensor, rx: float, ry: float, weights: Tensor | None, need_x: bool, need_y: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """No more rows than columns, in both views. With H = K (K + r I)⁻¹ = K M⁻¹ of either and N = Hx Hy,

        value = tr N^½    ∂f/∂Hx = ½ sym(Hy N^−½)    ∂f/∂Hy = ½ sym(N^−½ Hx)    ∂f/∂X = 2 r/(m − 1) M⁻¹ ∂f/∂Hx M⁻¹ Xc

    N has eigenvalues σ² in [0, 1), so products give its roots; all that is m×m is in fp64. With H = F Fᵀ and
    Fxᵀ Fy = U Σ Vᵀ, Hy N^−½ is Fy V Σ⁻¹ Vᵀ Fyᵀ: the weighted sum's takes its part of the pairs.
    """
    m = x.shape[0]
    sx, sy = column_means(x, y, dtype=_kernel_type(x, weights))
    hx, ix = _hat(_kernel(x, sx), rx)
    hy, iy = _hat(_kernel(y, sy), ry)
    # (1, …, 1), which centring makes a null vector of both, gets the eigenvalue 1: nothing there can grow.
    if weights is None:
        root, inverse = roots(hx @ hy + 1.0 / m)
        value = (root.diagonal().sum() - 1.0).to(accumulation_dtype(x.dtype))
        for_x, for_y = hy @ inverse, inverse @ hx
    else:
        fx, fy = factor(hx + 1.0 / m), factor(hy + 1.0 / m)
        value, u, v, inverse = _weighted_pairs(fx.mT @ fy - torch.outer(fx.sum(0), fy.sum(0)) / m, weights)
        u, v = fx @ u, fy @ v
        for_x, for_y = v * inverse @ v.mT, u * inverse @ u.mT
    gx, gy = _results(x, y, need_x, need_y)
    list_ = []
    if need_x:
        list_.append(_dual_gradient(for_x, ix, rx, x, sx, gx))
    if need_y:
        list_.append(_dual_gradient(for_y, iy, ry, y, sy, gy))
    if list_:
        products("nn", *list_)
    return value, gx, gy


def _weighted_pairs(t: Tensor, weights: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Σ, U, V of t, the latter where there are weights, and weights / σ, 0 where σ is."""
    weights = weights[: min(t.shape)]
    sigma, u, v = singular_pairs(t, len(weights))
    leading = sigma[: len(weights)]
    return sigma, u, v, torch.where(leading > 1e-14 * sigma[0], weights / leading, 0.0)


def mixed(
    x: Tensor, y: Tensor, rx: float, ry: float, weights: Tensor | None, need_x: bool, need_y: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """x on its dual, y on its primal side: dy < m <= dx. With B = Ly⁻¹ Ycᵀ/√(m − 1) and A = B Hx Bᵀ = Z⁻²,

        value = tr A^½    ∂f/∂Hx = ½ Bᵀ Z B    ∂f/∂Y = (I − BᵀB) Hx Bᵀ Z Ly⁻¹ / √(m − 1)

    where the factor I − BᵀB cancels most digits: y's side is in fp64 throughout.
    """
    scale = (x.shape[0] - 1) ** -0.5
    (sx,) = column_means(x, dtype=_kernel_type(x, weights))
    hx, ix = _hat(_kernel(x, sx), rx)
    yc = y.double() - y.mean(0, dtype=torch.float64)
    yc = (yc - yc.mean(0)) * scale
    lower_inverse = inverse_factor(yc.mT @ yc + ry * torch.eye(y.shape[1], dtype=yc.dtype, device=y.device))
    b = lower_inverse @ yc.mT
    bh = b @ hx
    if weights is None:
        root, inverse = roots(bh @ b.mT)
        value = root.diagonal().sum().to(accumulation_dtype(x.dtype))
    else:  # A = T Tᵀ with T = B F, H = F Fᵀ; the columns of B sum to 0
        value, u, _, over_sigma = _weighted_pairs(b @ factor(hx + 1.0 / x.shape[0]), weights)
        inverse = u * over_sigma @ u.mT
    gx, gy = _results(x, y, need_x, False)
    if need_x:
        products("nn", _dual_gradient(b.mT @ inverse @ b, ix, rx, x, sx, gx))
    if need_y:
        inner = bh.mT @ inverse @ lower_inverse
        gy = ((inner - b.mT @ (b @ inner)) * scale).to(y.dtype)
    return value, gx, gy


def _results(x: Tensor, y: Tensor, need_x: bool, need_y: bool) -> tuple[Tensor, Tensor]:
    return (
        torch.empty(x.shape if need_x else (0,), dtype=x.dtype, device=x.device),
        torch.empty(y.shape if need_y else (0,), dtype=y.dtype, device=y.device),
    )


def _kernel_type(x: Tensor, weights: Tensor | None) -> torch.dtype:
    """fp64 where it is fast: K loses m·ε of its smallest eigenvalues' digits, and costs little beside the rest."""
    wide = weights is not None or driver.fast_double(x)
    return torch.float64 if wide else accumulation_dtype(x.dtype)


def _kernel(x: Tensor, shift: Tensor) -> Tensor:
    """K = Xc Xcᵀ/(m − 1) in fp64, with its null vector (1, …, 1) exact."""
    m = x.shape[0]
    k = torch.empty((m, m), dtype=torch.float64, device=x.device)
    products("nt", Product((Term(x, x, shift, shift),), k, True, 1.0 / (m - 1)))
    mean = k.mean(0)
    return k - mean - mean[:, None] + mean.mean()


def _hat(k: Tensor, ridge: float) -> tuple[Tensor, Tensor]:
    """H = K (K + r I)⁻¹ and (K + r I)⁻¹, the null vector of K moved to the middle of the latter's spectrum."""
    m = k.shape[0]
    shifted = k + k.diagonal().sum() / m**2
    shifted.diagonal().add_(ridge)
    lower_inverse = inverse_factor(shifted)
    inverse = lower_inverse.mT @ lower_inverse
    h = k @ inverse
    return 0.5 * (h + h.mT), inverse


def _dual_gradient(cotangent: Tensor, inverse: Tensor, ridge: float, x: Tensor, shift: Tensor, out: Tensor) -> Product:
    """∂f/∂X from 2 ∂f/∂H before it is made symmetric."""
    core = inverse @ (cotangent + cotangent.mT) @ inverse * (0.5 * ridge / (x.shape[0] - 1))
    return Product((Term(core.to(shift.dtype), x, None, shift),), out)
