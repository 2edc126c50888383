"""Covariance and whitening by the CUDA kernels."""

from __future__ import annotations

import torch
from torch import Tensor

from ..._dtypes import accumulation_dtype
from .._library import implement
from .driver import Product, Term, column_means, fast_double, product, products, rows
from .iterations import lyapunov, symmetric_roots


def moments(
    x: Tensor,  # (m, dx) or (B, m, dx)
    y: Tensor | None,  # (m, dy) or (B, m, dy)
    rx: float,
    ry: float,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor | None, Tensor | None, list[Tensor]]:
    """Sxx + rx I, Sxy, Syy + ry I in `dtype`, and the views' shifts: three launches, four if the depth is split."""
    batch, dx, scale = x.shape[:-2], x.shape[-1], 1.0 / (x.shape[-2] - 1)
    views = [x] if y is None else [x, y]
    shifts = column_means(*views, dtype=dtype)
    xx = x.new_empty((*batch, dx, dx), dtype=dtype)
    list_ = [Product((Term(x, x, shifts[0], shifts[0]),), xx, True, scale, gamma=rx)]
    if y is None:
        products("tn", *list_)
        return xx, None, None, shifts
    dy = y.shape[-1]
    xy = x.new_empty((*batch, dx, dy), dtype=dtype)
    yy = x.new_empty((*batch, dy, dy), dtype=dtype)
    list_.append(Product((Term(x, y, shifts[0], shifts[1]),), xy, False, scale))
    list_.append(Product((Term(y, y, shifts[1], shifts[1]),), yy, True, scale, gamma=ry))
    products("tn", *list_)
    return xx, xy, yy, shifts


@implement("covariance", "CUDA", "kernels")
def covariance(x: Tensor, y: Tensor | None, rx: float, ry: float) -> tuple[Tensor, ...]:
    x, y = rows(x), None if y is None else rows(y)
    xx, xy, yy, shifts = moments(x, y, rx, ry, accumulation_dtype(x.dtype))
    means = [shift[0].clone() for shift in shifts]
    if xy is None or yy is None:
        return xx, xx.new_empty(0), xx.new_empty(0), means[0], xx.new_empty(0)
    return xx, xy, yy, means[0], means[1]


@implement("covariance_backward", "CUDA", "kernels")
def covariance_backward(
    x: Tensor, y: Tensor | None, gxx: Tensor, gxy: Tensor, gyy: Tensor, gmx: Tensor, gmy: Tensor
) -> tuple[Tensor, Tensor]:
    m = x.shape[0]
    scale = 1.0 / (m - 1)
    x = rows(x)
    gx = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    if y is None:
        (sx,) = column_means(x, dtype=accumulation_dtype(x.dtype))
        products("nn", Product((Term(x, gxx + gxx.mT, sx),), gx, alpha=scale, beta=1.0 / m, add=gmx))
        return gx, x.new_empty(0)
    y = rows(y)
    gy = torch.empty(y.shape, dtype=y.dtype, device=y.device)
    sx, sy = column_means(x, y, dtype=accumulation_dtype(x.dtype))
    for_x = Term(x, gxx + gxx.mT, sx), Term(y, gxy.mT.contiguous(), sy)
    for_y = Term(y, gyy + gyy.mT, sy), Term(x, gxy.contiguous(), sx)
    products(
        "nn",
        Product(for_x, gx, alpha=scale, beta=1.0 / m, add=gmx),
        Product(for_y, gy, alpha=scale, beta=1.0 / m, add=gmy),
    )
    return gx, gy


def factor(
    s: Tensor,  # (d, d), symmetric
) -> Tensor:
    """L with L Lᵀ = s, in fp64 if the GPU is fast at it.

    If s is not positive definite, s + 2 d ε max(diagonal) I takes its place, chosen on the device. If that is not
    positive definite either (rounding aside, this needs a non-finite or all-zero s), the result is NaN.
    """
    wide = s.double() if fast_double(s) else s
    lower, failed = torch.linalg.cholesky_ex(wide)
    ridge = wide.diagonal().amax() * (2 * s.shape[0] * torch.finfo(s.dtype).eps)
    spare, spare_failed = torch.linalg.cholesky_ex(wide + torch.diag_embed(ridge.expand(s.shape[0])))
    return torch.where(failed == 0, lower, torch.where(spare_failed == 0, spare, torch.nan)).contiguous()


def inverse_factor(
    s: Tensor,  # (d, d), symmetric
) -> Tensor:
    """L⁻¹ for the L of `factor`."""
    lower = factor(s)
    eye = torch.eye(s.shape[0], dtype=lower.dtype, device=s.device)
    return torch.linalg.solve_triangular(lower, eye, upper=False).to(s.dtype).contiguous()


def _whitening_type(x: Tensor, zca: bool) -> torch.dtype:
    """fp64 for ZCA: nothing may wait to see whether fp32 can represent this covariance's inverse root."""
    return torch.float64 if zca else accumulation_dtype(x.dtype)


@implement("whiten", "CUDA", "kernels")
def whiten(x: Tensor, ridge: float, zca: bool) -> Tensor:
    x = rows(x)
    xx, _, _, (shift,) = moments(x, None, ridge, 0.0, _whitening_type(x, zca))
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    products("nt", Product((Term(x, symmetric_roots(factor(xx))[1] if zca else inverse_factor(xx), shift),), out))
    return out


@implement("whiten_backward", "CUDA", "kernels")
def whiten_backward(grad: Tensor, x: Tensor, ridge: float, zca: bool) -> Tensor:
    """(G − mean G) Aᵀ + 2 Xc GS/(m − 1) with

    Cholesky  A = L⁻ᵀ    GS = −½ L⁻ᵀ (N + Nᵀ) L⁻¹, N = tril(GᵀW) with half its diagonal
    ZCA       A = S^−½   S^½ GS + GS S^½ = −A sym(GᵀXc) A
    """
    x, grad = rows(x), rows(grad)
    scale = 1.0 / (x.shape[0] - 1)
    xx, _, _, (sx,) = moments(x, None, ridge, 0.0, _whitening_type(x, zca))
    (sg,) = column_means(grad, dtype=xx.dtype)
    cross = torch.empty_like(xx)
    products("tn", Product((Term(grad, x, sg, sx),), cross))
    if zca:
        root, inverse = symmetric_roots(factor(xx))
        own = lyapunov(
            root, product("nn", product("nn", inverse, cross + cross.mT), inverse, symmetric=True, alpha=0.5)
        )
    else:
        inverse = inverse_factor(xx)
        n = product("nt", cross, inverse).tril_()  # torch's fp32 products may be in TF32
        n.diagonal().mul_(0.5)
        own = product("tn", inverse, product("nn", n + n.mT, inverse), symmetric=True)
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    products("nn", Product((Term(grad, inverse, sg), Term(x, own.mul_(-scale), sx)), out))
    return out
