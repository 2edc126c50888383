"""Products and column means on the emulated device, compared with fp64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tests.conftest import relative
from xmodal_ops.ops.cuda import driver
from xmodal_ops.ops.cuda.driver import Iteration, Product, Term, column_means, products

F16, BF16, F32, F64 = torch.float16, torch.bfloat16, torch.float32, torch.float64
ACCURACY = {F32: 4e-7, F64: 1e-15}
pytestmark = pytest.mark.usefixtures("emulated", "schedule")


def stored(layout: str, rows: int, columns: int, depth: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    a = torch.randn(depth, rows) if layout == "tn" else torch.randn(rows, depth)
    b = torch.randn(columns, depth) if layout == "nt" else torch.randn(depth, columns)
    return a.to(dtype), b.to(dtype)


def exact(layout: str, a: Tensor, b: Tensor) -> Tensor:
    a, b = a.double(), b.double()
    return (a.mT if layout == "tn" else a) @ (b.mT if layout == "nt" else b)


@pytest.mark.parametrize("layout", ["nn", "tn", "nt"])
@pytest.mark.parametrize(("dtype", "tile"), [(F32, 64), (F32, 128), (F64, 64)])
@pytest.mark.parametrize("shape", [(1, 1, 1), (65, 17, 3), (130, 129, 40)])
def test_layouts_and_edges(layout, dtype, tile, shape, fenced):
    a, b = map(fenced, stored(layout, *shape, dtype))
    out = fenced(torch.full(shape[:2], torch.nan, dtype=dtype))
    products(layout, Product((Term(a, b),), out), tile=tile)
    assert relative(out, exact(layout, a, b)) < ACCURACY[dtype]


@pytest.mark.parametrize("dtype", [F16, BF16])
def test_half_inputs_and_outputs(dtype, fenced):
    a, b = map(fenced, stored("tn", 33, 21, 50, dtype))
    out, half = torch.empty(33, 21), fenced(torch.empty(33, 21, dtype=dtype))
    products("tn", Product((Term(a, b),), out), Product((Term(a, b),), half))
    assert relative(out, exact("tn", a, b)) < 4e-7
    assert torch.equal(half, out.to(dtype))


@pytest.mark.parametrize("dtype", [F16, BF16, F32])
def test_fp64_products_of_narrow_matrices(dtype):
    a, b = stored("tn", 20, 30, 40, dtype)
    out = torch.empty(20, 30, dtype=F64)
    zero = torch.zeros(2, 20, dtype=F64)
    products("tn", Product((Term(a, b, zero),), out))
    assert relative(out, exact("tn", a, b)) < 1e-15


@pytest.mark.parametrize("dtype", [F32, F64])
def test_rows_of_any_stride_and_alignment(dtype):
    a, b = stored("nn", 20, 25, 33, dtype)
    wide_a, wide_b = torch.randn(20, 50, dtype=dtype), torch.randn(2 * 33, 31, dtype=dtype)
    a, b = wide_a[:, 3:36].copy_(a), wide_b[::2, 5:30].copy_(b)
    out = torch.full((20, 64), torch.nan, dtype=dtype)
    products("nn", Product((Term(a, b),), out[:, 7:32]))
    assert relative(out[:, 7:32], exact("nn", a, b)) < ACCURACY[dtype]
    assert out[:, :7].isnan().all()
    assert out[:, 32:].isnan().all()


@pytest.mark.parametrize("dtype", [F32, F64])
def test_two_terms_addend_and_diagonal(dtype):
    (a, b), (c, d) = stored("nn", 40, 70, 30, dtype), stored("nn", 40, 70, 19, dtype)
    matrix, row = torch.randn(40, 70, dtype=dtype), torch.randn(70, dtype=dtype)
    for add in (matrix, row):
        out = torch.empty(40, 70, dtype=dtype)
        products("nn", Product((Term(a, b), Term(c, d)), out, alpha=-2.0, beta=0.5, gamma=3.0, add=add))
        expected = -2 * (exact("nn", a, b) + exact("nn", c, d)) + 0.5 * add.double() + 3 * torch.eye(40, 70)
        assert relative(out, expected) < ACCURACY[dtype]


@pytest.mark.parametrize("depth", [30, 600])
def test_added_up_in_place(depth):
    a, b = stored("tn", 40, 30, depth, F32)
    start = torch.randn(40, 30)
    out = start.clone()
    products("tn", Product((Term(a, b),), out, alpha=-1.0, beta=1.0, add=out))
    assert relative(out, start.double() - exact("tn", a, b)) < ACCURACY[F32]


@pytest.mark.parametrize("dtype", [F32, F64])
@pytest.mark.parametrize("tile", [64, 128])
def test_symmetric_results_are_so_to_the_bit(dtype, tile):
    a, _ = stored("tn", 150, 150, 37, dtype)
    out = torch.full((150, 150), torch.nan, dtype=dtype)
    products("tn", Product((Term(a, a),), out, True), tile=64 if dtype == F64 else tile)
    assert relative(out, exact("tn", a, a)) < ACCURACY[dtype]
    assert torch.equal(out, out.mT)


@pytest.mark.parametrize("dtype", [F32, F64])
def test_shared_depth_gives_the_same(dtype):
    """Depth 600 is shared by several blocks on the emulated device's few processors."""
    x, y = stored("tn", 40, 30, 600, dtype)
    outs = [torch.empty(s, dtype=dtype) for s in ((40, 40), (40, 30), (30, 30))]
    list_ = [
        Product((Term(a, b),), out, a is b, alpha=1 / 599, gamma=0.5)
        for (a, b), out in zip(((x, x), (x, y), (y, y)), outs)
    ]
    assert driver.choose_splits(3, 64, 600, dtype == F64, 4) > 1
    products("tn", *list_)
    for (a, b), out in zip(((x, x), (x, y), (y, y)), outs):
        assert relative(out, exact("tn", a, b) / 599 + 0.5 * torch.eye(*out.shape)) < ACCURACY[dtype]


def test_long_sums_do_not_drift():
    """Positive terms: the emulated tensor cores truncate, and 1900 truncations in a row would cost 5e-5."""
    a = torch.rand(5000, 8) + 0.5
    out = torch.empty(8, 8)
    products("tn", Product((Term(a, a),), out, True), may_split=False)
    errors = (out - exact("tn", a, a)).abs() / exact("tn", a, a)
    assert errors.max().item() < 1.5e-6


@pytest.mark.parametrize("dtype", [F32, F64])
@pytest.mark.parametrize("layout", ["nn", "tn", "nt"])
def test_centring_is_folded_into_the_loads(layout, dtype):
    a, b = stored(layout, 37, 26, 45, dtype)
    a, b = a * 1e-2 + 1e3, b * 1e-2 - 1e3
    shifts = [torch.stack([v.double().mean(0).to(dtype), torch.zeros(v.shape[1], dtype=dtype)]) for v in (a, b)]
    for v, shift in zip((a, b), shifts):
        shift[1] = (v.double().mean(0) - shift[0].double()).to(dtype)
    out = torch.empty(37, 26, dtype=dtype)
    products(layout, Product((Term(a, b, *shifts),), out))
    centred = [v.double() - v.double().mean(0) for v in (a, b)]
    assert relative(out, exact(layout, *centred)) < (1e-6 if dtype == F32 else 1e-10)


@pytest.mark.parametrize("dtype", [F16, BF16, F32, F64])
@pytest.mark.parametrize("shape", [(2, 1), (100, 7), (77, 200)])
def test_column_means(dtype, shape, fenced):
    x = fenced((torch.randn(shape) + 100).to(dtype))
    work = F64 if dtype == F64 else F32
    (shift,) = column_means(x, dtype=work)
    one, other = column_means(x, x, dtype=work)
    mean = x.double().mean(0)
    assert torch.equal(shift, one)
    assert torch.equal(shift, other)
    assert (shift.double().sum(0) - mean).abs().max() < (1e-13 if work == F64 else 1e-11)


@pytest.mark.parametrize("dtype", [F32, F64])
def test_an_ended_iteration_hands_its_result_on(dtype):
    a, b = stored("nn", 70, 70, 70, dtype)
    previous, out = torch.randn(70, 70, dtype=dtype), torch.full((70, 70), torch.nan, dtype=dtype)
    active, change = torch.zeros(1, dtype=torch.int32), torch.full((8,), torch.nan, dtype=F64)
    products("nn", Product((Term(a, b),), out), iteration=Iteration(active, previous, change), tile=64)
    assert torch.equal(out, previous)
    products("nn", Product((Term(a, b),), out), iteration=Iteration(active))
    assert torch.equal(out, previous)
    active.fill_(1)
    products("nn", Product((Term(a, b),), out), iteration=Iteration(active, previous, change), tile=64)
    assert relative(out, exact("nn", a, b)) < ACCURACY[dtype]
    moved, size = change.view(-1, 2).sum(0)
    assert moved.item() == pytest.approx((out - previous).double().square().sum().item())
    assert size.item() == pytest.approx(out.double().square().sum().item())
    ratio = (moved / size).sqrt().item()
    state = Iteration(active, previous, change).to_native()
    for tolerance, left in ((0.99 * ratio, 1), (1.01 * ratio, 0)):
        driver.native.test_convergence(state, 4, tolerance, 0)
        assert active.item() == left
    active.fill_(1)
    change.fill_(torch.nan)
    driver.native.test_convergence(state, 4, 1.0, 0)
    assert active.item() == 1


def test_plans_fill_the_device_within_their_memory():
    """The sizes of the performance goals on an H200's 132 processors."""
    for m, dx, dy in ((512, 64, 64), (4096, 1024, 1024), (8192, 4096, 4096), (10**7, 64, 64), (10**6, 2048, 2048)):
        shapes = [((dx, dx), True), ((dx, dy), False), ((dy, dy), True)]
        for wide in (False, True):
            tile = driver.choose_tile(shapes, wide, 132)
            tiles = sum(driver.count_tiles(shape, symmetric, tile) for shape, symmetric in shapes)
            splits = driver.choose_splits(tiles, tile, m, wide, 132)
            assert tile == (128 if dx > 1024 and not wide else 64) or (dx, wide) == (1024, False)
            assert splits == 1 or splits * tiles * tile**2 * (8 if wide else 4) <= driver.PARTIALS_LIMIT
            assert splits * tiles >= min(132, m // 128)
