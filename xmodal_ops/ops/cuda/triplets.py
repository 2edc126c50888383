"""The losses over all pairs by the CUDA kernels: anchors in chunks, whose pairs are distances and then weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..._dtypes import accumulation_dtype
from .._library import implement
from ..portable.structure_preserving import StructurePreserving, label_weights
from ..portable.triplet_margin import TripletMargin
from ..types import LabelledSets, Needs, PairWeights
from . import driver
from .driver import Product, Term, address, choose_tile, processors, products, rows
from .mining import LabelledPairs

PAIRS_LIMIT = 32 << 20  # bytes of pairs that are held at once, so that they stay in the L2 cache; but
LEAST_ROWS = 128  # fewer anchors would read and write the references' gradients too often
IN_SHARED = 4096  # positives of an anchor that are ranked in shared memory
TRIPLETS = {"all": 0, "hard": 1, "semihard": 2}

# (pairs, chunk, where its anchors' sums go): leaves weights in place of distances.
Weigh = Callable[[LabelledPairs, Any, Any], None]


@implement("structure_preserving", "CUDA", "kernels")
def structure_preserving(sets: LabelledSets, options: StructurePreserving, needs: Needs) -> tuple[Tensor, ...]:
    return weighted_structure_preserving(sets, label_weights(sets, options), options.margin, needs)


@implement("weighted_structure_preserving", "CUDA", "kernels")
def weighted_structure_preserving(
    sets: LabelledSets, weights: PairWeights, margin: float, needs: Needs
) -> tuple[Tensor, ...]:
    dtype = accumulation_dtype(sets.anchor.dtype)
    weights = PairWeights(*(w.detach().to(dtype).contiguous() for w in weights))
    coefficients = [w.data_ptr() for w in weights]

    def weigh(pairs: LabelledPairs, chunk: Any, out: Any) -> None:
        driver.native.cuda_structure_preserving(
            pairs.native, chunk, *coefficients, margin, out, pairs.wide, pairs.stream
        )

    sums, *gradients = _sweep(*sets, False, weigh, *needs)
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
    workspace = min(_step(ref), anchor.shape[0]) if capacity > in_shared else 0
    ranked = ref.new_empty(workspace, capacity, dtype=accumulation_dtype(ref.dtype))
    counts = ref.new_empty(workspace, 2 if triplets == "semihard" else 1, capacity, dtype=torch.int32)

    def weigh(pairs: LabelledPairs, chunk: Any, out: Any) -> None:
        driver.native.cuda_triplet_margin(
            pairs.native,
            chunk,
            TRIPLETS[triplets],
            margin,
            address(weight),
            in_shared,
            ranked.data_ptr(),
            counts.data_ptr(),
            out,
            pairs.wide,
            pairs.stream,
        )

    return _sweep(*sets, exclude_diagonal, weigh, *needs)


def _shift(anchor: Tensor, ref: Tensor) -> Tensor:
    """About the mean row, which distances do not depend on: less is then lost in |a|² + |r|² − 2 a·r.

    A multiple of a power of two, some half or quarter of the spread: integers stay exact. Where a row is not
    finite any shift will do.
    """
    mean = (anchor.sum(0, dtype=torch.float64) + ref.sum(0, dtype=torch.float64)) / (len(anchor) + len(ref))
    spread = (anchor.var(0, correction=0).mean() + ref.var(0, correction=0).mean()).double().sqrt()
    step = torch.ldexp(torch.ones_like(spread), torch.frexp(spread).exponent - 2)
    return ((mean / step).round() * step).nan_to_num(0.0, 0.0, 0.0)


def _stride(ref: Tensor) -> int:
    return -(-ref.shape[0] // 4) * 4


def _step(ref: Tensor) -> int:
    """How many anchors a chunk has."""
    affordable = PAIRS_LIMIT // (_stride(ref) * accumulation_dtype(ref.dtype).itemsize)
    return max(1, affordable // LEAST_ROWS) * LEAST_ROWS


def _sweep(
    anchor: Tensor,
    ref: Tensor,
    anchor_labels: Tensor,
    ref_labels: Tensor,
    exclude_diagonal: bool,
    weigh: Weigh,
    need_anchor: bool,
    need_ref: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """The anchors' sums (6, m), and the gradients, empty where not needed; all NaN where a row is not finite.

    ∂/∂a_i = (Σ_j w_ij) a_i − (W r)_i,   ∂/∂r_j = (Σ_i w_ij) r_j − (Wᵀ a)_j,   a and r shifted.
    """
    anchor, ref = rows(anchor.detach()), rows(ref.detach())
    m, n, dtype = anchor.shape[0], ref.shape[0], accumulation_dtype(anchor.dtype)
    high = _shift(anchor, ref).to(dtype)
    shift = torch.stack((high, torch.zeros_like(high)))
    pairs = LabelledPairs(anchor, ref, anchor_labels, ref_labels, exclude_diagonal, shift)
    step = min(m, _step(ref))
    weights = ref.new_empty(step, _stride(ref), dtype=dtype)
    sums, own = anchor.new_empty(6, m, dtype=torch.float64), anchor.new_empty(m, dtype=torch.float64)
    others = ref.new_zeros(n, dtype=torch.float64)
    grad_anchor = anchor.new_empty(anchor.shape if need_anchor else (0,), dtype=dtype)
    grad_ref = ref.new_empty(ref.shape if need_ref else (0,), dtype=dtype)
    out = driver.native.AnchorSums(sums.data_ptr(), own.data_ptr() if need_anchor or need_ref else 0)
    tile = choose_tile([((step, n), False)], pairs.wide, processors(anchor))
    for first in range(0, m, step):
        part = slice(first, min(first + step, m))
        count = part.stop - first
        chunk = driver.native.Chunk(first, count, weights.data_ptr(), weights.stride(0))
        driver.native.cuda_measure(pairs.native, chunk, pairs.wide, tile, pairs.stream)
        weigh(pairs, chunk, out)
        w = weights[:count, :n]
        if need_anchor:
            products("nn", Product((Term(w, ref, b_shift=shift),), grad_anchor[part], alpha=-1.0))
        if need_ref:
            before = grad_ref if first else None
            term = Term(w, anchor[part], b_shift=shift)
            products("tn", Product((term,), grad_ref, alpha=-1.0, beta=float(first > 0), add=before))
            others += w.sum(0)
    if need_anchor:
        grad_anchor.addcmul_(own.to(dtype)[:, None], anchor.to(dtype) - high)
    if need_ref:
        grad_ref.addcmul_(others.to(dtype)[:, None], ref.to(dtype) - high)
    broken = torch.cat((pairs.anchor_norms, pairs.ref_norms)).amin() < 0
    for result in (sums, grad_anchor, grad_ref):
        result.masked_fill_(broken, torch.nan)
    return sums, grad_anchor, grad_ref
