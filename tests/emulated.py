"""A device without float64, emulated: tensors that claim to be on a device, and refuse float64 as Apple's does.

The device is "meta", the only one that torch knows without a library of its own. Tests add it to
`_dtypes.WITHOUT_FP64`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

DEVICE = torch.device("meta")


class Emulated(Tensor):
    """Wraps a CPU tensor; ops run on the CPU, and none may mix devices or make a float64 tensor on this one."""

    inner: Tensor

    @staticmethod
    def __new__(cls, inner: Tensor) -> Emulated:
        if inner.dtype == torch.float64:
            raise TypeError("Cannot convert a MPS Tensor to float64 dtype as the MPS framework doesn't support float64")
        return Tensor._make_wrapper_subclass(  # type: ignore[attr-defined,no-any-return]
            cls, inner.shape, inner.stride(), inner.storage_offset(), dtype=inner.dtype, device=DEVICE
        )

    def __init__(self, inner: Tensor) -> None:
        self.inner = inner

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        moves = func in (torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default)
        target = kwargs.get("device")
        on_cpu = target is not None and torch.device(target).type == "cpu"
        if target is not None:
            kwargs["device"] = "cpu"

        def unwrap(x: Any) -> Any:
            if isinstance(x, Tensor) and not isinstance(x, Emulated) and x.ndim and not moves:
                raise RuntimeError(f"{func} mixes the CPU and the emulated device")
            return x.inner if isinstance(x, Emulated) else x

        out = func(*tree_map(unwrap, args), **tree_map(unwrap, kwargs))
        if func._schema.name.endswith("_") or func is torch.ops.aten.copy_.default:
            return args[0]
        if on_cpu:
            return out
        return tree_map(lambda x: Emulated(x) if isinstance(x, Tensor) else x, out)


class DeviceWithoutFloat64(TorchDispatchMode):
    """Lets tensors be moved to the emulated device, and be made on it."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if Emulated in types:
            return Emulated.__torch_dispatch__(func, types, args, kwargs)
        device = kwargs.get("device")
        if device is None or torch.device(device).type != DEVICE.type:
            return func(*args, **kwargs)
        return Emulated(func(*args, **kwargs | {"device": "cpu"}))


def emulated(x: Tensor) -> Tensor:
    """A copy of x on the emulated device."""
    return Emulated(x.detach().clone())
