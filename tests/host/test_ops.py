"""The CUDA implementations of the ops, drivers and kernels, on the emulated device, compared with the portable path in
fp64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from tests.conftest import relative, views
from xmodal_ops.ops.cuda import covariance as cuda_covariance
from xmodal_ops.ops.cuda import driver
from xmodal_ops.ops.cuda import iterations as cuda_iterations
from xmodal_ops.ops.cuda import trace_norm as cuda_trace_norm
from xmodal_ops.ops.portable import covariance as covariance_reference
from xmodal_ops.ops.portable import trace_norm as reference
from xmodal_ops.ops.portable import whiten as whiten_reference
from xmodal_ops.ops.types import Covariance

F16, BF16, F32, F64 = torch.float16, torch.bfloat16, torch.float32, torch.float64
# Gradients of half inputs are rounded to 8 or 11 bits.
ACCURACY = {F16: 5e-4, BF16: 4e-3, F32: 5e-6, F64: 1e-11}
pytestmark = pytest.mark.usefixtures("emulated")


def check(
    x: Tensor, y: Tensor, rx: float = 1e-2, ry: float = 1e-1, accuracy: float = 0.0, top_k: int | None = None
) -> None:
    accuracy = accuracy or ACCURACY[x.dtype]
    k = top_k or min(x.shape[1], y.shape[1])
    expected = reference.trace_norm(x.double(), y.double(), rx, ry, k, True, True)
    actual = cuda_trace_norm.trace_norm(x, y, rx, ry, k, True, True)
    assert actual[0].dtype == (F64 if x.dtype == F64 else F32)
    assert actual[0].ndim == 0
    assert actual[1].dtype == x.dtype
    assert actual[1].shape == x.shape
    assert relative(actual[0], expected[0]) < min(accuracy, 2e-6)
    assert relative(actual[1], expected[1]) < accuracy
    assert relative(actual[2], expected[2]) < accuracy


# One launch, separate covariances, padded and square, d = 1, m = 2; the dual and the two mixed sides.
SHAPES = [(70, 21, 21), (70, 16, 37), (70, 37, 16), (600, 9, 5), (20, 1, 1), (20, 1, 18),
          (2, 3, 4), (24, 40, 33), (24, 24, 24), (24, 40, 7), (24, 7, 40)]  # fmt: skip


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [F32, F64])
@pytest.mark.parametrize("fast_double", [True, False])
def test_trace_norm(shape, dtype, fast_double, monkeypatch):
    monkeypatch.setattr(driver, "fast_double", lambda x: fast_double)
    # The dual side loses its smallest eigenvalues if K is not in fp64.
    check(*views(*shape, dtype), accuracy=2e-5 if dtype == F32 and shape[0] <= 24 else 0)


# (processors, problems, m, dx, dy): one launch for few rows, separate covariances for more, one launch again if the
# problems fill the GPU; several problems per block, with matrices outside shared memory; problems one after the other.
BATCHES = [(4, 3, 70, 9, 17), (3, 2, 600, 5, 9), (2, 2, 600, 3, 2), (1, 2, 110, 97, 5), (4, 2, 20, 24, 30)]


@pytest.mark.parametrize("shape", BATCHES)
@pytest.mark.parametrize("dtype", [F32, F64])
@pytest.mark.parametrize("top_k", [None, 2])
def test_batch(shape, dtype, top_k, monkeypatch):
    processors, problems, *each = shape
    monkeypatch.setattr(driver, "processors", lambda x: processors)
    x, y = (torch.stack(v) for v in zip(*(views(*each, dtype) for _ in range(problems))))
    k = top_k or min(each[1:])
    actual = cuda_trace_norm.trace_norm(x, y, 1e-2, 1e-1, k, True, True)
    expected = reference.trace_norm(x.double(), y.double(), 1e-2, 1e-1, k, True, True)
    assert actual[0].shape == (problems,)
    in_single = dtype != F64 and max(each[1:]) > each[0]
    tolerance = max(ACCURACY[dtype], (1e-3 if top_k else 2e-5) if in_single else 0)
    for a, e in zip(actual, expected):
        assert a.dtype == dtype
        assert relative(a, e) < tolerance
    if each[0] == 70:
        alone = [cuda_trace_norm.trace_norm(a, b, 1e-2, 1e-1, k, True, True) for a, b in zip(x, y)]
        assert all(torch.equal(a, torch.stack(e)) for a, e in zip(actual, zip(*alone)))


def test_batch_of_any_strides(fenced):
    x, y = (torch.stack(v) for v in zip(*(views(40, 6, 5, F32) for _ in range(3))))
    expected = cuda_trace_norm.trace_norm(x, y, 1e-2, 1e-1, 5, True, True)
    strange = (x.transpose(0, 1).contiguous().transpose(0, 1), fenced(y)), (x.mT.contiguous().mT, y)
    for pair in strange:
        for a, e in zip(cuda_trace_norm.trace_norm(*pair, 1e-2, 1e-1, 5, True, True), expected):
            assert relative(a, e) < 1e-7
    halves = cuda_trace_norm.trace_norm(x.to(BF16), y.to(BF16), 1e-2, 1e-1, 5, True, True)
    assert [v.dtype for v in halves] == [F32, BF16, BF16]
    assert relative(halves[1], expected[1]) < 5e-2
    one = x[:1].expand(3, -1, -1), y[:1].expand(3, -1, -1)
    for a, e in zip(cuda_trace_norm.trace_norm(*one, 1e-2, 1e-1, 5, True, True), expected):
        assert torch.equal(a, e[:1].expand_as(a))


@pytest.mark.parametrize("dtype", [F16, BF16])
@pytest.mark.parametrize("shape", [(70, 21, 12), (24, 40, 33)])
def test_trace_norm_of_halves(dtype, shape):
    check(*views(*shape, dtype))


@pytest.mark.parametrize("dtype", [F32, F64])
@pytest.mark.parametrize("shape", [(90, 70, 70), (90, 70, 13), (90, 13, 70)])
def test_large_trace_norm(shape, dtype, monkeypatch):
    monkeypatch.setattr(driver.native, "SMALL_COLUMNS", 8)
    check(*views(*shape, dtype))


@pytest.mark.parametrize("dtype", [F32, F64])
@pytest.mark.parametrize("fast_double", [True, False])
@pytest.mark.parametrize(("shape", "top_k"), [((40, 9, 9), 4), ((40, 6, 20), 5), ((600, 7, 4), 1), ((20, 2, 3), 1)])
def test_leading_pairs(shape, top_k, dtype, fast_double, monkeypatch):
    monkeypatch.setattr(driver, "fast_double", lambda x: fast_double)
    # A gap of 1e-2 between neighbouring correlations costs fp32 two digits.
    check(*views(*shape, dtype), top_k=top_k, accuracy=1e-3 if dtype == F32 and not fast_double else 0)


# Primal, dual and mixed; groups of rows in device memory.
ROTATED = [(60, 20, 13), (60, 13, 20), (16, 20, 30), (16, 20, 7), (16, 7, 20)]


@pytest.fixture
def few_rows_a_block(emulated, monkeypatch):
    monkeypatch.setattr(driver.native, "SMALL_COLUMNS", 8)
    monkeypatch.setattr(cuda_iterations, "ROTATION_WIDTH", 3)


@pytest.mark.usefixtures("few_rows_a_block")
@pytest.mark.parametrize("dtype", [F32, F64])
@pytest.mark.parametrize("shape", ROTATED)
def test_leading_pairs_and_all_correlations_by_several_blocks(shape, dtype):
    x, y = views(*shape, dtype)
    check(x, y, top_k=4)
    weights = torch.randn(min(shape[1:]), dtype=dtype)
    weights[shape[0] - 1 :] = 0  # the other correlations are 0
    wide = x.double(), y.double()
    sigma, gx, gy = reference.correlations(*wide, 1e-2, 1e-1, weights.double(), True, True)
    tolerance = 1e-9 if dtype == F64 else 1e-6
    assert (cuda_trace_norm.canonical_correlations(x, y, 1e-2, 1e-1, len(sigma)) - sigma).abs().max() < tolerance
    actual = cuda_trace_norm.canonical_correlations_backward(weights, x, y, 1e-2, 1e-1)
    for a, e in zip(actual, (gx, gy)):
        assert a.dtype == dtype
        assert relative(a, e) < tolerance


@pytest.mark.usefixtures("few_rows_a_block")
@pytest.mark.parametrize("rows", [40, 16])
@pytest.mark.parametrize("case", ["dead", "constant", "identical", "repeated rows", "nan"])
def test_leading_pairs_of_degenerate_inputs(case, rows):
    x, y = views(rows, 20, 17, F32)
    if case == "dead":
        x[:, ::4], y[:, 3] = 0, 5
    elif case == "constant":
        x.fill_(3)
    elif case == "identical":
        y = x.clone()
    elif case == "repeated rows":
        x[rows // 2 :], y[rows // 2 :] = x[: rows // 2], y[: rows // 2]
    else:
        x[3, 2] = torch.nan
    results = cuda_trace_norm.trace_norm(x, y, 1e-2, 1e-2, 5, True, True)
    if case == "constant":  # H = 0 has a factor only with a ridge as small as rounding
        assert max(t.abs().max().item() for t in results) < 1e-6
    elif case == "nan":
        assert all(t.isnan().any() for t in results)
    else:
        check(x, y, 1e-2, 1e-2, 1e-5, top_k=5)


@pytest.mark.parametrize("width", [1, 3, 16])
@pytest.mark.parametrize("shape", [(11, 11), (7, 20), (20, 6), (1, 5), (8, 8)])
def test_singular_pairs(shape, width, monkeypatch, schedule):
    monkeypatch.setattr(cuda_iterations, "ROTATION_WIDTH", width)
    t = torch.randn(shape, dtype=F64)
    if shape == (8, 8):
        t = torch.outer(t[0], t[1]) * 1e-150  # rank 1, small
    sigma, u, v = cuda_iterations.singular_pairs(t, 4)
    exact = torch.linalg.svdvals(t)
    assert relative(sigma, exact) < 1e-13
    rank = min(4, *shape) if shape != (8, 8) else 1
    assert relative((u * sigma[:4]) @ v.mT, (u[:, :rank] * exact[:rank]) @ v[:, :rank].mT) < 1e-13
    for vectors in (u, v):
        assert relative(vectors[:, :rank].mT @ vectors[:, :rank], torch.eye(rank)) < 1e-12
    assert relative(t @ v[:, :rank], u[:, :rank] * exact[:rank]) < 1e-13


def test_rows_too_long_for_a_block_are_refused():
    assert driver.native.rotation_width(1024) > 4
    assert driver.native.rotation_width(4096) == 3
    assert driver.native.rotation_width(20_000) == 0


@pytest.mark.parametrize("dtype", [F64, BF16])
@pytest.mark.parametrize("shape", [(40, 10, 10), (40, 5, 17), (600, 6, 3), (20, 1, 1)])
def test_canonical_correlations(shape, dtype, fenced):
    x, y = map(fenced, views(*shape, dtype))
    x[:, 0] = 3  # σ = 0
    top_k = min(shape[1:])
    one = torch.ones(top_k, dtype=F64)
    expected = reference.correlations(x.double(), y.double(), 1e-2, 1e-1, one, False, False)[0]
    actual = cuda_trace_norm.canonical_correlations(x, y, 1e-2, 1e-1, top_k)
    assert actual.dtype == (F64 if dtype == F64 else F32)
    assert (actual - expected).abs().max() < (1e-13 if dtype == F64 else 1e-6)
    assert torch.equal(cuda_trace_norm.canonical_correlations(x, y, 1e-2, 1e-1, 1), actual[:1])
    x[1, -1] = torch.nan
    assert cuda_trace_norm.canonical_correlations(x, y, 1e-2, 1e-1, top_k).isnan().all()


def test_squares_outside_shared_memory(monkeypatch):
    """Above 64 columns in fp64, some of a block's matrices are in the workspace."""
    assert driver.native.small_workspace(64, 64, True) == 0
    assert driver.native.small_workspace(97, 5, True) > 0
    check(*views(110, 97, 5, F64))


def test_every_schedule_gives_the_same_bits(host):
    x, y = views(40, 10, 19, F32)
    sides = cuda_trace_norm.Views(x, y, 1e-3, 1e-3, True, True)
    results = []
    for seed in range(4):
        host.seed(seed)
        results.append(cuda_trace_norm.trace_norm(x, y, 1e-3, 1e-3, 10, True, True))
        results[-1] += cuda_trace_norm.trace_norm(x, y, 1e-3, 1e-3, 3, True, True)
        results[-1] += cuda_covariance.covariance(x, y, 0.1, 0.2)
        results[-1] += (cuda_covariance.whiten_backward(y, y, 0.1, True),)
        results[-1] += cuda_trace_norm.singular_values(sides, torch.ones(3, dtype=F64))
    host.seed(0)
    assert all(torch.equal(a, b) for other in results[1:] for a, b in zip(results[0], other))


@pytest.mark.parametrize("limit", [8, 128])
@pytest.mark.parametrize("fast_double", [True, False])
@pytest.mark.parametrize(
    "case", ["dead", "constant", "both constant", "identical", "offset", "scales", "all small", "tiny"]
)
def test_degenerate_inputs(case, fast_double, limit, monkeypatch):
    monkeypatch.setattr(driver, "fast_double", lambda x: fast_double)
    monkeypatch.setattr(driver.native, "SMALL_COLUMNS", limit)
    x, y = views(80, 20, 17, F32)
    ridge, accuracy = 1e-2, 2e-5
    if case == "dead":
        x[:, ::4], y[:, 3] = 0, 5
    elif case == "constant":
        x.fill_(3)
    elif case == "both constant":
        x.fill_(3), y.fill_(0)
    elif case == "identical":
        y, accuracy = x.clone(), 1e-4  # large terms of the gradient cancel
    elif case == "offset":
        x, y = x + 1e3, y - 1e4
        accuracy = 1e-4
    elif case == "scales":
        x, y, accuracy = x * 30, y * 1e-2, 1e-4
    elif case == "all small":
        ridge = 1e5
    elif case == "tiny":
        x, y = x * 1e-3, y * 1e-3
    if "constant" in case:
        actual = cuda_trace_norm.trace_norm(x, y, ridge, ridge, 17, True, True)
        assert [t.abs().max().item() for t in actual] == [0, 0, 0]
    else:
        check(x, y, ridge, ridge, accuracy)


CONDITIONED = [(kind, factor) for kind in ("common factor", "outliers") for factor in (1e2, 1e3, 1e4)]


@pytest.mark.parametrize("limit", [8, 128])
@pytest.mark.parametrize(("kind", "factor"), [*CONDITIONED, ("nearly equal columns", 1e-3)])
def test_an_ill_conditioned_view_costs_no_digits(kind, factor, limit, monkeypatch):
    monkeypatch.setattr(driver.native, "SMALL_COLUMNS", limit)
    x, y = views(80, 20, 17, F64)
    if kind == "common factor":
        shared = factor * torch.randn(80, 1, dtype=F64)
        x, y = x + shared * torch.randn(20, dtype=F64), y + shared * torch.randn(17, dtype=F64)
    elif kind == "outliers":
        x[:3] *= factor
        y[1:5] *= factor
    else:
        x = 100 * (x[:, :1] + factor * x)
    x, y = x.float(), y.float()
    expected = reference.trace_norm(x.double(), y.double(), 1e-3, 1e-3, 17, True, True)
    value, *gradients = cuda_trace_norm.trace_norm(x, y, 1e-3, 1e-3, 17, True, True)
    assert relative(value, expected[0]) < 1e-6
    assert max(relative(a, e) for a, e in zip(gradients, expected[1:])) < 1e-5


@pytest.mark.parametrize("case", ["repeated columns", "low rank"])
def test_directions_without_correlation_take_the_subgradient_0(case):
    x, y = views(80, 20, 17, F32)
    if case == "repeated columns":
        x[:, 5] = x[:, 6]
    else:
        x = x[:, :9] @ torch.randint(-2, 3, (9, 20)).float()
    check(x, y, 1e-3, 1e-3)


@pytest.mark.parametrize("rows", [80, 12])
@pytest.mark.parametrize("limit", [8, 128])
def test_what_is_not_finite_gives_nan(rows, limit, monkeypatch):
    monkeypatch.setattr(driver.native, "SMALL_COLUMNS", limit)
    for bad in (torch.nan, torch.inf):
        x, y = views(rows, 20, 17, F32)
        x[3, 4] = bad
        value, gx, gy = cuda_trace_norm.trace_norm(x, y, 1e-3, 1e-3, 17, True, True)
        assert value.isnan()
        assert gx.isnan().any()
        assert gy.isnan().any()


def test_a_singular_covariance_gets_the_ridge_it_needs():
    """With ridge 0, a repeated column gives finite results and the value of the view without it."""
    x, y = views(80, 10, 7, F64)
    x[:, 3] = x[:, 4]
    value, gx, gy = cuda_trace_norm.trace_norm(x, y, 0.0, 0.0, 7, True, True)
    keep = [i for i in range(10) if i != 3]
    expected = reference.trace_norm(x[:, keep], y, 0.0, 0.0, 7, False, False)[0]
    assert value.item() == pytest.approx(expected.item(), rel=1e-6)
    assert gx.isfinite().all()
    assert gy.isfinite().all()


@pytest.mark.parametrize("need", [(True, False), (False, True), (False, False)])
@pytest.mark.parametrize("rows", [80, 12])
def test_gradients_that_nobody_needs_are_empty(need, rows):
    x, y = views(rows, 20, 17, F64)
    value, gx, gy = cuda_trace_norm.trace_norm(x, y, 1e-3, 1e-3, 17, *need)
    whole = cuda_trace_norm.trace_norm(x, y, 1e-3, 1e-3, 17, True, True)
    assert torch.equal(value, whole[0])
    for needed, one, other in zip(need, (gx, gy), whole[1:]):
        assert torch.equal(one, other) if needed else one.numel() == 0


class Zca(torch.autograd.Function):
    """The kernels' own whitening and its gradient, for gradcheck."""

    @staticmethod
    def forward(ctx, x):
        ctx.x = x
        return cuda_covariance.whiten(x, 0.1, True)

    @staticmethod
    def backward(ctx, grad):
        return cuda_covariance.whiten_backward(grad, ctx.x, 0.1, True)


@pytest.mark.parametrize("shape", [(5, 2), (2, 3)])
def test_gradcheck_of_zca(shape):
    assert torch.autograd.gradcheck(Zca.apply, (views(*shape, 1)[0].requires_grad_(),))


class Differentiable(torch.autograd.Function):
    """The kernels' own value and gradients, for gradcheck."""

    @staticmethod
    def forward(ctx, x, y):
        value, *ctx.grads = cuda_trace_norm.trace_norm(x, y, 0.3, 0.2, min(x.shape[1], y.shape[1]), True, True)
        return value

    @staticmethod
    def backward(ctx, grad):
        return tuple(grad * g for g in ctx.grads)


@pytest.mark.parametrize("shape", [(7, 3, 2), (7, 2, 3), (4, 5, 6), (4, 5, 2), (4, 2, 5)])
def test_gradcheck_of_the_kernels(shape):
    x, y = views(*shape)
    assert torch.autograd.gradcheck(Differentiable.apply, (x.requires_grad_(), y.requires_grad_()))


@pytest.mark.parametrize("dtype", [F16, BF16, F32, F64])
@pytest.mark.parametrize("shape", [(2, 1, 1), (37, 19, 8), (300, 66, 5)])
def test_covariance_and_its_backward(dtype, shape):
    x, y = views(*shape, dtype)
    x, y = x + 5, y - 5
    wide = F64 if dtype == F64 else F32
    for second in (y, None):
        expected = covariance_reference.covariance(x.double(), None if second is None else y.double(), 0.1, 0.2)
        actual = cuda_covariance.covariance(x, second, 0.1, 0.2)
        for a, e in zip(actual, expected):
            assert a.dtype == wide
            assert a.numel() == 0 if e is None else relative(a, e) < (1e-13 if dtype == F64 else 1e-6)
        grads = [torch.randn(a.shape, dtype=wide) for a in actual]
        wanted = Covariance(*(g.double() if g.numel() else None for g in grads))
        expected = covariance_reference.covariance_backward(x.double(), None if second is None else y.double(), wanted)
        actual = cuda_covariance.covariance_backward(x, second, *grads)
        for a, e in zip(actual, expected):
            assert a.dtype == dtype
            assert a.numel() == 0 if e is None else relative(a, e) < max(ACCURACY[dtype], 1e-12)


def test_columns_of_any_stride():
    x, y = views(60, 30, 22, F32)
    strange = x.mT.contiguous().mT, torch.cat([y, y], 1)[:, 11:33]
    plain = [v.contiguous() for v in strange]
    for a, b in zip(cuda_covariance.covariance(*strange, 0.1, 0.2), cuda_covariance.covariance(*plain, 0.1, 0.2)):
        assert relative(a, b) < 1e-7
    check(*strange)


class NoSingleProducts(TorchDispatchMode):
    """Refuses torch's fp32 products, which `torch.set_float32_matmul_precision` may turn into TF32."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        single = any(isinstance(a, Tensor) and a.dtype == F32 for a in args)
        assert not (single and func.overloadpacket.__name__ in ("mm", "bmm", "addmm", "baddbmm", "mv", "dot")), func
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("fast_double", [True, False])
@pytest.mark.parametrize("rows", [20, 70])
def test_no_product_depends_on_the_precision_that_is_set_in_torch(rows, fast_double, monkeypatch):
    monkeypatch.setattr(driver, "fast_double", lambda x: fast_double)
    monkeypatch.setattr(driver.native, "SMALL_COLUMNS", 8)
    x, y = views(rows, 30, 24, F32)
    with NoSingleProducts():
        for zca in (False, True):
            cuda_covariance.whiten_backward(cuda_covariance.whiten(x, 0.1, zca), x, 0.1, zca)
        for top_k in (24, 3):
            cuda_trace_norm.trace_norm(x, y, 0.1, 0.1, top_k, True, True)
        sigma = cuda_trace_norm.canonical_correlations(x, y, 0.1, 0.1, 24)
        cuda_trace_norm.canonical_correlations_backward(sigma, x, y, 0.1, 0.1)


@pytest.mark.parametrize("zca", [False, True])
@pytest.mark.parametrize("dtype", [F32, F64])
@pytest.mark.parametrize("shape", [(50, 13), (200, 70), (8, 20)])
def test_whiten_and_its_backward(shape, dtype, zca):
    x, _ = views(*shape, 1, dtype)
    grad = torch.randn_like(x)
    tolerance = 2e-6 if dtype == F32 else 1e-11
    expected = whiten_reference.whiten(x.double(), 0.1, zca)
    assert relative(cuda_covariance.whiten(x, 0.1, zca), expected) < tolerance
    expected = whiten_reference.whiten_backward(grad.double(), x.double(), 0.1, zca)
    assert relative(cuda_covariance.whiten_backward(grad, x, 0.1, zca), expected) < tolerance


@pytest.mark.parametrize("dtype", [F32, F64])
@pytest.mark.parametrize("case", ["dead", "repeated columns", "constant", "scale 1e3", "half", "tiny", "condition 1e9"])
def test_zca_of_degenerate_inputs(case, dtype):
    """As accurate as fp64 allows, in cases that fp32 cannot represent."""
    x, ridge = views(60, 9, 1, dtype)[0], 1e-3
    if case == "dead":
        x[:, ::3] = 0
    elif case == "repeated columns":
        x[:, 5:] = x[:, :4] * 1e3
    elif case == "constant":
        x.fill_(1)
    elif case == "scale 1e3":
        x = x * 1e3
    elif case == "half":
        x = x.to(BF16)
    elif case == "tiny":
        x, ridge = x * 1e-3, 1e-12
    else:
        x, ridge = x * torch.logspace(0, -4.5, 9), 0.0
    grad = torch.randn_like(x)
    actual = cuda_covariance.whiten(x, ridge, True), cuda_covariance.whiten_backward(grad, x, ridge, True)
    expected = (
        whiten_reference.whiten(x.double(), ridge, True),
        whiten_reference.whiten_backward(grad.double(), x.double(), ridge, True),
    )
    for a, e in zip(actual, expected):
        assert a.dtype == x.dtype
        if case == "constant":
            assert relative(a, e) < 1e-6 if e.any() else not a.any()
        else:
            assert relative(a, e) < (4e-3 if case == "half" else 1e-6)


def test_zca_of_what_is_not_finite_or_zero_is_nan():
    for bad, rest in ((torch.nan, 1.0), (torch.inf, 1.0), (0.0, 0.0)):
        x = torch.randn(20, 4) * rest
        x[3, 2] = bad
        assert cuda_covariance.whiten(x, 0.0, True).isnan().all()
        assert cuda_covariance.whiten_backward(x, x, 0.0, True).isnan().all()


def test_roots_are_symmetric_to_the_bit():
    lower = torch.linalg.cholesky(torch.diag(torch.logspace(0, -3, 20, dtype=F64)) + 0.01).contiguous()
    right = torch.randn(20, 20, dtype=F64)
    e = cuda_iterations.lyapunov(lower @ lower.mT, right + right.mT)
    assert relative(lower @ lower.mT @ e + e @ lower @ lower.mT, 2 * (right + right.mT)) < 1e-12
    for s in (*cuda_iterations.symmetric_roots(lower), e):
        assert torch.equal(s, s.mT)


def test_polar_factor_of_every_shape():
    for shape in ((20, 20), (33, 9), (9, 33)):
        for dtype, tolerance in ((F32, 2e-6), (F64, 1e-12)):
            t = torch.randn(shape, dtype=F64)
            t = (0.9 * t / torch.linalg.matrix_norm(t, 2)).to(dtype)
            u, _, vh = torch.linalg.svd(t.double(), full_matrices=False)
            assert relative(cuda_iterations.polar(t), u @ vh) < tolerance
    assert cuda_iterations.polar(torch.zeros(5, 4)).abs().max() == 0
