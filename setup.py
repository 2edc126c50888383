"""Finds a CUDA compiler for CMake; everything static about the package is in pyproject.toml.

It takes the first of: the compiler of the machine (CUDACXX, PATH, CUDA_HOME, /usr/local/cuda); if there is an NVIDIA
driver, the compiler that NVIDIA publishes on PyPI, as a requirement of the build only; otherwise none. Without a
compiler that works, the CPU module alone is built. XMODAL_CUDA=ON requires the kernels, XMODAL_CUDA=OFF omits them,
XMODAL_WERROR=ON turns warnings into errors.
"""

import os
import shutil
import sys
from pathlib import Path

from setuptools import setup

SWITCH = (os.environ.get("XMODAL_CUDA") or "AUTO").upper()
FORCED = SWITCH in {"ON", "1", "TRUE"}
WANTED = SWITCH not in {"OFF", "0", "FALSE"}
TOOLKITS = os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH"), "/usr/local/cuda"


def has_driver() -> bool:
    # WSL has no /proc entry, and a device node of another name.
    return Path("/proc/driver/nvidia").exists() or Path("/dev/nvidiactl").exists() or Path("/dev/dxg").exists()


def own_nvcc() -> str | None:
    path = os.pathsep.join([os.environ.get("PATH", ""), *(f"{root}/bin" for root in TOOLKITS if root)])
    return os.environ.get("CUDACXX") or shutil.which("nvcc", path=path)


def pypi_nvcc() -> Path | None:
    places = (Path(entry, "nvidia/cu13/bin/nvcc") for entry in sys.path)
    return next((place for place in places if place.is_file()), None)


def cuda_args() -> list[str]:
    chosen = [f"-DXMODAL_CUDA={SWITCH}"]
    if WANTED and (nvcc := own_nvcc()):
        return [*chosen, f"-DCMAKE_CUDA_COMPILER={nvcc}"]
    if WANTED and (place := pypi_nvcc()):  # its libraries are in lib, but nvcc looks in lib64
        return [*chosen, f"-DCMAKE_CUDA_COMPILER={place}", f"-DCMAKE_CUDA_FLAGS=-L{place.parents[1]}/lib"]
    return chosen  # CMake says what is missing


NEEDS_PYPI_NVCC = WANTED and not own_nvcc() and (FORCED or has_driver())
setup(
    cmake_args=[*cuda_args(), f"-DXMODAL_WERROR={os.environ.get('XMODAL_WERROR', 'OFF')}"],
    setup_requires=["cuda-toolkit[nvcc,cudart,cccl]==13.0.*"] if NEEDS_PYPI_NVCC else [],
)
