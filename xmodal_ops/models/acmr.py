"""Adversarial cross-modal retrieval (Wang et al., "Adversarial Cross-Modal Retrieval", ACM MM 2017)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .. import _checks
from .._arrays import Array, concatenate
from .._dtypes import accumulation_dtype, dtype_name
from ..errors import UserError
from ..nn.gradient_reversal import gradient_reversal
from ..ops.structure_preserving import structure_preserving_loss
from ..options import ACMROptions
from .branches import evaluation_mode
from .two_view import TwoViewModel, as_items


class ACMRLosses(NamedTuple):
    """Scalar loss terms of a batch: the two players' objectives, then the components of the first.

    With the reversed gradient, one backward pass through `embedding + adversary` serves both players.
    """

    embedding: Tensor  #: L_emb = alpha L_imi + beta L_imd + pair_weight L_pair + penalty Σ‖W‖_F
    adversary: Tensor  #: L_adv, behind the gradient reversal
    invariance: Tensor  #: L_imi
    discrimination: Tensor  #: L_imd
    pair: Tensor  #: L_pair, 0 if its weight is


class ACMR(TwoViewModel):
    """Two projectors into one space, a label predictor, and a modality classifier that plays against the projectors.

    With S_V = f_V(image) and S_T = f_T(text), of shape (m, dim):

        L_adv   cross-entropy of the modality classifier on S_V (class 0) and S_T (class 1), summed over a pair
        L_imd   cross-entropy of the label predictor on S_V and S_T, summed over a pair: softmax if an item has one
                label, sigmoid if it may have several
        L_imi   structure_preserving_loss(S_V, S_T)
        L_pair  cross-entropy of finding an item's own partner in the batch, by cosine / temperature (not in the paper)

    Projectors and label predictor minimise alpha L_imi + beta L_imd + pair_weight L_pair + penalty Σ‖W‖_F − L_adv; the
    modality classifier minimises L_adv. `losses` contains a gradient reversal, so that one backward pass through
    `embedding + adversary` gives each player its own gradient; `players` returns their parameters.

    Args:
        image_projector: module that maps images to (m, dim).
        text_projector: module that maps texts to (m, dim).
        classes: C, the width of the label predictor.
        dim: dimension of the common space.
        multi_label: labels are bool (m, C) instead of int64 (m,).
        options: the other fields of `xmodal_ops.options.ACMROptions`.

    Raises:
        ValueError: an option is out of range.

    `invariance="batch_hinge"` is the other L_imi in the authors' released code, hinged once on sums over the batch:
    0.1 + 5 Σ ½|v − t|² of own pairs − Σ ½|v − t⁻|², where t⁻ is the partner of the image with another label that is
    nearest by the cosine of the raw features; plus the same with the roles exchanged.

    `members` label predictors each see their own share of the projection's columns; their probabilities and their
    losses are averaged. With projectors of the same number of members, the model is an ensemble.

    The retrieval space compares by (1 − w) cos(S_V, S_T) + w L(v, t), w being `label_weight`; the paper has w = 0.
    L is `label_similarity`: "probability" is Σ_c p(c|v) p(c|t), the probability that both have the same label;
    "bhattacharyya" is Σ_c √(p(c|v) p(c|t)) (Bhattacharyya 1943), which punishes a wrong first guess less.

    Complexity of the losses: O(m²·dim) time; O(m·dim) memory beyond the projectors, O(m·dim + m²) with L_pair.
    """

    OPTIONS = ACMROptions
    NETWORKS = ("image_projector", "text_projector")

    def __init__(
        self,
        image_projector: nn.Module,
        text_projector: nn.Module,
        classes: int,
        *,
        dim: int,
        multi_label: bool = False,
        **options: Any,
    ) -> None:
        super().__init__()
        if classes < 2:
            raise UserError(f"classes must be at least 2, got {classes}")
        self.classes, self.multi_label = classes, multi_label
        self.settings = o = ACMROptions(dim=dim, **options)
        self.image_projector = image_projector
        self.text_projector = text_projector
        widths = [dim // o.members, *o.label_hidden, classes]
        heads = (nn.Sequential(nn.Dropout(o.label_dropout), *_mlp(widths)) for _ in range(o.members))
        self.label_predictor = nn.ModuleList(heads)
        self.modality_classifier = _mlp([dim, *o.modality_hidden, 2])
        self.label_predictor.requires_grad_(o.train_label_predictor)

    @property
    def options(self) -> dict[str, Any]:
        return {"classes": self.classes, "multi_label": self.multi_label, **self.settings.to_dict()}

    def players(self) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
        """The parameters of the projectors and the label predictor, and those of the modality classifier."""
        first = [self.image_projector, self.text_projector, self.label_predictor]
        return [p for part in first for p in part.parameters() if p.requires_grad], list(
            self.modality_classifier.parameters()
        )

    def losses(
        self, image: Tensor, text: Tensor, labels: Tensor, *, targets: Tensor | None = None, reversal: float = 1.0
    ) -> ACMRLosses:
        """The losses of a batch of m pairs.

        Args:
            image: m inputs of the image projector.
            text: m inputs of the text projector.
            labels: int64 (m,) in 0..C-1, or bool (m, C) in a multi-label model.
            targets: (m, C), soft targets of the label predictor (mixup, smoothing); the labels by default.
            reversal: the factor of the reversed gradient; 0 switches the adversary off.

        Raises:
            ValueError: the labels do not suit the model, or the projections have another shape than (m, dim).
        """
        self.check_labels(labels, len(image))
        o = self.settings
        images, texts = image, text
        image, text = self(images, texts)
        if image.shape != text.shape or image.shape[1:] != (o.dim,):
            want, got = (len(labels), o.dim), f"{tuple(image.shape)} and {tuple(text.shape)}"
            raise ValueError(f"the projectors must give {want}, got {got}")
        zero = image.new_zeros(())
        if not o.alpha:
            invariance = zero
        elif o.invariance == "structure":
            invariance = structure_preserving_loss(
                image, text, labels, margin=o.margin, gamma=o.gamma, reduction=o.reduction
            )
        else:
            invariance = _batch_hinge(image, text, images.flatten(1), texts, labels)
        if targets is None:
            targets = labels if self.multi_label else F.one_hot(labels, self.classes)
        discrimination = self._label_loss(image, targets) + self._label_loss(text, targets)
        pair = self._pair_loss(image, text) if o.pair_weight else zero
        embedding = o.alpha * invariance + o.beta * discrimination + o.pair_weight * pair
        if o.penalty:
            projectors = (*self.image_projector.parameters(), *self.text_projector.parameters())
            embedding = embedding + o.penalty * torch.stack([p.norm() for p in projectors if p.ndim > 1]).sum()
        adversary = self.modality_loss(gradient_reversal(image, reversal), gradient_reversal(text, reversal))
        return ACMRLosses(embedding, adversary, invariance, discrimination, pair)

    def modality_loss(self, image: Tensor, text: Tensor) -> Tensor:
        """L_adv of projections (m, dim): `2 * log(2)` = 1.386 if the classifier cannot tell the modalities apart."""
        both = torch.cat([image, text])
        logits = self.modality_classifier(both.to(self._dtype)).to(accumulation_dtype(both.dtype))
        modality = torch.arange(2, device=logits.device).repeat_interleave(len(image))
        return 2 * F.cross_entropy(logits, modality)

    def _label_loss(self, projection: Tensor, targets: Tensor) -> Tensor:
        members = self.settings.members
        losses = []
        for logits in self._logits(projection):
            targets = targets.to(logits.dtype)
            if self.multi_label:
                losses.append(F.binary_cross_entropy_with_logits(logits, targets, reduction="sum") / len(logits))
            else:
                losses.append(F.cross_entropy(logits, targets))
        return torch.stack(losses).sum() / members

    def _logits(self, projection: Tensor) -> list[Tensor]:
        """The logits (m, C) of every member, in at least float32."""
        shares = projection.to(self._dtype).chunk(self.settings.members, 1)
        wide = accumulation_dtype(projection.dtype)
        return [head(share).to(wide) for head, share in zip(self.label_predictor, shares)]

    @property
    def _dtype(self) -> torch.dtype:
        """The floating type of the label predictor and the modality classifier."""
        return next(self.label_predictor.parameters()).dtype

    def _pair_loss(self, image: Tensor, text: Tensor) -> Tensor:
        logits = F.normalize(image) @ F.normalize(text).T / self.settings.temperature
        own = torch.arange(len(logits), device=logits.device)
        return (F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)) / 2

    def check_labels(self, labels: Tensor | None, rows: int) -> None:
        """Raises ValueError unless the labels are those of `rows` items of this model."""
        classes, several = self.classes, self.multi_label
        want = f"bool ({rows}, {classes})" if several else f"int64 ({rows},)"
        if labels is None:
            raise ValueError(f"labels must be {want}: ACMR learns from labels, got none")
        dtype, shape = (torch.bool, (rows, classes)) if several else (torch.int64, (rows,))
        if labels.dtype != dtype or labels.shape != shape:
            raise ValueError(f"labels must be {want}, got {dtype_name(labels.dtype)} {tuple(labels.shape)}")

    def probabilities(self, projection: Tensor) -> Tensor:
        """The label predictor's probabilities (m, C) of projections (m, dim)."""
        several = self.multi_label
        return torch.stack([z.sigmoid() if several else z.softmax(1) for z in self._logits(projection)]).mean(0)

    @torch.no_grad()
    def project(self, side: int, items: Array, *, batch_size: int = 1024) -> Tensor:
        """The projections of images (side 0) or texts (side 1), without gradients, in evaluation mode."""
        items, projector = as_items(("image", "text")[side], items), self.network(side)
        with evaluation_mode(projector):
            chunks = items.split(_checks.positive("batch_size", batch_size))
            outputs: Iterator[Tensor] = (projector(self.input(side, chunk)) for chunk in chunks)
            return concatenate((out.to(accumulation_dtype(out.dtype)) for out in outputs), len(items))

    @torch.no_grad()
    def _embed(self, side: int, items: Tensor, batch_size: int) -> Tensor:
        projection = self.project(side, items, batch_size=batch_size)
        w = self.settings.label_weight
        parts = []
        if w < 1:
            parts.append((1 - w) ** 0.5 * F.normalize(projection))
        if w > 0:
            with evaluation_mode(self.label_predictor):
                p = self.probabilities(projection)
            p = p.sqrt() if self.settings.label_similarity == "bhattacharyya" else p
            # A vector of sigmoids has a norm up to √C, a softmax at most 1.
            p = p / self.classes**0.5 if self.multi_label else p
            parts.append(w**0.5 * inner_product_form(p, side))
        return torch.cat(parts, 1)


def _batch_hinge(image: Tensor, text: Tensor, images: Tensor, texts: Tensor, labels: Tensor) -> Tensor:
    """The released code's triplet loss of projections (m, dim), with negatives by the raw features."""
    shared = labels[:, None] == labels if labels.ndim == 1 else labels.float() @ labels.float().T > 0
    own = (image - text).square().sum() / 2
    loss = image.new_zeros(())
    for anchor, other, raw in ((image, text, images), (text, image, texts)):
        raw = F.normalize(raw.detach().flatten(1).float())
        nearest = (raw @ raw.T).masked_fill(shared, -2.0).argmax(1)
        loss = loss + (0.1 + 5 * own - (anchor - other[nearest]).square().sum() / 2).clamp(min=0)
    return loss


def inner_product_form(p: Tensor, side: int) -> Tensor:
    """Unit vectors (m, d + 2) whose cosines with those of the other side are the inner products of p and q.

    Each side has a coordinate of its own that completes p (m, d) to norm 1 and meets a 0 on the other side (Neyshabur &
    Srebro, "On Symmetric and Asymmetric LSHs for Inner Product Search", ICML 2015). No row of p may exceed norm 1.
    """
    rest = (1 - p.square().sum(1, keepdim=True)).clamp(min=0).sqrt()
    zero = torch.zeros_like(rest)
    return torch.cat([p, rest, zero] if side == 0 else [p, zero, rest], 1)


def _mlp(widths: Sequence[int]) -> nn.Sequential:
    """Linear layers of the given widths, with tanh between them."""
    layers = [layer for a, b in pairwise(widths) for layer in (nn.Linear(a, b), nn.Tanh())]
    return nn.Sequential(*layers[:-1])
