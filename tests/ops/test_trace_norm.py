"""The trace norm loss: against its definition in fp64, on degenerate inputs, and as a torch op."""

from __future__ import annotations

import subprocess
import sys

import pytest
import scipy.linalg
import torch
from torch import Tensor

import xmodal_ops
from tests import oracles
from tests.conftest import relative, views
from xmodal_ops import trace_norm_loss
from xmodal_ops.ops.portable.trace_norm import correlations

F32, F64 = torch.float32, torch.float64


def truth(x: Tensor, y: Tensor, ridge=1e-3, top_k=None) -> tuple[Tensor, Tensor, Tensor]:
    """Loss and gradients by the definition, autograd through eigh and svdvals in fp64."""
    x, y = (v.detach().double().requires_grad_() for v in (x, y))
    rx, ry = ridge if isinstance(ridge, tuple) else (ridge, ridge)
    loss = -oracles.trace_norm(x, y, rx, ry, top_k or min(x.shape[1], y.shape[1]))
    return loss.detach(), *torch.autograd.grad(loss, (x, y))


def ours(x: Tensor, y: Tensor, **options) -> tuple[Tensor, Tensor, Tensor]:
    x, y = (v.detach().requires_grad_() for v in (x, y))
    loss = trace_norm_loss(x, y, **options)
    return loss.detach(), *torch.autograd.grad(loss.sum(), (x, y))


# Native code, torch's LAPACK, both sides of each limit, the dual side, mixed sides, d = 1, m = 2.
SHAPES = [
    (64, 8, 8),
    (41, 7, 13),
    (41, 13, 7),
    (300, 37, 90),
    (129, 128, 128),
    (300, 257, 20),
    (20, 1, 1),
    (17, 16, 16),
    (30, 40, 50),
    (30, 40, 7),
    (30, 7, 40),
    (16, 16, 16),
]


@pytest.mark.parametrize(("m", "dx", "dy"), SHAPES)
@pytest.mark.parametrize("top_k", [None, 1, 3])
def test_values_and_gradients_in_fp64(m, dx, dy, top_k):
    top_k = top_k and min(top_k, dx, dy)
    x, y = views(m, dx, dy)
    expected = truth(x, y, top_k=top_k)
    actual = ours(x, y, top_k=top_k)
    assert relative(actual[0], expected[0]) < 1e-12
    # The definition itself loses digits where many correlations are nearly 1.
    tolerance = 1e-8 if m > 2 * max(dx, dy) else 1e-5
    assert relative(actual[1], expected[1]) < tolerance
    assert relative(actual[2], expected[2]) < tolerance


def test_two_rows():
    x, y = views(2, 3, 4)
    loss, gx, gy = ours(x, y)
    lam = (x - x.mean(0)).square().sum(), (y - y.mean(0)).square().sum()  # each view's one variance
    assert loss.item() == pytest.approx(-torch.stack([v / (v + 1e-3) for v in lam]).prod().sqrt().item(), rel=1e-12)
    expected = truth(x, y)
    assert relative(gx, expected[1]) < 1e-5
    assert relative(gy, expected[2]) < 1e-5


@pytest.mark.parametrize(
    ("m", "d", "tolerance"), [(512, 64, 2e-5), (1024, 256, 2e-5), (4096, 1024, 2e-5), (256, 1024, 1e-4)]
)
def test_accuracy_in_fp32(m, d, tolerance):
    x, y = views(m, d, d, F32)
    one = torch.ones(d, dtype=F64)
    sigma, gx, gy = correlations(x.double(), y.double(), 1e-3, 1e-3, one, True, True)
    actual = ours(x, y)
    assert relative(-actual[0], sigma.sum()) < 1e-6
    assert relative(-actual[1], gx) < tolerance
    assert relative(-actual[2], gy) < tolerance


def test_separate_ridges():
    x, y = views(50, 6, 9)
    expected = truth(x, y, ridge=(0.5, 1e-2))
    actual = ours(x, y, ridge=(0.5, 1e-2))
    assert all(relative(a, b) < 1e-10 for a, b in zip(actual, expected))


def test_scipy_agrees():
    """Independent of torch: cosines of the principal angles between the column spaces."""
    x, y = views(200, 6, 9)
    angles = scipy.linalg.subspace_angles((x - x.mean(0)).numpy(), (y - y.mean(0)).numpy())
    cosines = torch.from_numpy(angles).cos().flip(0)
    assert -trace_norm_loss(x, y, ridge=0.0).item() == pytest.approx(cosines.sum().item(), rel=1e-10)


def degenerate() -> dict[str, tuple[Tensor, Tensor]]:
    torch.manual_seed(1)
    x, y = views(200, 16, 16)
    dead = x.clone()
    dead[:, 3], dead[:, 7] = 0, 5
    index, short = torch.arange(200) % 100, torch.arange(30) % 15
    wide_x, wide_y = views(30, 64, 64)
    return {
        "dead units": (dead, y),
        "one view constant": (torch.ones_like(x), y),
        "both views constant": (torch.ones_like(x), torch.ones_like(y)),
        "identical views": (x, x.clone()),
        "repeated rows": (x[index], y[index]),
        "repeated rows, m < d": (wide_x[short], wide_y[short]),
        "repeated columns": (torch.cat([x, x], 1), y),
        "repeated columns, scale 1e3": (torch.cat([x, x], 1) * 1e3, y),
        "mean 1e3": (x + 1e3, y - 1e3),
        "mean 1e3, m < d": (wide_x + 1e3, wide_y - 1e3),
        "scale 1e3": (x * 1e3, y * 1e3),
        "scale 1e-3": (x * 1e-3, y * 1e-3),
        "scales apart": (x * 1e3, y * 1e-3),
        "constant, m < d": (torch.ones(30, 64, dtype=F64), wide_y),
        "tiny correlations": (x, torch.randn(200, 16, dtype=F64)),
    }


@pytest.mark.parametrize("case", degenerate())
@pytest.mark.parametrize("dtype", [F64, F32])
def test_degenerate_inputs(case, dtype):
    """Finite everywhere, and right: against difference quotients of the definition, which LAPACK can evaluate."""
    x, y = (v.to(dtype) for v in degenerate()[case])
    loss, gx, gy = ours(x, y)
    k = min(x.shape[1], y.shape[1])
    value = oracles.trace_norm(x.double(), y.double(), 1e-3, 1e-3, k)
    assert torch.isfinite(gx).all()
    assert torch.isfinite(gy).all()
    if "constant" in case:
        assert abs(loss.item()) < 1e-6
        return
    assert -loss.item() == pytest.approx(value.item(), rel=2e-6)
    for which, gradient in ((0, gx), (1, gy)):
        direction = gradient.double() / gradient.double().norm()
        size = 1e-4 * float((x, y)[which].double().std())

        def moved(step: float, which: int = which, direction: Tensor = direction) -> Tensor:
            pair = [x.double(), y.double()]
            pair[which] = pair[which] + step * direction
            return -oracles.trace_norm(pair[0], pair[1], 1e-3, 1e-3, k)

        slope = (8 * (moved(size) - moved(-size)) - (moved(2 * size) - moved(-2 * size))) / (12 * size)
        assert gradient.double().norm().item() == pytest.approx(slope.item(), rel=2e-3)


def test_dead_units_get_no_spurious_gradient():
    x, y = degenerate()["dead units"]
    alive = [i for i in range(16) if i not in (3, 7)]
    expected = truth(x[:, alive], y)
    actual = ours(x, y)
    assert relative(actual[0], expected[0]) < 1e-12
    assert relative(actual[1][:, alive], expected[1]) < 1e-9


def test_singular_covariance_without_ridge():
    x, y = views(100, 5, 5)
    doubled = torch.cat([x, x], 1)
    loss, gx, gy = ours(doubled, y, ridge=0.0)
    assert loss.item() == pytest.approx(trace_norm_loss(x, y, ridge=0.0).item(), rel=1e-5)
    assert torch.isfinite(gx).all()
    assert torch.isfinite(gy).all()
    assert ours(torch.zeros(20, 3), torch.randn(20, 3), ridge=0.0)[0] == 0


def test_saturated_without_ridge():
    """m ≤ d and no ridge: every direction correlates perfectly, nothing is left to gain."""
    loss, gx, _ = ours(*views(10, 20, 20), ridge=0.0)
    assert loss.item() == pytest.approx(-9)
    assert gx.abs().max() < 1e-9


@pytest.mark.parametrize("shape", [(30, 4, 5), (300, 300, 4), (5, 8, 8), (30, 40, 7)])
@pytest.mark.parametrize("dtype", [F64, F32])
@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_non_finite_in_non_finite_out(shape, dtype, bad):
    x, y = views(*shape, dtype=dtype)
    x[2, 1] = bad
    loss, gx, gy = ours(x, y)
    assert not torch.isfinite(loss)
    assert not torch.isfinite(gx).any()
    assert not torch.isfinite(gy).any()


def test_gradcheck():
    for shape in ((12, 4, 3), (5, 6, 7), (5, 6, 3)):
        x, y = (v.requires_grad_() for v in views(*shape))
        assert torch.autograd.gradcheck(lambda a, b: trace_norm_loss(a, b, ridge=0.1), (x, y))
        assert torch.autograd.gradcheck(lambda a, b: trace_norm_loss(a, b, ridge=0.1, top_k=2), (x, y))
    x, y = (v.requires_grad_() for v in views(12, 4, 3))
    assert torch.autograd.gradcheck(lambda a: trace_norm_loss(a, y.detach(), ridge=0.1), (x,))


def test_opcheck():
    x, y = views(12, 4, 3)
    for flags in ((True, True), (True, False), (False, False)):
        torch.library.opcheck(torch.ops.xmodal.trace_norm.default, (x, y, 0.1, 0.1, 3, *flags))
    torch.library.opcheck(torch.ops.xmodal.trace_norm.default, (x.half(), y.half(), 0.1, 0.1, 2, True, True))


def one_by_one(x: Tensor, y: Tensor, **options) -> list[Tensor]:
    return [torch.stack(parts) for parts in zip(*(ours(a, b, **options) for a, b in zip(x, y)))]


def batch(problems: int, m: int, dx: int, dy: int, dtype: torch.dtype = F64) -> tuple[Tensor, Tensor]:
    x, y = zip(*(views(m, dx, dy, dtype) for _ in range(problems)))
    return torch.stack(x), torch.stack(y)


# Side by side on several threads, with all threads for each, by torch; unequal, dual and mixed views.
@pytest.mark.parametrize("shape", [(1, 20, 3, 3), (40, 100, 24, 17), (3, 4000, 90, 60), (2, 300, 20, 257),
                                   (3, 10, 12, 14), (3, 10, 12, 4)])  # fmt: skip
@pytest.mark.parametrize("dtype", [F64, F32, torch.bfloat16])
@pytest.mark.parametrize("top_k", [None, 2])
def test_batch(shape, dtype, top_k):
    x, y = batch(*shape, dtype)
    expected = one_by_one(x, y, top_k=top_k, ridge=(1e-2, 1e-3))
    actual = ours(x, y, top_k=top_k, ridge=(1e-2, 1e-3))
    assert actual[0].shape == (shape[0],)
    for a, e in zip(actual, expected):
        assert a.dtype == e.dtype
        assert relative(a, e) < (1e-10 if dtype == F64 else 1e-5)


def test_problems_of_a_batch_do_not_touch_each_other():
    x, y = batch(5, 30, 4, 6, F32)
    expected = ours(x, y)
    x[1, 2, 3], y[3, :, 2] = torch.nan, y[3, :, 1]  # not finite; singular without a ridge
    actual = ours(x, y, ridge=0.0)
    assert actual[0][1].isnan()
    assert actual[1][1].isnan().all()
    assert all(v[3].isfinite().all() for v in actual)
    expected = one_by_one(x[[0, 2, 4]], y[[0, 2, 4]], ridge=0.0)
    assert all(torch.equal(a[[0, 2, 4]], e) for a, e in zip(actual, expected))


def test_batch_of_any_strides():
    x, y = batch(4, 30, 5, 3)
    expected = ours(x, y)
    for a, b in (
        (x.mT.contiguous().mT, y),
        (x.transpose(0, 1).contiguous().transpose(0, 1), y),
        (x, y.flip(0).flip(0)),
    ):
        assert all(relative(p, q) < 1e-12 for p, q in zip(ours(a, b), expected))
    same = ours(x[:1].expand(4, -1, -1), y)
    assert relative(same[0], one_by_one(x[:1].repeat(4, 1, 1), y)[0]) < 1e-14


def test_batch_gradcheck_opcheck_compile():
    x, y = (v.requires_grad_() for v in batch(3, 9, 3, 2))
    weight = torch.tensor([1.0, -2.0, 0.0], dtype=F64)
    assert torch.autograd.gradcheck(lambda a, b: trace_norm_loss(a, b, ridge=0.1) * weight, (x, y))
    assert torch.autograd.gradcheck(lambda a, b: trace_norm_loss(a, b, ridge=0.1, top_k=1), (x, y))
    for flags in ((True, True), (True, False), (False, False)):
        torch.library.opcheck(torch.ops.xmodal.trace_norm.default, (x.detach(), y.detach(), 0.1, 0.1, 2, *flags))
    compiled = torch.compile(lambda a, b: trace_norm_loss(2 * a, b), fullgraph=True)
    eager = torch.autograd.grad(trace_norm_loss(2 * x, y).square().sum(), (x, y))
    graph = torch.autograd.grad(compiled(x, y).square().sum(), (x, y))
    assert all(relative(a, b) < 1e-12 for a, b in zip(graph, eager))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_inputs(dtype):
    x, y = (v.to(dtype) for v in views(200, 16, 12))
    loss, gx, gy = ours(x, y)
    expected = ours(x.float(), y.float())
    assert loss.dtype == F32
    assert gx.dtype == gy.dtype == dtype
    assert torch.equal(loss, expected[0])
    assert relative(gx, expected[1]) < 5e-3


def test_autocast_does_not_reach_the_algebra():
    x, y = views(100, 300, 300, F32)  # beyond the native code: torch products, which autocast would halve
    expected = ours(x, y)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        actual = ours(x, y)
    assert all(torch.equal(a, b) for a, b in zip(actual, expected))


def test_any_strides():
    x, y = views(60, 8, 6, F32)
    expected = ours(x, y)
    column_major = x.T.contiguous().T
    padded = torch.cat([y, y], 1)[:, :6]
    every_other = torch.stack([x, x], 1).reshape(120, 8)[::2]
    for a, b in ((column_major, y), (x, padded), (every_other, y)):
        actual = ours(a, b)
        assert all(relative(p, q) < 1e-6 for p, q in zip(actual, expected))


def test_compile_without_graph_breaks():
    x, y = (v.requires_grad_() for v in views(30, 5, 4, F32))
    eager = torch.autograd.grad(trace_norm_loss(2 * x, y, top_k=3), (x, y))
    compiled = torch.compile(lambda a, b: trace_norm_loss(2 * a, b, top_k=3), fullgraph=True, dynamic=True)
    graph = torch.autograd.grad(compiled(x, y), (x, y))
    assert all(relative(a, b) < 1e-6 for a, b in zip(graph, eager))


def test_gradient_only_where_needed():
    x, y = views(30, 5, 4)
    assert not trace_norm_loss(x, y).requires_grad
    x.requires_grad_()
    (3 * trace_norm_loss(x, y)).backward()
    assert relative(x.grad, 3 * truth(x, y)[1]) < 1e-9
    assert y.grad is None


def test_second_derivative_is_refused():
    x, y = (v.requires_grad_() for v in views(30, 5, 4))
    (gx,) = torch.autograd.grad(trace_norm_loss(x, y), x, create_graph=True)
    with pytest.raises(RuntimeError, match="trace_norm_loss is differentiable once"):
        gx.sum().backward()


@pytest.mark.parametrize(
    ("arguments", "options", "error", "message"),
    [
        ((torch.randn(4), torch.randn(4, 2)), {}, ValueError, r"x must have shape \(m, d\) or \(B, m, d\), got \(4,\)"),
        ((torch.randn(4, 2), torch.randn(4, 2, 2)), {}, ValueError, r"y must have the batch of x, \(4, 2\), got shape"),
        ((torch.randn(3, 4, 2), torch.randn(2, 4, 2)), {}, ValueError, r"y must have the batch of x, \(3, 4, 2\), got"),
        ((torch.randn(0, 4, 2), torch.randn(0, 4, 2)), {}, ValueError, "x must hold at least one problem, got shape"),
        ((torch.randn(4, 2), torch.randn(5, 2)), {}, ValueError, "y must have as many rows as x, 4, got 5"),
        ((torch.randn(1, 2), torch.randn(1, 2)), {}, ValueError, "x must have at least 2 rows, got 1"),
        ((torch.randn(4, 0), torch.randn(4, 2)), {}, ValueError, "x must have at least one column"),
        ((torch.ones(4, 2).long(), torch.randn(4, 2)), {}, TypeError, "x must be float64, .* got int64"),
        (([[1.0]], torch.randn(4, 2)), {}, TypeError, "x must be a torch.Tensor, got list"),
        ((torch.randn(4, 2), torch.randn(4, 2, device="meta")), {}, ValueError, "y must be on the device of x, cpu"),
        ((torch.randn(4, 2), torch.randn(4, 2)), {"ridge": -1.0}, ValueError, "ridge must be >= 0, got -1.0"),
        ((torch.randn(4, 2), torch.randn(4, 2)), {"ridge": (0.1, -1.0)}, ValueError, "ridge must be >= 0"),
        ((torch.randn(4, 2), torch.randn(4, 2)), {"ridge": (1, 2, 3)}, ValueError, "ridge must be a number or a pair"),
        ((torch.randn(4, 2), torch.randn(4, 2)), {"ridge": float("nan")}, ValueError, "ridge must be >= 0, got nan"),
        ((torch.randn(4, 2), torch.randn(4, 3)), {"top_k": 3}, ValueError, r"top_k must lie in 1\.\.2 .* got 3"),
        ((torch.randn(4, 2), torch.randn(4, 3)), {"top_k": 0}, ValueError, r"top_k must lie in 1\.\.2"),
        ((torch.randn(4, 2), torch.randn(4, 3)), {"top_k": 1.5}, TypeError, "top_k must be an int or None, got float"),
    ],
)
def test_errors_name_the_argument(arguments, options, error, message):
    with pytest.raises(error, match=message) as caught:
        trace_norm_loss(*arguments, **options)
    assert "\n" not in str(caught.value)


def test_build_info():
    info = xmodal_ops.build_info()
    assert info["version"] == xmodal_ops.__version__
    assert isinstance(info["cuda"], bool)
    assert isinstance(info["cuda_archs"], list)
    assert bool(info["cuda_archs"]) == info["cuda"]
    assert set(info["ops"]["trace_norm"]) == {"cpu", "cuda"}
    text = subprocess.run([sys.executable, "-m", "xmodal_ops"], capture_output=True, text=True, check=True).stdout
    assert xmodal_ops.__version__ in text
    assert "trace_norm" in text


def test_build_info_does_not_initialise_cuda(monkeypatch):
    """A process that is forked after CUDA was initialised cannot use it."""

    def initialise(*_):
        raise AssertionError("initialises CUDA")

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    for name in ("is_available", "get_device_name", "get_device_properties", "init"):
        monkeypatch.setattr(torch.cuda, name, initialise)
    assert xmodal_ops.build_info()["devices"] == ["cuda:0", "cuda:1"]


def test_import_is_light():
    code = (
        "import sys, xmodal_ops.ops; print([m for m in ('scipy', 'sklearn', 'matplotlib', 'lightning', 'h5py', 'typer')"
    )
    code += " if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
