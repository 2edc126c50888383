"""The torch library `xmodal`: how ops are declared, and how their implementations are registered.

The dispatcher takes flat arguments; implementations take them grouped. The signature of the portable implementation
states both: the schema has its arguments, with every NamedTuple replaced by the fields.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Sequence
from itertools import islice
from typing import Any, TypeVar, get_type_hints

import torch
from torch import Tensor

from .. import _C
from .._dtypes import WITHOUT_FP64, full_precision, widest_dtype

Implementation = TypeVar("Implementation", bound=Callable[..., Any])

# The registrations live as long as this object.
LIBRARY = torch.library.Library("xmodal", "DEF")

# Op → device → the path that serves it, for build_info().
OPS: dict[str, dict[str, str]] = {}

_PORTABLE: dict[str, Callable[..., Any]] = {}


class _Signature:
    """The flat signature of a function, and the grouping of flat arguments into its own. Ignores keyword-only ones."""

    def __init__(self, function: Callable[..., Any]) -> None:
        hints = get_type_hints(function)
        flat: list[inspect.Parameter] = []
        self.groups: list[tuple[Callable[..., Any], int] | None] = []
        for name, parameter in inspect.signature(function).parameters.items():
            if parameter.kind is inspect.Parameter.KEYWORD_ONLY:
                continue
            type_ = hints[name]
            if not hasattr(type_, "_fields"):
                self.groups.append(None)
                flat.append(inspect.Parameter(name, parameter.kind, annotation=type_))
                continue
            fields = get_type_hints(type_)
            self.groups.append((type_, len(fields)))
            flat += [inspect.Parameter(f"{name}_{k}", parameter.kind, annotation=t) for k, t in fields.items()]
        self.flat = inspect.Signature(flat, return_annotation=hints["return"])

    def schema(self, name: str) -> str:
        def prototype() -> None: ...

        prototype.__signature__ = self.flat  # type: ignore[attr-defined]
        return torch.library.infer_schema(prototype, mutates_args=(), op_name=name)

    def group(self, flat: Sequence[Any]) -> list[Any]:
        values = iter(flat)
        return [next(values) if g is None else g[0](*islice(values, g[1])) for g in self.groups]


_signature = functools.cache(_Signature)


def flattened(function: Callable[..., Any], like: Callable[..., Any] | None = None) -> Callable[..., Any]:
    """The function with the flat arguments of the op, as its own signature (or that of `like`) states them.

    Results become contiguous: compiled graphs rely on the strides that the fake announced.
    """
    signature = _signature(like or function)

    def wrapped(*args: Any) -> Any:
        device = next(a.device for a in args if isinstance(a, Tensor))
        with full_precision(device):  # backward runs under the autocast of its caller
            result = function(*signature.group(args))
        return result.contiguous() if isinstance(result, Tensor) else tuple(t.contiguous() for t in result)

    return wrapped


def anywhere(name: str) -> Callable[..., Any]:
    """The portable path of an op, on the CPU for devices without fp64 (which lack LAPACK's decompositions, too)."""
    portable = flattened(_PORTABLE[name])

    def wrapped(*args: Any) -> Any:
        device = next(a.device for a in args if isinstance(a, Tensor))
        if device.type not in WITHOUT_FP64:
            return portable(*args)
        result = portable(*(a.cpu() if isinstance(a, Tensor) else a for a in args))
        return _moved(result, device) if isinstance(result, Tensor) else tuple(_moved(t, device) for t in result)

    return wrapped


def _moved(result: Tensor, device: torch.device) -> Tensor:
    dtype = widest_dtype(device) if result.dtype == torch.float64 else result.dtype
    return result.to(dtype).to(device)


def define(name: str, portable: Callable[..., Any], fake: Callable[..., Any]) -> None:
    """Declares an op, with its portable torch implementation (every device) and its shape function."""
    LIBRARY.define(_signature(portable).schema(name), tags=(torch.Tag.pt2_compliant_tag,))
    _PORTABLE[name] = portable
    LIBRARY.impl(name, anywhere(name), "CompositeExplicitAutograd")
    torch.library.register_fake(f"xmodal::{name}", flattened(fake, like=portable), lib=LIBRARY)
    OPS[name] = {"cpu": "torch", "cuda": "torch"}


def implement(name: str, key: str, path: str) -> Callable[[Implementation], Implementation]:
    """Registers the decorated function as the implementation of an op for "CPU" or "CUDA", described by `path`.

    Without kernels in the binary, CUDA keeps the portable path. A device that cannot run them takes it, too; the first
    call finds that out, as importing the package looks at no device.
    """

    def register(function: Implementation) -> Implementation:
        if key == "CUDA" and not _C.with_cuda:
            return function
        portable = _PORTABLE[name]
        implementation = flattened(function, like=portable)
        if key == "CUDA":
            from .cuda.driver import with_fallback

            implementation = with_fallback(implementation, flattened(portable))
        LIBRARY.impl(name, implementation, key)
        OPS[name][key.lower()] = path
        return function

    return register
