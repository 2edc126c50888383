"""The trace norm loss of deep CCA: schema, implementations, autograd and the public function."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .. import _C, _checks
from .._dtypes import HALVES, accumulation_dtype, full_precision
from ._library import define, implement
from .autograd import apply, differentiable_once
from .covariance import native, native_backward
from .portable import trace_norm as portable


def _fake(x: Tensor, y: Tensor, rx: float, ry: float, top_k: int, need_x: bool, need_y: bool) -> tuple[Tensor, ...]:
    value = x.new_empty(x.shape[:-2], dtype=accumulation_dtype(x.dtype))
    return value, torch.empty_like(x) if need_x else x.new_empty(0), torch.empty_like(y) if need_y else y.new_empty(0)


define("trace_norm", portable.trace_norm, _fake)

# For sizes that the native trace norm does not serve: its covariances, and torch's LAPACK.
_by_lapack = functools.partial(portable.trace_norm, products=portable.Products(native, native_backward))


@implement("trace_norm", "CPU", "C++ to d = 256, C++ and torch")
def _cpu(
    x: Tensor,  # (m, dx) or (B, m, dx)
    y: Tensor,  # (m, dy) or (B, m, dy)
    rx: float,
    ry: float,
    top_k: int,
    need_x: bool,
    need_y: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    (m, dx), dy = x.shape[-2:], y.shape[-1]
    if x.dtype in HALVES:
        value, gx, gy = _cpu(x.float(), y.float(), rx, ry, top_k, need_x, need_y)
        return value, gx.to(x.dtype), gy.to(y.dtype)
    # Up to this dimension of both views the native code beats torch's LAPACK; measured by bench/trace_norm.py.
    if max(dx, dy) > _C.TRACE_NORM_MAX_DIM or m <= max(dx, dy) or top_k < min(dx, dy):
        return _by_lapack(x, y, rx, ry, top_k, need_x, need_y)
    x = x if x.stride(-1) == 1 else x.contiguous()
    y = y if y.stride(-1) == 1 else y.contiguous()
    problems, threads = x.shape[0] if x.ndim == 3 else 1, torch.get_num_threads()
    value = x.new_empty(x.shape[:-2], dtype=torch.float64)
    gx = x.new_empty(x.shape if need_x else 0)
    gy = y.new_empty(y.shape if need_y else 0)
    batch = _C.TraceNorm(
        x=x.data_ptr(),
        y=y.data_ptr(),
        wide=x.dtype == torch.float64,
        problems=problems,
        m=m,
        dx=dx,
        dy=dy,
        x_stride=x.stride(-2),
        y_stride=y.stride(-2),
        x_problem_stride=x.stride(0),
        y_problem_stride=y.stride(0),
        rx=rx,
        ry=ry,
        value=value.data_ptr(),
        grad_x=gx.data_ptr() if need_x else 0,
        grad_y=gy.data_ptr() if need_y else 0,
        threads=threads,
    )
    workspace = torch.empty(batch.workspace_size(), dtype=torch.uint8)
    batch.workspace = workspace.data_ptr()
    if not _C.trace_norm(batch):
        if x.ndim == 2:
            return _by_lapack(x, y, rx, ry, top_k, need_x, need_y)
        for i in value.isnan().nonzero()[:, 0].tolist():
            results = _by_lapack(x[i], y[i], rx, ry, top_k, need_x, need_y)
            for whole, part, needed in zip((value, gx, gy), results, (True, need_x, need_y)):
                if needed:
                    whole[i] = part
    return value.to(x.dtype), gx, gy


class _TraceNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor, rx: float, ry: float, top_k: int) -> Tensor:
        need_x, need_y = ctx.needs_input_grad[:2]
        value, gx, gy = torch.ops.xmodal.trace_norm(x, y, rx, ry, top_k, need_x, need_y)
        ctx.save_for_backward(gx, gy, x, y)
        return -value

    @staticmethod
    @differentiable_once("trace_norm_loss")
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        gx, gy, _, _ = ctx.saved_tensors
        need_x, need_y = ctx.needs_input_grad[:2]
        return _scaled(gx, grad) if need_x else None, _scaled(gy, grad) if need_y else None, None, None, None


def _scaled(gradient: Tensor, by: Tensor) -> Tensor:
    """The gradient of the loss −value, times the incoming gradient `by` of each problem."""
    return gradient * -by if by.ndim == 0 else (gradient * -by[:, None, None]).to(gradient.dtype)


def trace_norm_loss(x: Tensor, y: Tensor, *, ridge: float | Sequence[float] = 1e-3, top_k: int | None = None) -> Tensor:
    """Minus the total correlation of two views: the objective of deep CCA, to be minimised.

    Args:
        x: (m, dx) outputs of one network, rows are samples; fp64, fp32, bf16 or fp16 (accumulated in fp32). Or
            (B, m, dx), a batch of B independent problems.
        y: (m, dy) or (B, m, dy) outputs of the other network; row i is the partner of row i of x. The wider
            dtype of both counts; each gradient has its own.
        ridge: added to the diagonals of the covariances (which divide by m − 1), in squared units of the outputs; a
            number or a pair (rx, ry).
        top_k: the number of leading canonical correlations that count (Ky Fan norm); all by default.

    Returns:
        A scalar in (−min(dx, dy), 0], fp32 for half inputs: −‖T‖_*, T = (Sxx + rx I)^(−1/2) Sxy (Syy + ry I)^(−1/2).
        For a batch, (B,).

    Raises:
        ValueError: a shape, a device, the ridge or top_k is invalid, or m < 2.
        TypeError: a dtype is invalid.

    The gradient is exact, in closed form, and finite for dead units, constant or identical views, repeated rows and
    repeated correlations; directions without correlation take the subgradient 0. On the CPU, fp32 inputs are computed
    in fp64 if the covariances are too ill conditioned for fp32. With ridge 0 and a singular covariance, a ridge of
    rounding size is added, and increased until it factorises. Non-finite inputs give non-finite results. Differentiable
    once.

    Time O(m d² + d³), or O(m² d + m³) for a view with m <= d (dual side); memory O(m d + d²). Small problems of a batch
    with m > d are solved in parallel (d <= 256 and all correlations on the CPU, d <= 128 on CUDA).
    Yan & Mikolajczyk, "Deep Correlation for Matching Images and Text", CVPR 2015, §3.2; Andrew et al., ICML 2013.

    >>> loss = trace_norm_loss(image_net(images), text_net(texts))
    >>> loss.backward()
    """
    x, y = _checks.pair(x, y, batched=True)
    rx, ry = _checks.ridges(ridge)
    k = _checks.leading(top_k, x.shape[-1], y.shape[-1])
    with full_precision(x.device):
        loss: Tensor = apply(_TraceNorm, x, y, rx, ry, k)
        return loss
