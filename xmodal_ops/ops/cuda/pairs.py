"""The arguments that the kernels of mining and of the losses share."""

from __future__ import annotations

import torch
from torch import Tensor

from ..types import LabelledSets
from . import driver
from .driver import choose_tile, matrix, processors, stream


class CudaPairs:
    """Two sets of labelled rows as the kernels take them; keeps the tensors alive that they point to."""

    def __init__(
        self,
        sets: LabelledSets,
        exclude_diagonal: bool,
        shift: Tensor,  # (2, d) in the working precision, subtracted from all rows
        *,
        chunk: int,  # anchors of a launch
    ) -> None:
        anchor, ref, anchor_labels, ref_labels = sets
        self.anchor, self.ref, self.shift = anchor, ref, shift
        self.dtype = shift.dtype
        self.stream = stream(anchor)
        self.labels = anchor_labels.contiguous(), ref_labels.contiguous()
        self.anchor_norms, self.ref_norms = (x.new_empty(x.shape[0], dtype=self.dtype) for x in (anchor, ref))
        wide = self.dtype == torch.float64
        views = matrix(anchor, shift), matrix(ref, shift)
        for view, norms in zip(views, (self.anchor_norms, self.ref_norms)):
            driver.native.squared_norms(view, wide, norms.data_ptr(), self.stream)
        self.native = driver.native.LabelledPairs(
            anchor=views[0],
            ref=views[1],
            anchor_norms=self.anchor_norms.data_ptr(),
            ref_norms=self.ref_norms.data_ptr(),
            anchor_labels=self.labels[0].data_ptr(),
            ref_labels=self.labels[1].data_ptr(),
            words=0 if anchor_labels.ndim == 1 else anchor_labels.shape[1],
            exclude_diagonal=exclude_diagonal,
            wide=wide,
            tile=choose_tile([((chunk, ref.shape[0]), False)], wide, processors(anchor)),
        )
