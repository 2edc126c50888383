"""What the autograd functions of all losses share: how they are called, and one refusal of second derivatives.

Their gradients are closed forms, computed without a graph of their own. With `create_graph=True` such a gradient would
count as a constant, so that a gradient penalty would add nothing, silently. Here it stays connected to the inputs
instead, by a node that raises if a second backward pass reaches it.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

Backward = Callable[..., tuple[Any, ...]]


def apply(function: type[torch.autograd.Function], *args: Any) -> Any:
    """`function.apply(*args)`; torch.compile, which refuses a tensor that comes twice, sees a view for each."""
    if torch.compiler.is_compiling():
        args = tuple(a.view_as(a) if isinstance(a, Tensor) else a for a in args)
    return function.apply(*args)


class _Refuse(torch.autograd.Function):
    """The identity of a gradient, as a function of the tensors that it was computed from."""

    @staticmethod
    def forward(ctx: Any, name: str, gradient: Tensor, *sources: Tensor) -> Tensor:
        ctx.name = name
        return gradient.clone()

    @staticmethod
    def backward(ctx: Any, _: Tensor) -> tuple[Tensor | None, ...]:
        raise RuntimeError(f"{ctx.name} is differentiable once: its gradient has no derivative (create_graph=True)")


def differentiable_once(name: str) -> Callable[[Backward], Backward]:
    """Decorates `backward` of the named function. `forward` must save all of its differentiable inputs."""

    def decorate(backward: Backward) -> Backward:
        @functools.wraps(backward)
        def wrapped(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
            if torch.compiler.is_compiling() or not torch.is_grad_enabled():
                return backward(ctx, *grads)
            with torch.no_grad():
                gradients = backward(ctx, *grads)
            sources = [t for t in (*grads, *ctx.saved_tensors) if t is not None]
            return tuple(None if g is None else _Refuse.apply(name, g, *sources) for g in gradients)

        return wrapped

    return decorate
