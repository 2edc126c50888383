"""Canonical correlations and their weighted sums in plain torch, with gradients in closed form.

The trace norm objective of deep CCA (Yan & Mikolajczyk, CVPR 2015; Andrew et al., ICML 2013) is Σ σᵢ of

    T = Lx⁻¹ Sxy Ly⁻ᵀ = U Σ Vᵀ      Sxx = Lx Lxᵀ,  Syy = Ly Lyᵀ

since singular values do not depend on the choice of whitening. For f = Σ wᵢ σᵢ and P = U diag(w) Vᵀ, *primal* side:

    Gxy = Lx⁻ᵀ P Ly⁻¹      Gxx = −½ Lx⁻ᵀ U diag(wσ) Uᵀ Lx⁻¹      Gyy = −½ Ly⁻ᵀ V diag(wσ) Vᵀ Ly⁻¹
    ∂f/∂X = (2 Xc Gxx + Yc Gxyᵀ) / (m − 1)      ∂f/∂Y = (2 Yc Gyy + Xc Gxy) / (m − 1)

*Dual* side, for a view with m ≤ d: K = Xc Xcᵀ / (m − 1) = Q Λ Qᵀ and H = K (K + r I)⁻¹ = F Fᵀ, F = Q √(Λ / (Λ + r)),
replace the whitened view, so that T = Fxᵀ Fy is m×m, and

    ∂f/∂X = r / (m − 1) · (K + r I)⁻¹ Fy Pᵀ Fx⁺ (K + r I)⁻¹ Xc

which is the primal formula without its cancelling terms: in fp32 it keeps the digits that they lose.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..._dtypes import HALVES, accumulation_dtype
from ..types import Covariance
from .covariance import center, covariance, covariance_backward, gram, ridged

_solve = torch.linalg.solve_triangular

# fp32 is abandoned for fp64 if rounding of the moments would change the gradient by more than about this, relatively.
FP32_TOLERANCE = 1e-3
# Avoids 0/0 in directions that a mask drops.
_TINY = 1e-30


class Products(NamedTuple):
    """The two steps whose cost grows with the rows; the native path replaces them."""

    covariance: Callable[[Tensor, Tensor, float, float], Covariance] = covariance
    backward: Callable[[Tensor, Tensor, Covariance], tuple[Tensor, Tensor | None]] = covariance_backward


_TORCH = Products()


class Adjoints(NamedTuple):
    """Singular values of T, and the derivatives of Σ wᵢ σᵢ by Sxx, Sxy and Syy."""

    sigma: Tensor  # (min(dx, dy),)
    xx: Tensor  # (dx, dx)
    xy: Tensor  # (dx, dy)
    yy: Tensor  # (dy, dy)


class _Spectrum(NamedTuple):
    """Σ, P = U diag(w) Vᵀ, U diag(wσ) Uᵀ and V diag(wσ) Vᵀ of a (p, q) matrix."""

    sigma: Tensor  # (min(p, q),)
    polar: Tensor  # (p, q)
    left: Tensor  # (p, p)
    right: Tensor  # (q, q)


def _spectrum(
    t: Tensor,  # (p, q)
    weights: Tensor,  # (k,) of the leading singular values
) -> _Spectrum:
    """Directions with σ = 0 (to rounding) take the subgradient 0.

    fp32 goes through eigh(TᵀT) in fp64: squaring halves the number of correct digits, which fp64 can afford, and the
    symmetric solver takes half the time of an SVD.
    """
    k = weights.shape[0]
    if t.shape[0] < t.shape[1]:
        swapped = _spectrum(t.mT, weights)
        return _Spectrum(swapped.sigma, swapped.polar.mT, swapped.right, swapped.left)
    if t.dtype == torch.float64:
        u, sigma, vh = torch.linalg.svd(t, full_matrices=False)
        v = vh.mT
        floor = 1e-14
    else:
        squares, v = torch.linalg.eigh(gram(t.double()))
        sigma, v = squares.clamp_min_(0).sqrt_().flip(0), v.flip(1)
        u, floor = None, 1e-6
    leading, w = sigma[:k], torch.where(sigma[:k] > floor, weights.to(sigma.dtype), 0)
    v = v[:, :k]
    right = (v * (w * leading)) @ v.mT
    if u is not None:
        u = u[:, :k]
        return _Spectrum(sigma, (u * w) @ v.mT, (u * (w * leading)) @ u.mT, right)
    polar = t @ ((v * (w / leading.clamp_min(floor))) @ v.mT).to(t.dtype)
    return _Spectrum(sigma.to(t.dtype), polar, polar @ t.mT, right.to(t.dtype))


def cholesky(
    s: Tensor,  # (d, d)
) -> Tensor:
    """The lower factor of s; if s is not positive definite, a ridge is first added to it in place.

    The ridge starts at rounding size and grows by factors of 100 until it suffices. Non-finite s gives NaN.
    """
    factor, info = torch.linalg.cholesky_ex(s)
    if info.item() == 0:
        return factor
    largest = s.diagonal().max().item()
    jitter = torch.finfo(s.dtype).eps * s.shape[0] * (largest if largest > 0 else 1.0)
    for _ in range(6):
        factor, info = torch.linalg.cholesky_ex(ridged(s, jitter))
        if info.item() == 0:
            return factor
        jitter *= 100
    return torch.full_like(s, torch.nan)


def adjoints(
    s: Covariance,
    weights: Tensor,  # (k,) of the leading singular values
) -> Adjoints:
    """Value and derivatives from the moments alone; a gradient then takes one product per chunk of rows."""
    assert s.xy is not None and s.yy is not None
    return _adjoints(cholesky(s.xx), s.xy, cholesky(s.yy), weights)


def _adjoints(
    lx: Tensor,  # (dx, dx) lower factor of Sxx
    sxy: Tensor,  # (dx, dy)
    ly: Tensor,  # (dy, dy)
    weights: Tensor,  # (k,)
) -> Adjoints:
    t = _solve(ly.mT, _solve(lx, sxy, upper=False), upper=True, left=False)
    if not torch.isfinite(t).all():  # LAPACK would raise or loop
        return Adjoints(*(torch.full_like(a, torch.nan) for a in (t.diagonal(), lx, sxy, ly)))
    f = _spectrum(t, weights)
    return Adjoints(
        f.sigma,
        _solve(lx.mT, _solve(lx, f.left, upper=False, left=False), upper=True).mul_(-0.5),
        _solve(lx.mT, _solve(ly, f.polar, upper=False, left=False), upper=True),
        _solve(ly.mT, _solve(ly, f.right, upper=False, left=False), upper=True).mul_(-0.5),
    )


class _View:
    """A centred view as its whitened factor F (m, p), primal or dual, and the gradient of f by it from ∂f/∂F."""

    def __init__(
        self,
        xc: Tensor,  # (m, d)
        ridge: float,
    ) -> None:
        self.xc, self.ridge, self.scale = xc, ridge, 1.0 / (xc.shape[0] - 1)
        m, d = xc.shape
        self.dual = m <= d
        self.error = float("inf")  # relative error of the result that rounding of the moments can cause
        s = gram(xc.mT if self.dual else xc).mul_(self.scale)
        self.finite = bool(torch.isfinite(s).all())
        if not self.finite:
            return
        if not self.dual:
            self.lower = cholesky(ridged(s, ridge))
            self.error = cholesky_error(self.lower)
            self.factor = _solve(self.lower.mT, xc, upper=True, left=False) * self.scale**0.5
            return
        # Centring makes (1, …, 1) a null vector of K. Its eigenvalue is moved to the middle of the spectrum, so that
        # 1/r does not amplify the rounding errors in it; F is centred instead.
        self.values, self.q = torch.linalg.eigh(s + s.trace() / m**2)
        noise = 4 * torch.finfo(s.dtype).eps * float(self.values[-1])
        least = max(float(self.values[0]), _TINY)
        self.error = noise * ridge / (least * (least + ridge))
        self.values = torch.where(self.values > 4 * noise, self.values, 0)
        factor = self.q * (self.values / (self.values + ridge).clamp_min(_TINY)).sqrt()
        self.factor = factor - factor.mean(0)

    def gradient(
        self,
        cotangent: Tensor,  # (m, p): F Pᵀ of the other view
        self_part: Tensor,  # (p, p): U diag(wσ) Uᵀ of this view
    ) -> Tensor:
        """∂f/∂X (m, d)."""
        if not self.dual:
            inner = cotangent - self.factor @ self_part
            return _solve(self.lower, inner, upper=False, left=False) * self.scale**0.5
        shrunk = 1 / (self.values + self.ridge).clamp_min(_TINY)
        back = torch.where(self.values > 0, (shrunk / self.values.clamp_min(_TINY)).sqrt(), 0)
        core = (self.q * shrunk) @ (self.q.mT @ cotangent) * back
        return (core @ self.q.mT).mul_(self.ridge * self.scale) @ self.xc


def condition(
    factor: Tensor,  # (d, d) lower factor of S
) -> float:
    """A lower bound of the condition number of S, from its Cholesky factor; infinite for a factor of NaN."""
    pivots = factor.diagonal()
    largest, smallest = float(pivots.max()), float(pivots.min())
    return (largest / smallest) ** 2 if smallest > 0 else float("inf")


def cholesky_error(
    factor: Tensor,  # (d, d) lower factor of S
) -> float:
    """Relative error of S⁻¹ that rounding of S can cause: eps × (a lower bound of) the condition number."""
    return torch.finfo(factor.dtype).eps * condition(factor)


def _gap_error(sigma: Tensor, weights: Tensor) -> float:
    """Relative error of the leading k singular pairs as a whole: eps over the gap to the next singular value."""
    k = weights.shape[0]
    if k >= sigma.shape[0]:
        return 0.0
    return 4 * torch.finfo(sigma.dtype).eps / max(float(sigma[k - 1] - sigma[k]), _TINY)


def correlations(
    x: Tensor,  # (m, dx)
    y: Tensor,  # (m, dy)
    rx: float,
    ry: float,
    weights: Tensor,  # (k,)
    need_x: bool,
    need_y: bool,
    products: Products = _TORCH,
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """All singular values, and the gradients of Σ wᵢ σᵢ over the leading len(weights) of them.

    Each view takes its primal or its dual side, whichever is smaller. fp32 inputs are tried in fp32 first; if the
    moments are too ill conditioned for it, everything is computed again in fp64.
    """
    if x.dtype in HALVES:
        wide = accumulation_dtype(x.dtype)
        sigma, gx, gy = correlations(x.to(wide), y.to(wide), rx, ry, weights, need_x, need_y, products)
        return sigma, None if gx is None else gx.to(x.dtype), None if gy is None else gy.to(y.dtype)
    result, error = _attempt(x, y, rx, ry, weights, need_x, need_y, products)
    # `not <` sends NaN to fp64, too, which may overflow less.
    if x.dtype == torch.float32 and not error < FP32_TOLERANCE:
        wide_result, _ = _attempt(x.double(), y.double(), rx, ry, weights, need_x, need_y, products)
        result = tuple(None if t is None else t.float() for t in wide_result)  # type: ignore[assignment]
    return result


def _attempt(
    x: Tensor, y: Tensor, rx: float, ry: float, weights: Tensor, need_x: bool, need_y: bool, products: Products
) -> tuple[tuple[Tensor, Tensor | None, Tensor | None], float]:
    m, dx, dy = x.shape[0], x.shape[1], y.shape[1]
    if m > max(dx, dy):
        s = products.covariance(x, y, rx, ry)
        assert s.xy is not None and s.yy is not None and s.mean_y is not None
        lx, ly = cholesky(s.xx), cholesky(s.yy)
        error = max(cholesky_error(lx), cholesky_error(ly))
        if x.dtype == torch.float32 and not error < FP32_TOLERANCE:
            return (x, None, None), error  # discarded by the caller
        a = _adjoints(lx, s.xy, ly, weights)
        error = max(error, _gap_error(a.sigma, weights))
        if not (need_x or need_y):
            return (a.sigma, None, None), error
        nothing = torch.zeros_like(s.mean_x), torch.zeros_like(s.mean_y)
        of_x, of_y = products.backward(x, y, Covariance(a.xx, a.xy, a.yy, *nothing))
        return (a.sigma, of_x if need_x else None, of_y if need_y else None), error
    if x.dtype == torch.float32 and (m > dx or m > dy):
        return (x, None, None), float("inf")  # cancellation in the primal view's gradient: fp64 only
    vx, vy = _View(center(x)[0], rx), _View(center(y)[0], ry)
    if not (vx.finite and vy.finite):
        nan = torch.nan
        return (x.new_full((min(dx, dy),), nan), torch.full_like(x, nan), torch.full_like(y, nan)), float("inf")
    t = vx.factor.mT @ vy.factor
    f = _spectrum(t, weights[: min(t.shape)])
    sigma = torch.zeros(min(dx, dy), dtype=t.dtype, device=t.device)  # at most m − 1 are nonzero
    sigma[: min(t.shape)] = f.sigma[: min(dx, dy)]
    gx = vx.gradient(vy.factor @ f.polar.mT, f.left) if need_x else None
    gy = vy.gradient(vx.factor @ f.polar, f.right) if need_y else None
    return (sigma, gx, gy), max(vx.error, vy.error, _gap_error(f.sigma, weights))


def trace_norm(
    x: Tensor,  # (m, dx) or (B, m, dx)
    y: Tensor,  # (m, dy) or (B, m, dy)
    rx: float,
    ry: float,
    top_k: int,
    need_x: bool,
    need_y: bool,
    *,
    products: Products = _TORCH,
) -> tuple[Tensor, Tensor, Tensor]:
    """The sum of the leading k canonical correlations, () or (B,), and its gradients, empty if not needed."""
    if x.ndim == 3:
        one = functools.partial(trace_norm, products=products)
        return each_problem(one, x, y, rx, ry, top_k, need_x, need_y)
    ones = torch.ones(top_k, dtype=accumulation_dtype(x.dtype), device=x.device)
    sigma, gx, gy = correlations(x, y, rx, ry, ones, need_x, need_y, products)
    return sigma[:top_k].sum(), x.new_empty(0) if gx is None else gx, y.new_empty(0) if gy is None else gy


def each_problem(solve: Callable[..., Any], x: Tensor, y: Tensor, *options: Any) -> tuple[Tensor, Tensor, Tensor]:
    """Values and gradients of a batch, one problem at a time, stacked; the last two `options` are need_x, need_y."""
    values, gx, gy = zip(*(solve(a, b, *options) for a, b in zip(x, y)))
    need_x, need_y = options[-2:]
    return torch.stack(values), torch.stack(gx) if need_x else gx[0], torch.stack(gy) if need_y else gy[0]
