"""ACMR's structure preserving loss: values and gradients against explicit triplets in fp64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tests import oracles
from tests.conftest import relative
from tests.ops.triplet_data import SHAPES, batch, labels
from xmodal_ops import structure_preserving_loss
from xmodal_ops.ops._library import flattened
from xmodal_ops.ops.portable.pairs import positives
from xmodal_ops.ops.portable.structure_preserving import structure_preserving

PATHS = {"native": torch.ops.xmodal.structure_preserving, "torch": flattened(structure_preserving)}


def textbook(data, margin: float, gamma: float, reduction: str) -> tuple[Tensor, Tensor, Tensor]:
    image, text = (x.detach().double().requires_grad_() for x in data[:2])
    loss = oracles.structure_preserving(image, text, *data[2:], margin, gamma, reduction)
    loss.backward()
    return loss.detach(), image.grad, text.grad


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("kind", ["single", "multi"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_exact(path: str, kind: str, shape: tuple[int, ...]) -> None:
    data = batch(*shape, kind)
    typical = float((data[0][:, None] - data[1]).norm(dim=2).mean())
    for margin, reduction in ((typical, "mean"), (1.5 * typical, "sum"), (0.0, "mean")):
        expected = textbook(data, margin, 0.3, reduction)
        value, stats, *gradients = PATHS[path](*data, margin, 0.3, reduction, True, True)
        assert abs(float(value - expected[0])) <= 1e-12 * abs(float(expected[0]))
        for found, exact in zip(gradients, expected[1:]):
            assert float((found - exact).abs().max()) <= 1e-10 * (float(exact.abs().max()) or 1.0)
        same = positives(*data[2:])
        d = (data[0][:, None] - data[1]).norm(dim=2)
        assert stats[:3].tolist() == [int((~same & (d < margin)).sum()), int(same.sum()), int((~same).sum())]
        torch.testing.assert_close(stats[3], d[same].sum(), rtol=1e-12, atol=1e-300)
        torch.testing.assert_close(stats[4], d[~same].sum(), rtol=1e-12, atol=1e-300)


@pytest.mark.parametrize("offset", [0.0, 1e3])
def test_exact_in_single_precision(offset: float) -> None:
    """Tight classes, duplicates, a common offset: as near the truth as rounding the inputs allows."""
    la, lr = labels(200, 230, 5, "single")
    centres = torch.randn(5, 40, dtype=torch.float64)
    image, text = (centres[label] + 0.02 * torch.randn(len(label), 40, dtype=torch.float64) for label in (la, lr))
    text[:20] = image[:20]
    data = [(x + offset).float() for x in (image, text)] + [la, lr]
    expected = textbook(data, 5.0, 0.3, "mean")
    value, _, *gradients = torch.ops.xmodal.structure_preserving(*data, 5.0, 0.3, "mean", True, True)
    assert relative(value, expected[0]) < 1e-6
    for found, exact in zip(gradients, expected[1:]):
        assert relative(found, exact) < 1e-5


def test_equation() -> None:
    """L_imi,V + L_imi,T of the paper, term by term, for two images and three texts."""
    image, text = torch.randn(2, 2, dtype=torch.float64), torch.randn(3, 2, dtype=torch.float64)
    d = (image[:, None] - text).norm(dim=2)
    il, tl = torch.tensor([0, 1]), torch.tensor([0, 1, 1])
    mu, gamma = 2.5, 0.4

    def h(distance: Tensor) -> Tensor:
        return (mu - distance).clamp(min=0)

    from_images = (d[0, 0] + gamma * h(d[0, 1])) + (d[0, 0] + gamma * h(d[0, 2]))
    from_images += (d[1, 1] + gamma * h(d[1, 0])) + (d[1, 2] + gamma * h(d[1, 0]))
    from_texts = (d[0, 0] + gamma * h(d[1, 0])) + (d[1, 1] + gamma * h(d[0, 1])) + (d[1, 2] + gamma * h(d[0, 2]))
    total = structure_preserving_loss(image, text, il, tl, margin=mu, gamma=gamma, reduction="sum")
    torch.testing.assert_close(total, from_images + from_texts)
    mean = structure_preserving_loss(image, text, il, tl, margin=mu, gamma=gamma)
    torch.testing.assert_close(mean, from_images / 4 + from_texts / 3)


@pytest.mark.parametrize("kind", ["single", "multi"])
def test_gradcheck_and_need(kind: str) -> None:
    image, text = torch.randn(9, 4).double(), torch.randn(11, 4).double()
    il, tl = labels(9, 11, 3, kind)

    def loss(v: Tensor, t: Tensor) -> Tensor:
        return structure_preserving_loss(v, t, il, tl, margin=2.5, gamma=0.4)

    assert torch.autograd.gradcheck(loss, (image.requires_grad_(), text.requires_grad_()))
    (both,) = torch.autograd.grad(loss(image, text), text)
    (alone,) = torch.autograd.grad(loss(image.detach(), text), text)
    assert torch.equal(both, alone)


@pytest.mark.parametrize("classes", ["one", "all different"])
def test_degenerate_batches(classes: str) -> None:
    image, text = torch.randn(2, 12, 5).unbind()
    image.requires_grad_()
    label = torch.zeros(12, dtype=torch.int64) if classes == "one" else torch.arange(12)
    loss, stats = structure_preserving_loss(image, text, label, label + 100 * (classes != "one"), return_stats=True)
    loss.backward()
    assert loss == 0
    assert torch.equal(image.grad, torch.zeros_like(image))
    assert (stats.positive_pairs, stats.negative_pairs) == ((144, 0) if classes == "one" else (0, 144))
    assert stats.positive_distance.isfinite()
    assert stats.negative_distance.isfinite()


def test_coincident_points_and_rows_that_are_not_finite() -> None:
    x = torch.randn(1, 5).repeat(12, 1).requires_grad_()
    loss = structure_preserving_loss(x, x.detach(), torch.arange(12) % 3)
    loss.backward()
    assert float(loss.detach()) == pytest.approx(2 * 0.05)
    assert torch.equal(x.grad, torch.zeros_like(x))
    broken = torch.randn(12, 5)
    broken[4] = 1e30  # finite, but its square is not
    broken.requires_grad_()
    loss = structure_preserving_loss(broken, torch.randn(12, 5), torch.arange(12) % 3)
    loss.backward()
    assert loss.isnan()
    assert broken.grad.isnan().all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_half_inputs(dtype: torch.dtype, reduction: str) -> None:
    image, text, il, tl = batch(90, 80, 16, 3, dtype=dtype)
    half, wide = [[x.clone().to(t).requires_grad_() for x in (image, text)] for t in (dtype, torch.float32)]
    values = []
    for v, t in (half, wide):
        values.append(structure_preserving_loss(v, t, il, tl, margin=5.0, reduction=reduction))
        values[-1].backward()
    assert torch.equal(*values)
    for h, w in zip(half, wide):
        assert h.grad.dtype == dtype
        assert relative(h.grad, w.grad) < torch.finfo(dtype).eps
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(structure_preserving_loss(*wide, il, tl, margin=5.0, reduction=reduction), values[1])


def test_op_and_compile() -> None:
    image, text, il, tl = batch(20, 30, 6, 3, dtype=torch.float32)
    for needs in ((True, True), (False, True), (False, False)):
        args = (image, text, il, tl, 3.0, 0.3, "mean", *needs)
        torch.library.opcheck(torch.ops.xmodal.structure_preserving, args)
    image = image.mT.contiguous().mT.requires_grad_()  # columns adjacent

    def loss(v: Tensor) -> Tensor:
        return structure_preserving_loss(v, text, il, tl, margin=3.0)

    (expected,) = torch.autograd.grad(loss(image), image)
    (found,) = torch.autograd.grad(torch.compile(loss, fullgraph=True, backend="aot_eager")(image), image)
    assert torch.equal(found, expected)
    (contiguous,) = torch.autograd.grad(loss(again := image.detach().contiguous().requires_grad_()), again)
    assert torch.equal(contiguous, expected)


X, L = torch.randn(4, 3), torch.tensor([0, 0, 1, 1])


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: structure_preserving_loss(X, X, L[:3]), ValueError, "image_labels must have one entry per row"),
        (lambda: structure_preserving_loss(X, X, L, L[:3]), ValueError, "text_labels must have one entry per row"),
        (lambda: structure_preserving_loss(X, X[:3], L), ValueError, "image_labels must .* per row of text, 3"),
        (lambda: structure_preserving_loss(X, X, L.double()), TypeError, "image_labels must be integers .*got float64"),
        (lambda: structure_preserving_loss(X, X[:, :2], L), ValueError, "text must have as many columns as image, 3"),
        (lambda: structure_preserving_loss(X, X, L, margin=-1), ValueError, "margin must be finite and >= 0, got -1"),
        (lambda: structure_preserving_loss(X, X, L, gamma=-1), ValueError, "gamma must be finite and >= 0, got -1"),
        (lambda: structure_preserving_loss(X, X, L, reduction="none"), ValueError, "reduction must be one of"),
    ],
)
def test_bad_input(call, error, message) -> None:
    with pytest.raises(error, match=message) as raised:
        call()
    assert "\n" not in str(raised.value)
