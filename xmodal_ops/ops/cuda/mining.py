"""Triplet mining by the CUDA kernels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from ..._dtypes import accumulation_dtype
from .._library import implement
from ..portable.mining import TripletMining
from ..types import LabelledSets
from . import driver
from .driver import address, column_means, rows
from .pairs import CudaPairs


class Search(NamedTuple):
    """Which reference of an anchor to find."""

    positive: bool  # among the positives, otherwise among the negatives
    farthest: bool  # otherwise the nearest


@dataclass(frozen=True)
class Found:
    """The references that a search has found."""

    index: Tensor  # (m,), -1 if there is none
    distance: Tensor  # (m,), 0 if there is none
    square: Tensor  # (m,) fp64, infinity if there is none


@implement("mine_triplets", "CUDA", "kernels")
def mine_triplets(sets: LabelledSets, options: TripletMining, seed: Tensor | None) -> tuple[Tensor, ...]:
    """Seven launches; semihard negatives take another pass over the tiles, since they depend on the positives."""
    positive, negative, semihard, margin, exclude_diagonal = options
    beyond_hardest = semihard == "hardest_positive"
    sets = sets._replace(anchor=rows(sets.anchor), ref=rows(sets.ref))
    m = sets.anchor.shape[0]
    # Distances do not depend on a common shift, but with roughly the mean, |a|² + |r|² − 2 a·r cancels less. Components
    # of the mean that are not finite become 0.
    (shift,) = column_means(sets.ref, dtype=accumulation_dtype(sets.anchor.dtype))
    shift = shift.nan_to_num_(0.0, 0.0, 0.0)
    pairs = CudaPairs(sets, exclude_diagonal, shift, chunk=m)
    counts = torch.zeros(2, m, dtype=torch.int32, device=shift.device)  # positives, negatives

    first = Search(True, positive == "hard")
    if negative == "random":
        assert seed is not None
        (chosen,) = search(pairs, first, counts=counts)
        index, distance = draw_negatives(pairs, int(seed))
        return chosen.index, index, chosen.distance, distance, *counts.long().unbind()
    if negative != "semihard":
        chosen, found = search(pairs, first, Search(False, negative == "easy"), counts=counts)
        return chosen.index, found.index, chosen.distance, found.distance, *counts.long().unbind()
    hardest = (Search(True, True),) if beyond_hardest and positive == "easy" else ()
    chosen, *beyond = search(pairs, first, *hardest, counts=counts)
    bound = (beyond[0] if beyond else chosen).square
    (found,) = search(pairs, Search(False, False), floor=bound)
    near = found.square.sqrt() - bound.sqrt() <= margin
    index, distance = found.index.where(near, -1), found.distance.where(near, 0.0)
    return chosen.index, index, chosen.distance, distance, *counts.long().unbind()


def search(
    pairs: CudaPairs,
    *searches: Search,  # one or two
    floor: Tensor | None = None,  # (m,) fp64 squared distances that the found ones must exceed
    counts: Tensor | None = None,  # (2, m) int32, to which the numbers of positives and negatives are added
) -> list[Found]:
    """One pass over the tiles for all searches."""
    anchor, native = pairs.anchor, driver.native
    m = anchor.shape[0]
    state = torch.zeros(len(searches), 2, m, dtype=torch.int64, device=anchor.device)
    choices = [
        native.Choice(
            positive=wanted.positive,
            farthest=wanted.farthest,
            floor=address(floor),
            bound=bound.data_ptr(),
            key=key.data_ptr(),
        )
        for wanted, (bound, key) in zip(searches, state)
    ]
    native.mine(pairs.native, choices, address(counts), pairs.stream)
    results = []
    for choice in choices:
        found = Found(
            torch.empty(m, dtype=torch.int64, device=anchor.device),
            anchor.new_empty(m, dtype=pairs.dtype),
            anchor.new_empty(m, dtype=torch.float64),
        )
        mined = native.Mined(
            index=found.index.data_ptr(), distance=found.distance.data_ptr(), square=found.square.data_ptr()
        )
        native.read_mined(pairs.native, choice, mined, pairs.stream)
        results.append(found)
    return results


def draw_negatives(pairs: CudaPairs, seed: int) -> tuple[Tensor, Tensor]:
    """The index (m,) of a random negative of every anchor, -1 if there is none, and its distance (m,)."""
    m, device = pairs.anchor.shape[0], pairs.anchor.device
    index, distance = torch.empty(m, dtype=torch.int64, device=device), pairs.anchor.new_empty(m, dtype=pairs.dtype)
    mined = driver.native.Mined(index=index.data_ptr(), distance=distance.data_ptr())
    driver.native.draw_negatives(pairs.native, seed, mined, pairs.stream)
    return index, distance
