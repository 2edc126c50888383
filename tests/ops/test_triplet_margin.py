"""The triplet margin loss: values, gradients and counts against explicit triplets in fp64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tests import oracles
from tests.conftest import relative
from tests.ops.triplet_data import SHAPES, batch, labels
from xmodal_ops import max_violation_loss, triplet_margin_loss
from xmodal_ops.nn import MaxViolationLoss
from xmodal_ops.ops._library import flattened
from xmodal_ops.ops.portable.pairs import relations
from xmodal_ops.ops.portable.triplet_margin import triplet_margin

PATHS = {"native": torch.ops.xmodal.triplet_margin, "torch": flattened(triplet_margin)}
KINDS = ["all", "hard", "semihard"]


def textbook(data, weight, margin, kind, exclude) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    anchor, ref = (x.detach().double().requires_grad_() for x in data[:2])
    losses, active = oracles.triplet_margin(anchor, ref, *data[2:], margin, kind, exclude)
    (losses * weight).sum().backward()
    return losses.detach(), active, anchor.grad, ref.grad


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("kind", ["single", "multi"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_exact(path: str, kind: str, shape: tuple[int, ...]) -> None:
    data = batch(*shape, kind)
    exclude = shape[0] == shape[1]
    weight = torch.rand(shape[0], dtype=torch.float64)
    same, other = relations(*data[2:], exclude)
    d = (data[0][:, None] - data[1]).norm(dim=2)
    for triplets in KINDS:
        expected = textbook(data, weight, 0.7, triplets, exclude)
        sums, grad_anchor, grad_ref = PATHS[path](*data, weight, 0.7, triplets, exclude, True, True)
        largest = float(expected[0].max()) or 1.0
        assert float((sums[0] - expected[0]).abs().max()) <= 1e-12 * largest
        assert torch.equal(sums[1].long(), expected[1])
        assert torch.equal(sums[2].long(), same.sum(1))
        assert torch.equal(sums[3].long(), other.sum(1))
        torch.testing.assert_close(sums[4], (d * same).sum(1), rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(sums[5], (d * other).sum(1), rtol=1e-12, atol=1e-12)
        for found, exact in ((grad_anchor, expected[2]), (grad_ref, expected[3])):
            assert float((found - exact).abs().max()) <= 1e-10 * (float(exact.abs().max()) or 1.0)


@pytest.mark.parametrize("path", PATHS)
def test_exact_ties_of_integers(path: str) -> None:
    """On a line of integers with an integer margin most triplets lie on a boundary: ties are inactive."""
    data = (*torch.randint(0, 6, (2, 90, 1)).double(), *labels(90, 90, 4, "single"))
    for triplets in KINDS:
        expected = textbook(data, torch.ones(90).double(), 2.0, triplets, False)
        sums, grad_anchor, grad_ref = PATHS[path](*data, None, 2.0, triplets, False, True, True)
        assert torch.equal(sums[0], expected[0])
        assert torch.equal(sums[1].long(), expected[1])
        torch.testing.assert_close(grad_anchor, expected[2], rtol=0, atol=1e-10)
        torch.testing.assert_close(grad_ref, expected[3], rtol=0, atol=1e-10)


def test_exact_with_many_positives() -> None:
    """Enough positives per anchor for the radix sort."""
    for dtype, tolerance in ((torch.float64, 1e-12), (torch.float32, 1e-5)):
        data = batch(150, 150, 20, 2, dtype=dtype)
        expected = textbook(data, 1.0, 0.7, "all", False)
        sums, grad_anchor, grad_ref = torch.ops.xmodal.triplet_margin(*data, None, 0.7, "all", False, True, True)
        assert relative(sums[0], expected[0]) < tolerance
        assert relative(grad_anchor, expected[2]) < 100 * tolerance
        assert relative(grad_ref, expected[3]) < 100 * tolerance


@pytest.mark.parametrize("triplets", [*KINDS, "batch_hard"])
def test_reductions_and_stats(triplets: str) -> None:
    anchor, ref, la, lr = batch(40, 50, 6, 4)
    options = {"margin": 0.7, "triplets": triplets}
    per_anchor = triplet_margin_loss(anchor, la, ref, lr, reduction="none", **options)
    total, stats = triplet_margin_loss(anchor, la, ref, lr, reduction="sum", return_stats=True, **options)
    assert per_anchor.shape == (40,)
    torch.testing.assert_close(per_anchor.sum(), total)
    same = la[:, None] == lr
    anchors = (same.any(1) & (~same).any(1)).sum()
    number = anchors if triplets == "batch_hard" else (same.sum(1) * (~same).sum(1)).sum()
    assert (stats.triplets, stats.anchors) == (number, anchors)
    mean, active = (triplet_margin_loss(anchor, la, ref, lr, reduction=r, **options) for r in ("mean", "mean_active"))
    torch.testing.assert_close(mean * number, total)
    torch.testing.assert_close(active * stats.active, total)
    d = (anchor[:, None] - ref).norm(dim=2)
    if triplets == "batch_hard":
        hardest, nearest = d.where(same, -1.0).amax(1), d.where(~same, torch.inf).amin(1)
        torch.testing.assert_close(per_anchor, (0.7 + hardest - nearest).relu())
        assert stats.active == (hardest + 0.7 > nearest).sum()
        torch.testing.assert_close(stats.positive_distance, hardest.mean())
        torch.testing.assert_close(stats.negative_distance, nearest.mean())
    else:
        torch.testing.assert_close(stats.positive_distance, d[same].mean())
        torch.testing.assert_close(stats.negative_distance, d[~same].mean())


@pytest.mark.parametrize("reduction", ["mean_active", "mean", "sum", "none"])
@pytest.mark.parametrize("triplets", [*KINDS, "batch_hard"])
def test_gradcheck(triplets: str, reduction: str) -> None:
    anchor, ref, la, lr = torch.randn(9, 4).double(), torch.randn(11, 4).double(), *labels(9, 11, 3, "single")

    def loss(a: Tensor, r: Tensor) -> Tensor:
        return triplet_margin_loss(a, la, r, lr, margin=0.7, triplets=triplets, reduction=reduction)

    assert torch.autograd.gradcheck(loss, (anchor.requires_grad_(), ref.requires_grad_()))
    one = torch.randn(9, 4).double().requires_grad_()
    assert torch.autograd.gradcheck(
        lambda a: triplet_margin_loss(a, la, margin=0.7, triplets=triplets, reduction=reduction), (one,)
    )


@pytest.mark.parametrize("triplets", [*KINDS, "batch_hard"])
@pytest.mark.parametrize("classes", ["one", "all different"])
def test_no_valid_anchor(triplets: str, classes: str) -> None:
    x = torch.randn(12, 5, requires_grad=True)
    la = torch.zeros(12, dtype=torch.int64) if classes == "one" else torch.arange(12)
    for reduction in ("mean_active", "mean", "sum"):
        x.grad = None
        loss = triplet_margin_loss(x, la, triplets=triplets, reduction=reduction)
        loss.backward()
        assert loss == 0
        assert torch.equal(x.grad, torch.zeros_like(x))


@pytest.mark.parametrize("triplets", [*KINDS, "batch_hard"])
def test_coincident_points_have_finite_gradients(triplets: str) -> None:
    x = torch.randn(1, 5).repeat(12, 1).requires_grad_()
    loss = triplet_margin_loss(x, torch.arange(12) % 3, triplets=triplets, reduction="sum")
    loss.backward()
    number = {"all": 12 * 3 * 8, "hard": 0, "semihard": 12 * 3 * 8, "batch_hard": 12}[triplets]
    assert float(loss.detach()) == pytest.approx(0.2 * number)
    assert torch.equal(x.grad, torch.zeros_like(x))


@pytest.mark.parametrize("triplets", [*KINDS, "batch_hard"])
def test_rows_that_are_not_finite_give_nan(triplets: str) -> None:
    x = torch.randn(12, 5)
    x[3, 1] = torch.nan
    x.requires_grad_()
    loss = triplet_margin_loss(x, torch.arange(12) % 3, triplets=triplets, reduction="sum", margin=9.0)
    loss.backward()
    assert loss.isnan()
    assert x.grad.isnan().any()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("triplets", ["all", "batch_hard"])
def test_half_inputs(dtype: torch.dtype, triplets: str) -> None:
    anchor, ref, la, lr = batch(300, 200, 16, 3, dtype=dtype)
    wide = [x.float().requires_grad_() for x in (anchor, ref)]
    half = [x.requires_grad_() for x in (anchor, ref)]
    for a, r in (half, wide):
        triplet_margin_loss(a, la, r, lr, triplets=triplets).backward()
    assert half[0].grad.dtype == dtype
    for h, w in zip(half, wide):
        assert h.grad.isfinite().all()
        assert relative(h.grad, w.grad) < torch.finfo(dtype).eps
    assert triplet_margin_loss(anchor, la, ref, lr, triplets=triplets).dtype == torch.float32
    with torch.autocast("cpu", torch.bfloat16):
        inside = triplet_margin_loss(wide[0], la, wide[1], lr, triplets=triplets)
    assert torch.equal(inside, triplet_margin_loss(wide[0], la, wide[1], lr, triplets=triplets))


def test_op_and_compile() -> None:
    anchor, ref, la, lr = batch(20, 30, 6, 3, dtype=torch.float32)
    for needs in ((True, True), (False, True), (False, False)):
        args = (anchor, ref, la, lr, None, 0.2, "semihard", False, *needs)
        torch.library.opcheck(torch.ops.xmodal.triplet_margin, args)
    anchor.requires_grad_()
    ref = ref.mT.contiguous().mT
    for triplets in ("all", "batch_hard"):
        for reduction in ("mean_active", "none"):

            def loss(a: Tensor, triplets=triplets, reduction=reduction) -> Tensor:
                return triplet_margin_loss(a, la, ref, lr, triplets=triplets, reduction=reduction).sum()

            (expected,) = torch.autograd.grad(loss(anchor), anchor)
            compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
            (found,) = torch.autograd.grad(compiled(anchor), anchor)
            assert torch.equal(found, expected)


def test_against_pytorch_metric_learning() -> None:
    distances = pytest.importorskip("pytorch_metric_learning.distances")
    from pytorch_metric_learning import losses, miners, reducers

    anchor, ref, la, lr = batch(60, 50, 8, 5)
    distance = distances.LpDistance(normalize_embeddings=False)
    plain = losses.TripletMarginLoss(margin=0.2, distance=distance)
    torch.testing.assert_close(triplet_margin_loss(anchor, la, ref, lr), plain(anchor, la, None, ref, lr))
    mean = losses.TripletMarginLoss(margin=0.2, distance=distance, reducer=reducers.MeanReducer())
    mined = miners.BatchHardMiner(distance=distance)(anchor, la, ref, lr)
    ours = triplet_margin_loss(anchor, la, ref, lr, triplets="batch_hard", reduction="mean")
    torch.testing.assert_close(ours, mean(anchor, la, mined, ref, lr))
    torch.testing.assert_close(triplet_margin_loss(anchor, la), plain(anchor, la))


def vse(image: Tensor, text: Tensor, margin: float) -> Tensor:
    """VSE++'s loss as its authors write it."""
    v, t = (torch.nn.functional.normalize(x, dim=1) for x in (image, text))
    scores = v @ t.mT
    right = scores.diagonal()
    off = ~torch.eye(len(v), dtype=torch.bool)
    cost_t = (margin + scores - right[:, None]).relu().where(off, 0.0).amax(1)
    cost_v = (margin + scores - right[None, :]).relu().where(off, 0.0).amax(0)
    return (cost_t + cost_v).sum()


def test_max_violation() -> None:
    image, text = torch.randn(2, 60, 9, dtype=torch.float64).unbind()
    results = []
    for loss in (lambda v, t: max_violation_loss(v, t, margin=0.3, reduction="sum"), lambda v, t: vse(v, t, 0.3)):
        v, t = (x.clone().requires_grad_() for x in (image, text))
        value = loss(v, t)
        results.append((value.detach(), *torch.autograd.grad(value, (v, t))))
    for found, expected in zip(*results):
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    mean, stats = max_violation_loss(image, text, margin=0.3, return_stats=True)
    torch.testing.assert_close(mean * 60, results[0][0])
    assert stats.triplets == 120
    assert 0 < stats.active <= 120
    single = image[:1].clone().requires_grad_()
    alone = max_violation_loss(single, text[:1])
    alone.backward()
    assert alone == 0
    assert torch.equal(single.grad, torch.zeros_like(single))
    half = max_violation_loss(image.half(), text.half(), margin=0.3)
    assert half.dtype == torch.float32
    assert float(half) == pytest.approx(float(mean), rel=1e-2)
    image[2, 2] = torch.inf
    assert max_violation_loss(image, text).isnan()
    compiled = torch.compile(max_violation_loss, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(text, text), max_violation_loss(text, text))


def test_a_duplicate_item_is_no_negative_in_max_violation() -> None:
    """A batch with one image twice; by the definition, all rows of the same id are left out as negatives."""
    image = torch.randn(9, 6, dtype=torch.float64)
    image[6] = image[0]
    text = image + 0.5 * torch.randn(9, 6, dtype=torch.float64)
    ids = torch.tensor([3, 10**12, -1, 5, 5, 8, 3, 0, 7])
    s = torch.nn.functional.normalize(image) @ torch.nn.functional.normalize(text).T
    other = ids[:, None] != ids
    costs = ((0.2 + t - t.diagonal()[:, None]).relu().where(other, 0.0).amax(1) for t in (s, s.T))
    expected = sum(c.mean() for c in costs)
    torch.testing.assert_close(max_violation_loss(image, text, ids), expected)
    torch.testing.assert_close(MaxViolationLoss()(image, text, ids), expected)
    assert max_violation_loss(image, text) > expected
    assert max_violation_loss(image, text, torch.zeros(9, dtype=torch.uint8)) == 0
    assert torch.equal(max_violation_loss(image, text, torch.arange(9)), max_violation_loss(image, text))


X, L = torch.randn(4, 3), torch.tensor([0, 0, 1, 1])


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: triplet_margin_loss(X, L, margin=-0.1), ValueError, "margin must be finite and >= 0, got -0.1"),
        (lambda: triplet_margin_loss(X, L, margin="a"), TypeError, "margin must be a number, got str"),
        (lambda: triplet_margin_loss(X, L, triplets="easy"), ValueError, "triplets must be one of"),
        (lambda: triplet_margin_loss(X, L, reduction="max"), ValueError, "reduction must be one of"),
        (lambda: triplet_margin_loss(X[0], L), ValueError, r"anchor must have shape \(m, d\), got \(3,\)"),
        (lambda: triplet_margin_loss(X, L[None]), ValueError, "labels must have one entry per row of anchor"),
        (lambda: max_violation_loss(X, X[:3]), ValueError, "text must have as many rows as image, 4, got 3"),
        (lambda: max_violation_loss(X, X[:, :2]), ValueError, "text must have as many columns as image, 3, got 2"),
        (lambda: max_violation_loss(X, X, margin=-1), ValueError, "margin must be finite and >= 0"),
    ],
)
def test_bad_input(call, error, message) -> None:
    with pytest.raises(error, match=message) as raised:
        call()
    assert "\n" not in str(raised.value)
