"""Covariance, whitening and the trace norm on a CUDA device, through the public functions."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.conftest import relative, views
from tests.helpers import captured
from xmodal_ops import canonical_correlations, covariance, trace_norm_loss, whiten
from xmodal_ops.ops.cuda import driver
from xmodal_ops.ops.cuda import trace_norm as cuda_trace_norm
from xmodal_ops.ops.portable import covariance as covariance_reference
from xmodal_ops.ops.portable import trace_norm as reference
from xmodal_ops.ops.portable import whiten as whiten_reference
from xmodal_ops.ops.types import Covariance

F16, BF16, F32, F64 = torch.float16, torch.bfloat16, torch.float32, torch.float64
pytestmark = pytest.mark.gpu


@pytest.fixture(autouse=True)
def _kernels_run() -> None:
    assert driver.refusal(torch.cuda.current_device()) == ""


@pytest.fixture
def no_sync() -> Iterator[None]:
    torch.cuda.set_sync_debug_mode("error")
    yield
    torch.cuda.set_sync_debug_mode("default")


def device_views(m: int, dx: int, dy: int, dtype: torch.dtype = F32) -> tuple[Tensor, Tensor]:
    x, y = views(m, dx, dy, dtype)
    return x.cuda(), y.cuda()


def loss_and_gradients(x: Tensor, y: Tensor, **options: Any) -> tuple[Tensor, Tensor, Tensor]:
    x, y = (v.detach().requires_grad_() for v in (x, y))
    loss = trace_norm_loss(x, y, **options)
    return loss.detach(), *torch.autograd.grad(loss, (x, y))


def truth(x: Tensor, y: Tensor, ridge: float = 1e-3) -> list[Tensor]:
    k = min(x.shape[-1], y.shape[-1])
    return [-t for t in reference.trace_norm(x.cpu().double(), y.cpu().double(), ridge, ridge, k, True, True)]


def close(actual: tuple[Tensor, ...], expected: list[Tensor], tolerance: float) -> None:
    errors = [relative(a.cpu(), e) for a, e in zip(actual, expected)]
    assert max(errors) < tolerance, errors


# One launch; separate covariances; two tile sizes; dual; mixed.
SHAPES = [(512, 64, 64), (97, 33, 64), (300, 128, 100), (5000, 20, 128), (2, 1, 1), (20, 1, 1),
          (700, 129, 300), (1024, 256, 256), (2048, 520, 1000),
          (64, 64, 64), (60, 300, 200), (256, 1024, 1024), (60, 300, 20), (60, 20, 300)]  # fmt: skip


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [F32, F64])
def test_trace_norm(shape, dtype):
    x, y = device_views(*shape, dtype)
    close(loss_and_gradients(x, y), truth(x, y), 2e-5 if dtype == F32 else 1e-9)


# Jacobi in one block; by several blocks, primal, dual and mixed.
@pytest.mark.parametrize("shape", [(512, 64, 64), (97, 33, 64), (2000, 60, 100), (300, 128, 128),
                                   (700, 200, 150), (100, 200, 150), (100, 200, 30), (100, 30, 200)])  # fmt: skip
@pytest.mark.parametrize("dtype", [F32, F64])
def test_leading_pairs_and_all_correlations(shape, dtype, no_sync):
    torch.cuda.set_sync_debug_mode("default")
    x, y = device_views(*shape, dtype)
    top_k = min(shape[1:]) // 3
    wide = x.cpu().double(), y.cpu().double()
    expected = [-t for t in reference.trace_norm(*wide, 1e-3, 1e-3, top_k, True, True)]
    ones = torch.ones(min(shape[1:]), dtype=F64)
    sigma = reference.correlations(*wide, 1e-3, 1e-3, ones, False, False)[0]
    weights = torch.linspace(1, 2, top_k, dtype=dtype)
    weighted = reference.correlations(*wide, 1e-3, 1e-3, weights.double(), True, True)[1:]
    leaves, weights = [v.clone().requires_grad_() for v in (x, y)], weights.cuda()
    torch.cuda.set_sync_debug_mode("error")
    actual, correlations = loss_and_gradients(x, y, top_k=top_k), canonical_correlations(x, y)
    gradients = torch.autograd.grad(canonical_correlations(*leaves, top_k=top_k) @ weights, leaves)
    torch.cuda.set_sync_debug_mode("default")
    close(actual, expected, 1e-9 if dtype == F64 else 1e-3)
    assert (correlations.cpu() - sigma).abs().max() < (
        1e-7 if min(shape[1:]) >= shape[0] else 1e-11 if dtype == F64 else 1e-5
    )
    close(gradients, [g for g in weighted if g is not None], 1e-6 if dtype == F64 else 1e-5)


# One launch, separate covariances, one launch for any number of rows, several problems per block, one after the other.
@pytest.mark.parametrize("shape", [(9, 200, 64, 30), (3, 2000, 60, 64), (300, 700, 9, 16), (300, 90, 70, 80),
                                   (2, 300, 200, 150)])  # fmt: skip
@pytest.mark.parametrize("dtype", [F32, F64])
def test_batch(shape, dtype, no_sync):
    torch.cuda.set_sync_debug_mode("default")
    x, y = (torch.stack(v) for v in zip(*(views(*shape[1:], dtype) for _ in range(shape[0]))))
    a, b = (v.cuda().requires_grad_() for v in (x, y))
    torch.cuda.set_sync_debug_mode("error")
    loss = trace_norm_loss(a, b)
    gradients = torch.autograd.grad(loss.sum(), (a, b))
    torch.cuda.set_sync_debug_mode("default")
    close((loss.detach(), *gradients), truth(x, y), 2e-5 if dtype == F32 else 1e-9)


@pytest.mark.parametrize("dtype", [F16, BF16])
@pytest.mark.parametrize("shape", [(512, 64, 64), (700, 300, 129), (60, 300, 200)])
def test_halves(shape, dtype):
    x, y = device_views(*shape, dtype)
    close(loss_and_gradients(x, y), truth(x, y), 1e-3 if dtype == F16 else 8e-3)


@pytest.mark.parametrize("dtype", [F16, BF16, F32, F64])
@pytest.mark.parametrize("shape", [(2, 1, 1), (77, 130, 9), (8192, 300, 257), (100_000, 64, 40)])
def test_covariance_and_its_backward(shape, dtype):
    x, y = (v + 3 for v in device_views(*shape, dtype))
    actual = covariance(x, y, ridge=(0.1, 0.2))
    expected = covariance_reference.covariance(x.cpu().double(), y.cpu().double(), 0.1, 0.2)
    close(tuple(actual), list(expected), 1e-6 if dtype != F64 else 1e-12)
    assert torch.equal(actual.xx, actual.xx.mT)
    leaves = [v.clone().requires_grad_() for v in (x, y)]
    outs = covariance(*leaves)
    grads = [torch.randn_like(o) for o in outs]
    actual_grads = torch.autograd.grad(list(outs), leaves, grads)
    wanted = Covariance(*(g.cpu().double() for g in grads))
    expected_grads = covariance_reference.covariance_backward(x.cpu().double(), y.cpu().double(), wanted)
    tolerance = {F16: 1e-3, BF16: 8e-3, F32: 1e-5, F64: 1e-11}[dtype]
    close(actual_grads, [g for g in expected_grads if g is not None], tolerance)


@pytest.mark.parametrize("method", ["cholesky", "zca"])
@pytest.mark.parametrize("dtype", [F32, F64])
@pytest.mark.parametrize("shape", [(50, 13), (1000, 300)])
def test_whiten_and_its_backward(shape, dtype, method, no_sync):
    torch.cuda.set_sync_debug_mode("default")
    x, _ = device_views(*shape, 1, dtype)
    x.requires_grad_()
    grad = torch.randn_like(x)
    torch.cuda.set_sync_debug_mode("error")
    w = whiten(x, ridge=0.1, method=method)
    (gx,) = torch.autograd.grad(w, x, grad)
    torch.cuda.set_sync_debug_mode("default")
    wide = x.detach().cpu().double()
    expected = (
        whiten_reference.whiten(wide, 0.1, method == "zca"),
        whiten_reference.whiten_backward(grad.cpu().double(), wide, 0.1, method == "zca"),
    )
    close((w, gx), list(expected), 1e-5 if dtype == F32 else 1e-11)


@pytest.mark.parametrize("shape", [(7, 3, 2), (4, 5, 6), (4, 2, 5), (140, 3, 129)])
def test_gradcheck_of_the_kernels(shape):
    x, y = device_views(*shape, F64)
    x.requires_grad_()
    y.requires_grad_(shape[2] < 20)
    assert torch.autograd.gradcheck(lambda a, b: trace_norm_loss(a, b, ridge=0.2), (x, y))
    for method in ("cholesky", "zca"):
        assert torch.autograd.gradcheck(lambda a, method=method: whiten(a, ridge=0.2, method=method), (x,))
    assert torch.autograd.gradcheck(lambda a: covariance(a, y.detach())[:4], (x,))


def test_opcheck():
    x, y = device_views(40, 7, 5)
    ops = torch.ops.xmodal
    torch.library.opcheck(ops.trace_norm.default, (x, y, 0.1, 0.2, 5, True, True))
    torch.library.opcheck(ops.covariance.default, (x, y, 0.1, 0.2))
    torch.library.opcheck(ops.canonical_correlations.default, (x, y, 0.1, 0.2, 3))
    torch.library.opcheck(ops.canonical_correlations_backward.default, (x[0, :3], x, y, 0.1, 0.2))
    torch.library.opcheck(ops.trace_norm.default, (x.expand(3, -1, -1), y.expand(3, -1, -1), 0.1, 0.2, 5, True, True))
    for zca in (False, True):
        torch.library.opcheck(ops.whiten.default, (x, 0.1, zca))


@pytest.mark.parametrize("shape", [(512, 64, 64), (700, 129, 300), (60, 300, 200)])
def test_the_same_bits_twice(shape):
    x, y = device_views(*shape)
    one, other = loss_and_gradients(x, y), loss_and_gradients(x, y)
    assert all(torch.equal(a, b) for a, b in zip(one, other))


@pytest.mark.parametrize("shape", [(512, 64, 64), (1000, 64, 64), (700, 129, 300), (60, 300, 200), (60, 300, 20)])
def test_nothing_waits_for_the_device(shape, no_sync):
    loss_and_gradients(*device_views_without_sync(*shape))


def device_views_without_sync(m: int, dx: int, dy: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator("cuda").manual_seed(0)
    z = torch.randn(m, dx + dy, generator=generator, device="cuda")
    return z[:, :dx] + z[:, -dx:], z[:, dx:] + z[:, :dy]


@pytest.mark.parametrize("shape", [(512, 64, 64), (1000, 64, 64), (700, 129, 300), (60, 300, 200)])
def test_graph_capture(shape):
    x, y = (v.requires_grad_() for v in device_views(*shape))

    def step() -> Tensor:
        x.grad = y.grad = None
        loss = trace_norm_loss(x, y)
        loss.backward()
        return loss.detach()

    loss, graph = captured(step)
    fresh = [torch.randn_like(v) for v in (x, y)]
    with torch.no_grad():
        x.copy_(fresh[0]), y.copy_(fresh[0][:, :1] + fresh[1])
    graph.replay()
    torch.cuda.synchronize()
    assert x.grad is not None
    assert y.grad is not None
    close((loss, x.grad, y.grad), truth(x.detach(), y.detach()), 2e-5)


def test_streams():
    """Each of several streams sees its own inputs, which were written on that stream just before."""
    inputs = [device_views(512, 64, 64) for _ in range(4)]
    expected = [loss_and_gradients(x, y) for x, y in inputs]
    torch.cuda.synchronize()
    actual = []
    streams = [torch.cuda.Stream() for _ in inputs]
    for stream, (x, y) in zip(streams, inputs):
        with torch.cuda.stream(stream):
            torch.cuda._sleep(10_000_000)
            actual.append(loss_and_gradients(x * 1.0, y * 1.0))
    torch.cuda.synchronize()
    for a, e in zip(actual, expected):
        assert all(torch.equal(i, j) for i, j in zip(a, e))


@pytest.mark.skipif("torch.cuda.device_count() < 2")
def test_another_device_than_the_current_one():
    x, y = (v.to("cuda:1") for v in views(512, 64, 64, F32))
    assert torch.cuda.current_device() == 0
    close(loss_and_gradients(x, y), truth(x, y), 2e-5)


@pytest.mark.parametrize("mode", ["default", "reduce-overhead"])
def test_compiled(mode):
    x, y = device_views(512, 64, 40)
    compiled = torch.compile(lambda a, b: trace_norm_loss(a * 2, b), mode=mode, fullgraph=True)
    expected = loss_and_gradients(x * 2, y)
    for _ in range(3):
        a, b = (v.clone().requires_grad_() for v in (x, y))
        loss = compiled(a, b)
        loss.backward()
        assert a.grad is not None
        assert b.grad is not None
        close((loss.detach(), a.grad / 2, b.grad), [t.cpu().double() for t in expected], 1e-5)


def test_autocast():
    x, y = device_views(512, 64, 64)
    weight = torch.randn(64, 64, device="cuda", requires_grad=True)
    with torch.autocast("cuda", dtype=BF16):
        hidden = x @ weight
        loss = trace_norm_loss(hidden, y.to(BF16))
    assert hidden.dtype == BF16
    assert loss.dtype == F32
    loss.backward()
    assert weight.grad is not None
    assert weight.grad.isfinite().all()


@pytest.mark.parametrize("shape", [(200, 30, 22), (400, 200, 140)])
def test_strided_inputs(shape):
    x, y = device_views(*shape)
    strange = x.mT.contiguous().mT, torch.cat([y, y], 1)[:, 5 : 5 + shape[2]]
    close(loss_and_gradients(*strange), truth(*strange), 2e-5)


@pytest.mark.parametrize("shape", [(200, 30, 22), (400, 200, 140), (60, 100, 80)])
@pytest.mark.parametrize("case", ["dead", "constant", "identical", "small"])
def test_degenerate_inputs_have_finite_gradients(shape, case):
    x, y = device_views(*shape)
    if case == "dead":
        x[:, ::4], y[:, 3] = 0, 5
    elif case == "constant":
        x.fill_(3)
    elif case == "identical":
        x = y.clone()
    else:
        x, y = x * 1e-3, y * 1e-3
    loss, gx, gy = loss_and_gradients(x, y)
    expected = truth(x, y)
    assert (loss.cpu() - expected[0]).abs() < 1e-5 * (1 + expected[0].abs())
    assert gx.isfinite().all()
    assert gy.isfinite().all()
    if case == "constant":
        assert max(gx.abs().max().item(), gy.abs().max().item()) == 0


def test_what_is_not_finite_gives_nan():
    for shape in ((200, 30, 22), (400, 200, 140), (60, 100, 80)):
        x, y = device_views(*shape)
        x[3, 4] = torch.nan
        assert loss_and_gradients(x, y)[0].isnan()


def test_memory_of_the_covariance():
    x, y = device_views(8192, 2048, 1024)
    outputs = sum(t.numel() * 4 for t in covariance(x, y))
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    covariance(x, y)
    assert torch.cuda.max_memory_allocated() - before <= outputs + (64 << 20) + (1 << 20)


def test_cupy_agrees():
    cupy = pytest.importorskip("cupy")
    x, y = device_views(1500, 200, 150)
    a, b = (cupy.from_dlpack(v.double()) for v in (x, y))
    joint = cupy.cov(cupy.concatenate([a, b], axis=1), rowvar=False)
    actual = covariance(x, y)
    for block, part in ((joint[:200, :200], actual.xx), (joint[:200, 200:], actual.xy), (joint[200:, 200:], actual.yy)):
        assert relative(part, torch.from_dlpack(block)) < 1e-6

    def root(s: Any) -> Any:
        values, q = cupy.linalg.eigh(s)
        return (q / cupy.sqrt(values)) @ q.T

    sxx, syy = joint[:200, :200] + 1e-3 * cupy.eye(200), joint[200:, 200:] + 1e-3 * cupy.eye(150)
    total = cupy.linalg.svd(root(sxx) @ joint[:200, 200:] @ root(syy), compute_uv=False).sum()
    assert -trace_norm_loss(x, y).item() == pytest.approx(float(total), rel=1e-5)


def test_a_forbidden_device_takes_the_portable_path_with_one_warning(monkeypatch):
    x, y = device_views(40, 7, 5)
    expected = loss_and_gradients(x, y)
    driver.refusal.cache_clear()
    monkeypatch.setattr(driver, "OLDEST", (99, 0))
    with pytest.warns(UserWarning, match="below") as caught:
        first, second = loss_and_gradients(x, y), loss_and_gradients(x, y)
    assert len(caught) == 1
    close(first, [t.cpu().double() for t in expected], 1e-5)
    assert torch.equal(first[0], second[0])
    monkeypatch.undo()
    driver.refusal.cache_clear()


def test_importing_touches_no_driver():
    code = "import xmodal_ops.ops, torch; assert not torch.cuda.is_initialized()"
    assert subprocess.run([sys.executable, "-c", code], timeout=120).returncode == 0


def test_few_rows_in_one_launch_and_in_several_agree(monkeypatch):
    for m, dx, dy, dtype in ((300, 64, 50, F32), (300, 128, 100, F32), (300, 90, 100, F64)):
        x, y = device_views(m, dx, dy, dtype)
        one = loss_and_gradients(x, y)
        monkeypatch.setattr(cuda_trace_norm, "ONE_LAUNCH_ROWS", 2)
        several = loss_and_gradients(x, y)
        monkeypatch.undo()
        close(several, [t.cpu().double() for t in one], 2e-5)
