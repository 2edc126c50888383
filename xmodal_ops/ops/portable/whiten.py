"""Regularised whitening in plain torch: W = Xc A with A (Sxx + r I) Aᵀ = I, and its gradient.

Cholesky: A = L⁻ᵀ.  ZCA: A = S^(−1/2).  For a cotangent G of W, the gradient of S is

    Cholesky  −L⁻ᵀ sym(Φ(GᵀW)) L⁻¹, Φ: lower triangle, half of the diagonal        (Murray 2016, arXiv:1602.07527)
    ZCA       −Q (sym(Qᵀ Xcᵀ G Q) ∘ 1 / (√λᵢ √λⱼ (√λᵢ + √λⱼ))) Qᵀ, S = Q Λ Qᵀ

and ∂/∂X = J (G Aᵀ + 2 Xc GS / (m − 1)) with the centring J. No denominator is a difference of eigenvalues.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..._dtypes import accumulation_dtype
from .covariance import center, gram, ridged
from .trace_norm import FP32_TOLERANCE, cholesky, cholesky_error

_solve = torch.linalg.solve_triangular


def whiten(
    x: Tensor,  # (m, d)
    ridge: float,
    zca: bool,
) -> Tensor:
    """The centred and whitened rows of x (m, d); computed in fp64 if fp32 cannot factorise the covariance."""
    return _in_safe_precision(x, lambda v: _factor(v, ridge, zca)[0])


def whiten_backward(
    grad: Tensor,  # (m, d)
    x: Tensor,  # (m, d)
    ridge: float,
    zca: bool,
) -> Tensor:
    """∂/∂X of ⟨grad, W⟩ (m, d); recomputes the factor, so that autograd keeps only x."""

    def compute(v: Tensor) -> Tensor:
        w, xc, a, values = _factor(v, ridge, zca)
        g = grad.to(v.dtype)
        if zca:
            inner = a.mT @ (xc.mT @ g) @ a
            root = values.sqrt()
            inner = (inner + inner.mT) / (2 * root * root[:, None] * (root + root[:, None]))
            gs, direct = a @ inner.neg_() @ a.mT, ((g @ a) / root) @ a.mT
        else:
            n = (g.mT @ w).tril_()
            n.diagonal().mul_(0.5)
            inner = _solve(a.mT, n + n.mT, upper=True).mul_(-0.5)
            gs, direct = _solve(a, inner, upper=False, left=False), _solve(a, g, upper=False, left=False)
        out = torch.addmm(direct, xc, gs, alpha=2.0 / (x.shape[0] - 1))
        return out - out.mean(0)

    return _in_safe_precision(x, compute)


class _IllConditioned(Exception):
    """fp32 is too inaccurate for this factorisation."""


def _in_safe_precision(x: Tensor, compute: Callable[[Tensor], Tensor]) -> Tensor:
    try:
        result = compute(x.to(accumulation_dtype(x.dtype)))
    except _IllConditioned:
        result = compute(x.double())
    return result.to(x.dtype)


def _factor(x: Tensor, ridge: float, zca: bool) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """W and Xc, then Q and the eigenvalues for ZCA, L and its diagonal for Cholesky."""
    xc, _ = center(x)
    s = ridged(gram(xc).mul_(1.0 / (x.shape[0] - 1)), ridge)
    if not torch.isfinite(s).all():
        nan = torch.full_like(s, torch.nan)
        return torch.full_like(x, torch.nan), xc, nan, nan.diagonal()
    if zca:
        values, q = torch.linalg.eigh(s)
        noise = torch.finfo(s.dtype).eps * float(values[-1])
        if s.dtype == torch.float32 and float(values[0]) < 1e3 * noise:
            raise _IllConditioned
        values = values.clamp_min(noise * s.shape[0] or 1.0)  # a singular covariance is whitened where it has variance
        return ((xc @ q) * values.rsqrt()) @ q.mT, xc, q, values
    factor = cholesky(s)
    if s.dtype == torch.float32 and not cholesky_error(factor) < FP32_TOLERANCE:
        raise _IllConditioned
    return _solve(factor.mT, xc, upper=True, left=False), xc, factor, factor.diagonal()
