"""The losses over all pairs by the CUDA kernels.

Anchors are taken in chunks. The pairs of a chunk are measured, a loss replaces their distances by weights, and products
of the weights with the rows are the gradients: see csrc/cuda/triplets.cuh.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ... import _C
from ..._dtypes import accumulation_dtype
from .._library import implement
from ..portable.structure_preserving import StructurePreserving, label_weights
from ..portable.triplet_margin import TripletMargin
from ..types import LabelledSets, Needs, PairSums, PairWeights
from . import driver
from .driver import Product, Term, address, products, rows
from .pairs import CudaPairs

PAIRS_LIMIT = 32 << 20  # bytes of a chunk's pairs, so that they stay in the L2 cache
LEAST_ROWS = 128  # of a chunk; with fewer, the references' gradients would be read and written too often
IN_SHARED = 4096  # positives of an anchor that are ranked in shared memory

# Sums over the pairs of a chunk's anchors and replaces their distances by weights.
Weigh = Callable[[CudaPairs, "_C.cuda.Chunk"], None]


@implement("structure_preserving", "CUDA", "kernels")
def structure_preserving(sets: LabelledSets, options: StructurePreserving, needs: Needs) -> tuple[Tensor, ...]:
    return weighted_structure_preserving(sets, label_weights(sets, options), options.margin, needs)


@implement("weighted_structure_preserving", "CUDA", "kernels")
def weighted_structure_preserving(
    sets: LabelledSets, weights: PairWeights, margin: float, needs: Needs
) -> tuple[Tensor, ...]:
    dtype = accumulation_dtype(sets.anchor.dtype)
    weights = PairWeights(*(w.detach().to(dtype).contiguous() for w in weights))
    loss = driver.native.StructureLoss(
        anchor_pull=weights.pull.data_ptr(),
        anchor_push=weights.push.data_ptr(),
        ref_pull=weights.pull_ref.data_ptr(),
        ref_push=weights.push_ref.data_ptr(),
        margin=margin,
    )

    def weigh(pairs: CudaPairs, chunk: _C.cuda.Chunk) -> None:
        driver.native.structure_loss(pairs.native, chunk, loss, pairs.stream)

    sums, *gradients = _sweep(sets, False, weigh, needs)
    totals = sums.sum(1)
    return totals[0].to(dtype), totals[1:].clone(), *gradients


@implement("triplet_margin", "CUDA", "kernels")
def triplet_margin(
    sets: LabelledSets, weight: Tensor | None, options: TripletMargin, needs: Needs
) -> tuple[Tensor, ...]:
    anchor, ref = sets.anchor, sets.ref
    margin, triplets, exclude_diagonal = options
    weight = None if weight is None else weight.detach().double().contiguous()
    capacity = 1 << (ref.shape[0] - 1).bit_length()
    in_shared = min(capacity, IN_SHARED)
    workspace = min(_chunk(ref), anchor.shape[0]) if capacity > in_shared else 0
    ranked = ref.new_empty(workspace, capacity, dtype=accumulation_dtype(ref.dtype))
    counts = ref.new_empty(workspace, 2 if triplets == "semihard" else 1, capacity, dtype=torch.int32)

    loss = driver.native.MarginLoss(
        triplets=driver.native.Triplets.__members__[triplets],
        margin=margin,
        weight=address(weight),
        in_shared=in_shared,
        capacity=capacity,
        ranked=ranked.data_ptr(),
        counts=counts.data_ptr(),
    )

    def weigh(pairs: CudaPairs, chunk: _C.cuda.Chunk) -> None:
        driver.native.margin_loss(pairs.native, chunk, loss, pairs.stream)

    return _sweep(sets, exclude_diagonal, weigh, needs)


def common_shift(
    anchor: Tensor,  # (m, d)
    ref: Tensor,  # (n, d)
) -> Tensor:
    """Roughly the mean row, (d,) fp64: distances do not depend on it, but |a|² + |r|² − 2 a·r then cancels less.

    It is rounded to multiples of a power of two, a half or a quarter of the spread, so that integers stay exact. If a
    row is not finite, any shift will do.
    """
    mean = (anchor.sum(0, dtype=torch.float64) + ref.sum(0, dtype=torch.float64)) / (len(anchor) + len(ref))
    spread = (anchor.var(0, correction=0).mean() + ref.var(0, correction=0).mean()).double().sqrt()
    mantissa = torch.frexp(spread).mantissa  # the quotient is an exact power of two; that of torch.ldexp need not be
    step = torch.where(spread > 0, spread / mantissa, 1.0) / 4
    return ((mean / step).round() * step).nan_to_num(0.0, 0.0, 0.0)


def _stride(
    ref: Tensor,  # (n, d)
) -> int:
    """Elements from one anchor's pairs to the next: n, rounded up for aligned loads."""
    return -(-ref.shape[0] // 4) * 4


def _chunk(
    ref: Tensor,  # (n, d)
) -> int:
    """The number of anchors in a chunk."""
    affordable = PAIRS_LIMIT // (_stride(ref) * accumulation_dtype(ref.dtype).itemsize)
    return max(1, affordable // LEAST_ROWS) * LEAST_ROWS


def _sweep(
    sets: LabelledSets,
    exclude_diagonal: bool,
    weigh: Weigh,
    needs: Needs,
) -> tuple[Tensor, Tensor, Tensor]:
    """The anchors' sums (6, m), and the gradients, empty if not needed; all NaN if a row is not finite.

    ∂/∂a_i = (Σ_j w_ij) a_i − (W r)_i,   ∂/∂r_j = (Σ_i w_ij) r_j − (Wᵀ a)_j,   a and r shifted.
    """
    anchor, ref = rows(sets.anchor.detach()), rows(sets.ref.detach())
    m, n, dtype = anchor.shape[0], ref.shape[0], accumulation_dtype(anchor.dtype)
    high = common_shift(anchor, ref).to(dtype)
    shift = torch.stack((high, torch.zeros_like(high)))
    step = min(m, _chunk(ref))
    pairs = CudaPairs(sets._replace(anchor=anchor, ref=ref), exclude_diagonal, shift, chunk=step)
    weights = ref.new_empty(step, _stride(ref), dtype=dtype)
    sums = anchor.new_empty(len(PairSums._fields), m, dtype=torch.float64)
    anchor_weights = anchor.new_empty(m, dtype=torch.float64)  # Σ_j w_ij
    ref_weights = ref.new_zeros(n, dtype=torch.float64)  # Σ_i w_ij
    grad_anchor = anchor.new_empty(anchor.shape if needs.anchor else (0,), dtype=dtype)
    grad_ref = ref.new_empty(ref.shape if needs.ref else (0,), dtype=dtype)
    for first in range(0, m, step):
        part = slice(first, min(first + step, m))
        count = part.stop - first
        chunk = driver.native.Chunk(
            first=first,
            rows=count,
            pairs=weights.data_ptr(),
            stride=weights.stride(0),
            sums=sums.data_ptr(),
            weights=anchor_weights.data_ptr() if needs.anchor or needs.ref else 0,
        )
        driver.native.measure_pairs(pairs.native, chunk, pairs.stream)
        weigh(pairs, chunk)
        w = weights[:count, :n]
        if needs.anchor:
            products("nn", Product((Term(w, ref, b_shift=shift),), grad_anchor[part], alpha=-1.0))
        if needs.ref:
            before = grad_ref if first else None
            term = Term(w, anchor[part], b_shift=shift)
            products("tn", Product((term,), grad_ref, alpha=-1.0, beta=float(first > 0), add=before))
            ref_weights += w.sum(0)
    if needs.anchor:
        grad_anchor.addcmul_(anchor_weights.to(dtype)[:, None], anchor.to(dtype) - high)
    if needs.ref:
        grad_ref.addcmul_(ref_weights.to(dtype)[:, None], ref.to(dtype) - high)
    broken = torch.cat((pairs.anchor_norms, pairs.ref_norms)).amin() < 0
    for result in (sums, grad_anchor, grad_ref):
        result.masked_fill_(broken, torch.nan)
    return sums, grad_anchor, grad_ref
