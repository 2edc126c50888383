"""Triplet mining and losses on a CUDA device, through the public functions, compared with the CPU."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor

from tests.conftest import relative
from tests.helpers import captured
from tests.ops.triplet_data import Batch, batch, labels
from xmodal_ops import max_violation_loss, mine_triplets, structure_preserving_loss, triplet_margin_loss
from xmodal_ops.ops.cuda import driver
from xmodal_ops.ops.portable.structure_preserving import StructurePreserving, label_weights
from xmodal_ops.ops.types import LabelledSets

F16, BF16, F32, F64 = torch.float16, torch.bfloat16, torch.float32, torch.float64
pytestmark = pytest.mark.gpu
SHAPES = [(37, 53, 7, 4), (700, 1300, 200, 10), (130, 130, 65, 10**6)]


@pytest.fixture(autouse=True)
def _kernels_run() -> None:
    assert driver.refusal(torch.cuda.current_device()) == ""


@pytest.fixture
def no_sync() -> Iterator[None]:
    yield
    torch.cuda.set_sync_debug_mode("default")


def on_device(data: Batch) -> Batch:
    return tuple(x.cuda() for x in data)


@pytest.mark.parametrize("kind", ["single", "multi"])
@pytest.mark.parametrize("dtype", [F64, F32, BF16])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("negative", ["hard", "easy", "semihard", "random"])
def test_mining_is_that_of_the_cpu(shape, kind, dtype, negative) -> None:
    anchor, ref, la, lr = batch(*shape, kind, dtype)
    expected = mine_triplets(anchor, la, ref, lr, negative=negative, seed=1)
    found = mine_triplets(anchor.cuda(), la.cuda(), ref.cuda(), lr.cuda(), negative=negative, seed=1)
    for field, other in zip(found, expected):
        if field.is_floating_point():
            torch.testing.assert_close(field.cpu(), other, rtol=1e-6, atol=0)
        else:
            assert torch.equal(field.cpu(), other)


def test_mining_of_many_tiles_and_in_a_graph() -> None:
    anchor, ref, la, lr = on_device(batch(5000, 9000, 96, 10, dtype=F32))
    expected = mine_triplets(anchor.cpu(), la.cpu(), ref.cpu(), lr.cpu())
    found, graph = captured(lambda: mine_triplets(anchor, la, ref, lr))
    for _ in range(3):
        graph.replay()
        assert torch.equal(found.positive_idx.cpu(), expected.positive_idx)
        assert torch.equal(found.negative_idx.cpu(), expected.negative_idx)


LOSSES: dict[str, Callable[..., Tensor]] = {
    "structure": lambda a, r, la, lr: structure_preserving_loss(a, r, la, lr, margin=9.0),
    "all": lambda a, r, la, lr: triplet_margin_loss(a, la, r, lr),
    "hard": lambda a, r, la, lr: triplet_margin_loss(a, la, r, lr, triplets="hard"),
    "semihard": lambda a, r, la, lr: triplet_margin_loss(a, la, r, lr, triplets="semihard"),
    "per anchor": lambda a, r, la, lr: triplet_margin_loss(a, la, r, lr, reduction="none").square().sum().sqrt(),
    "one set": lambda a, r, la, lr: triplet_margin_loss(a, la) + triplet_margin_loss(r, lr),
    "batch_hard": lambda a, r, la, lr: triplet_margin_loss(a, la, r, lr, triplets="batch_hard"),
    "max_violation": lambda a, r, la, lr: max_violation_loss(a, r),
}
OF_PAIRS = ["structure", "all", "semihard", "per anchor"]  # losses that visit every pair


def loss_and_gradients(loss: str, data: Batch) -> tuple[Tensor, Tensor, Tensor]:
    anchor, ref = (x.detach().requires_grad_() for x in data[:2])
    value = LOSSES[loss](anchor, ref, *data[2:])
    return value.detach(), *torch.autograd.grad(value, (anchor, ref))


def close(found: tuple[Tensor, ...], expected: tuple[Tensor, ...], tolerance: float) -> None:
    errors = [relative(a.cpu(), e.cpu()) for a, e in zip(found, expected)]
    assert max(errors) < tolerance, errors


@pytest.mark.parametrize("kind", ["single", "multi"])
@pytest.mark.parametrize("dtype", [F64, F32])
@pytest.mark.parametrize("loss", LOSSES)
def test_losses_are_those_of_the_cpu(loss, dtype, kind) -> None:
    data = batch(300, 300, 40, 6, kind, dtype)
    # A single triplet that crosses a boundary changes a sum over many.
    close(loss_and_gradients(loss, on_device(data)), loss_and_gradients(loss, data), 1e-11 if dtype == F64 else 1e-3)


@pytest.mark.parametrize("dtype", [F64, F32])
@pytest.mark.parametrize("classes", [2, 30])
@pytest.mark.parametrize("loss", OF_PAIRS)
def test_several_chunks_and_more_positives_than_fit_shared_memory(loss, classes, dtype) -> None:
    """Compared with the portable path on the device, in fp64."""
    data = on_device(batch(1500, 11_001, 24, classes, dtype=dtype))
    wide = data[0].double(), data[1].double(), *data[2:]
    found = loss_and_gradients(loss, data)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(driver, "refusal", lambda _: "for comparison")
        expected = loss_and_gradients(loss, wide)
    close(found, expected, 1e-10 if dtype == F64 else 1e-3)


@pytest.mark.parametrize("dtype", [F16, BF16])
@pytest.mark.parametrize("loss", OF_PAIRS)
def test_halves(loss, dtype) -> None:
    data = on_device(batch(300, 500, 40, 6, dtype=dtype))
    half, single = loss_and_gradients(loss, data), loss_and_gradients(loss, (*(x.float() for x in data[:2]), *data[2:]))
    assert [t.dtype for t in half] == [F32, dtype, dtype]
    close(half, single, torch.finfo(dtype).eps)


def test_tight_classes_in_single_precision() -> None:
    la, lr = labels(200, 230, 5, "single")
    centres = 0.5 * torch.randn(5, 40, dtype=F64)  # all closer than the margin
    image, text = (centres[label] + 0.02 * torch.randn(len(label), 40, dtype=F64) for label in (la, lr))
    text[:20] = image[:20]
    data = image.float() + 100, text.float() + 100, la, lr
    expected = loss_and_gradients("structure", (data[0].double(), data[1].double(), la, lr))
    close(loss_and_gradients("structure", on_device(data)), expected, 1e-5)


@pytest.mark.parametrize("loss", OF_PAIRS)
def test_the_same_bits_twice(loss) -> None:
    data = on_device(batch(1000, 3000, 60, 6, dtype=F32))
    one, other = loss_and_gradients(loss, data), loss_and_gradients(loss, data)
    assert all(torch.equal(a, b) for a, b in zip(one, other))


@pytest.mark.parametrize("kind", ["single", "multi"])
@pytest.mark.parametrize("loss", OF_PAIRS)
def test_nothing_waits_for_the_device(loss, kind, no_sync) -> None:
    data = on_device(batch(300, 500, 40, 6, kind, F32))
    loss_and_gradients(loss, data)
    torch.cuda.set_sync_debug_mode("error")
    loss_and_gradients(loss, data)
    mine_triplets(data[0], data[2], data[1], data[3], negative="random", seed=3)


@pytest.mark.parametrize("loss", OF_PAIRS)
def test_graph_capture(loss) -> None:
    data = on_device(batch(700, 900, 40, 6, dtype=F32))
    found, graph = captured(lambda: loss_and_gradients(loss, data))
    fresh = on_device(batch(700, 900, 40, 6, dtype=F32))
    for x, y in zip(data, fresh):
        x.copy_(y)
    graph.replay()
    torch.cuda.synchronize()
    assert all(torch.equal(a, b) for a, b in zip(found, loss_and_gradients(loss, fresh)))


@pytest.mark.parametrize("loss", OF_PAIRS)
def test_degenerate_batches(loss) -> None:
    x = torch.randn(1, 5).repeat(60, 1)
    same = on_device((x, x.clone(), torch.arange(60) % 3, torch.arange(60) % 3))
    _, *gradients = loss_and_gradients(loss, same)
    assert max(g.abs().max() for g in gradients) == 0
    x[7, 2] = torch.nan
    broken = on_device((x, x.clone(), torch.arange(60) % 3, torch.arange(60) % 3))
    assert all(t.isnan().all() for t in loss_and_gradients(loss, broken))


def test_gradcheck_of_the_kernels() -> None:
    anchor, ref, la, lr = on_device(
        (torch.randn(9, 4).double(), torch.randn(11, 4).double(), *labels(9, 11, 3, "single"))
    )
    anchor.requires_grad_(), ref.requires_grad_()
    for loss in OF_PAIRS:
        assert torch.autograd.gradcheck(lambda a, r, loss=loss: LOSSES[loss](a, r, la, lr), (anchor, ref))


def test_opcheck() -> None:
    data = on_device(batch(20, 30, 6, 3, dtype=F32))
    weights = label_weights(LabelledSets(*data), StructurePreserving(3.0, 0.3, "mean"))
    ops, check = torch.ops.xmodal, torch.library.opcheck
    for needs in ((True, True), (False, True), (False, False)):
        check(ops.structure_preserving.default, (*data, 3.0, 0.3, "mean", *needs))
        check(ops.weighted_structure_preserving.default, (*data, *weights, 3.0, *needs))
        check(ops.triplet_margin.default, (*data, None, 0.2, "semihard", False, *needs))
    check(ops.mine_triplets.default, (*data, "hard", "random", "chosen_positive", 0.0, False, torch.tensor(3)))


@pytest.mark.parametrize("loss", ["structure", "all"])
def test_memory_is_linear(loss) -> None:
    data = on_device(batch(16384, 16384, 64, 10, dtype=F32))
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    loss_and_gradients(loss, data)
    # Pairs of a chunk (32 MiB), three times that to rank many positives, and splits of products; m² is 1 GiB.
    assert torch.cuda.max_memory_allocated() - before < 256 << 20
