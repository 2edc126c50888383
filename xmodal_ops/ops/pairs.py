"""What the triplet ops share: checked and packed labels, and the arguments of the native CPU kernels."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import _C, _checks
from .._dtypes import accumulation_dtype, dtype_name
from .types import LabelledSets, Needs


def pack_labels(multi_hot: Tensor) -> Tensor:
    """Packs multi-hot labels into bit sets, 64 classes per word.

    The triplet ops take either form; packing once saves doing so in every step.

    Args:
        multi_hot: bool of shape (m, C).

    Returns:
        int64 of shape (m, ⌈C / 64⌉): class c is bit c % 64 of word c // 64.

    Raises:
        TypeError: `multi_hot` is not a bool tensor of that shape.
    """
    if not isinstance(multi_hot, Tensor) or multi_hot.dtype != torch.bool or multi_hot.ndim != 2:
        what = (
            f"{dtype_name(multi_hot.dtype)} of shape {tuple(multi_hot.shape)}"
            if isinstance(multi_hot, Tensor)
            else type(multi_hot).__name__
        )
        raise TypeError(f"multi_hot must be a bool tensor of shape (m, C), got {what}")
    m, classes = multi_hot.shape
    padded = torch.nn.functional.pad(multi_hot, (0, -classes % 64)).view(m, -1, 64).long()
    return (padded << torch.arange(64, device=multi_hot.device)).sum(-1)


def labelled_sets(
    anchor: Tensor,  # (m, d)
    labels: Tensor,  # of a form that `_checks.labels` describes
    ref: Tensor | None,  # (n, d); None: the anchors
    ref_labels: Tensor | None,  # of the same form, for n rows; None: `labels`
    names: tuple[str, str, str, str] = ("anchor", "labels", "ref", "ref_labels"),
) -> LabelledSets:
    """The arguments of a public function, checked under its names; rows of one dtype, multi-hot labels as bit sets."""
    _checks.matrix(names[0], anchor, 1)
    checked = _checks.labels(names[1], labels, names[0], anchor)
    if ref is None:
        if ref_labels is not None:
            raise ValueError(f"{names[3]} must come with {names[2]}, got {names[3]} alone")
        packed = _packed(checked)
        return LabelledSets(anchor, anchor, packed, packed)
    _checks.matrix(names[2], ref, 1)
    _checks.same_device(names[2], ref, names[0], anchor)
    _checks.same_width(names[2], ref, names[0], anchor)
    if ref_labels is None:
        packed = packed_ref = _packed(_checks.labels(names[1], labels, names[2], ref))
    else:
        checked_ref = _checks.labels(names[3], ref_labels, names[2], ref)
        _checks.same_labels(names[3], checked_ref, names[1], checked)
        packed, packed_ref = _packed(checked), _packed(checked_ref)
    return LabelledSets(*_checks.promoted(anchor, ref), packed, packed_ref)


def _packed(labels: Tensor) -> Tensor:
    return pack_labels(labels) if labels.dtype == torch.bool else labels


def excludes_diagonal(exclude_diagonal: bool | None, one_set: bool, sets: LabelledSets) -> bool:
    """Whether pairs (i, i) are left out; by default, only if the anchors are their own references."""
    m, n = sets.anchor.shape[0], sets.ref.shape[0]
    if exclude_diagonal and m != n:
        raise ValueError(f"exclude_diagonal=True needs as many references as anchors, {m}, got {n}")
    return one_set if exclude_diagonal is None else exclude_diagonal


class NativePairs:
    """Arguments of the native CPU kernels; holds the tensors that they point to."""

    def __init__(self, sets: LabelledSets, exclude_diagonal: bool, *, weights: bool) -> None:
        self.dtype = accumulation_dtype(sets.anchor.dtype)
        self.anchor, self.ref = (x.detach().to(self.dtype).contiguous() for x in (sets.anchor, sets.ref))
        (m, d), n = self.anchor.shape, self.ref.shape[0]
        labels = sets.anchor_labels.contiguous(), sets.ref_labels.contiguous()
        # Starting a thread takes some 20 µs: with less than a few million multiplications each, fewer are faster.
        threads = max(1, min(torch.get_num_threads(), m * n * d >> 22, m // 8))
        self.pairs = _C.Pairs(
            anchor=self.anchor.data_ptr(),
            ref=self.ref.data_ptr(),
            anchor_labels=labels[0].data_ptr(),
            ref_labels=labels[1].data_ptr(),
            m=m,
            n=n,
            d=d,
            words=0 if labels[0].ndim == 1 else labels[0].shape[1],
            exclude_diagonal=exclude_diagonal,
            wide=self.dtype == torch.float64,
            threads=threads,
        )
        workspace = torch.empty(self.pairs.workspace_size(weights), dtype=torch.uint8)
        self.pairs.workspace = workspace.data_ptr()
        self.held = labels, workspace

    def empty_gradients(self, needs: Needs) -> tuple[Tensor, Tensor]:
        """Uninitialised gradients in the accumulation dtype, without elements (address 0) if not needed."""
        return empty_gradients(self.anchor, self.ref, needs)


def pair_sums(
    sums: Tensor,  # (6, m): see `PairSums` in types.py
    gradients: tuple[Tensor, Tensor],
) -> _C.PairSums:
    """Where a native loss writes its results."""
    anchor, ref = gradients
    return _C.PairSums(sums=sums.data_ptr(), anchor_grad=anchor.data_ptr(), ref_grad=ref.data_ptr())


def empty_gradients(anchor: Tensor, ref: Tensor, needs: Needs) -> tuple[Tensor, Tensor]:
    """In the accumulation dtype: a gradient may be narrowed to half inputs only after it is scaled."""
    dtype = accumulation_dtype(anchor.dtype)
    return (
        anchor.new_empty(anchor.shape if needs.anchor else (0,), dtype=dtype),
        ref.new_empty(ref.shape if needs.ref else (0,), dtype=dtype),
    )


def nan_unless_finite(
    anchor: Tensor,  # (m, d)
    ref: Tensor,  # (n, d)
) -> Tensor:
    """The factor 1, or NaN if a row is not finite or its norm overflows: a scalar in the accumulation dtype."""
    dtype = accumulation_dtype(anchor.dtype)
    norms = (torch.linalg.vector_norm(x.detach(), dtype=dtype) for x in (anchor, ref))
    return 1 + 0 * sum(norms, start=anchor.new_zeros((), dtype=dtype))
