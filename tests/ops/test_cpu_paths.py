"""The native CPU ops give the same results with every instruction set and with any number of threads."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.conftest import relative, views
from tests.helpers import threads
from tests.ops.triplet_data import batch
from xmodal_ops import _C, Covariance, mine_triplets, structure_preserving_loss, triplet_margin_loss
from xmodal_ops.ops.portable import covariance, trace_norm
from xmodal_ops.ops.types import PairSums

F32, F64 = torch.float32, torch.float64
FOLDER = Path(__file__).parent
SETS = ["baseline", "avx2", "avx512"]


@pytest.mark.parametrize("instructions", SETS)
def test_every_instruction_set(instructions: str) -> None:
    """The tests named `exact` hold with it; the set is chosen once per process, so they run in another."""
    files = [FOLDER / f"test_{name}.py" for name in ("mining", "triplet_margin", "structure_preserving", "cpu_paths")]
    chosen = ["-k", "exact and (native or not torch) and not multi"]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *chosen, *files],
        env={**os.environ, "XMODAL_CPU_SET": instructions},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-2000:]
    assert " passed" in done.stdout


def test_native_sums_have_the_order_of_their_names() -> None:
    assert tuple(_C.PairSum.__members__) == PairSums._fields


def test_the_exact_instruction_set_is_used() -> None:
    wanted = os.environ.get("XMODAL_CPU_SET", SETS[-1])
    assert _C.instruction_set() in SETS[: SETS.index(wanted) + 1]  # a lower set if the CPU lacks the wanted one


@pytest.mark.parametrize(("dtype", "tolerance"), [(F64, 1e-13), (F32, 2e-6)])
def test_exact_covariance(dtype: torch.dtype, tolerance: float) -> None:
    x, y = torch.randn(300, 45, dtype=F64), torch.randn(300, 21, dtype=F64)
    native = torch.ops.xmodal.covariance(x.to(dtype), y.to(dtype), 0.0, 0.0)
    grads = torch.ops.xmodal.covariance_backward(x.to(dtype), y.to(dtype), *native)
    exact = covariance.covariance_backward(x, y, Covariance(*(t.double() for t in native)))
    for a, b in zip((*native, *grads), (*covariance.covariance(x, y, 0.0, 0.0), *exact)):
        assert torch.allclose(a.double(), b, rtol=0, atol=tolerance)


@pytest.mark.parametrize(("dtype", "tolerance"), [(F64, 1e-9), (F32, 1e-3)])
@pytest.mark.parametrize(
    "shape", [(64, 8, 8), (41, 7, 13), (300, 37, 90), (129, 128, 128), (20, 1, 1), (17, 16, 15), (700, 250, 31)]
)
def test_exact_trace_norm(shape: tuple[int, int, int], dtype: torch.dtype, tolerance: float) -> None:
    x, y = views(*shape, dtype)
    arguments = 1e-3, 1e-3, min(shape[1:]), True, True
    found = torch.ops.xmodal.trace_norm(x, y, *arguments)
    for a, b in zip(found, trace_norm.trace_norm(x.double(), y.double(), *arguments)):
        assert relative(a, b) < tolerance


def with_gradients(loss: Tensor, *inputs: Tensor) -> tuple[Tensor, ...]:
    return loss.detach(), *torch.autograd.grad(loss, inputs)


def mining() -> tuple[Tensor, ...]:
    anchor, ref, labels, ref_labels = batch(700, 600, 50, 9, dtype=F32)
    return mine_triplets(anchor, labels, ref, ref_labels, negative="random", seed=1)


def structure_preserving() -> tuple[Tensor, ...]:
    image, text, *labels = batch(500, 450, 60, 7, dtype=F32)
    loss, stats = structure_preserving_loss(
        image.requires_grad_(), text.requires_grad_(), *labels, margin=9.0, gamma=0.3, return_stats=True
    )
    return *with_gradients(loss, image, text), *stats


def triplet_margin() -> tuple[Tensor, ...]:
    anchor, ref, labels, ref_labels = batch(500, 450, 60, 7, dtype=F32)
    loss, stats = triplet_margin_loss(
        anchor.requires_grad_(), labels, ref.requires_grad_(), ref_labels, return_stats=True
    )
    return *with_gradients(loss, anchor, ref), *stats


def on_threads(count: int, op: Callable[[], tuple[Tensor, ...]]) -> tuple[Tensor, ...]:
    torch.manual_seed(0)
    with threads(count):
        return op()


@pytest.mark.parametrize("op", [mining, structure_preserving, triplet_margin])
def test_any_number_of_threads_gives_the_same_bits(op: Callable[[], tuple[Tensor, ...]]) -> None:
    first = on_threads(1, op)
    for count in (2, 5):
        assert all(torch.equal(a, b) for a, b in zip(first, on_threads(count, op)))


def wide_covariance() -> tuple[Tensor, ...]:
    return torch.ops.xmodal.covariance(*views(400, 1100, 1100, F32), 0.0, 0.0)


def long_covariance() -> tuple[Tensor, ...]:
    return torch.ops.xmodal.covariance(*views(5000, 90, 90, F32), 0.0, 0.0)


def trace_norm_and_gradients() -> tuple[Tensor, ...]:
    return torch.ops.xmodal.trace_norm(*views(6000, 64, 64, F32), 1e-3, 1e-3, 64, True, True)


@pytest.mark.parametrize("op", [wide_covariance, long_covariance, trace_norm_and_gradients])
def test_a_number_of_threads_gives_the_same_bits_twice_and_another_close_ones(
    op: Callable[[], tuple[Tensor, ...]],
) -> None:
    results = []
    for count in (1, 3):
        results.append(on_threads(count, op))
        assert all(torch.equal(a, b) for a, b in zip(results[-1], on_threads(count, op)))
    assert all(relative(a, b) < 1e-6 for a, b in zip(*results))


PARSIMONIOUS = """  // Refuses std::thread, and serves OpenMP, which torch uses and which would end the process.
#include <dlfcn.h>
#include <errno.h>
#include <pthread.h>
#include <string.h>
int threads_left = 1000;
int pthread_create(pthread_t* thread, const pthread_attr_t* attributes, void* (*start)(void*), void* argument) {
  Dl_info caller;
  const int native = dladdr(__builtin_return_address(0), &caller) && strstr(caller.dli_fname, "libstdc++");
  if (native && threads_left-- <= 0) return EAGAIN;
  int (*create)(pthread_t*, const pthread_attr_t*, void* (*)(void*), void*) = dlsym(RTLD_NEXT, "pthread_create");
  return create(thread, attributes, start, argument);
}
"""
OPS_WITH_FEW_THREADS = """
import ctypes, torch
from tests.ops import test_cpu_paths as tests
left = ctypes.c_int.in_dll(ctypes.CDLL(None), "threads_left")
for op in (tests.mining, tests.structure_preserving, tests.triplet_margin, tests.wide_covariance,
           tests.long_covariance, tests.trace_norm_and_gradients):
    expected = tests.on_threads(4, op)
    for granted in range(2):
        left.value = granted
        found = tests.on_threads(4, op)
        assert left.value < 0, f"{op.__name__} asked for {granted - left.value} threads only"
        left.value = 1000
        assert all(torch.equal(a, b) for a, b in zip(expected, found)), op.__name__
"""


@pytest.mark.skipif(sys.platform != "linux" or not shutil.which("cc"), reason="replaces pthread_create, in C on Linux")
def test_a_system_that_grants_only_some_of_the_threads_changes_no_bit(tmp_path: Path) -> None:
    source, library = tmp_path / "parsimonious.c", tmp_path / "parsimonious.so"
    source.write_text(PARSIMONIOUS)
    subprocess.run(["cc", "-D_GNU_SOURCE", "-shared", "-fPIC", source, "-o", library, "-ldl"], check=True)
    done = subprocess.run(
        [sys.executable, "-c", OPS_WITH_FEW_THREADS],
        env={**os.environ, "LD_PRELOAD": str(library)},
        cwd=FOLDER.parent.parent,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]
