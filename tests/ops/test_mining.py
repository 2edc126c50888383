"""Triplet mining: indices against brute force in fp64, on every path, and the behaviour of the public function."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tests.ops.triplet_data import SHAPES, Batch, batch, labels
from xmodal_ops import mine_triplets, pack_labels
from xmodal_ops.ops._library import flattened
from xmodal_ops.ops.portable import mining
from xmodal_ops.ops.portable.pairs import relations

PATHS = {"native": torch.ops.xmodal.mine_triplets, "torch": flattened(mining.mine_triplets)}
HARD = "hard", "hard", "chosen_positive"
RULES = [
    HARD,
    ("easy", "easy", "chosen_positive"),
    ("hard", "semihard", "chosen_positive"),
    ("easy", "semihard", "chosen_positive"),
    ("easy", "semihard", "hardest_positive"),
    ("easy", "random", "chosen_positive"),
]


def brute_force(
    data: Batch, positive: str, negative: str, semihard: str, margin: float, exclude_diagonal: bool
) -> tuple[list[int], list[int], Tensor, Tensor, Tensor]:
    """From all distances in fp64; random negatives are left out. Ties go to the lowest index."""
    anchor, ref, la, lr = data
    same, other = relations(la, lr, exclude_diagonal)
    square = (anchor.double()[:, None] - ref.double()).square().sum(-1)

    def best(allowed: Tensor, farthest: bool) -> Tensor:
        values = (-square if farthest else square).where(allowed, torch.inf)
        first = (values == values.amin(1, keepdim=True)).int().argmax(1)
        return first.where(allowed.any(1), -1)

    chosen = best(same, positive == "hard")
    if negative == "semihard":
        bound = best(same, True) if semihard == "hardest_positive" else chosen
        floor = square.gather(1, bound.clamp(min=0)[:, None])
        other_side = (square > floor) & (square.sqrt() - floor.sqrt() <= margin) & (bound >= 0)[:, None]
        found = best(other & other_side, False)
    else:
        found = best(other, negative == "easy")
    return chosen.tolist(), found.tolist(), square, same, other


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("kind", ["single", "multi"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_exact(path: str, kind: str, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    data = batch(*shape, kind, dtype)
    exclude = shape[0] == shape[1]
    for positive, negative, semihard in RULES:
        expected = brute_force(data, positive, negative, semihard, 0.5, exclude)
        seed = torch.tensor(3)
        found = PATHS[path](*data, positive, negative, semihard, 0.5, exclude, seed)
        p, n, d_ap, d_an, n_pos, n_neg = found
        assert p.tolist() == expected[0]
        if negative != "random":
            assert n.tolist() == expected[1]
        square, same, other = expected[2:]
        assert torch.equal(n_pos, same.sum(1))
        assert torch.equal(n_neg, other.sum(1))
        tolerance = 1e-14 if dtype == torch.float64 else 1e-7
        for index, distance in ((p, d_ap), (n, d_an)):
            d = square.sqrt().gather(1, index.clamp(min=0)[:, None])[:, 0].where(index >= 0, 0.0)
            assert distance.dtype == dtype
            torch.testing.assert_close(distance.double(), d, rtol=tolerance, atol=1e-300)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_exact_indices_of_integers(path: str, dtype: torch.dtype) -> None:
    """Small integers leave many ties, and every distance is exact: each path must give the same bits."""
    anchor, ref = torch.randint(-2, 3, (2, 150, 12)).to(dtype) + 1
    data = (anchor, ref, *labels(150, 150, 4, "single"))
    for positive, negative, semihard in RULES[:-1]:
        expected = brute_force(data, positive, negative, semihard, 0.5, False)
        p, n, d_ap, _, _, _ = PATHS[path](*data, positive, negative, semihard, 0.5, False, None)
        assert p.tolist() == expected[0]
        assert n.tolist() == expected[1]
        square = expected[2].gather(1, p.clamp(min=0)[:, None])[:, 0].where(p >= 0, 0.0)
        torch.testing.assert_close(d_ap, square.sqrt().to(d_ap.dtype), rtol=3e-16, atol=0)


@pytest.mark.parametrize("path", PATHS)
def test_exact_on_tight_classes(path: str) -> None:
    """Where |a|² + |r|² − 2 a·r keeps few digits, torch.cdist picks wrong hardest positives; here none is wrong."""
    la, lr = labels(500, 500, 10, "single")
    centres = 3 * torch.randn(10, 64)
    data = centres[la] + 3e-3 * torch.randn(500, 64), centres[lr] + 3e-3 * torch.randn(500, 64), la, lr
    expected = brute_force(data, *HARD, 0.0, False)
    plain = torch.cdist(data[0], data[1]).where(la[:, None] == lr, -1).argmax(1)
    assert plain.tolist() != expected[0]
    p, n, *_ = PATHS[path](*data, *HARD, 0.0, False, None)
    assert p.tolist() == expected[0]
    assert n.tolist() == expected[1]


@pytest.mark.parametrize("offset", [0.0, 1e3])
@pytest.mark.parametrize("scale", [1e-3, 1e3])
def test_exact_at_any_scale_and_offset(scale: float, offset: float) -> None:
    anchor, ref, la, lr = batch(120, 90, 40, 5, dtype=torch.float32)
    data = anchor * scale + offset, ref * scale + offset, la, lr
    expected = brute_force(data, *HARD, 0.0, False)
    p, n, *_ = torch.ops.xmodal.mine_triplets(*data, *HARD, 0.0, False, None)
    assert p.tolist() == expected[0]
    assert n.tolist() == expected[1]


@pytest.mark.parametrize("path", PATHS)
def test_exact_without_rows_that_are_not_finite(path: str) -> None:
    """A NaN, infinite or overflowing row has no positives and no negatives, and is chosen by none."""
    anchor, ref, la, lr = batch(40, 50, 6, 3, dtype=torch.float32)
    anchor[3, 2], ref[5, 1], ref[6, 0] = torch.nan, torch.nan, torch.inf
    p, n, d_ap, d_an, n_pos, n_neg = PATHS[path](anchor, ref, la, lr, *HARD, 0.0, False, None)
    assert (p[3], n[3], n_pos[3], n_neg[3], d_ap[3], d_an[3]) == (-1, -1, 0, 0, 0, 0)
    assert d_ap.isfinite().all()
    assert d_an.isfinite().all()
    keep, rows = [j for j in range(50) if j not in (5, 6)], [i for i in range(40) if i != 3]
    q, o, *_ = PATHS[path](anchor[rows], ref[keep], la[rows], lr[keep], *HARD, 0.0, False, None)
    assert p[rows].tolist() == [keep[j] if j >= 0 else -1 for j in q]
    assert n[rows].tolist() == [keep[j] if j >= 0 else -1 for j in o]


def test_random_negatives_are_uniform_negatives() -> None:
    m, n = 2000, 10
    anchor, ref = torch.randn(m, 3), torch.randn(n, 3)
    la, lr = torch.zeros(m, dtype=torch.int64), (torch.arange(n) >= 4).long()
    found = mine_triplets(anchor, la, ref, lr, negative="random", seed=7)
    count = torch.bincount(found.negative_idx, minlength=n).double()
    assert count[:4].sum() == 0
    assert ((count[4:] - m / 6).abs() < 5 * (m / 6 * 5 / 6) ** 0.5).all()
    again = mine_triplets(anchor, la, ref, lr, negative="random", seed=7)
    other = mine_triplets(anchor, la, ref, lr, negative="random", seed=8)
    assert torch.equal(found.negative_idx, again.negative_idx)
    assert not torch.equal(found.negative_idx, other.negative_idx)
    torch.manual_seed(1)
    drawn = mine_triplets(anchor, la, ref, lr, negative="random")
    torch.manual_seed(1)
    assert torch.equal(drawn.negative_idx, mine_triplets(anchor, la, ref, lr, negative="random").negative_idx)
    portable = PATHS["torch"](anchor, ref, la, lr, "hard", "random", "chosen_positive", 0.0, False, torch.tensor(7))
    assert torch.equal(found.negative_idx, portable[1])


def test_the_diagonal() -> None:
    x, la = torch.randn(20, 4), torch.randint(3, (20,))
    one = mine_triplets(x, la, positive="easy")
    assert (one.positive_idx != torch.arange(20)).all()
    assert torch.equal(one.n_pos, (la[:, None] == la).sum(1) - 1)
    two = mine_triplets(x, la, x, positive="easy")
    assert torch.equal(two.positive_idx, torch.arange(20))
    assert all(torch.equal(u, v) for u, v in zip(one, mine_triplets(x, la, x, positive="easy", exclude_diagonal=True)))
    kept = mine_triplets(x, la, positive="easy", exclude_diagonal=False)
    assert torch.equal(kept.positive_idx, torch.arange(20))


def test_labels_of_every_form() -> None:
    x, y = torch.randn(30, 5), torch.randn(40, 5)
    hot, other = torch.rand(30, 130) < 0.02, torch.rand(40, 130) < 0.02
    packed = pack_labels(hot)
    assert packed.shape == (30, 3)
    bits = packed[:, :, None] >> torch.arange(64) & 1
    assert torch.equal(bits.flatten(1)[:, :130].bool(), hot)
    found = mine_triplets(x, hot, y, other)
    assert torch.equal(found.n_pos, (hot.float() @ other.float().mT > 0).sum(1))
    assert all(torch.equal(u, v) for u, v in zip(found, mine_triplets(x, packed, y, pack_labels(other))))
    single = torch.randint(6, (30,)) - 2**62  # distinguished by the low bits alone, and by the high ones
    single[::3] += 2**40
    alone = mine_triplets(x, single)
    assert torch.equal(alone.n_pos, (single[:, None] == single).sum(1) - 1)


def test_indices_tuple_and_validity() -> None:
    x = torch.tensor([[0.0], [1.0], [3.0], [7.0]])
    found = mine_triplets(x, torch.tensor([0, 0, 1, 2]))
    assert found.valid.tolist() == [True, True, False, False]
    assert found.positive_idx.tolist() == [1, 0, -1, -1]
    assert [t.tolist() for t in found.indices_tuple()] == [[0, 1], [1, 0], [2, 2]]
    assert found.negative_idx.tolist() == [2, 2, 1, 2]


def test_distances_are_differentiable() -> None:
    anchor, ref = torch.randn(25, 6).double(), torch.randn(30, 6).double()
    la, lr = labels(25, 30, 4, "single")

    def distances(a: Tensor, r: Tensor) -> tuple[Tensor, Tensor]:
        found = mine_triplets(a, la, r, lr)
        return found.d_ap, found.d_an

    assert torch.autograd.gradcheck(distances, (anchor.requires_grad_(), ref.requires_grad_()))
    twice = torch.zeros(2, 3, requires_grad=True)
    mine_triplets(twice, torch.zeros(2, dtype=torch.int64)).d_ap.sum().backward()
    assert torch.equal(twice.grad, torch.zeros(2, 3))


def test_op_and_compile() -> None:
    anchor, ref, la, lr = batch(20, 30, 6, 3, dtype=torch.float32)
    for rule in RULES:
        torch.library.opcheck(torch.ops.xmodal.mine_triplets, (anchor, ref, la, lr, *rule, 0.5, False, torch.tensor(3)))
    compiled = torch.compile(lambda a, r: mine_triplets(a, la, r, lr), fullgraph=True, backend="aot_eager")
    assert all(torch.equal(u, v) for u, v in zip(compiled(anchor, ref), mine_triplets(anchor, la, ref, lr)))


X, L = torch.randn(4, 3), torch.tensor([0, 0, 1, 1])


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: mine_triplets(X, L[:3]), ValueError, "labels must have one entry per row of anchor, 4, got 3"),
        (lambda: mine_triplets(X, L.float()), TypeError, "labels must be integers or bool of shape .*got float32"),
        (lambda: mine_triplets(X, [0, 0, 1, 1]), TypeError, "labels must be a torch.Tensor, got list"),
        (
            lambda: mine_triplets(X, L, torch.randn(4, 2)),
            ValueError,
            "ref must have as many columns as anchor, 3, got 2",
        ),
        (lambda: mine_triplets(X, L, torch.randn(5, 3)), ValueError, "labels must have one entry per row of ref, 5"),
        (lambda: mine_triplets(X, L, X, L[:, None]), ValueError, "ref_labels must be of the kind of labels"),
        (lambda: mine_triplets(X, L, ref_labels=L), ValueError, "ref_labels must come with ref"),
        (lambda: mine_triplets(X, L, margin=-1), ValueError, "margin must be finite and >= 0, got -1"),
        (lambda: mine_triplets(X, L, positive="far"), ValueError, "positive must be one of 'hard', 'easy', got 'far'"),
        (lambda: mine_triplets(X, L, negative="all"), ValueError, "negative must be one of"),
        (lambda: mine_triplets(X, L, semihard="x"), ValueError, "semihard must be one of"),
        (lambda: mine_triplets(X[:0], L[:0]), ValueError, "anchor must have at least 1 rows, got 0"),
        (lambda: mine_triplets(X.long(), L), TypeError, "anchor must be float64"),
        (
            lambda: mine_triplets(X, L, X[:2], L[:2], exclude_diagonal=True),
            ValueError,
            "exclude_diagonal=True needs as many references as anchors, 4, got 2",
        ),
        (lambda: pack_labels(L), TypeError, r"multi_hot must be a bool tensor of shape \(m, C\), got int64"),
    ],
)
def test_bad_input(call, error, message) -> None:
    with pytest.raises(error, match=message) as raised:
        call()
    assert "\n" not in str(raised.value)
