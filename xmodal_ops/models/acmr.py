"""Adversarial cross-modal retrieval (Wang et al., "Adversarial Cross-Modal Retrieval", ACM MM 2017)."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from os import PathLike
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .. import _checks
from .._dtypes import dtype_name
from ..nn.gradient_reversal import gradient_reversal
from ..ops.structure_preserving import structure_preserving_loss
from .branches import build
from .dcca import _evaluation


class ACMRLosses(NamedTuple):
    """The terms of a batch, scalar tensors: the two that the players are led by, then what the first consists of."""

    embedding: Tensor  #: L_emb = α·L_imi + β·L_imd + pair_weight·L_pair + penalty·Σ‖W‖_F
    adversary: Tensor  #: L_adv, behind the gradient reversal
    invariance: Tensor  #: L_imi
    discrimination: Tensor  #: L_imd
    pair: Tensor  #: L_pair, 0 where its weight is


class ACMR(nn.Module):
    """Two projectors into one space, a label predictor, and a modality classifier that plays against the projectors.

    With S_V = f_V(image) and S_T = f_T(text), of shape (m, dim):

        L_adv   cross-entropy of the modality classifier on S_V (class 0) and S_T (class 1), summed over a pair
        L_imd   cross-entropy of the label predictor on S_V and S_T, summed over a pair: softmax for one label an
                item, sigmoid for any number of them
        L_imi   structure_preserving_loss(S_V, S_T)
        L_pair  cross-entropy of finding an item's own partner in the batch, cosine / temperature (not of the paper)

    Projectors and label predictor minimise α·L_imi + β·L_imd + pair_weight·L_pair + penalty·Σ‖W‖_F − L_adv, the
    modality classifier minimises L_adv. :meth:`losses` has a gradient reversal inside, so one backward pass through
    ``embedding + adversary`` gives every player its own gradient; :meth:`players` are their parameters.

    Parameters
        image_projector, text_projector: modules that map a batch to (m, dim).
        classes: C, the width of the label predictor.
        dim: of the common space.
        multi_label: labels are bool (m, C); otherwise int64 (m,).
        invariance: "structure", or "batch_hinge", the other L_imi that the authors' released code has: hinged once on
            sums over the batch, 0.1 + 5·Σ½|v − t|² of own pairs − Σ½|v − t⁻|², t⁻ being the partner of the image of
            another label that is nearest by the cosine of the raw features; and the roles exchanged.
        alpha, beta, penalty, pair_weight: weights of the terms. The penalty sums the Frobenius norms of the
            projectors' weight matrices, as the paper has it.
        margin, gamma, reduction: of the structure preserving loss. The paper sums over triplets, some 10⁴ in a
            batch of 64, and does not give the margin; "mean" makes the weight independent of the batch.
        temperature: of L_pair.
        label_hidden, modality_hidden: units of the hidden layers of label predictor and modality classifier.
        label_dropout: of the projections, before the label predictor.
        members: label predictors, each of its own share of the projection's columns; their probabilities are
            averaged, their losses too. With projectors of as many members it is an ensemble in one model.
        train_label_predictor: False leaves it as drawn, as the released code does.
        label_weight: w in 0..1. The retrieval space compares by (1 − w)·cos(S_V, S_T) + w·L(v, t): 0 is the paper's.
        label_similarity: L. "probability" is Σ_c p(c|v) p(c|t), the probability that both have the same label;
            "bhattacharyya" is Σ_c √(p(c|v) p(c|t)) (Bhattacharyya 1943), which forgives a wrong first guess more.

    Complexity of the losses: O(m²·dim) time, O(m·dim + m²·[pair_weight > 0]) memory beyond the projectors.
    """

    def __init__(
        self,
        image_projector: nn.Module,
        text_projector: nn.Module,
        classes: int,
        *,
        dim: int,
        multi_label: bool = False,
        invariance: str = "structure",
        alpha: float = 0.1,
        beta: float = 0.1,
        penalty: float = 0.0,
        pair_weight: float = 0.0,
        margin: float = 1.0,
        gamma: float = 0.05,
        reduction: str = "mean",
        temperature: float = 0.07,
        label_hidden: Sequence[int] = (),
        label_dropout: float = 0.0,
        members: int = 1,
        modality_hidden: Sequence[int] = (50,),
        label_weight: float = 0.0,
        label_similarity: str = "probability",
        train_label_predictor: bool = True,
    ) -> None:
        super().__init__()
        for name, least, value in (("classes", 2, classes), ("dim", 1, dim), ("members", 1, members)):
            if value < least:
                raise ValueError(f"{name} must be at least {least}, got {value}")
        if dim % members:
            raise ValueError(f"members must divide dim, {dim}, got {members}")
        if not 0 <= label_weight <= 1:
            raise ValueError(f"label_weight must lie in 0..1, got {label_weight}")
        if not temperature > 0:
            raise ValueError(f"temperature must be positive, got {temperature}")
        _checks.choice("reduction", reduction, ("mean", "sum"))
        _checks.choice("invariance", invariance, ("structure", "batch_hinge"))
        _checks.choice("label_similarity", label_similarity, ("probability", "bhattacharyya"))
        weights = {"alpha": alpha, "beta": beta, "penalty": penalty, "pair_weight": pair_weight}
        weights = {name: _checks.non_negative(name, value) for name, value in weights.items()}
        self.options: dict[str, Any] = {
            "classes": classes, "dim": dim, "multi_label": multi_label, "invariance": invariance, **weights,
            "margin": margin, "gamma": gamma, "reduction": reduction, "temperature": temperature,
            "label_hidden": list(label_hidden), "label_dropout": label_dropout, "members": members,
            "modality_hidden": list(modality_hidden), "label_weight": label_weight,
            "label_similarity": label_similarity, "train_label_predictor": train_label_predictor,
        }  # fmt: skip
        self.image_projector = image_projector
        self.text_projector = text_projector
        widths = [dim // members, *label_hidden, classes]
        heads = (nn.Sequential(nn.Dropout(label_dropout), *_mlp(widths)) for _ in range(members))
        self.label_predictor = nn.ModuleList(heads)
        self.modality_classifier = _mlp([dim, *modality_hidden, 2])
        self.label_predictor.requires_grad_(train_label_predictor)

    def players(self) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
        """The parameters of the projectors and the label predictor, and those of the modality classifier."""
        first = [self.image_projector, self.text_projector, self.label_predictor]
        return [p for part in first for p in part.parameters() if p.requires_grad], list(
            self.modality_classifier.parameters()
        )

    def forward(self, image: Tensor, text: Tensor) -> tuple[Tensor, Tensor]:
        """Both projections."""
        return self.image_projector(image), self.text_projector(text)

    def losses(
        self, image: Tensor, text: Tensor, labels: Tensor, *, targets: Tensor | None = None, reversal: float = 1.0
    ) -> ACMRLosses:
        """The losses of a batch of m pairs.

        Args:
            image, text: what the projectors take, m rows each.
            labels: int64 (m,) in 0..C−1, or bool (m, C) in a multi-label model.
            targets: (m, C), what the label predictor is to say where that is not just the labels (mixup, smoothing).
            reversal: the factor of the reversed gradient; 0 switches the adversary off.
        """
        self.check_labels(labels, len(image))
        o = self.options
        images, texts = image, text
        image, text = self(images, texts)
        if image.shape != text.shape or image.shape[1:] != (o["dim"],):
            want, got = (len(labels), o["dim"]), f"{tuple(image.shape)} and {tuple(text.shape)}"
            raise ValueError(f"the projectors must give {want}, got {got}")
        zero = image.new_zeros(())
        if not o["alpha"]:
            invariance = zero
        elif o["invariance"] == "structure":
            invariance = structure_preserving_loss(
                image, text, labels, margin=o["margin"], gamma=o["gamma"], reduction=o["reduction"]
            )
        else:
            invariance = _batch_hinge(image, text, images.flatten(1), texts, labels)
        if targets is None:
            targets = labels if o["multi_label"] else F.one_hot(labels, o["classes"])
        discrimination = self._label_loss(image, targets) + self._label_loss(text, targets)
        pair = self._pair_loss(image, text) if o["pair_weight"] else zero
        embedding = o["alpha"] * invariance + o["beta"] * discrimination + o["pair_weight"] * pair
        if o["penalty"]:
            projectors = (*self.image_projector.parameters(), *self.text_projector.parameters())
            embedding = embedding + o["penalty"] * torch.stack([p.norm() for p in projectors if p.ndim > 1]).sum()
        adversary = self.modality_loss(gradient_reversal(image, reversal), gradient_reversal(text, reversal))
        return ACMRLosses(embedding, adversary, invariance, discrimination, pair)

    def modality_loss(self, image: Tensor, text: Tensor) -> Tensor:
        """L_adv of two sets of projections: 2·log 2 = 1.386 where the classifier cannot tell them apart."""
        logits = self.modality_classifier(torch.cat([image, text]))
        modality = torch.arange(2, device=logits.device).repeat_interleave(len(image))
        return 2 * F.cross_entropy(logits, modality)

    def _label_loss(self, projection: Tensor, targets: Tensor) -> Tensor:
        targets, members = targets.to(projection.dtype), self.options["members"]
        losses = []
        for logits in self._logits(projection):
            if self.options["multi_label"]:
                losses.append(F.binary_cross_entropy_with_logits(logits, targets, reduction="sum") / len(logits))
            else:
                losses.append(F.cross_entropy(logits, targets))
        return torch.stack(losses).sum() / members

    def _logits(self, projection: Tensor) -> list[Tensor]:
        """(m, C) of every member."""
        shares = projection.chunk(self.options["members"], 1)
        return [head(share) for head, share in zip(self.label_predictor, shares)]

    def _pair_loss(self, image: Tensor, text: Tensor) -> Tensor:
        logits = F.normalize(image) @ F.normalize(text).T / self.options["temperature"]
        own = torch.arange(len(logits), device=logits.device)
        return (F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)) / 2

    def check_labels(self, labels: Tensor | None, rows: int) -> None:
        """Refuses labels that are not those of this model, in one line."""
        classes, several = self.options["classes"], self.options["multi_label"]
        want = f"bool ({rows}, {classes})" if several else f"int64 ({rows},)"
        if labels is None:
            raise ValueError(f"labels must be {want}: ACMR learns from labels, got none")
        dtype, shape = (torch.bool, (rows, classes)) if several else (torch.int64, (rows,))
        if labels.dtype != dtype or labels.shape != shape:
            raise ValueError(f"labels must be {want}, got {dtype_name(labels.dtype)} {tuple(labels.shape)}")

    def probabilities(self, projection: Tensor) -> Tensor:
        """What the label predictor makes of projections (m, dim): (m, C)."""
        several = self.options["multi_label"]
        return torch.stack([z.sigmoid() if several else z.softmax(1) for z in self._logits(projection)]).mean(0)

    def embed_image(self, image: Tensor, *, batch_size: int = 1024) -> Tensor:
        """Images in the retrieval space, (m, k) float32, without gradients, in evaluation mode."""
        return self._embed(0, image, batch_size)

    def embed_text(self, text: Tensor, *, batch_size: int = 1024) -> Tensor:
        """Texts in the retrieval space, (m, k) float32, without gradients, in evaluation mode."""
        return self._embed(1, text, batch_size)

    @torch.no_grad()
    def project(self, side: int, items: Tensor, *, batch_size: int = 1024) -> Tensor:
        """The projections of images (side 0) or texts (side 1), without gradients, in evaluation mode."""
        device = next(self.label_predictor.parameters()).device
        projector = (self.image_projector, self.text_projector)[side]
        with _evaluation(projector):
            return torch.cat([projector(chunk.to(device)).float() for chunk in items.split(batch_size)])

    @torch.no_grad()
    def _embed(self, side: int, items: Tensor, batch_size: int) -> Tensor:
        projection = self.project(side, items, batch_size=batch_size)
        w = self.options["label_weight"]
        parts = []
        if w < 1:
            parts.append((1 - w) ** 0.5 * F.normalize(projection))
        if w > 0:
            with _evaluation(self.label_predictor):
                p = self.probabilities(projection)
            p = p.sqrt() if self.options["label_similarity"] == "bhattacharyya" else p
            # Sigmoids may make a vector as long as √C, a softmax none longer than 1.
            p = p / self.options["classes"] ** 0.5 if self.options["multi_label"] else p
            parts.append(w**0.5 * inner_product_form(p, side))
        return torch.cat(parts, 1)

    def save(self, path: str | PathLike[str]) -> None:
        """Writes the model to a file, with the specs of supplied branches."""
        saved = {
            "image_projector": getattr(self.image_projector, "spec", None),
            "text_projector": getattr(self.text_projector, "spec", None),
            "options": self.options,
            "state": self.state_dict(),
        }
        torch.save(saved, path)

    @classmethod
    def load(
        cls,
        path: str | PathLike[str],
        *,
        image_projector: nn.Module | None = None,
        text_projector: nn.Module | None = None,
        map_location: str | torch.device = "cpu",
    ) -> ACMR:
        """Reads what :meth:`save` wrote. A projector that is not one of this package's must be handed in."""
        saved = torch.load(path, map_location=map_location, weights_only=True)
        given = {"image_projector": image_projector, "text_projector": text_projector}
        for name, projector in given.items():
            if projector is None and saved[name] is None:
                raise ValueError(f"{name} must be given: the file holds a model with a projector of your own")
        built = {name: build(saved[name]) if projector is None else projector for name, projector in given.items()}
        model = cls(built["image_projector"], built["text_projector"], **saved["options"])
        model.load_state_dict(saved["state"])
        return model.to(map_location)


def _batch_hinge(image: Tensor, text: Tensor, images: Tensor, texts: Tensor, labels: Tensor) -> Tensor:
    """The released code's triplet loss of projections, with negatives by the raw features."""
    shared = labels[:, None] == labels if labels.ndim == 1 else labels.float() @ labels.float().T > 0
    own = (image - text).square().sum() / 2
    loss = image.new_zeros(())
    for anchor, other, raw in ((image, text, images), (text, image, texts)):
        raw = F.normalize(raw.detach().flatten(1).float())
        nearest = (raw @ raw.T).masked_fill(shared, -2.0).argmax(1)
        loss = loss + (0.1 + 5 * own - (anchor - other[nearest]).square().sum() / 2).clamp(min=0)
    return loss


def inner_product_form(p: Tensor, side: int) -> Tensor:
    """Vectors of length 1 whose cosines with those of the other side order as the inner products of p and q do.

    A coordinate for each side takes what is missing to length 1, so it meets a 0 of the other side (Neyshabur &
    Srebro, "On Symmetric and Asymmetric LSHs for Inner Product Search", ICML 2015). No p may be longer than 1.
    """
    rest = (1 - p.square().sum(1, keepdim=True)).clamp(min=0).sqrt()
    zero = torch.zeros_like(rest)
    return torch.cat([p, rest, zero] if side == 0 else [p, zero, rest], 1)


def _mlp(widths: Sequence[int]) -> nn.Sequential:
    """Linear layers with tanh between them."""
    layers = [layer for a, b in pairwise(widths) for layer in (nn.Linear(a, b), nn.Tanh())]
    return nn.Sequential(*layers[:-1])
