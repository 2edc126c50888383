"""Build information, and the implementation of each op: `build_info()`, `python -m xmodal_ops`, `xmodal info`."""

from __future__ import annotations

import platform
from typing import Any

import torch

from . import _C
from ._version import __version__


def build_info() -> dict[str, Any]:
    """Versions, devices, compiled architectures and the implementation of each op, as plain data.

    It does not initialise CUDA, so processes that are forked afterwards can use it.

    Returns:
        A dict with the keys version, python, torch, cuda (bool: this binary contains kernels), cuda_archs (list),
        cuda_unavailable (why the kernels cannot run here, or ""), torch_cuda (torch's CUDA version or None), devices
        (list of names, or of "cuda:0", ... before CUDA is initialised), cpu (instruction set), cpu_threads,
        ops ({op: {"cpu": implementation, "cuda": implementation}}).
    """
    count = torch.cuda.device_count()  # asks NVML, unlike is_available()
    name = torch.cuda.get_device_name if torch.cuda.is_initialized() else "cuda:{}".format
    return {
        "version": __version__,
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "cuda": _C.with_cuda,
        "cuda_archs": _C.cuda_archs(),
        "cuda_unavailable": _C.cuda_unavailable() or ("" if count else "no CUDA device"),
        "torch_cuda": torch.version.cuda,
        "devices": [name(i) for i in range(count)],
        "cpu": _C.instruction_set(),
        "cpu_threads": torch.get_num_threads(),
        "ops": op_paths(),
    }


def op_paths() -> dict[str, dict[str, str]]:
    """The implementation of each op, by device."""
    from .ops._library import OPS

    return {name: dict(paths) for name, paths in sorted(OPS.items())}


def describe() -> str:
    """The same as a table for people."""
    if torch.cuda.is_available():
        torch.cuda.init()  # for the names of devices
    info = build_info()
    kernels = ", ".join(info["cuda_archs"]) if info["cuda"] else "none"
    if info["cuda_unavailable"]:
        kernels += f" (not usable here: {info['cuda_unavailable']})"
    lines = [
        f"xmodal_ops    {info['version']}",
        f"Python        {info['python']}",
        f"torch         {info['torch']} (CUDA {info['torch_cuda'] or 'none'})",
        f"CPU           {info['cpu']}, {info['cpu_threads']} threads",
        f"CUDA kernels  {kernels}",
        f"CUDA devices  {', '.join(info['devices']) or 'none'}",
        "",
        "op                              CPU                       CUDA",
    ]
    lines += [f"{name:<31} {paths['cpu']:<25} {paths['cuda']}" for name, paths in info["ops"].items()]
    return "\n".join(lines)
