"""2,000 random calls of the public ops against their portable statements in fp64, with fixed seeds.

Drawn at random: shapes, strides (transposed, sliced, expanded), dtypes of each view, kinds of labels, one tensor given
twice, autocast, and an emulated device without fp64.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize, one_hot

import xmodal_ops as xo
from tests.helpers import threads
from tests.no_fp64 import DeviceTensor, Emulation, to_device
from xmodal_ops.ops.portable import canonical_correlations, covariance, mining, structure_preserving, trace_norm, whiten
from xmodal_ops.ops.portable import triplet_margin as margin_loss
from xmodal_ops.ops.types import Covariance, LabelledSets, Needs, PairSums

CALLS, SEEDS = 100, 20
BOTH = Needs(True, True)
Results = tuple[Tensor, Sequence[Tensor]]  # values, and gradients of the views; none where a result jumps


class Draw:
    """Random arguments."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        torch.manual_seed(seed)

    def rows(self, least: int) -> int:
        return self.random.choice([least, least + 1, 5, 8, 13, 29])

    def flag(self, chance: float) -> bool:
        return self.random.random() < chance

    def matrix(self, m: int, d: int, dtype: torch.dtype, expanded: bool) -> Tensor:
        x = (
            torch.randn(m, d, dtype=torch.float64) * self.random.choice([0.1, 1.0, 10.0]) + self.random.choice([0, 1])
        ).to(dtype)
        layouts: list[Callable[[], Tensor]] = [
            lambda: x,
            lambda: x.T.contiguous().T,
            lambda: torch.cat([x, x], 1)[:, d:],
            lambda: x.repeat_interleave(2, 0)[::2],
            lambda: x.repeat_interleave(3, 1)[:, 1::3],
            lambda: x.flip(0, 1),
        ]
        if expanded:
            layouts = [lambda: x[:1].expand(m, d), lambda: x[:, :1].expand(m, d)]
        return self.random.choice(layouts)()

    def labels(self, *rows: int) -> list[Tensor]:
        """Labels of one kind for each set."""
        classes = self.random.choice([1, 2, 3, 40])
        numbers = [torch.randint(classes, (n,)) for n in rows]
        kind = self.random.choice(["int64", "narrow", "bool", "hot", "narrow hot", "packed", "strided"])
        if kind == "narrow":
            dtype = self.random.choice([torch.uint8, torch.int8, torch.int16, torch.int32])
            return [t.to(dtype) for t in numbers]
        if kind == "bool":
            return [t > 0 for t in numbers]
        if kind == "strided":
            return [torch.stack([t, t], 1)[:, 0] for t in numbers]
        hot = [one_hot(t, 70).bool() | (torch.rand(len(t), 70) < 0.01) for t in numbers]
        if kind == "narrow hot":
            return [t.to(torch.uint8) for t in hot]
        return {"int64": numbers, "hot": hot, "packed": [xo.pack_labels(t) for t in hot]}[kind]


def words(labels: Tensor) -> Tensor:
    if labels.ndim == 1 or labels.dtype == torch.int64:
        return labels.long()
    return xo.pack_labels(labels.bool())


def sets(x: Tensor, y: Tensor, labels: Sequence[Tensor]) -> LabelledSets:
    return LabelledSets(x, y, words(labels[0]), words(labels[1]))


# Per op: the call, and its definition in fp64, which gets the same arguments.


def of_trace_norm(draw: Draw, x: Tensor, y: Tensor) -> tuple[Callable[..., Tensor], Callable[..., Results]]:
    rx, ry = draw.random.choice([(0.1, 0.1), (0.5, 0.2)])

    def truth(x: Tensor, y: Tensor) -> Results:
        value, *gradients = trace_norm.trace_norm(x, y, rx, ry, min(x.shape[1], y.shape[1]), True, True)
        return -value, [-g for g in gradients]

    return lambda x, y: xo.trace_norm_loss(x, y, ridge=(rx, ry)), truth


def of_correlations(draw: Draw, x: Tensor, y: Tensor) -> tuple[Callable[..., Tensor], Callable[..., Results]]:
    k = draw.random.randint(1, min(x.shape[1], y.shape[1]))
    return (
        lambda x, y: xo.canonical_correlations(x, y, ridge=0.2, top_k=k),
        lambda x, y: (canonical_correlations.canonical_correlations(x, y, 0.2, 0.2, k), ()),
    )


def of_covariance(draw: Draw, x: Tensor, y: Tensor) -> tuple[Callable[..., Tensor], Callable[..., Results]]:
    def call(x: Tensor, y: Tensor) -> Tensor:
        return torch.cat([t.flatten() for t in xo.covariance(x, y, ridge=0.3)])

    def truth(x: Tensor, y: Tensor) -> Results:
        s = covariance.covariance(x, y, 0.3, 0.3)
        ones = Covariance(*(torch.ones_like(t) for t in s))
        return torch.cat([t.flatten() for t in s]), covariance.covariance_backward(x, y, ones)

    return call, truth


def of_whiten(draw: Draw, x: Tensor, y: Tensor) -> tuple[Callable[..., Tensor], Callable[..., Results]]:
    zca = draw.flag(0.5)

    def truth(x: Tensor, y: Tensor) -> Results:
        w = whiten.whiten(x, 0.1, zca)
        return w.pow(3), [whiten.whiten_backward(3 * w.square(), x, 0.1, zca), torch.zeros_like(y)]

    return lambda x, y: xo.whiten(x, ridge=0.1, method="zca" if zca else "cholesky").pow(3), truth


def of_structure(draw: Draw, x: Tensor, y: Tensor) -> tuple[Callable[..., Tensor], Callable[..., Results]]:
    options = structure_preserving.StructurePreserving(
        draw.random.uniform(0.5, 3), draw.random.uniform(0.01, 1), draw.random.choice(["mean", "sum"])
    )

    def truth(x: Tensor, y: Tensor, *labels: Tensor) -> Results:
        value, _, *gradients = structure_preserving.structure_preserving(sets(x, y, labels), options, BOTH)
        return value, gradients

    return lambda x, y, *labels: xo.structure_preserving_loss(x, y, *labels, **options._asdict()), truth


def of_margin(draw: Draw, x: Tensor, y: Tensor) -> tuple[Callable[..., Tensor], Callable[..., Results]]:
    margin, reduction = draw.random.uniform(0.1, 1), draw.random.choice(["mean_active", "mean", "sum", "none"])
    exclude = len(x) == len(y) and draw.flag(0.3)

    def truth(x: Tensor, y: Tensor, *labels: Tensor) -> Results:
        options = margin_loss.TripletMargin(margin, "all", exclude)
        sums, *gradients = margin_loss.triplet_margin(sets(x, y, labels), None, options, BOTH)
        of = PairSums(*sums)
        number = {"mean_active": of.active.sum(), "mean": of.triplets()}.get(reduction, torch.ones(()))
        number = number.clamp(min=1)
        return (of.loss if reduction == "none" else of.loss.sum()) / number, [g / number for g in gradients]

    def call(x: Tensor, y: Tensor, *labels: Tensor) -> Tensor:
        options: dict[str, Any] = {"margin": margin, "reduction": reduction, "exclude_diagonal": exclude}
        return xo.triplet_margin_loss(x, labels[0], y, labels[1], **options)

    return call, truth


def of_mining(draw: Draw, x: Tensor, y: Tensor) -> tuple[Callable[..., Tensor], Callable[..., Results]]:
    rule = draw.random.choice(["hard", "easy"]), draw.random.choice(["hard", "easy"]), "chosen_positive"

    def call(x: Tensor, y: Tensor, *labels: Tensor) -> Tensor:
        found = xo.mine_triplets(x, labels[0], y, labels[1], positive=rule[0], negative=rule[1])
        return torch.stack([found.d_ap, found.d_an, found.n_pos.to(found.d_ap), found.n_neg.to(found.d_ap)])

    def truth(x: Tensor, y: Tensor, *labels: Tensor) -> Results:
        options = mining.TripletMining(*rule, torch.inf, False)
        return torch.stack(mining.mine_triplets(sets(x, y, labels), options, None)[2:]), ()

    return call, truth


def of_max_violation(draw: Draw, x: Tensor, y: Tensor) -> tuple[Callable[..., Tensor], Callable[..., Results]]:
    ids = torch.randint(4, (len(x),)) if draw.flag(0.5) else None

    def call(x: Tensor, y: Tensor) -> Tensor:
        given = to_device(ids) if ids is not None and isinstance(x, DeviceTensor) else ids
        return xo.max_violation_loss(x, y, given, margin=0.3)

    def truth(x: Tensor, y: Tensor) -> Results:
        s = normalize(x) @ normalize(y).mT
        names = torch.arange(len(x)) if ids is None else ids
        cost = (0.3 + s - s.diagonal()[:, None]).relu(), (0.3 + s.mT - s.diagonal()[:, None]).relu()
        return sum(c.where(names[:, None] != names, 0.0).amax(1).mean() for c in cost), ()

    return call, truth


def of_reversal(draw: Draw, x: Tensor, y: Tensor) -> tuple[Callable[..., Tensor], Callable[..., Results]]:
    return lambda x, y: xo.gradient_reversal(x, 0.5), lambda x, y: (x, [torch.full_like(x, -0.5), torch.zeros_like(y)])


PAIRED = [of_trace_norm, of_correlations, of_covariance, of_whiten, of_max_violation, of_reversal]
LABELLED = [of_structure, of_margin, of_mining]


def one_call(draw: Draw) -> None:
    op = draw.random.choice(PAIRED + LABELLED)
    expanded, twice = draw.flag(0.1), draw.flag(0.15)
    m, d = draw.rows(2), draw.random.randint(1, 9)
    n, other = (m, draw.random.randint(1, 9)) if op in PAIRED else (draw.rows(1), d)
    other = d if op is of_max_violation else other
    emulated = draw.flag(0.1)
    dtypes = [torch.float32, torch.bfloat16, torch.float16] + [torch.float64] * (not emulated)
    x = draw.matrix(m, d, draw.random.choice(dtypes), expanded)
    y = x if twice else draw.matrix(n, other, draw.random.choice(dtypes), expanded)
    labels = draw.labels(len(x), len(y)) if op in LABELLED else []
    if twice and labels and draw.flag(0.5):
        labels = [labels[0], labels[0]]
    call, truth = op(draw, x, y)

    expected, expected_gradients = truth(x.double(), y.double(), *labels)
    place = to_device if emulated else lambda t: t
    with Emulation() if emulated else nullcontext(), torch.autocast("cpu", torch.bfloat16, enabled=draw.flag(0.2)):
        a = place(x.detach()).requires_grad_()
        b = a if twice else place(y.detach()).requires_grad_()
        value = call(a, b, *map(place, labels))
        value.sum().backward()
    host = [t.host if isinstance(t, DeviceTensor) else t for t in (value.detach(), a.grad, b.grad) if t is not None]
    wide = torch.promote_types(x.dtype, y.dtype) if op not in (of_whiten, of_reversal) else x.dtype
    double = wide == torch.float64
    close(host[0], expected, 1e-9 if double else 2e-2 if op is of_whiten and x.dtype.itemsize == 2 else 5e-4)
    if not expected_gradients or (expanded and op is of_trace_norm):
        return
    if twice:
        expected_gradients = [expected_gradients[0] + expected_gradients[1]]
    for found, right, view in zip(host[1:], expected_gradients, (a, b)):
        assert found.dtype == view.dtype
        close(found, right, {8: 1e-7, 4: 5e-3, 2: 3e-2}[min(view.dtype.itemsize, wide.itemsize)])


def close(found: Tensor, expected: Tensor, tolerance: float) -> None:
    error = (found.double() - expected).abs().max()
    assert error <= tolerance * (1 + expected.abs().max()), (float(error), found, expected)


@pytest.mark.parametrize("seed", range(SEEDS))
def test_random_calls_agree_with_the_portable_definition(seed: int) -> None:
    draw = Draw(seed)
    with threads(1):  # too small to gain from more
        for _ in range(CALLS):
            one_call(draw)
