"""Compiles the CUDA sources with g++ for the emulation in host_cuda.h, once per change, into build/host."""

from __future__ import annotations

import hashlib
import importlib.util
import subprocess
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType

import pybind11

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
BUILD = ROOT / "build" / "host"
FLAGS = [
    "-std=c++17",
    "-O1",
    "-g1",
    "-fPIC",
    "-fvisibility=hidden",
    "-Wall",
    "-Wextra",
    "-Werror",
    "-Wno-unknown-pragmas",
    # gcc 12 reports arrays that a fibre fills as uninitialised, and captures as clobbered by setjmp.
    "-Wno-maybe-uninitialized",
    "-Wno-clobbered",
    "-fsanitize=undefined",
    "-fno-sanitize=vptr",
    "-fno-sanitize-recover=all",
    "-DXMODAL_HOST_EMULATION",
    '-DXMODAL_CUDA_ARCHS="host"',
    "-DXMODAL_WITH_CUDA",
    '-DPYBIND11_COMPILER_TYPE="host"',  # keeps its types apart from the real module's
    f"-I{HERE}",
    f"-I{ROOT / 'csrc' / 'include'}",
    f"-I{ROOT / 'csrc' / 'cuda'}",
    f"-isystem{pybind11.get_include()}",
    f"-isystem{sysconfig.get_paths()['include']}",
]


def compiled(source: Path, *defines: str) -> Path:
    """The object file of a source, recompiled if the source, a header or the flags have changed."""
    headers = [*ROOT.glob("csrc/**/*.h"), *ROOT.glob("csrc/**/*.cuh"), *HERE.glob("*.h")]
    headers += source.parent.rglob("*.cuh")
    text = b"".join(path.read_bytes() for path in sorted([source, *headers]))
    key = hashlib.sha256(text + " ".join([str(source), *FLAGS, *defines]).encode()).hexdigest()[:16]
    target = BUILD / f"{source.stem}-{key}.o"
    if not target.exists():
        BUILD.mkdir(parents=True, exist_ok=True)
        partial = target.with_suffix(f".{id(target)}.partial")
        run("g++", *FLAGS, *defines, "-x", "c++", "-c", str(source), "-o", str(partial))
        partial.replace(target)
    return target


def linked(objects: list[Path], suffix: str, *flags: str) -> Path:
    """An executable or shared library, named by a hash of its objects."""
    key = hashlib.sha256(" ".join(map(str, objects)).encode()).hexdigest()[:16]
    target = BUILD / f"{key}{suffix}"
    if not target.exists():
        partial = target.with_suffix(f".{id(target)}.partial")
        run("g++", *flags, "-fsanitize=undefined", *map(str, objects), "-lpthread", "-o", str(partial))
        partial.replace(target)
    return target


def run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stderr}"


def module(replaced: dict[str, Path] | None = None) -> ModuleType:
    """The native module with all kernels in csrc/cuda emulated; its CPU kernels are those of the baseline set.

    `replaced` maps the names of sources in csrc/cuda to files that are compiled instead, with a deliberate bug.
    """
    sources = [*ROOT.glob("csrc/bindings/*.cpp"), *ROOT.glob("csrc/cpu/*.cpp"), HERE / "host.cpp"]
    sources += [path for path in ROOT.glob("csrc/cuda/*.cu") if path.name != "device.cu"]  # host.cpp replaces it
    sources = sorted((replaced or {}).get(path.name, path) for path in sources)
    with ThreadPoolExecutor(2) as pool:
        objects = list(pool.map(compiled, sources))
    path = linked(objects, ".so", "-shared")
    spec = importlib.util.spec_from_file_location("_C", path)
    assert spec is not None
    assert spec.loader is not None
    native = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(native)
    return native


def mutant(name: str, kernel: str, text: str, replacement: str) -> dict[str, Path]:
    """A copy of csrc/cuda/<kernel>.cu whose headers differ in one place, as an argument of `module`."""
    original, folder, count = ROOT / "csrc" / "cuda", BUILD / name, 0
    (folder / "detail").mkdir(parents=True, exist_ok=True)
    for header in [original / f"{kernel}.cuh", *original.glob("detail/*.cuh")]:
        content = header.read_text()
        count += content.count(text)
        (folder / header.relative_to(original)).write_text(content.replace(text, replacement))
    assert count == 1, f"the text to be replaced occurs {count} times"
    source = folder / f"{kernel}.cu"
    source.write_text((original / f"{kernel}.cu").read_text() + f"// {name}\n")
    return {source.name: source}


def executable(source: Path, *defines: str) -> Path:
    return linked([compiled(source, *defines)], "")
