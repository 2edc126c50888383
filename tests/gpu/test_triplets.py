"""Triplet mining and losses on a CUDA device, through the public functions, against the CPU."""

from __future__ import annotations

import pytest
import torch

from tests.conftest import relative
from tests.ops.triplet_data import batch
from xmodal_ops import max_violation_loss, mine_triplets, structure_preserving_loss, triplet_margin_loss

pytestmark = pytest.mark.gpu
SHAPES = [(37, 53, 7, 4), (700, 1300, 200, 10), (130, 130, 65, 10**6)]


@pytest.mark.parametrize("kind", ["single", "multi"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
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
    anchor, ref, la, lr = (x.cuda() for x in batch(5000, 9000, 96, 10, dtype=torch.float32))
    expected = mine_triplets(anchor.cpu(), la.cpu(), ref.cpu(), lr.cpu())
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        mine_triplets(anchor, la, ref, lr)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = mine_triplets(anchor, la, ref, lr)
    for _ in range(3):
        graph.replay()
        assert torch.equal(found.positive_idx.cpu(), expected.positive_idx)
        assert torch.equal(found.negative_idx.cpu(), expected.negative_idx)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("loss", ["structure", "all", "hard", "semihard", "batch_hard", "max_violation"])
def test_losses_are_those_of_the_cpu(loss, dtype) -> None:
    def value(v, t, il, tl):
        if loss == "structure":
            return structure_preserving_loss(v, t, il, tl, margin=9.0)
        if loss == "max_violation":
            return max_violation_loss(v, t)
        return triplet_margin_loss(v, il, t, tl, triplets=loss)

    data = batch(300, 300, 40, 6, dtype=dtype)
    results = []
    for device in ("cpu", "cuda"):
        v, t = (x.to(device).requires_grad_() for x in data[:2])
        total = value(v, t, *(x.to(device) for x in data[2:]))
        results.append((total.detach(), *torch.autograd.grad(total, (v, t))))
    for found, expected in zip(results[1], results[0]):
        # One triplet on the other side of a boundary changes a sum over many.
        assert relative(found.cpu(), expected) < (1e-11 if dtype == torch.float64 else 1e-3)
