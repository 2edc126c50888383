"""The losses over all pairs by drivers and kernels on the emulated device, compared with explicit triplets."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from tests.conftest import relative
from tests.ops.test_structure_preserving import textbook as structure_textbook
from tests.ops.test_triplet_margin import KINDS
from tests.ops.test_triplet_margin import textbook as margin_textbook
from tests.ops.triplet_data import SHAPES, Batch, batch, labels
from xmodal_ops.ops._library import flattened
from xmodal_ops.ops.cuda import pairs as cuda_pairs
from xmodal_ops.ops.cuda import triplets as cuda_triplets
from xmodal_ops.ops.portable.pairs import positives, relations
from xmodal_ops.ops.portable.structure_preserving import structure_preserving
from xmodal_ops.ops.portable.triplet_margin import triplet_margin

F16, BF16, F32, F64 = torch.float16, torch.bfloat16, torch.float32, torch.float64
pytestmark = pytest.mark.usefixtures("emulated")
Result = tuple[Tensor, ...]


def structure(data: Batch, margin: float, needs: tuple[bool, bool] = (True, True), reduction: str = "mean") -> Result:
    return flattened(cuda_triplets.structure_preserving)(*data, margin, 0.3, reduction, *needs)


def margin_loss(
    data: Batch,
    margin: float,
    triplets: str,
    weight: Tensor | None = None,
    exclude: bool = False,
    needs: tuple[bool, bool] = (True, True),
) -> Result:
    return flattened(cuda_triplets.triplet_margin)(*data, weight, margin, triplets, exclude, *needs)


LOSSES: dict[str, Callable[..., Result]] = {
    "structure": lambda data, **options: structure(data, 5.0, **options),
    "all": lambda data, **options: margin_loss(data, 0.7, "all", **options),
    "semihard": lambda data, **options: margin_loss(data, 0.7, "semihard", **options),
}


def assert_close(found: Tensor, exact: Tensor, tolerance: float) -> None:
    assert float((found - exact).abs().max()) <= tolerance * (float(exact.abs().max()) or 1.0)


def typical(data: Batch) -> float:
    return float((data[0].double()[:, None] - data[1].double()).norm(dim=2).mean())


def check_structure(data: Batch, value: float = 1e-12, gradient: float = 1e-10) -> None:
    same = positives(*data[2:])
    d = (data[0].double()[:, None] - data[1].double()).norm(dim=2)
    for margin, reduction in ((typical(data), "mean"), (0.0, "sum")):
        exact = structure_textbook(data, margin, 0.3, reduction)
        found, stats, *gradients = structure(data, margin, reduction=reduction)
        assert_close(found, exact[0], value)
        for one, other in zip(gradients, exact[1:]):
            assert_close(one, other, gradient)
        assert stats[:3].tolist() == [int((~same & (d < margin)).sum()), int(same.sum()), int((~same).sum())]
        torch.testing.assert_close(stats[3:], torch.stack((d[same].sum(), d[~same].sum())), rtol=value, atol=1e-300)


def check_margin(data: Batch, kinds: list[str] = KINDS, value: float = 1e-12, gradient: float = 1e-10) -> None:
    exclude = len(data[0]) == len(data[1])
    weight = torch.rand(len(data[0]), dtype=F64)
    same, other = relations(*data[2:], exclude)
    d = (data[0].double()[:, None] - data[1].double()).norm(dim=2)
    for triplets in kinds:
        exact = margin_textbook(data, weight, 0.7, triplets, exclude)
        sums, *gradients = margin_loss(data, 0.7, triplets, weight, exclude)
        assert_close(sums[0], exact[0], value)
        assert torch.equal(sums[1].long(), exact[1])
        assert torch.equal(sums[2:4].long(), torch.stack((same.sum(1), other.sum(1))))
        assert_close(sums[4:], torch.stack(((d * same).sum(1), (d * other).sum(1))), value)
        for one, expected in zip(gradients, exact[2:]):
            assert_close(one, expected, gradient)


@pytest.mark.parametrize("kind", ["single", "multi"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_exact(kind: str, shape: tuple[int, ...], schedule: int) -> None:
    data = batch(*shape, kind)
    check_structure(data)
    check_margin(data, KINDS if schedule else ["semihard"])


@pytest.mark.parametrize("tile", [64, 128])
@pytest.mark.parametrize("dtype", [F32, F64])
def test_chunks_of_anchors_and_tiles_of_both_sizes(dtype: torch.dtype, tile: int, monkeypatch, fenced) -> None:
    monkeypatch.setattr(cuda_pairs, "choose_tile", lambda *_: tile if dtype == F32 else 64)
    monkeypatch.setattr(cuda_triplets, "PAIRS_LIMIT", 0)
    data = tuple(fenced(x) for x in batch(150, 91, 9, 4, dtype=dtype))
    tolerances = {"value": 1e-6, "gradient": 1e-5} if dtype == F32 else {}
    check_structure(data, **tolerances)
    check_margin(data, ["all"], **tolerances)


def test_positives_ranked_in_shared_memory_and_outside_give_the_same_bits(monkeypatch) -> None:
    data = batch(70, 150, 17, 3)
    for triplets in KINDS:
        expected = margin_loss(data, 0.7, triplets)
        for enough in (1, 64):  # enough for none and for some of the anchors
            with monkeypatch.context() as patch:
                patch.setattr(cuda_triplets, "IN_SHARED", enough)
                assert all(map(torch.equal, margin_loss(data, 0.7, triplets), expected))


def test_more_references_than_threads_and_shared_memory_are_made_for() -> None:
    data = batch(2, 16500, 2, 2)
    for needs in ((True, True), (False, False)):
        arguments = *data, None, 0.7, "semihard", False, *needs
        pairs = zip(margin_loss(data, 0.7, "semihard", needs=needs), flattened(triplet_margin)(*arguments))
        arguments = *data, 2.0, 0.3, "mean", *needs
        pairs = (*pairs, *zip(structure(data, 2.0, needs), flattened(structure_preserving)(*arguments)))
        for found, expected in pairs:
            torch.testing.assert_close(found, expected, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("dtype", [F16, F32, F64])
def test_ties_of_integers(dtype: torch.dtype) -> None:
    """Most triplets of integers on a line lie on the boundary of an integer margin; ties are inactive."""
    data = (*torch.randint(0, 6, (2, 90, 1)).to(dtype), *labels(90, 90, 4, "single"))
    for triplets in KINDS:
        exact = margin_textbook(data, torch.ones(90).double(), 2.0, triplets, False)
        sums, *gradients = margin_loss(data, 2.0, triplets)
        assert torch.equal(sums[0], exact[0])
        assert torch.equal(sums[1].long(), exact[1])
        for one, expected in zip(gradients, exact[2:]):
            torch.testing.assert_close(one.double(), expected, rtol=0, atol=1e-10 if dtype == F64 else 1e-3)


@pytest.mark.parametrize("offset", [0.0, 1e3])
def test_tight_classes_in_single_precision(offset: float) -> None:
    """With duplicates and a common offset: as accurate as the rounding of the inputs allows."""
    la, lr = labels(100, 130, 5, "single")
    centres = torch.randn(5, 40, dtype=F64)
    image, text = (centres[label] + 0.02 * torch.randn(len(label), 40, dtype=F64) for label in (la, lr))
    text[:20] = image[:20]
    data = (image + offset).float(), (text + offset).float(), la, lr
    exact = structure_textbook(data, 5.0, 0.3, "mean")
    value, _, *gradients = structure(data, 5.0)
    assert relative(value, exact[0]) < 1e-6
    for one, expected in zip(gradients, exact[1:]):
        assert relative(one, expected) < 1e-5


@pytest.mark.parametrize("dtype", [F16, BF16])
@pytest.mark.parametrize("loss", LOSSES)
def test_halves(loss: str, dtype: torch.dtype) -> None:
    data = batch(40, 70, 11, 3, dtype=dtype)
    wide = (*(x.float() for x in data[:2]), *data[2:])
    for half, single in zip(LOSSES[loss](data), LOSSES[loss](wide)):
        assert half.dtype == single.dtype
        assert relative(half, single) < 1e-5


@pytest.mark.parametrize("loss", LOSSES)
def test_every_schedule_gives_the_same_bits(loss: str, host) -> None:
    data = batch(150, 90, 12, 3, dtype=F32)
    results = []
    for seed in range(4):
        host.seed(seed)
        results.append(LOSSES[loss](data))
    host.seed(0)
    assert all(torch.equal(a, b) for other in results[1:] for a, b in zip(results[0], other))


@pytest.mark.parametrize("needs", [(True, False), (False, True), (False, False)])
@pytest.mark.parametrize("loss", LOSSES)
def test_gradients_that_nobody_needs_are_empty(loss: str, needs: tuple[bool, bool]) -> None:
    data = batch(40, 70, 5, 3)
    whole, part = LOSSES[loss](data), LOSSES[loss](data, needs=needs)
    assert all(torch.equal(one, other) for one, other in zip(part[:-2], whole[:-2]))
    for needed, one, other in zip(needs, part[-2:], whole[-2:]):
        assert torch.equal(one, other) if needed else one.numel() == 0


@pytest.mark.parametrize("loss", LOSSES)
def test_without_a_triplet_all_is_zero(loss: str) -> None:
    x, y = torch.randn(2, 20, 5).unbind()
    for la, lr in ((torch.zeros(20), torch.zeros(20)), (torch.arange(20), torch.arange(20, 40))):
        first, *_, grad_x, grad_y = LOSSES[loss]((x, y, la.long(), lr.long()))
        assert (first if loss == "structure" else first[:2]).abs().max() == 0
        assert max(grad_x.abs().max(), grad_y.abs().max()) == 0


@pytest.mark.parametrize("loss", LOSSES)
def test_coincident_points_and_rows_that_are_not_finite(loss: str) -> None:
    x = (torch.randn(1, 5) + 3).repeat(12, 1)
    data = x, x.clone(), torch.arange(12) % 3, torch.arange(12) % 3
    first, *_, grad_x, grad_y = LOSSES[loss](data)
    total = {"structure": 2 * 0.3 * 5, "all": 0.7 * 12 * 4 * 8, "semihard": 0.7 * 12 * 4 * 8}[loss]
    assert float(first if loss == "structure" else first[0].sum()) == pytest.approx(total)
    assert max(grad_x.abs().max(), grad_y.abs().max()) == 0
    for broken in (torch.nan, torch.inf, 1e30):  # finite, but its square is not
        x[4, 2] = broken
        first, *_, grad_x, grad_y = LOSSES[loss](data)
        assert torch.cat([t.flatten() for t in (first, grad_x, grad_y)]).isnan().all()


@pytest.mark.parametrize("scale", [1e-60, 1.0, 1e60])
def test_rows_are_shifted_by_multiples_of_a_power_of_two(scale: float) -> None:
    rows = scale * (1000 + torch.randn(50, 3, dtype=F64))
    shift = cuda_triplets.common_shift(rows, rows)
    step = 2.0 ** (torch.frexp(torch.tensor(2**0.5 * scale, dtype=F64)).exponent.item() - 3)
    assert ((shift - rows.mean(0)).abs() < scale).all()
    assert torch.equal(shift / step, (shift / step).round())
