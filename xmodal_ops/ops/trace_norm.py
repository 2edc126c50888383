"""The trace norm loss of deep CCA: schema, implementations, autograd and the public function."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .. import _C, _checks
from ._library import define, full_precision, implement
from .covariance import native, native_backward
from .portable import trace_norm as reference


def _fake(x: Tensor, y: Tensor, rx: float, ry: float, top_k: int, need_x: bool, need_y: bool) -> tuple[Tensor, ...]:
    value = x.new_empty(x.shape[:-2], dtype=torch.float32 if x.dtype in (torch.float16, torch.bfloat16) else x.dtype)
    return value, torch.empty_like(x) if need_x else x.new_empty(0), torch.empty_like(y) if need_y else y.new_empty(0)


define(
    "trace_norm(Tensor x, Tensor y, float rx, float ry, int top_k, bool need_x, bool need_y)"
    " -> (Tensor, Tensor, Tensor)",
    reference.trace_norm,
    _fake,
)

_NATIVE = reference.Products(native, native_backward)

# Up to this dimension of both views the native code beats torch's LAPACK; measured by bench/trace_norm.py.
_NATIVE_MAX_DIM = _C.TRACE_NORM_MAX_DIM


def _cpu(
    x: Tensor, y: Tensor, rx: float, ry: float, top_k: int, need_x: bool, need_y: bool
) -> tuple[Tensor, Tensor, Tensor]:
    (m, dx), dy = x.shape[-2:], y.shape[-1]
    if x.dtype in (torch.float16, torch.bfloat16):
        value, gx, gy = _cpu(x.float(), y.float(), rx, ry, top_k, need_x, need_y)
        return value, gx.to(x.dtype), gy.to(y.dtype)
    if max(dx, dy) > _NATIVE_MAX_DIM or m <= max(dx, dy) or top_k < min(dx, dy):
        return reference.trace_norm(x, y, rx, ry, top_k, need_x, need_y, _NATIVE)
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
            return reference.trace_norm(x, y, rx, ry, top_k, need_x, need_y, _NATIVE)
        for i in value.isnan().nonzero()[:, 0].tolist():
            results = reference.trace_norm(x[i], y[i], rx, ry, top_k, need_x, need_y, _NATIVE)
            for whole, part, needed in zip((value, gx, gy), results, (True, need_x, need_y)):
                if needed:
                    whole[i] = part
    return value.to(x.dtype), gx, gy


implement("trace_norm", _cpu, "CPU", "C++ to d = 256, C++ and torch")


class _TraceNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor, rx: float, ry: float, top_k: int) -> Tensor:
        need_x, need_y = ctx.needs_input_grad[:2]
        value, gx, gy = torch.ops.xmodal.trace_norm(x, y, rx, ry, top_k, need_x, need_y)
        ctx.save_for_backward(gx, gy)
        return -value

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        gx, gy = ctx.saved_tensors
        need_x, need_y = ctx.needs_input_grad[:2]
        return _scaled(gx, grad) if need_x else None, _scaled(gy, grad) if need_y else None, None, None, None


def _scaled(gradient: Tensor, by: Tensor) -> Tensor:
    """The value's gradient as the loss's, where that of the loss is `by`, one number a problem."""
    return gradient * -by if by.ndim == 0 else (gradient * -by[:, None, None]).to(gradient.dtype)


def trace_norm_loss(x: Tensor, y: Tensor, *, ridge: float | Sequence[float] = 1e-3, top_k: int | None = None) -> Tensor:
    """Minus the total correlation of two views: the objective of deep CCA, to be minimised.

    Args:
        x: (m, dx) outputs of one network, rows are samples; fp64, fp32, bf16 or fp16 (accumulated in fp32). Or
            (B, m, dx), a batch of B problems that have nothing to do with each other.
        y: (m, dy) or (B, m, dy) outputs of the other, row i the partner of row i of x.
        ridge: added to the diagonals of the covariances (which divide by m − 1), in squared units of the outputs; a
            number or a pair (rx, ry).
        top_k: count the leading k canonical correlations only (Ky Fan norm); all by default.

    Returns:
        A scalar in (−min(dx, dy), 0], fp32 for half inputs: −‖T‖_*, T = (Sxx + rx I)^(−1/2) Sxy (Syy + ry I)^(−1/2).
        (B,) of them for a batch.

    Raises:
        ValueError: a rank, a number of rows, m < 2, a device, the ridge or top_k does not fit.
        TypeError: a dtype does not fit.

    The gradient is exact, in closed form, and finite for dead units, constant or identical views, repeated rows and
    repeated correlations; directions without correlation take the subgradient 0. fp32 moves to fp64 by itself where
    the covariances are too ill conditioned for it (on the CPU). With ridge 0 and a singular covariance the smallest
    ridge that factorises is used. Non-finite inputs give non-finite results. Differentiable once.

    O(m d² + d³) time; for a view with m <= d, O(m² d + m³) by the dual side. O(m d + d²) memory. Of a batch, small
    problems with m > d stand side by side (d <= 256 and all correlations on the CPU, d <= 128 on CUDA).
    Yan & Mikolajczyk, "Deep Correlation for Matching Images and Text", CVPR 2015, §3.2; Andrew et al., ICML 2013.

    >>> loss = trace_norm_loss(image_net(images), text_net(texts))
    >>> loss.backward()
    """
    _checks.pair(x, y, batched=True)
    rx, ry = _checks.ridges(ridge)
    k = _checks.leading(top_k, x.shape[-1], y.shape[-1])
    with full_precision(x.device):
        loss: Tensor = _TraceNorm.apply(x, y, rx, ry, k)
        return loss
