"""Triplets in plain torch: mining and losses over all pairs, a chunk of anchors at a time.

A reference is positive to an anchor that it shares a label with, otherwise negative. Left out of both are the
diagonal, if asked, and rows that are not finite. Labels are (m,) integers, equal or not, or (m, words) bit sets.

    |a − r|² = |a|² + |r|² − 2 a·r                        in double precision, of rows shifted to their common mean
    ∂/∂a_i Σ_ij f(d_ij) = Σ_j w_ij (a_i − r_j)            w = f'(d) / d, and 0 where d = 0

The `textbook_*` functions state the losses over explicit triplets, O(m³) in memory: the oracles of the tests.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

_CHUNK = 1 << 22  # pairs that are looked at together


def accumulation_dtype(x: Tensor) -> torch.dtype:
    """The dtype of distances and losses: the input's, but float32 for half inputs."""
    return torch.float32 if x.dtype in (torch.float16, torch.bfloat16) else x.dtype


def positives(anchor_labels: Tensor, ref_labels: Tensor) -> Tensor:
    """Whether anchor i and reference j share a label: (m, n) bool."""
    if anchor_labels.ndim == 1:
        return anchor_labels[:, None] == ref_labels
    shared = torch.zeros(anchor_labels.shape[0], ref_labels.shape[0], dtype=torch.bool, device=ref_labels.device)
    for left, right in zip(anchor_labels.unbind(1), ref_labels.unbind(1)):
        shared |= (left[:, None] & right) != 0
    return shared


def relations(anchor_labels: Tensor, ref_labels: Tensor, exclude_diagonal: bool) -> tuple[Tensor, Tensor]:
    """The (m, n) masks of positives and negatives."""
    same = positives(anchor_labels, ref_labels)
    other = ~same
    if exclude_diagonal:
        same.fill_diagonal_(False)
        other.fill_diagonal_(False)
    return same, other


def textbook_distances(anchor: Tensor, ref: Tensor) -> Tensor:
    """d_ij, differentiable, with the subgradient 0 at d = 0."""
    square = (anchor[:, None] - ref).square().sum(-1)
    apart = square > 0
    return torch.where(apart, square, 1.0).sqrt().where(apart, 0.0)


def textbook_structure_preserving(
    anchor: Tensor, ref: Tensor, anchor_labels: Tensor, ref_labels: Tensor, margin: float, gamma: float, mean: bool
) -> Tensor:
    """ACMR's L_imi, equations 4–6, over explicit triplets (i, j, k) in both directions."""

    def one_way(d: Tensor, same: Tensor) -> Tensor:
        triplet = same[:, :, None] & ~same[:, None, :]
        terms = d[:, :, None] + gamma * (margin - d[:, None, :]).relu()
        total = terms.where(triplet, 0.0).sum()
        return total / triplet.sum().clamp(min=1) if mean else total

    d, same = textbook_distances(anchor, ref), positives(anchor_labels, ref_labels)
    return one_way(d, same) + one_way(d.mT, same.mT)


def textbook_triplet_margin(
    anchor: Tensor,
    ref: Tensor,
    anchor_labels: Tensor,
    ref_labels: Tensor,
    margin: float,
    triplets: str,
    exclude_diagonal: bool,
) -> tuple[Tensor, Tensor]:
    """Per anchor the sum of max(0, margin + d_ap − d_an) over its triplets of a kind, and how many are active."""
    same, other = relations(anchor_labels, ref_labels, exclude_diagonal)
    d = textbook_distances(anchor, ref)
    gap = d[:, None, :] - d[:, :, None]
    counts = same[:, :, None] & other[:, None, :] & (gap < margin)
    if triplets == "hard":
        counts &= gap < 0
    elif triplets == "semihard":
        counts &= gap >= 0
    return (margin - gap).where(counts, 0.0).sum((1, 2)), counts.sum((1, 2))


class _Rows:
    """Two sets of rows in double precision, and their pairs in chunks of anchors."""

    def __init__(self, anchor: Tensor, ref: Tensor) -> None:
        # Apple's GPUs have no double precision.
        wide = torch.float32 if anchor.device.type == "mps" else torch.float64
        anchor, ref = anchor.to(wide), ref.to(wide)
        self.anchor_alive = anchor.square().sum(1).isfinite()
        self.ref_alive = ref.square().sum(1).isfinite()
        anchor = anchor.where(self.anchor_alive[:, None], 0.0)
        ref = ref.where(self.ref_alive[:, None], 0.0)
        # A shift by whole numbers keeps integers exact.
        shift = ((anchor.sum(0) + ref.sum(0)) / (anchor.shape[0] + ref.shape[0])).round()
        self.anchor, self.ref = anchor - shift, ref - shift
        self.ref_norms = self.ref.square().sum(1)

    def finite(self) -> Tensor:
        return self.anchor_alive.all() & self.ref_alive.all()

    def chunks(
        self, anchor_labels: Tensor, ref_labels: Tensor, exclude_diagonal: bool
    ) -> Iterator[tuple[slice, Tensor, Tensor, Tensor]]:
        """Slices of anchors with their squared distances to all references and the two masks."""
        m, n = self.anchor.shape[0], self.ref.shape[0]
        step = max(1, _CHUNK // n)
        for start in range(0, m, step):
            rows = slice(start, min(start + step, m))
            a = self.anchor[rows]
            norms = a.square().sum(1, keepdim=True) + self.ref_norms
            square = norms - 2 * (a @ self.ref.mT)
            # Equal rows leave rounding errors; nothing is told apart below them.
            square = square.where(square > 64 * torch.finfo(a.dtype).eps * norms, 0.0)
            same = positives(anchor_labels[rows], ref_labels)
            alive = self.anchor_alive[rows, None] & self.ref_alive
            if exclude_diagonal:
                alive.diagonal(start)[: rows.stop - start] = False
            yield rows, square, same & alive, ~same & alive


def pair_hash(seed: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """A number for every pair that looks random, >= 0: splitmix64's finaliser, as in csrc/cpu/mining.cpp."""

    def signed(word: int) -> int:
        return word - (1 << 64) if word >> 63 else word

    def shifted(x: Tensor, by: int) -> Tensor:
        return (x >> by) & ((1 << (64 - by)) - 1)

    x = seed + rows[:, None] * signed(0x9E3779B97F4A7C15) + columns * signed(0xD1B54A32D192ED03)
    x = (x ^ shifted(x, 30)) * signed(0xBF58476D1CE4E5B9)
    x = (x ^ shifted(x, 27)) * signed(0x94D049BB133111EB)
    return shifted(x ^ shifted(x, 31), 1)


def _farthest(square: Tensor, mask: Tensor) -> Tensor:
    index = square.where(mask, -1.0).argmax(1)
    return index.where(mask.any(1), -1)


def _nearest(square: Tensor, mask: Tensor) -> Tensor:
    index = square.where(mask, torch.inf).argmin(1)
    return index.where(mask.any(1), -1)


def _at(square: Tensor, index: Tensor) -> Tensor:
    return square.gather(1, index.clamp(min=0)[:, None])[:, 0]


def mine_triplets(
    anchor: Tensor,
    ref: Tensor,
    anchor_labels: Tensor,
    ref_labels: Tensor,
    positive: str,
    negative: str,
    beyond_hardest: bool,
    margin: float,
    seed: Tensor | None,
    exclude_diagonal: bool,
) -> tuple[Tensor, ...]:
    """Per anchor: positive, negative, their distances, and the numbers of positives and negatives."""
    pairs = _Rows(anchor, ref)
    columns = torch.arange(ref.shape[0], device=ref.device)
    results: list[tuple[Tensor, ...]] = []
    for rows, square, same, other in pairs.chunks(anchor_labels, ref_labels, exclude_diagonal):
        chosen = _farthest(square, same) if positive == "hard" else _nearest(square, same)
        if negative == "semihard":
            bound = _farthest(square, same) if beyond_hardest else chosen
            floor = _at(square, bound)[:, None]
            beyond = other & (square > floor) & (bound >= 0)[:, None]
            found = _nearest(square, beyond & (square.sqrt() - floor.sqrt() <= margin))
        elif negative == "random":
            assert seed is not None
            index = torch.arange(rows.start, rows.stop, device=ref.device)
            hashes = pair_hash(seed.to(ref.device), index, columns)
            last = torch.iinfo(torch.int64).max
            found = hashes.where(other, last).argmin(1).where(other.any(1), -1)
        else:
            found = _nearest(square, other) if negative == "hard" else _farthest(square, other)
        results.append((chosen, found, same.sum(1), other.sum(1)))
    positive_idx, negative_idx, n_pos, n_neg = (torch.cat(parts) for parts in zip(*results))

    def distance(index: Tensor) -> Tensor:
        """Measured from the difference, so that equal rows are at 0."""
        d = (pairs.anchor - pairs.ref[index.clamp(min=0)]).norm(dim=1)
        return d.where(index >= 0, 0.0).to(accumulation_dtype(anchor))

    return positive_idx, negative_idx, distance(positive_idx), distance(negative_idx), n_pos, n_neg


def count_pairs(anchor_labels: Tensor, ref_labels: Tensor) -> tuple[Tensor, Tensor]:
    """How many references share a label with each anchor (m,), and anchors with each reference (n,)."""
    if anchor_labels.ndim == 1:

        def matches(these: Tensor, those: Tensor) -> Tensor:
            order = those.sort().values
            return torch.searchsorted(order, these, right=True) - torch.searchsorted(order, these)

        return matches(anchor_labels, ref_labels), matches(ref_labels, anchor_labels)
    of_anchors, of_refs = [], torch.zeros(ref_labels.shape[0], dtype=torch.int64, device=ref_labels.device)
    for part in anchor_labels.split(max(1, _CHUNK // ref_labels.shape[0])):
        same = positives(part, ref_labels)
        of_anchors.append(same.sum(1))
        of_refs += same.sum(0)
    return torch.cat(of_anchors), of_refs


def structure_weights(
    of_anchors: Tensor, of_refs: Tensor, gamma: float, mean: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Weights of a pair, one from its anchor and one from its reference: (pull, push) of anchors, of references.

    Σ_ijk (d_ij + γ h_ik) = Σ_i (N⁻_i Σ_j d_ij + γ N⁺_i Σ_k h_ik), divided by the number of triplets for a mean.
    """

    def weights(same: Tensor, others: int) -> tuple[Tensor, Tensor]:
        pull, push = (others - same).double(), gamma * same.double()
        triplets = (same * (others - same)).sum().clamp(min=1)
        return (pull / triplets, push / triplets) if mean else (pull, push)

    return *weights(of_anchors, of_refs.shape[0]), *weights(of_refs, of_anchors.shape[0])


class _Gradients:
    """Σ w (x − y) for either side of weighted pairs."""

    def __init__(self, pairs: _Rows, need_anchor: bool, need_ref: bool) -> None:
        self.pairs = pairs
        self.anchor = torch.zeros_like(pairs.anchor) if need_anchor else None
        self.ref = torch.zeros_like(pairs.ref) if need_ref else None

    def add(self, rows: slice, d: Tensor, slope: Tensor) -> None:
        weight = (slope / d).where(d > 0, 0.0)
        a, r = self.pairs.anchor[rows], self.pairs.ref
        if self.anchor is not None:
            self.anchor[rows] = weight.sum(1, keepdim=True) * a - weight @ r
        if self.ref is not None:
            self.ref += weight.sum(0)[:, None] * r - weight.mT @ a

    def results(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """In the accumulation dtype, empty where not needed, NaN where a row is not finite."""
        dtype, good = accumulation_dtype(like), self.pairs.finite()

        def result(gradient: Tensor | None) -> Tensor:
            empty = like.new_empty(0, dtype=dtype)
            return empty if gradient is None else gradient.where(good, torch.nan).to(dtype)

        return result(self.anchor), result(self.ref)


def structure_preserving(
    anchor: Tensor,
    ref: Tensor,
    anchor_labels: Tensor,
    ref_labels: Tensor,
    margin: float,
    gamma: float,
    mean: bool,
    need_anchor: bool,
    need_ref: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """ACMR's L_imi; (active, positive pairs, negative pairs, Σ d⁺, Σ d⁻); gradients, empty where not needed."""
    weights = structure_weights(*count_pairs(anchor_labels, ref_labels), gamma, mean)
    return weighted_structure_preserving(
        anchor, ref, anchor_labels, ref_labels, *weights, margin, need_anchor, need_ref
    )


def weighted_structure_preserving(
    anchor: Tensor,
    ref: Tensor,
    anchor_labels: Tensor,
    ref_labels: Tensor,
    pull: Tensor,
    push: Tensor,
    pull_ref: Tensor,
    push_ref: Tensor,
    margin: float,
    need_anchor: bool,
    need_ref: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The same with given weights: of a part of the pairs, when they count all."""
    pairs = _Rows(anchor, ref)
    wide = pairs.anchor.dtype
    pull, push, pull_ref, push_ref = (w.to(wide) for w in (pull, push, pull_ref, push_ref))
    gradients = _Gradients(pairs, need_anchor, need_ref)
    value, stats = pairs.anchor.new_zeros(()), pairs.anchor.new_zeros(5)
    for rows, square, same, other in pairs.chunks(anchor_labels, ref_labels, False):
        d = square.sqrt()
        pulled, pushed = pull[rows, None] + pull_ref, push[rows, None] + push_ref
        near = other & (d < margin)
        value += (pulled * d).where(same, 0.0).sum() + (pushed * (margin - d)).where(near, 0.0).sum()
        sums = near.sum(), same.sum(), other.sum(), d.where(same, 0.0).sum(), d.where(other, 0.0).sum()
        stats += torch.stack([s.to(wide) for s in sums])
        gradients.add(rows, d, pulled.where(same, (-pushed).where(near, 0.0)))
    value = value.where(pairs.finite(), torch.nan).to(accumulation_dtype(anchor))
    return value, stats, *gradients.results(anchor)


def triplet_margin(
    anchor: Tensor,
    ref: Tensor,
    anchor_labels: Tensor,
    ref_labels: Tensor,
    weight: Tensor | None,
    margin: float,
    triplets: str,
    exclude_diagonal: bool,
    need_anchor: bool,
    need_ref: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """The margin loss over all triplets of a kind, without visiting them.

    Per anchor, with keys p = d + margin of the positives: g⁺ = #negatives before p, g⁻ = −#positives whose p comes
    after d⁻, Σ max(0, p − d⁻) = Σ g⁺ p + Σ g⁻ d⁻, ∂/∂d = g. With F(margin) the loss and c its active triplets:
    hard is F(0) + margin c(0), semihard is F(margin) less that.

    Gives per anchor (loss, active, positives, negatives, Σ d⁺, Σ d⁻) as (6, m), and the gradients of
    Σ weight_i loss_i, empty where not needed.
    """
    pairs = _Rows(anchor, ref)
    wide = pairs.anchor.dtype
    gradients = _Gradients(pairs, need_anchor, need_ref)
    results = []
    for rows, square, same, other in pairs.chunks(anchor_labels, ref_labels, exclude_diagonal):
        d = square.sqrt()
        sorted_positives = d.where(same, torch.inf).sort(1).values
        losses, g, active = d.new_zeros(d.shape[0]), torch.zeros_like(d), d.new_zeros(d.shape[0])
        terms = {"all": ((margin, 1),), "hard": ((0.0, 1),), "semihard": ((margin, 1), (0.0, -1))}[triplets]
        for shift, sign in terms:
            key = (d + shift).where(same, d)
            place = torch.searchsorted(sorted_positives + shift, key, right=True)
            after = same.sum(1, keepdim=True) - place  # may be below 0 only where masked
            count = torch.zeros(d.shape[0], d.shape[1] + 1, dtype=torch.int64, device=d.device)
            count.scatter_add_(1, place, other.long())
            before = count.cumsum(1).gather(1, (place - 1).clamp(min=0))
            slope = before.where(same, (-after).where(other, 0)).to(wide)
            found = before.where(same, 0).sum(1).to(wide)
            losses += sign * ((slope * key).sum(1) + (margin - shift) * found)
            active += sign * found
            g += sign * slope
        results.append(
            torch.stack(
                [
                    losses,
                    active,
                    same.sum(1).to(wide),
                    other.sum(1).to(wide),
                    d.where(same, 0.0).sum(1),
                    d.where(other, 0.0).sum(1),
                ]
            )
        )
        gradients.add(rows, d, g if weight is None else g * weight[rows, None].to(wide))
    sums = torch.cat(results, 1).where(pairs.finite(), torch.nan)
    return sums, *gradients.results(anchor)
