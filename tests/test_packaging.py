"""The distributed package: an sdist and a wheel, built in isolation without torch and without a CUDA compiler."""

from __future__ import annotations

import os
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
