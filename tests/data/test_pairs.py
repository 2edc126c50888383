"""PairSet and PairData: indexing, splitting and errors."""

from __future__ import annotations

import pytest
import torch
from torch.utils.data import DataLoader

from xmodal_ops.data import DataError, PairData, PairSet


def pairs(n=6, **change):
    arguments = {
        "image": torch.arange(2.0 * n).reshape(n, 2),
        "text": torch.arange(3.0 * n).reshape(n, 3),
        "labels": torch.arange(n) % 3,
        "names": [f"pair {i}" for i in range(n)],
    }
    return PairSet(**arguments | change)


def test_indexing():
    p = pairs()
    assert len(p) == 6
    one = p[4]
    assert one["image"].tolist() == [8, 9]
    assert one["text"].tolist() == [12, 13, 14]
    assert one["labels"].item() == 1
    for rows in ([5, 0], torch.tensor([5, 0])):
        assert p[rows]["image"].tolist() == [[10, 11], [0, 1]]
    assert p[1:3]["labels"].tolist() == [1, 2]
    assert set(pairs(labels=None)[0]) == {"image", "text"}


def test_data_loader():
    batches = list(DataLoader(pairs(), batch_size=4))
    assert [tuple(b["image"].shape) for b in batches] == [(4, 2), (2, 2)]
    assert torch.cat([b["labels"] for b in batches]).tolist() == [0, 1, 2, 0, 1, 2]


def test_subset_keeps_rows_together():
    s = pairs().subset([3, 1])
    assert s.names == ["pair 3", "pair 1"]
    assert s.image[:, 0].tolist() == [6, 2]
    assert s.text[:, 0].tolist() == [9, 3]
    assert s.labels.tolist() == [0, 1]
    assert pairs(labels=None, names=None).subset([0]).labels is None


def test_split_is_stratified_and_seeded():
    labels = torch.tensor([0] * 60 + [1] * 30 + [2] * 10)
    p = pairs(100, labels=labels[torch.randperm(100, generator=torch.Generator().manual_seed(0))])
    rest, held = p.split(0.2, seed=1)
    assert held.labels.bincount().tolist() == [12, 6, 2]
    assert sorted(rest.names + held.names) == sorted(p.names)
    assert held.names == p.split(0.2, seed=1)[1].names != p.split(0.2, seed=2)[1].names
    assert held.image[:, 0].tolist() == sorted(held.image[:, 0].tolist())
    assert len(pairs(10, labels=None).split(0.01)[1]) == 1


def test_split_keeps_groups_together():
    groups = torch.arange(100) // 7
    rest, held = pairs(100, groups=groups).split(0.2, seed=3)
    assert len(held.groups.unique()) == 3
    assert not set(rest.groups.tolist()) & set(held.groups.tolist())
    with pytest.raises(DataError, match=r"leave groups on both sides of the split, got 0\.5 of 1 groups"):
        pairs(groups=torch.zeros(6).long()).split(0.5)


@pytest.mark.parametrize("seed", [-1, 0.5, None, True])
def test_a_seed_is_an_integer(seed):
    with pytest.raises(DataError, match="seed must be an integer >= 0, got"):
        pairs().split(0.5, seed)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image": torch.zeros(5, 2)}, "text must have as many rows as image, 5, got 6"),
        ({"labels": torch.zeros(5).long()}, "labels must have as many rows as image, 6, got 5"),
        ({"groups": torch.zeros(6)}, "groups must be int64 (n,), got float32 (6,)"),
        ({"groups": torch.zeros(5).long()}, "groups must have as many rows as image, 6, got 5"),
        ({"names": ["a"]}, "names must have as many rows as image, 6, got 1"),
        ({"image": torch.zeros(6)}, "image must have shape (n, dv) or (n, c, H, W), got (6,)"),
        ({"text": torch.zeros(6, 1, 2, 2)}, "text must have shape (n, dt), got (6, 1, 2, 2)"),
        ({"text": torch.zeros(6, 0)}, "text must have shape (n, dt), got (6, 0)"),
        ({"image": torch.zeros(6, 2).long()}, "image must be floating, got int64"),
        ({"labels": torch.zeros(6)}, "labels must be int64 (n,) or bool (n, C), got float32 (6,)"),
        ({"labels": torch.tensor(3)}, "labels must be int64 (n,) or bool (n, C), got int64 ()"),
        ({"labels": torch.tensor([0, 1, 0, -2, 0, -1])}, "labels must be >= 0, got -2 in row 3"),
        (
            {"text": torch.ones(6, 3).index_fill(0, torch.tensor([2, 4]), torch.nan)},
            "text holds NaN or infinity in row 2",
        ),
        ({"image": torch.full((6, 1, 2, 2), torch.inf)}, "image holds NaN or infinity in row 0"),
    ],
)
def test_pairset_refuses(change, message):
    with pytest.raises(DataError) as info:
        pairs(**change)
    assert str(info.value) == message


def test_large_finite_values_are_welcome():
    assert len(pairs(image=torch.full((6, 2), 3e38))) == 6  # though their sum is infinite


def test_pairset_wants_tensors():
    with pytest.raises(TypeError, match=r"image must be a torch.Tensor, got list"):
        pairs(image=[[1.0]])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"test": pairs(0)}, "test holds no pairs"),
        (
            {"test": pairs(text=torch.zeros(6, 4))},
            "test text must have rows of shape (3,) as in train, got (4,)",
        ),
        ({"validation": pairs(labels=None)}, "validation and train must both have labels or both have none"),
        ({"test": pairs(labels=torch.ones(6, 2) > 0)}, "test labels must be int64 (n,) as in train, got bool (n, 2)"),
        ({"classes": ["a", "b"]}, "train labels must lie in 0..1, got 2 in row 2"),
    ],
)
def test_pairdata_refuses(change, message):
    arguments = {
        "train": pairs(),
        "validation": pairs(),
        "test": pairs(),
        "name": "x",
        "classes": ["a", "b", "c"],
    }
    PairData(**arguments)
    with pytest.raises(DataError) as info:
        PairData(**arguments | change)
    assert str(info.value) == message


def test_pairdata_refuses_wrong_columns():
    p = pairs(labels=torch.ones(6, 3) > 0)
    with pytest.raises(DataError, match="train labels must have 2 columns, got 3"):
        PairData(p, p, p, name="x", classes=["a", "b"])


def test_data_error_is_a_value_error():
    assert issubclass(DataError, ValueError)
