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


@pytest.mark.parametrize("one_set", [True, False])
@pytest.mark.parametrize("positive", ["hard", "easy"])
@pytest.mark.parametrize("negative", ["hard", "semihard", "easy"])
def test_strategies_are_those_of_pytorch_metric_learning(one_set: bool, positive: str, negative: str) -> None:
    pytest.importorskip("pytorch_metric_learning")
    from pytorch_metric_learning import distances, miners

    from xmodal_ops.nn import metric_learning as ours

    anchor, ref, la, lr = batch(40, 50, 4, 4)
    data = (anchor, la) if one_set else (anchor, la, ref, lr)
    for distance in (
        distances.LpDistance(),
        distances.LpDistance(normalize_embeddings=False),
        distances.LpDistance(power=2),
        distances.CosineSimilarity(),
    ):
        a, p, _, n = miners.BatchEasyHardMiner(positive, negative, distance=distance)(*data)
        found = ours.TripletMiner(positive, negative, distance=distance)(*data)
        assert [t.tolist() for t in found] == [t.tolist() for t in (a, p, n)]


def test_inherited_arguments_act_as_in_pytorch_metric_learning() -> None:
    pytest.importorskip("pytorch_metric_learning")
    from pytorch_metric_learning import distances, losses, reducers, regularizers

    from xmodal_ops.nn import metric_learning as ours

    anchor, ref, la, lr = batch(30, 25, 4, 4)
    for name, arguments in {
        "cosine": {"distance": distances.CosineSimilarity()},
        "not normalised": {"distance": distances.LpDistance(normalize_embeddings=False)},
        "p = 1": {"distance": distances.LpDistance(p=1)},
        "squared": {"distance": distances.LpDistance(power=2)},
        "mean": {"reducer": reducers.MeanReducer()},
        "sum": {"reducer": reducers.SumReducer()},
        "threshold": {"reducer": reducers.ThresholdReducer(low=0.1, high=0.3)},
        "by name": {"reducer": reducers.MultipleReducers({"loss": reducers.SumReducer()})},
        "regulariser": {"embedding_regularizer": regularizers.LpRegularizer(), "embedding_reg_weight": 0.3},
        "swap": {"swap": True},
        "smooth": {"smooth_loss": True},
    }.items():
        for data in ((anchor, la), (anchor, la, None, ref, lr)):
            expected = losses.TripletMarginLoss(margin=0.3, **arguments)(*data)
            torch.testing.assert_close(ours.TripletMarginLoss(margin=0.3, **arguments)(*data), expected, msg=name)
    nothing = {"reducer": reducers.DoNothingReducer()}
    expected = losses.TripletMarginLoss(**nothing)(anchor, la)["loss"]["losses"]
    torch.testing.assert_close(ours.TripletMarginLoss(**nothing)(anchor, la)["loss"]["losses"], expected)
    recorded = distances.LpDistance(collect_stats=True)
    ours.TripletMarginLoss(distance=recorded)(anchor, la)
    assert recorded.initial_avg_query_norm == pytest.approx(float(anchor.norm(dim=1).mean()))
    structure = ours.StructurePreservingLoss(
        reducer=reducers.SumReducer(), distance=distances.LpDistance(normalize_embeddings=False)
    )
    expected = xmodal_ops.structure_preserving_loss(anchor, ref, la, lr, reduction="sum")
    torch.testing.assert_close(structure(anchor, la, None, ref, lr), expected)


def test_inherited_arguments_that_cannot_act_are_refused_in_one_line() -> None:
    pytest.importorskip("pytorch_metric_learning")
    from pytorch_metric_learning import distances, reducers

    from xmodal_ops.nn import metric_learning as ours

    one, cosine = distances.LpDistance(p=1), distances.CosineSimilarity()
    for call, message in (
        (
            lambda: ours.TripletMiner(distance=one),
            r"distance must be LpDistance\(p=2\) or CosineSimilarity\(\), got Lp",
        ),
        (
            lambda: ours.TripletMiner(distance=cosine, margin=0.1),
            r"distance must be LpDistance\(p=2\) if margin is given",
        ),
        (lambda: ours.TripletMiner(distance=one, normalize_embeddings=False), "normalize_embeddings must be None if"),
        (lambda: ours.TripletMarginLoss(reduction="sum", reducer=reducers.SumReducer()), "reduction must be None if"),
        (lambda: ours.TripletMarginLoss(reduction="none"), "reduction must be one of 'mean_active', 'mean', 'sum'"),
        (lambda: ours.TripletMarginLoss(triplets="hard", distance=cosine), 'triplets must be "all" with this distance'),
        (
            lambda: ours.StructurePreservingLoss(distance=one),
            r"distance must be LpDistance\(p=2\), got LpDistance\(p=1",
        ),
        (
            lambda: ours.StructurePreservingLoss(reducer=reducers.AvgNonZeroReducer()),
            r"reducer must be MeanReducer\(\) or SumReducer\(\), got AvgNonZeroReducer\(\)",
        ),
    ):
        with pytest.raises(ValueError, match=message) as raised:
            call()
        assert "\n" not in str(raised.value)
