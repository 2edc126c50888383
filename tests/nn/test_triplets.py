"""The modules, and the classes for pytorch-metric-learning against its own."""

from __future__ import annotations

import pytest
import torch

import xmodal_ops
from tests.ops.triplet_data import batch
from xmodal_ops.nn.triplets import MaxViolationLoss, StructurePreservingLoss, TripletMarginLoss


def test_modules_are_the_functions() -> None:
    image, text, il, tl = batch(30, 30, 6, 4)
    structure = StructurePreservingLoss(margin=3.0, gamma=0.2, reduction="sum")
    expected = xmodal_ops.structure_preserving_loss(image, text, il, tl, margin=3.0, gamma=0.2, reduction="sum")
    assert torch.equal(structure(image, text, il, tl), expected)
    triplet = TripletMarginLoss(margin=0.5, triplets="hard", reduction="mean", exclude_diagonal=True)
    expected = xmodal_ops.triplet_margin_loss(
        image, il, text, tl, margin=0.5, triplets="hard", reduction="mean", exclude_diagonal=True
    )
    assert torch.equal(triplet(image, il, text, tl), expected)
    violation = MaxViolationLoss(margin=0.4, reduction="sum")
    assert torch.equal(violation(image, text), xmodal_ops.max_violation_loss(image, text, margin=0.4, reduction="sum"))
    for module in (structure, triplet, violation):
        assert f"margin={module.margin}" in repr(module)


@pytest.mark.parametrize("one_set", [True, False])
@pytest.mark.parametrize("normalise", [True, False])
def test_in_place_of_pytorch_metric_learning(one_set: bool, normalise: bool) -> None:
    pytest.importorskip("pytorch_metric_learning")
    from pytorch_metric_learning import distances, losses, miners

    from xmodal_ops.nn import metric_learning as ours

    anchor, ref, la, lr = batch(50, 60, 8, 4)
    data = (anchor, la) if one_set else (anchor, la, ref, lr)
    rest = () if one_set else (ref, lr)
    distance = distances.LpDistance(normalize_embeddings=normalise)
    theirs = losses.TripletMarginLoss(margin=0.3, distance=distance)
    hard = miners.BatchHardMiner(distance=distance), ours.TripletMiner(normalize_embeddings=normalise)
    semihard = (
        miners.BatchEasyHardMiner("hard", "semihard", distance=distance),
        ours.TripletMiner(negative="semihard", normalize_embeddings=normalise),
    )
    for miner, own in (hard, semihard):
        expected, found = miner(*data), own(*data)
        assert [t.tolist() for t in found] == [expected[k].tolist() for k in (0, 1, -1)]
        assert own.num_triplets == len(found[0])
        torch.testing.assert_close(theirs(anchor, la, found, *rest), theirs(anchor, la, expected, *rest))
    own_loss = ours.TripletMarginLoss(margin=0.3, normalize_embeddings=normalise)
    torch.testing.assert_close(own_loss(anchor, la, None, *rest), theirs(anchor, la, None, *rest))
    structure = ours.StructurePreservingLoss(normalize_embeddings=False, margin=3.0)
    if not one_set:
        expected = xmodal_ops.structure_preserving_loss(anchor, ref, la, lr, margin=3.0)
        torch.testing.assert_close(structure(anchor, la, None, ref, lr), expected)
    with pytest.raises(ValueError, match="indices_tuple must be None"):
        own_loss(anchor, la, found, *rest)
