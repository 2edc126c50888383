"""The native module: parameter structs by keyword, and functions with few positional arguments."""

from __future__ import annotations

import inspect
import re

import pytest
import torch

from xmodal_ops import _C, triplet_margin_loss

STRUCTS = [item for _, item in inspect.getmembers(_C, inspect.isclass) if not hasattr(item, "__members__")]
FUNCTIONS = [item for _, item in inspect.getmembers(_C, inspect.isroutine)]
VIEWS = {"x": 64, "y": 128, "m": 9, "dx": 3, "dy": 4, "x_stride": 3, "y_stride": 4, "wide": False, "threads": 2}


@pytest.mark.parametrize("struct", STRUCTS, ids=lambda struct: struct.__name__)
def test_structs_refuse_positional_arguments(struct):
    with pytest.raises(TypeError):
        struct(0)


@pytest.mark.parametrize("function", FUNCTIONS, ids=lambda function: function.__name__)
def test_functions_take_at_most_four_arguments(function):
    signature = function.__doc__.splitlines()[0].split(" -> ")[0]
    assert len(re.findall(r"\w+: ", signature)) <= 4


def test_fields_are_keywords_and_attributes():
    views = _C.Views(**VIEWS)
    assert {name: getattr(views, name) for name in VIEWS} == VIEWS
    assert views.workspace == 0
    views.m, views.workspace = 10, 4096
    assert (views.m, views.workspace) == (10, 4096)


@pytest.mark.parametrize(
    ("change", "message"),
    [({"x": None}, "x cannot be None"), ({"x": -1}, "x cannot be -1"), ({"m": 1.5}, "m cannot be 1.5"),
     ({"extra": 1}, "Views has only some of the fields .*'extra'")],
)  # fmt: skip
def test_wrong_fields_are_named(change, message):
    with pytest.raises(TypeError, match=message):
        _C.Views(**VIEWS | change)
    with pytest.raises(TypeError, match="threads is missing"):
        _C.Views(**{name: value for name, value in VIEWS.items() if name != "threads"})


def test_rows_of_the_sums_have_names():
    assert [int(row) for row in _C.PairSum.__members__.values()] == list(range(6))
    x, labels = torch.tensor([[0.0], [1.0], [3.0]]), torch.tensor([0, 0, 1])
    sums, _, _ = torch.ops.xmodal.triplet_margin(x, x, labels, labels, None, 0.2, "all", True, False, False)
    assert sums[_C.PairSum.positive_distance].tolist() == [1, 1, 0]
    assert sums[_C.PairSum.negative_distance].tolist() == [3, 2, 5]
    assert sums[_C.PairSum.loss].sum() == triplet_margin_loss(x, labels, reduction="sum")
