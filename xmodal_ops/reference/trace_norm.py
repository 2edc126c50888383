"""The trace norm objective of deep CCA in plain torch (Yan & Mikolajczyk, CVPR 2015).

With T = Lx⁻¹ Sxy Ly⁻ᵀ (Sxx = Lx Lxᵀ, Syy = Ly Lyᵀ) and the leading k singular triples T ≈ U Σ Vᵀ, P = U Vᵀ:

    value = Σ σᵢ      Gxy = Lx⁻ᵀ P Ly⁻¹      Gxx = −½ Lx⁻ᵀ U Σ Uᵀ Lx⁻¹      Gyy = −½ Ly⁻ᵀ V Σ Vᵀ Ly⁻¹
    ∂/∂X = (2 Xc Gxx + Yc Gxyᵀ) / (m − 1)     ∂/∂Y = (2 Yc Gyy + Xc Gxy) / (m − 1)
"""

from __future__ import annotations

import torch
from torch import Tensor

from .covariance import center, covariance


def textbook(x: Tensor, y: Tensor, rx: float, ry: float, top_k: int) -> Tensor:
    """Σ of the leading canonical correlations by eigh and svdvals: the definition, differentiable by autograd."""
    s = covariance(x, y, rx, ry)
    assert s.xy is not None and s.yy is not None

    def inverse_root(a: Tensor) -> Tensor:
        w, q = torch.linalg.eigh(a)
        return (q * w.rsqrt()) @ q.mT

    t = inverse_root(s.xx) @ s.xy @ inverse_root(s.yy)
    return torch.linalg.svdvals(t)[:top_k].sum()


def trace_norm(
    x: Tensor, y: Tensor, rx: float, ry: float, top_k: int, need_x: bool, need_y: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Value and gradients (empty where not needed) in closed form; fp64 where fp32 cannot factorise."""
    if x.dtype in (torch.float16, torch.bfloat16):
        value, gx, gy = trace_norm(x.float(), y.float(), rx, ry, top_k, need_x, need_y)
        return value, gx.to(x.dtype), gy.to(y.dtype)
    wide, ywide = x.double(), y.double()
    (xc, _), (yc, _) = center(wide), center(ywide)
    scale = 1.0 / (x.shape[0] - 1)
    s = covariance(wide, ywide, rx, ry)
    assert s.xy is not None and s.yy is not None
    lx, ly = torch.linalg.cholesky_ex(s.xx)[0], torch.linalg.cholesky_ex(s.yy)[0]
    t = torch.linalg.solve_triangular(lx, s.xy, upper=False)
    t = torch.linalg.solve_triangular(ly, t.mT, upper=False).mT
    u, sigma, vh = torch.linalg.svd(t, full_matrices=False)
    u, sigma, vh = u[:, :top_k], sigma[:top_k], vh[:top_k]
    a = torch.linalg.solve_triangular(lx.mT, u, upper=True)
    b = torch.linalg.solve_triangular(ly.mT, vh.mT, upper=True)
    xa, yb = xc @ a, yc @ b
    gx = scale * ((yb - xa * sigma) @ a.mT) if need_x else x.new_empty(0)
    gy = scale * ((xa - yb * sigma) @ b.mT) if need_y else y.new_empty(0)
    return sigma.sum().to(x.dtype), gx.to(x.dtype), gy.to(y.dtype)
