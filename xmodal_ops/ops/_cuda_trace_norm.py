"""The trace norm by the CUDA kernels; see csrc/cuda/trace_norm.cuh and reference/trace_norm.py for the formulas."""

from __future__ import annotations

import torch
from torch import Tensor

from ..reference import trace_norm as portable
from ..reference.covariance import accumulation_type
from . import _cuda
from ._cuda import Iteration, Product, Term, column_means, count_tiles, matrix, product, products, rows, stream
from ._cuda_moments import inverse_factor, moments

SMALL = 128  # columns up to which one block does all the algebra
ONE_LAUNCH_ROWS = 512  # rows up to which it does the covariances, too
POLAR_EXPRESS_STEPS = 8
TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-8}  # the iteration is cubic: the error is far below the change

Adjoints = tuple[Tensor, Tensor, Tensor, Tensor]  # 2 Gxx/(m − 1), Gxy/(m − 1), its transpose, 2 Gyy/(m − 1)


def trace_norm(
    x: Tensor, y: Tensor, rx: float, ry: float, top_k: int, need_x: bool, need_y: bool
) -> tuple[Tensor, Tensor, Tensor]:
    (m, dx), dy = x.shape, y.shape[1]
    if top_k < min(dx, dy):
        return portable.trace_norm(x, y, rx, ry, top_k, need_x, need_y)
    x, y = rows(x), rows(y)
    if m <= max(dx, dy):
        return dual(x, y, rx, ry, need_x, need_y)
    if max(dx, dy) <= SMALL:
        value, adjoints, shifts = small(x, y, rx, ry)
    else:
        value, adjoints, shifts = large(x, y, rx, ry)
    return value, *_apply(x, y, adjoints, shifts, need_x, need_y)


def _apply(
    x: Tensor, y: Tensor, adjoints: Adjoints, shifts: list[Tensor], need_x: bool, need_y: bool
) -> tuple[Tensor, Tensor]:
    """∂/∂X = Xc·gxx + Yc·gyx and ∂/∂Y = Yc·gyy + Xc·gxy, in one launch."""
    gxx, gxy, gyx, gyy = adjoints
    sx, sy = shifts
    gx, gy = (torch.empty(v.shape if needed else (0,), dtype=v.dtype, device=v.device)
              for v, needed in ((x, need_x), (y, need_y)))  # fmt: skip
    list_ = []
    if need_x:
        list_.append(Product((Term(x, gxx, sx), Term(y, gyx, sy)), gx))
    if need_y:
        list_.append(Product((Term(y, gyy, sy), Term(x, gxy, sx)), gy))
    if list_:
        products("nn", *list_)
    return gx, gy


def small(x: Tensor, y: Tensor, rx: float, ry: float) -> tuple[Tensor, Adjoints, list[Tensor]]:
    """Both views at most 128 wide: the algebra in one launch, and for few rows the covariances with it."""
    dtype, (m, dx), dy = accumulation_type(x.dtype), x.shape, y.shape[1]
    wide = dtype == torch.float64
    value = x.new_empty((), dtype=dtype)
    gxx, gxy, gyx, gyy = (x.new_empty(shape, dtype=dtype) for shape in ((dx, dx), (dx, dy), (dy, dx), (dy, dy)))
    workspace = x.new_empty(_cuda.native.cuda_small_workspace(dx, dy, wide), dtype=dtype)
    given = [0, 0, 0]
    if m <= ONE_LAUNCH_ROWS:
        shifts = [v.new_empty((2, v.shape[1]), dtype=dtype) for v in (x, y)]
    else:
        *s, shifts = moments(x, y, rx, ry)
        given = [t.data_ptr() for t in s if t is not None]
    _cuda.native.cuda_small_trace_norm(
        matrix(x, shifts[0]),
        matrix(y, shifts[1]),
        *given,
        rx,
        ry,
        *(t.data_ptr() for t in (value, gxx, gxy, gyx, gyy, workspace)),
        wide,
        stream(x),
    )
    return value, (gxx, gxy, gyx, gyy), shifts


def polar(t: Tensor) -> Tensor:
    """The polar factor UVᵀ of t = UΣVᵀ, ‖t‖ < 1, by products alone; singular values that are 0 stay 0.

    Always as many launches: those after the iteration has come to rest find so on the device, and only copy.
    """
    p, q = t.shape
    tall, side = p >= q, min(p, q)
    now, following = t, torch.empty_like(t)
    spare = torch.empty_like(t)
    gram, step = t.new_empty((side, side)), t.new_empty((side, side))
    tile = _cuda.choose_tile([((p, q), False)], t.dtype == torch.float64, _cuda.processors(t))
    tiles = count_tiles((p, q), False, tile)
    active = torch.ones(1, dtype=torch.int32, device=t.device)
    change = torch.empty(2 * tiles, dtype=torch.float64, device=t.device)
    for i, (a, b, c) in enumerate(_cuda.native.polar_steps()):
        settling = i >= POLAR_EXPRESS_STEPS
        skip = Iteration(active) if settling else None
        products("tn" if tall else "nt", Product((Term(now, now),), gram, True), may_split=False, iteration=skip)
        products("nn", Product((Term(gram, gram),), step, True, c, b, a, gram), may_split=False, iteration=skip)
        term = Term(now, step) if tall else Term(step, now)
        watch = Iteration(active, now, change) if settling else None
        products("nn", Product((term,), following), may_split=False, iteration=watch, tile=tile)
        if settling:
            _cuda.native.cuda_settle(change.data_ptr(), tiles, TOLERANCE[t.dtype], active.data_ptr(), stream(t))
        now, following = following, (spare if now is t else now)  # t itself is not written to
    return now


def large(x: Tensor, y: Tensor, rx: float, ry: float) -> tuple[Tensor, Adjoints, list[Tensor]]:
    """Primal side with matrices in device memory."""
    scale = 1.0 / (x.shape[0] - 1)
    sxx, sxy, syy, shifts = moments(x, y, rx, ry)
    assert sxy is not None and syy is not None
    ix, iy = inverse_factor(sxx), inverse_factor(syy)
    t = product("nt", product("nn", ix, sxy), iy)
    p = polar(t)
    value = (p * t).sum(dtype=torch.float64).to(t.dtype)
    gxy = product("tn", ix, product("nn", p, iy), alpha=scale)
    gxx = product("tn", ix, product("nn", product("nt", p, t, symmetric=True), ix), symmetric=True, alpha=-scale)
    gyy = product("tn", iy, product("nn", product("tn", p, t, symmetric=True), iy), symmetric=True, alpha=-scale)
    return value, (gxx, gxy, gxy.mT.contiguous(), gyy), shifts


def dual(x: Tensor, y: Tensor, rx: float, ry: float, need_x: bool, need_y: bool) -> tuple[Tensor, Tensor, Tensor]:
    """At most as many rows as columns. With H = K (K + r I)⁻¹ of either view, N = Hx Hy and Z = N^(−1/2):

        value = tr N^(1/2)    ∂f/∂Hx = ½ sym(Hy Z)    ∂f/∂Hy = ½ sym(Z Hx)    ∂f/∂X = 2 r/(m − 1) · M⁻¹ ∂f/∂Hx M⁻¹ Xc

    N has non-negative eigenvalues, so its roots come from products (coupled iteration), in fp64.
    """  # fmt: skip
    m = x.shape[0]
    scale = 1.0 / (m - 1)
    shifts = column_means(x, y)
    # A view with fewer columns than rows has a singular K, in which fp32 noise would be divided by the ridge.
    wide = m > min(x.shape[1], y.shape[1])
    (hx, ix), (hy, iy) = (
        _hat(_kernel(v.double() if wide else v, s, scale), r) for v, s, r in ((x, shifts[0], rx), (y, shifts[1], ry))
    )
    root, inverse = coupled_roots(hx @ hy)
    value = root.diagonal().sum().to(accumulation_type(x.dtype))
    gx, gy = (torch.empty(v.shape if needed else (0,), dtype=v.dtype, device=v.device)
              for v, needed in ((x, need_x), (y, need_y)))  # fmt: skip
    list_ = []
    for needed, v, s, r, i, e, g in (
        (need_x, x, shifts[0], rx, ix, hy @ inverse, gx),
        (need_y, y, shifts[1], ry, iy, inverse @ hx, gy),
    ):
        if needed:
            core = (i @ (e + e.mT) @ i).mul_(0.5 * r * scale).to(accumulation_type(v.dtype))
            list_.append(Product((Term(core, v, None, s),), g))
    if list_:
        products("nn", *list_)
    return value, gx, gy


def _kernel(x: Tensor, shift: Tensor, scale: float) -> Tensor:
    """K = Xc Xcᵀ/(m − 1) in fp64, with its null vector (1, …, 1) exact."""
    shift = shift.to(accumulation_type(x.dtype))
    k = torch.empty((x.shape[0], x.shape[0]), dtype=torch.float64, device=x.device)
    products("nt", Product((Term(x, x, shift, shift),), k, True, scale))
    mean = k.mean(0)
    return k - mean - mean[:, None] + mean.mean()


def _hat(k: Tensor, ridge: float) -> tuple[Tensor, Tensor]:
    """H = K (K + r I)⁻¹ and (K + r I)⁻¹, the null vector of K moved to the middle of the latter's spectrum."""
    m = k.shape[0]
    shifted = k + k.diagonal().sum() / m**2
    shifted.diagonal().add_(ridge)
    inverse_lower = inverse_factor(shifted)
    inverse = inverse_lower.mT @ inverse_lower
    h = k @ inverse
    return 0.5 * (h + h.mT), inverse


def coupled_roots(n: Tensor) -> tuple[Tensor, Tensor]:
    """N^(1/2) and N^(−1/2) of a matrix with real eigenvalues in [0, 1), by products; 0 has a finite inverse here."""
    root, inverse = n, torch.eye(n.shape[0], dtype=n.dtype, device=n.device)
    for a, b, c in _cuda.native.polar_steps()[:DUAL_STEPS]:
        w = inverse @ root
        step = torch.addmm(b * w, w, w, alpha=c)
        step.diagonal().add_(a)
        root, inverse = root @ step, step @ inverse
    return root, inverse


DUAL_STEPS = 16
