"""A device without fp64, emulated: wrappers around CPU tensors that say they are on "mps", as Apple's devices.

Inside `Emulation`, calls with tensors of the device run on the CPU and raise, as the device would, if a result on the
device has fp64. Ops take the path that every device without kernels takes.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

from xmodal_ops.ops import _library

DEVICE = torch.device("mps")


class DeviceTensor(Tensor):
    """A tensor on the emulated device."""

    host: Tensor

    @staticmethod
    def __new__(cls, host: Tensor) -> DeviceTensor:
        if host.dtype == torch.float64:
            raise TypeError("the device has no float64")
        result: DeviceTensor = Tensor._make_wrapper_subclass(
            cls, host.shape, host.stride(), host.storage_offset(), dtype=host.dtype, device="cpu"
        )
        result.host = host
        return result

    device = property(lambda self: DEVICE)  # type: ignore[assignment]
    is_cpu = property(lambda self: False)  # type: ignore[assignment]
    is_mps = property(lambda self: True)  # type: ignore[assignment]
    __torch_function__ = torch._C._disabled_torch_function_impl

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return run(func, args, kwargs or {})

    def cpu(self) -> Tensor:  # type: ignore[override]
        return self.host


def to_device(x: Tensor) -> Tensor:
    """x on the device, with its strides: `Tensor.to` does not know the device."""
    return DeviceTensor(x.detach())


def run(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    tensors = [a for a in tree_flatten((args, kwargs))[0] if isinstance(a, Tensor)]
    target = kwargs.get("device")
    here = any(isinstance(t, DeviceTensor) for t in tensors) if target is None else torch.device(target) == DEVICE
    if func.namespace == "xmodal" and here:
        path = _library.anywhere(func._schema.name.split("::")[1])
        with Emulation():
            return path(*args)
    if target is not None and here:
        kwargs = {**kwargs, "device": "cpu"}
    args, kwargs = tree_map(lambda a: a.host if isinstance(a, DeviceTensor) else a, (args, kwargs))
    result = func(*args, **kwargs)
    return tree_map(lambda a: DeviceTensor(a) if isinstance(a, Tensor) and here else a, result)


class Emulation(TorchDispatchMode):
    """Serves factory functions and copies to the device."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return run(func, args, kwargs or {})
