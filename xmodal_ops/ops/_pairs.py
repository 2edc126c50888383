"""What the triplet ops share: labels in the form of the kernels, and the way into the native module."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import _C, _checks
from .portable.triplets import accumulation_dtype


def pack_labels(multi_hot: Tensor) -> Tensor:
    """Packs multi-hot labels into bit sets, 64 classes to a word.

    The triplet ops take either; packing once saves doing it at every step.

    Args:
        multi_hot: bool of shape (m, C).

    Returns:
        int64 of shape (m, ⌈C / 64⌉): class c is bit c % 64 of word c // 64.
    """
    if not isinstance(multi_hot, Tensor) or multi_hot.dtype != torch.bool or multi_hot.ndim != 2:
        what = (
            f"{str(multi_hot.dtype)[6:]} of shape {tuple(multi_hot.shape)}"
            if isinstance(multi_hot, Tensor)
            else type(multi_hot).__name__
        )
        raise TypeError(f"multi_hot must be a bool tensor of shape (m, C), got {what}")
    m, classes = multi_hot.shape
    padded = torch.nn.functional.pad(multi_hot, (0, -classes % 64)).view(m, -1, 64).long()
    return (padded << torch.arange(64, device=multi_hot.device)).sum(-1)


def two_sets(
    anchor: Tensor,
    labels: Tensor,
    ref: Tensor | None,
    ref_labels: Tensor | None,
    names: tuple[str, str, str, str] = ("anchor", "labels", "ref", "ref_labels"),
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Anchors, references and the labels of both, checked; labels as (m,) integers or (m, words) bit sets."""
    _checks.matrix(names[0], anchor, 1)
    _checks.labels(names[1], labels, names[0], anchor)
    if ref is None:
        if ref_labels is not None:
            raise ValueError(f"{names[3]} must come with {names[2]}, got {names[3]} alone")
        packed = pack_labels(labels) if labels.dtype == torch.bool else labels
        return anchor, anchor, packed, packed
    _checks.matrix(names[2], ref, 1)
    _checks.same_kind(names[2], ref, names[0], anchor)
    _checks.same_width(names[2], ref, names[0], anchor)
    if ref_labels is None:
        _checks.labels(names[1], labels, names[2], ref)
        ref_labels = labels
    else:
        _checks.labels(names[3], ref_labels, names[2], ref)
        _checks.same_labels(names[3], ref_labels, names[1], labels)
    if labels.dtype == torch.bool:
        labels, ref_labels = pack_labels(labels), pack_labels(ref_labels)
    return anchor, ref, labels, ref_labels


def diagonal(exclude_diagonal: bool | None, one_set: bool, anchor: Tensor, ref: Tensor) -> bool:
    """Whether pairs (i, i) are left out: unless told otherwise, where anchors are their own references."""
    if exclude_diagonal and anchor.shape[0] != ref.shape[0]:
        raise ValueError(
            f"exclude_diagonal=True needs as many references as anchors, {anchor.shape[0]}, got {ref.shape[0]}"
        )
    return one_set if exclude_diagonal is None else exclude_diagonal


class NativePairs:
    """Arguments of the native kernels; holds the tensors that they point to."""

    def __init__(
        self,
        anchor: Tensor,
        ref: Tensor,
        anchor_labels: Tensor,
        ref_labels: Tensor,
        exclude_diagonal: bool,
        *,
        weights: bool,
    ) -> None:
        dtype = accumulation_dtype(anchor)
        anchor, ref = anchor.detach().to(dtype).contiguous(), ref.detach().to(dtype).contiguous()
        (m, d), n = anchor.shape, ref.shape[0]
        anchor_labels, ref_labels = anchor_labels.contiguous(), ref_labels.contiguous()
        # A thread costs some 20 µs to start: below a few million multiplications each, fewer are faster.
        threads = max(1, min(torch.get_num_threads(), m * n * d >> 22, m // 8))
        self.pairs = _C.Pairs(
            anchor=anchor.data_ptr(),
            ref=ref.data_ptr(),
            anchor_labels=anchor_labels.data_ptr(),
            ref_labels=ref_labels.data_ptr(),
            m=m,
            n=n,
            d=d,
            words=0 if anchor_labels.ndim == 1 else anchor_labels.shape[1],
            exclude_diagonal=exclude_diagonal,
            wide=dtype == torch.float64,
            threads=threads,
        )
        workspace = torch.empty(self.pairs.workspace_size(weights), dtype=torch.uint8)
        self.pairs.workspace = workspace.data_ptr()
        self.dtype = dtype
        self.held = anchor, ref, anchor_labels, ref_labels, workspace

    def gradients(self, need_anchor: bool, need_ref: bool) -> tuple[Tensor, Tensor]:
        """Room for the gradients, empty where not needed (the address is then 0)."""
        anchor, ref = self.held[:2]
        return (
            torch.empty_like(anchor) if need_anchor else torch.empty(0, dtype=self.dtype),
            torch.empty_like(ref) if need_ref else torch.empty(0, dtype=self.dtype),
        )


def gradient_fakes(anchor: Tensor, ref: Tensor, need_anchor: bool, need_ref: bool) -> tuple[Tensor, Tensor]:
    """Gradients in the accumulation dtype: only scaled may they be narrowed to half inputs."""
    dtype = accumulation_dtype(anchor)
    return (
        anchor.new_empty(anchor.shape if need_anchor else (0,), dtype=dtype),
        ref.new_empty(ref.shape if need_ref else (0,), dtype=dtype),
    )


def poison(anchor: Tensor, ref: Tensor) -> Tensor:
    """1, or NaN where a row is not finite: what a loss is multiplied with."""
    dtype = accumulation_dtype(anchor)
    norms = (torch.linalg.vector_norm(x.detach(), dtype=dtype) for x in (anchor, ref))
    return 1 + 0 * sum(norms, start=anchor.new_zeros((), dtype=dtype))
