"""Triplet mining by drivers and kernels on the emulated device: the indices are exactly those of fp64."""

from __future__ import annotations

import pytest
import torch

from tests.ops.test_mining import HARD, PATHS, RULES, brute_force
from tests.ops.triplet_data import batch, labels
from xmodal_ops._dtypes import accumulation_dtype
from xmodal_ops.ops._library import flattened
from xmodal_ops.ops.cuda import mining as cuda_mining
from xmodal_ops.ops.cuda import pairs as cuda_pairs

pytestmark = pytest.mark.usefixtures("emulated", "schedule")


def check(data, exclude: bool = False, rules=RULES) -> None:
    for positive, negative, semihard in rules:
        seed = torch.tensor(3)
        p, n, d_ap, d_an, n_pos, n_neg = flattened(cuda_mining.mine_triplets)(
            *data, positive, negative, semihard, 0.5, exclude, seed
        )
        expected = brute_force(data, positive, negative, semihard, 0.5, exclude)
        assert p.tolist() == expected[0]
        if negative == "random":
            chosen = PATHS["torch"](*data, positive, negative, semihard, 0.5, exclude, seed)[1]
            assert n.tolist() == chosen.tolist()
        else:
            assert n.tolist() == expected[1]
        square, same, other = expected[2:]
        assert torch.equal(n_pos, same.sum(1))
        assert torch.equal(n_neg, other.sum(1))
        for index, distance in ((p, d_ap), (n, d_an)):
            assert distance.dtype == accumulation_dtype(data[0].dtype)
            d = square.sqrt().gather(1, index.clamp(min=0)[:, None])[:, 0].where(index >= 0, 0.0)
            tolerance = 1e-14 if distance.dtype == torch.float64 else 1e-7
            torch.testing.assert_close(distance.double(), d, rtol=tolerance, atol=1e-300)


@pytest.mark.parametrize("kind", ["single", "multi"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(70, 131, 19, 4), (1, 9, 3, 2), (66, 64, 33, 10**6)], ids=str)
def test_exact(kind, dtype, shape) -> None:
    check(batch(*shape, kind, dtype))


def test_tiles_of_both_sizes_and_the_diagonal(monkeypatch) -> None:
    data = batch(140, 140, 5, 3, dtype=torch.float32)
    for tile in (64, 128):
        monkeypatch.setattr(cuda_pairs, "choose_tile", lambda *_, tile=tile: tile)
        check(data, exclude=True, rules=RULES[:1])


def test_ties_of_integers() -> None:
    for dtype in (torch.float32, torch.float16):
        anchor, ref = torch.randint(-2, 3, (2, 130, 6)).to(dtype)
        check((anchor, ref, *labels(130, 130, 3, "single")), rules=RULES[:3])


def test_tight_classes_at_an_offset() -> None:
    la, lr = labels(130, 150, 4, "single")
    centres = 3 * torch.randn(4, 32) + 100
    data = centres[la] + 3e-3 * torch.randn(130, 32), centres[lr] + 3e-3 * torch.randn(150, 32), la, lr
    check(data, rules=RULES[:1])


def test_rows_that_are_not_finite() -> None:
    anchor, ref, la, lr = batch(40, 50, 6, 3, dtype=torch.float32)
    anchor[3, 2], ref[5, 1], ref[6, 0] = torch.nan, torch.nan, torch.inf
    arguments = anchor, ref, la, lr, *HARD, 0.0, False, None
    for found, expected in zip(flattened(cuda_mining.mine_triplets)(*arguments), PATHS["torch"](*arguments)):
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=0)


def test_memory_ends_where_it_ends(fenced) -> None:
    data = [fenced(x) for x in batch(67, 35, 7, 3, dtype=torch.float32)]
    check(data, rules=RULES[:2])
