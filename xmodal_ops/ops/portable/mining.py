"""Triplet mining in plain torch: per anchor the farthest or nearest reference under a mask."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ..._dtypes import accumulation_dtype
from ..types import LabelledSets
from .pairs import PairSweep


class TripletMining(NamedTuple):
    """Which positive and which negative an anchor takes; see `xmodal_ops.mine_triplets`."""

    positive: str  # "hard", "easy"
    negative: str  # "hard", "semihard", "easy", "random"
    semihard: str  # "chosen_positive", "hardest_positive"
    margin: float  # of semihard negatives; inf: any distance
    exclude_diagonal: bool


def pair_hash(
    seed: Tensor,  # int64 scalar
    rows: Tensor,  # (m,) int64
    columns: Tensor,  # (n,) int64
) -> Tensor:
    """A pseudorandom number >= 0 for every pair, (m, n): splitmix64's finaliser, as in csrc/cpu/mining.cpp."""

    def signed(word: int) -> int:
        return word - (1 << 64) if word >> 63 else word

    def shifted(x: Tensor, by: int) -> Tensor:
        return (x >> by) & ((1 << (64 - by)) - 1)

    x = seed + rows[:, None] * signed(0x9E3779B97F4A7C15) + columns * signed(0xD1B54A32D192ED03)
    x = (x ^ shifted(x, 30)) * signed(0xBF58476D1CE4E5B9)
    x = (x ^ shifted(x, 27)) * signed(0x94D049BB133111EB)
    return shifted(x ^ shifted(x, 31), 1)


def _farthest(
    square: Tensor,  # (k, n) squared distances
    mask: Tensor,  # (k, n) bool
) -> Tensor:
    """(k,) indices, −1 if the mask is empty."""
    index = square.where(mask, -1.0).argmax(1)
    return index.where(mask.any(1), -1)


def _nearest(square: Tensor, mask: Tensor) -> Tensor:
    index = square.where(mask, torch.inf).argmin(1)
    return index.where(mask.any(1), -1)


def _semihard(square: Tensor, same: Tensor, other: Tensor, chosen: Tensor, options: TripletMining) -> Tensor:
    """The nearest negative beyond the chosen, or the farthest, positive."""
    bound = _farthest(square, same) if options.semihard == "hardest_positive" else chosen
    least = square.gather(1, bound.clamp(min=0)[:, None])
    beyond = other & (square > least) & (bound >= 0)[:, None]
    return _nearest(square, beyond & (square.sqrt() - least.sqrt() <= options.margin))


def mine_triplets(
    sets: LabelledSets,
    options: TripletMining,
    seed: Tensor | None,  # int64 scalar, of random negatives
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Per anchor: positive, negative, their distances, and the numbers of positives and negatives; all (m,)."""
    sweep = PairSweep(sets, options.exclude_diagonal)
    device = sets.ref.device
    columns = torch.arange(sets.ref.shape[0], device=device)
    results: list[tuple[Tensor, ...]] = []
    for rows, square, same, other in sweep.chunks():
        chosen = _farthest(square, same) if options.positive == "hard" else _nearest(square, same)
        if options.negative == "semihard":
            found = _semihard(square, same, other, chosen, options)
        elif options.negative == "random":
            assert seed is not None
            hashes = pair_hash(seed.to(device), torch.arange(rows.start, rows.stop, device=device), columns)
            last = torch.iinfo(torch.int64).max
            found = hashes.where(other, last).argmin(1).where(other.any(1), -1)
        else:
            found = _nearest(square, other) if options.negative == "hard" else _farthest(square, other)
        results.append((chosen, found, same.sum(1), other.sum(1)))
    positive_idx, negative_idx, n_pos, n_neg = (torch.cat(parts) for parts in zip(*results))

    def distance(index: Tensor) -> Tensor:
        """Measured from the difference, so that equal rows are at 0."""
        d = (sweep.anchor - sweep.ref[index.clamp(min=0)]).norm(dim=1)
        return d.where(index >= 0, 0.0).to(accumulation_dtype(sets.anchor.dtype))

    return positive_idx, negative_idx, distance(positive_idx), distance(negative_idx), n_pos, n_neg
