"""Canonical correlations and their weighted sums in plain torch, with gradients in closed form.

The trace norm objective of deep CCA (Yan & Mikolajczyk, CVPR 2015; Andrew et al., ICML 2013) is Σ σᵢ of

    T = Lx⁻¹ Sxy Ly⁻ᵀ = U Σ Vᵀ      Sxx = Lx Lxᵀ,  Syy = Ly Lyᵀ

since singular values ignore which whitening is taken. For f = Σ wᵢ σᵢ and P = U diag(w) Vᵀ, *primal* side:

    Gxy = Lx⁻ᵀ P Ly⁻¹      Gxx = −½ Lx⁻ᵀ U diag(wσ) Uᵀ Lx⁻¹      Gyy = −½ Ly⁻ᵀ V diag(wσ) Vᵀ Ly⁻¹
    ∂f/∂X = (2 Xc Gxx + Yc Gxyᵀ) / (m − 1)      ∂f/∂Y = (2 Yc Gyy + Xc Gxy) / (m − 1)

*Dual* side, for a view with m ≤ d: K = Xc Xcᵀ / (m − 1) = Q Λ Qᵀ and H = K (K + r I)⁻¹ = F Fᵀ, F = Q √(Λ / (Λ + r)),
take the place of the whitened view, so that T = Fxᵀ Fy is m×m, and

    ∂f/∂X = r / (m − 1) · (K + r I)⁻¹ Fy Pᵀ Fx⁺ (K + r I)⁻¹ Xc

which is the primal formula after its cancelling terms are taken out: in fp32 it keeps the digits they lose.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .covariance import Covariance, accumulation_type, center, covariance, covariance_backward, gram, ridged

_solve = torch.linalg.solve_triangular

# fp32 is given up for fp64 where rounding of the moments would move the gradient by more than about this.
FP32_TOLERANCE = 1e-3
# Keeps 0/0 out of directions that a mask drops.
_TINY = 1e-30


class Products(NamedTuple):
    """How the work that grows with the rows is done: the covariances, and the gradient by them."""

    covariance: Callable[[Tensor, Tensor, float, float], Covariance] = covariance
    backward: Callable[[Tensor, Tensor, Covariance], tuple[Tensor, Tensor | None]] = covariance_backward


_TORCH = Products()


class Adjoints(NamedTuple):
    """Singular values of T, and the derivatives of Σ wᵢ σᵢ by Sxx, Sxy and Syy."""

    sigma: Tensor
    xx: Tensor
    xy: Tensor
    yy: Tensor


def textbook(x: Tensor, y: Tensor, rx: float, ry: float, top_k: int) -> Tensor:
    """Σ of the leading canonical correlations by eigh and svdvals: the definition, differentiable by autograd."""

    def inverse_root(s: Tensor) -> Tensor:
        w, q = torch.linalg.eigh(s)
        return (q * w.rsqrt()) @ q.mT

    m = x.shape[0]
    xc, yc = x - x.mean(0), y - y.mean(0)
    eye_x, eye_y = (torch.eye(v.shape[1], dtype=v.dtype, device=v.device) for v in (x, y))
    t = (
        inverse_root(xc.mT @ xc / (m - 1) + rx * eye_x)
        @ (xc.mT @ yc / (m - 1))
        @ inverse_root(yc.mT @ yc / (m - 1) + ry * eye_y)
    )
    return torch.linalg.svdvals(t)[:top_k].sum()


class _Spectrum(NamedTuple):
    """Σ, P = U diag(w) Vᵀ, U diag(wσ) Uᵀ and V diag(wσ) Vᵀ of a matrix."""

    sigma: Tensor
    polar: Tensor
    left: Tensor
    right: Tensor


def _spectrum(t: Tensor, weights: Tensor) -> _Spectrum:
    """Where σ = 0 to rounding, the subgradient 0 is taken.

    fp32 goes through eigh(TᵀT) in fp64: the square costs half the digits, of which fp64 has twice as many, and the
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


def cholesky(s: Tensor) -> Tensor:
    """The factor of s; where s is not positive definite, of s with the smallest ridge found that makes it so.

    The ridge starts at rounding's size and grows hundredfold, in place. Non-finite s gives a factor of NaN.
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


def adjoints(s: Covariance, weights: Tensor) -> Adjoints:
    """Value and derivatives by the moments alone: all that a gradient needs besides one product per chunk of rows."""
    assert s.xy is not None and s.yy is not None
    return _adjoints(cholesky(s.xx), s.xy, cholesky(s.yy), weights)


def _adjoints(lx: Tensor, sxy: Tensor, ly: Tensor, weights: Tensor) -> Adjoints:
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
    """One centred view as its whitened factor F (m, p), primal or dual, and the way back from ∂f/∂F = cotangent."""

    def __init__(self, xc: Tensor, ridge: float) -> None:
        self.xc, self.ridge, self.scale = xc, ridge, 1.0 / (xc.shape[0] - 1)
        m, d = xc.shape
        self.dual = m <= d
        self.error = float("inf")  # what rounding of the moments can do to the result, relatively
        s = gram(xc.mT if self.dual else xc).mul_(self.scale)
        self.finite = bool(torch.isfinite(s).all())
        if not self.finite:
            return
        if not self.dual:
            self.lower = cholesky(ridged(s, ridge))
            self.error = cholesky_error(self.lower)
            self.factor = _solve(self.lower.mT, xc, upper=True, left=False) * self.scale**0.5
            return
        # Centring leaves K the null vector (1, …, 1). It is moved to the middle of the spectrum, where rounding's share
        # in it is not blown up by 1/r, and taken out of F instead.
        self.values, self.q = torch.linalg.eigh(s + s.trace() / m**2)
        noise = 4 * torch.finfo(s.dtype).eps * float(self.values[-1])
        least = max(float(self.values[0]), _TINY)
        self.error = noise * ridge / (least * (least + ridge))
        self.values = torch.where(self.values > 4 * noise, self.values, 0)
        factor = self.q * (self.values / (self.values + ridge).clamp_min(_TINY)).sqrt()
        self.factor = factor - factor.mean(0)

    def gradient(self, cotangent: Tensor, self_part: Tensor) -> Tensor:
        """∂f/∂X from the other view's F Pᵀ (m, p) and this one's U diag(wσ) Uᵀ (p, p)."""
        if not self.dual:
            inner = cotangent - self.factor @ self_part
            return _solve(self.lower, inner, upper=False, left=False) * self.scale**0.5
        shrunk = 1 / (self.values + self.ridge).clamp_min(_TINY)
        back = torch.where(self.values > 0, (shrunk / self.values.clamp_min(_TINY)).sqrt(), 0)
        core = (self.q * shrunk) @ (self.q.mT @ cotangent) * back
        return (core @ self.q.mT).mul_(self.ridge * self.scale) @ self.xc


def condition(factor: Tensor) -> float:
    """A lower bound of the condition number of S, from its Cholesky factor, infinite for a factor of NaN."""
    pivots = factor.diagonal()
    largest, smallest = float(pivots.max()), float(pivots.min())
    return (largest / smallest) ** 2 if smallest > 0 else float("inf")


def cholesky_error(factor: Tensor) -> float:
    """What rounding of S can do to S⁻¹: eps × (a lower bound of) the condition number."""
    return torch.finfo(factor.dtype).eps * condition(factor)


def _gap_error(sigma: Tensor, weights: Tensor) -> float:
    """What rounding of T can do to the leading k singular pairs as a whole: eps over the gap that sets them apart."""
    k = weights.shape[0]
    if k >= sigma.shape[0]:
        return 0.0
    return 4 * torch.finfo(sigma.dtype).eps / max(float(sigma[k - 1] - sigma[k]), _TINY)


def correlations(
    x: Tensor,
    y: Tensor,
    rx: float,
    ry: float,
    weights: Tensor,
    need_x: bool,
    need_y: bool,
    products: Products = _TORCH,
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """All singular values, and the gradients of Σ wᵢ σᵢ over the leading len(weights) of them.

    Each view stands on its primal or its dual side, whichever is smaller. fp32 is tried first; where its moments are
    too ill conditioned for it, everything is done again in fp64.
    """
    if x.dtype in (torch.float16, torch.bfloat16):
        wide = accumulation_type(x.dtype)
        sigma, gx, gy = correlations(x.to(wide), y.to(wide), rx, ry, weights, need_x, need_y, products)
        return sigma, None if gx is None else gx.to(x.dtype), None if gy is None else gy.to(y.dtype)
    result, error = _attempt(x, y, rx, ry, weights, need_x, need_y, products)
    # The reversed comparison sends NaN, too, to fp64, which may overflow less.
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
            return (x, None, None), error  # not worth finishing
        a = _adjoints(lx, s.xy, ly, weights)
        error = max(error, _gap_error(a.sigma, weights))
        if not (need_x or need_y):
            return (a.sigma, None, None), error
        nothing = torch.zeros_like(s.mean_x), torch.zeros_like(s.mean_y)
        of_x, of_y = products.backward(x, y, Covariance(a.xx, a.xy, a.yy, *nothing))
        return (a.sigma, of_x if need_x else None, of_y if need_y else None), error
    if x.dtype == torch.float32 and (m > dx or m > dy):
        return (x, None, None), float("inf")  # the primal view's gradient is what the dual one's terms leave over
    vx, vy = _View(center(x)[0], rx), _View(center(y)[0], ry)
    if not (vx.finite and vy.finite):
        nan = torch.nan
        return (x.new_full((min(dx, dy),), nan), torch.full_like(x, nan), torch.full_like(y, nan)), float("inf")
    t = vx.factor.mT @ vy.factor
    f = _spectrum(t, weights[: min(t.shape)])
    sigma = torch.zeros(min(dx, dy), dtype=t.dtype, device=t.device)  # at most m − 1 of them are not 0
    sigma[: min(t.shape)] = f.sigma[: min(dx, dy)]
    gx = vx.gradient(vy.factor @ f.polar.mT, f.left) if need_x else None
    gy = vy.gradient(vx.factor @ f.polar, f.right) if need_y else None
    return (sigma, gx, gy), max(vx.error, vy.error, _gap_error(f.sigma, weights))


def trace_norm(
    x: Tensor,
    y: Tensor,
    rx: float,
    ry: float,
    top_k: int,
    need_x: bool,
    need_y: bool,
    products: Products = _TORCH,
) -> tuple[Tensor, Tensor, Tensor]:
    """Σ of the leading k canonical correlations, and its gradients, empty where none is needed; of each of a batch."""
    if x.ndim == 3:
        one = functools.partial(trace_norm, products=products)
        return each_problem(one, x, y, rx, ry, top_k, need_x, need_y)
    ones = torch.ones(top_k, dtype=accumulation_type(x.dtype), device=x.device)
    sigma, gx, gy = correlations(x, y, rx, ry, ones, need_x, need_y, products)
    return sigma[:top_k].sum(), x.new_empty(0) if gx is None else gx, y.new_empty(0) if gy is None else gy


def each_problem(solve: Callable[..., Any], x: Tensor, y: Tensor, *options: Any) -> tuple[Tensor, Tensor, Tensor]:
    """Value and gradients of one pair of views after the other, stacked; `options` end in need_x, need_y."""
    values, gx, gy = zip(*(solve(a, b, *options) for a, b in zip(x, y)))
    need_x, need_y = options[-2:]
    return torch.stack(values), torch.stack(gx) if need_x else gx[0], torch.stack(gy) if need_y else gy[0]
