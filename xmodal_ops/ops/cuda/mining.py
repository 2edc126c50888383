"""Triplet mining by the CUDA kernels, and what they share with those of the losses."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..._dtypes import accumulation_dtype
from .._library import implement
from ..portable.mining import TripletMining
from ..types import LabelledSets
from . import driver
from .driver import address, choose_tile, column_means, matrix, processors, rows, stream


class LabelledPairs:
    """Two sets of rows and their labels as the kernels take them; holds the tensors that they point to."""

    def __init__(
        self,
        anchor: Tensor,
        ref: Tensor,
        anchor_labels: Tensor,
        ref_labels: Tensor,
        exclude_diagonal: bool,
        shift: Tensor,
    ) -> None:
        self.anchor, self.ref, self.shift = anchor, ref, shift
        self.dtype = shift.dtype
        self.wide = self.dtype == torch.float64
        self.stream = stream(anchor)
        self.labels = anchor_labels.contiguous(), ref_labels.contiguous()
        self.anchor_norms, self.ref_norms = (x.new_empty(x.shape[0], dtype=self.dtype) for x in (anchor, ref))
        views = matrix(anchor, shift), matrix(ref, shift)
        for view, norms in zip(views, (self.anchor_norms, self.ref_norms)):
            driver.native.cuda_squared_norms(view, self.wide, norms.data_ptr(), self.stream)
        self.native = driver.native.LabelledPairs(
            *views,
            self.anchor_norms.data_ptr(),
            self.ref_norms.data_ptr(),
            *(labels.data_ptr() for labels in self.labels),
            0 if anchor_labels.ndim == 1 else anchor_labels.shape[1],
            exclude_diagonal,
        )


@implement("mine_triplets", "CUDA", "kernels")
def mine_triplets(sets: LabelledSets, options: TripletMining, seed: Tensor | None) -> tuple[Tensor, ...]:
    """Seven launches; semihard negatives, which need to know the positives, take a second pass over the tiles."""
    anchor, ref, anchor_labels, ref_labels = sets
    positive, negative, semihard, margin, exclude_diagonal = options
    beyond_hardest = semihard == "hardest_positive"
    anchor, ref = rows(anchor), rows(ref)
    m, n = anchor.shape[0], ref.shape[0]
    # Any one shift leaves distances as they are; with about the mean less is lost in |a|² + |r|² − 2 a·r.
    # Where that is not finite, none.
    (shift,) = column_means(ref, dtype=accumulation_dtype(anchor.dtype))
    shift = shift.nan_to_num_(0.0, 0.0, 0.0)
    pairs = LabelledPairs(anchor, ref, anchor_labels, ref_labels, exclude_diagonal, shift)
    tile = choose_tile([((m, n), False)], pairs.wide, processors(anchor))
    counts = torch.zeros(2, m, dtype=torch.int32, device=anchor.device)

    def look(*choices: tuple[bool, bool], floor: Tensor | None = None, count: bool = False) -> list[Any]:
        """(index, distance, square) of each choice, a pair (positive, farthest)."""
        state = torch.zeros(len(choices), 2, m, dtype=torch.int64, device=anchor.device)
        made = [
            driver.native.Choice(*c, address(floor), *(s.data_ptr() for s in part)) for c, part in zip(choices, state)
        ]
        counted = counts.data_ptr() if count else 0
        driver.native.cuda_mine(pairs.native, made, counted, pairs.wide, tile, pairs.stream)
        results = []
        for choice in made:
            index = torch.empty(m, dtype=torch.int64, device=anchor.device)
            distance, square = anchor.new_empty(m, dtype=pairs.dtype), anchor.new_empty(m, dtype=torch.float64)
            targets = index.data_ptr(), distance.data_ptr(), square.data_ptr()
            driver.native.cuda_mined(pairs.native, choice, *targets, pairs.wide, pairs.stream)
            results.append((index, distance, square))
        return results

    first = (True, positive == "hard")
    if negative == "random":
        assert seed is not None
        ((index, distance, _),) = look(first, count=True)
        found_index, found_distance = torch.empty_like(index), torch.empty_like(distance)
        targets = found_index.data_ptr(), found_distance.data_ptr()
        driver.native.cuda_draw_negatives(pairs.native, int(seed), *targets, pairs.wide, pairs.stream)
        return index, found_index, distance, found_distance, *counts.long().unbind()
    if negative != "semihard":
        chosen, found = look(first, (False, negative == "easy"), count=True)
        return chosen[0], found[0], chosen[1], found[1], *counts.long().unbind()
    both = (first, (True, True)) if beyond_hardest and positive == "easy" else (first,)
    known = look(*both, count=True)
    index, distance, bound = known[0][0], known[0][1], known[-1][2]
    ((found_index, found_distance, square),) = look((False, False), floor=bound)
    near = square.sqrt() - bound.sqrt() <= margin
    found_index, found_distance = found_index.where(near, -1), found_distance.where(near, 0.0)
    return index, found_index, distance, found_distance, *counts.long().unbind()
