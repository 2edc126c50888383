"""The distributed package: an sdist and a wheel, built in isolation without torch and without a CUDA compiler."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def run(*command: str | Path, **options) -> str:
    done = subprocess.run([str(c) for c in command], capture_output=True, text=True, timeout=600, **options)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def checkout(tmp_path_factory) -> Path:
    """The tracked files alone, as in a clone."""
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    folder = tmp_path_factory.mktemp("checkout")
    for name in run("git", "-C", ROOT, "ls-files", "-z").split("\0"):
        if name and (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes((ROOT / name).read_bytes())
    return folder


@pytest.fixture(scope="module")
def wheel(checkout, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    environment = {**os.environ, "XMODAL_CUDA": "OFF"}
    log = run(
        sys.executable, "-m", "pip", "wheel", "-v", "--no-deps", "-w", folder, checkout, env=environment, cwd=folder
    )
    assert "building for the CPU only" in log
    assert "Collecting torch" not in log
    (found,) = folder.glob("*.whl")
    return found


def test_wheel_holds_what_users_need(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    assert any(name.startswith("xmodal_ops/_C.") and name.endswith((".so", ".pyd")) for name in names)
    assert {"xmodal_ops/py.typed", "xmodal_ops/_C.pyi", "xmodal_ops/models/dcca.py"} <= set(names)
    assert not any(name.startswith(("tests/", "bench/", "csrc/")) for name in names)


def test_wheel_works_from_elsewhere(wheel, tmp_path):
    zipfile.ZipFile(wheel).extractall(tmp_path / "site")
    code = (
        "import torch, xmodal_ops as x; print(x.__file__); print(x.build_info()['cuda'], x.build_info()['cuda_archs'])"
    )
    code += "; print(float(x.trace_norm_loss(torch.eye(5)[:, :2], torch.eye(5)[:, 1:3])))"
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "site")}
    path, facts, value = run(sys.executable, "-c", code, env=environment, cwd=tmp_path).splitlines()
    assert Path(path).is_relative_to(tmp_path)
    assert facts == "False []"
    assert -2 < float(value) < 0


def test_sdist_can_be_built_from(checkout, tmp_path):
    code = (
        "from scikit_build_core.setuptools.build_meta import build_sdist; import sys; print(build_sdist(sys.argv[1]))"
    )
    pytest.importorskip("scikit_build_core", reason="the sdist is made by the build backend")
    run(sys.executable, "-c", code, tmp_path, cwd=checkout)
    (found,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(found) as archive:
        names = {name.split("/", 1)[-1] for name in archive.getnames()}
    tracked = {str(p.relative_to(checkout)) for p in (checkout / "csrc").rglob("*") if p.is_file()}
    assert tracked | {"setup.py", "CMakeLists.txt", "pyproject.toml", "LICENSE", "README.md"} <= names


def test_source_tree_without_native_module_says_what_to_do(checkout):
    # -S: without site-packages, where an editable install would serve the import.
    command = [sys.executable, "-S", "-c", "import xmodal_ops"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=checkout)
    assert done.returncode == 1
    assert "native module has not been built: run `pip install -e .` there" in done.stderr.splitlines()[-1]


SAYS = "#!/bin/sh\necho '{}'\nexit {}\n"
BROKEN_COMPILERS = {  # a script, or None for a missing file, and the reason that is given
    "fails": (SAYS.format("", 1), "exit status 1"),
    "refuses the host compiler": (
        SAYS.format('error "gcc"; $unsupported', 1),
        "exit status 1: error  gcc    unsupported",
    ),
    "is old": (SAYS.format("release 9.0, V9.0.176", 0), "it compiles nothing: release 9.0, V9.0.176"),
    "is no program": ("\0\1\2", ""),
    "writes no program": ('#!/bin/sh\nfor last; do :; done\n: > "$last"\n', "what it compiles does not run"),
    "is missing": (None, ""),
}


def configure(build: Path, *options: str, **environment: str) -> subprocess.CompletedProcess[str]:
    pybind11 = pytest.importorskip("pybind11", reason="the module is built with it")
    return subprocess.run(
        [
            *("cmake", "-S", ROOT, "-B", build, "-G", "Ninja", f"-Dpybind11_DIR={pybind11.get_cmake_dir()}"),
            *(f"-DPython_EXECUTABLE={sys.executable}", *options),
        ],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
    )


@pytest.fixture(scope="module")
def build(tmp_path_factory) -> Path:
    """A build directory that is configured again and again: only the first time costs seconds."""
    if not shutil.which("cmake") or not shutil.which("ninja"):
        pytest.skip("needs cmake and ninja")
    return tmp_path_factory.mktemp("build")


@pytest.mark.parametrize("kind", BROKEN_COMPILERS)
def test_a_cuda_compiler_that_does_not_work_leaves_the_cpu_module(kind, build, tmp_path):
    script, reason = BROKEN_COMPILERS[kind]
    nvcc = tmp_path / "nvcc"
    if script is not None:
        nvcc.write_text(script)
        nvcc.chmod(0o755)
    done = configure(build, "-DXMODAL_CUDA=AUTO", f"-DCMAKE_CUDA_COMPILER={nvcc}")
    assert done.returncode == 0, done.stderr
    assert f"building for the CPU only: {nvcc} does not work: {reason}" in done.stderr


def test_demanded_kernels_without_a_working_compiler_end_in_one_line(build, tmp_path):
    nvcc = tmp_path / "nvcc"
    nvcc.write_text(SAYS.format("nvcc fatal : Unsupported gpu architecture", 1))
    nvcc.chmod(0o755)
    done = configure(build, "-DXMODAL_CUDA=ON", f"-DCMAKE_CUDA_COMPILER={nvcc}")
    assert done.returncode
    (line,) = [line for line in done.stderr.splitlines() if "XMODAL_CUDA=OFF" in line]
    assert f"{nvcc} does not work: exit status 1: nvcc fatal : Unsupported gpu architecture" in line


def test_an_unknown_value_of_the_switch_is_refused(build):
    assert "XMODAL_CUDA must be ON, OFF or AUTO, got MAYBE" in configure(build, "-DXMODAL_CUDA=MAYBE").stderr
