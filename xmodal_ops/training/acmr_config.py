"""What a training of ACMR is made from, as plain data that JSON holds, and its presets."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

import torch

from ..data import PairData
from ..models.branches import BranchSpec
from ..options import FEATURES
from .config import MONITORS
from .run import UserError

# `paper`: ACM MM 2017, as far as it says. It leaves open the learning rate (1e-4 is the released code's), the margin,
# the dropout (none here), and how the sum over triplets is scaled (a mean here; some 10⁴ triplets of a batch of 64
# would leave the other terms without weight). α and β are the upper ends of the ranges that it calls best. The
# weights' norms have no factor in the paper; with 1, they would outweigh all else, so theirs is 1e-4 here.
#
# `demo`: the released code, which deviates from the paper in everything set here: narrow projectors, a modality
# classifier of two narrow hidden layers (linear there, tanh here) that is trained but never against the projectors,
# a label predictor that stays as it was drawn, a loss hinged once on sums over the batch, other weights, no weight
# penalty, Adam with β1 = 0.5. Of the factors 100 and 50, the larger is taken for the labels. Its score, AP over the
# hits in the top 50, is `map_50_hits` of every evaluation.
PRESETS: dict[str, dict[str, Any]] = {
    "paper": {},
    "demo": {
        "dim": 40, "image_hidden": (512, 100), "text_hidden": (40, 100), "modality_hidden": (20, 10),
        "invariance": "batch_hinge", "alpha": 50.0, "beta": 100.0, "penalty": 0.0, "reversal": 0.0,
        "projector_steps": 1, "train_label_predictor": False, "beta1": 0.5, "epochs": 100,
    },
    "best": {
        "dim": 100, "image_hidden": (512,), "text_hidden": (200,), "image_features": "standard",
        "text_features": "standard", "image_dropout": 0.5, "text_dropout": 0.5, "alpha": 0.01, "beta": 1.0,
        "penalty": 0.0, "label_weight": 1.0, "reversal": 0.1, "projector_steps": 1, "learning_rate": 3e-4,
        "weight_decay": 0.5, "schedule": "one_cycle", "mixup": 1.0, "epochs": 30, "patience": 0, "refit": True,
    },
    "best wikipedia": {
        "image_features": "kernel", "image_hidden": (), "text_features": "kernel", "text_hidden": (),
        "dim": 512, "label_dropout": 0.7, "learning_rate": 5e-4, "mixup": 0.4, "epochs": 20,
    },
    "best glyphs": {
        "dim": 256, "text_hidden": (512,), "image_features": "none", "text_features": "none", "text_dropout": 0.5,
        "beta": 2.0, "pair_weight": 1.0, "temperature": 0.1, "label_weight": 0.6, "label_similarity": "bhattacharyya",
        "learning_rate": 3e-3, "weight_decay": 0.01, "mixup": 0.0, "smoothing": 0.1, "epochs": 30, "batch_size": 512,
        "refit": False, "monitor": "recall@10",
    },
}  # fmt: skip


@dataclass
class ACMRConfig:
    """Options of an ACMR training. The defaults are the preset `paper`.

    dim                    of the common space
    image_hidden, text_hidden   units of the projectors' hidden layers
    image_features, text_features   what precedes the projectors: none, standard, or for histograms sqrt, chi2,
                           kernel; pictures are seen by a small CNN instead, with image_hidden without effect
    image_dropout, text_dropout   after the projectors' hidden layers
    label_dropout          before the label predictor
    members                networks side by side in either projector, each with its own label predictor: an ensemble
                           in one model. They share dim; a CNN is one network, whose outputs the members share
    landmarks              training rows that kernel features refer to, at most
    image_input_dropout, text_input_dropout   before the projectors' first layers
    modality_hidden, label_hidden   units of the hidden layers of modality classifier and label predictor
    invariance             L_imi: structure (the paper's), or batch_hinge (the released code's)
    alpha, beta            weights of L_imi and L_imd
    penalty                factor of the sum of the Frobenius norms of the projectors' weight matrices
    margin, gamma, reduction   of L_imi
    pair_weight, temperature   of the search for an item's own partner in the batch
    label_weight           w: the retrieval space is (1 − w)·cosine of the projections + w·likeness of the labels
    label_similarity       that likeness: probability of one label, or bhattacharyya, of their distributions
    reversal               the strength of the adversary; 0 switches it off
    reversal_schedule      lets it grow from 0 as 2 / (1 + exp(−10 p)) − 1 over the training
    projector_steps        of projectors and label predictor for each of the modality classifier; 1: one joint step
    train_label_predictor  otherwise it stays as drawn
    mixup                  parameter of the Beta distribution that mixes pairs of a batch; 0: no mixing
    smoothing              share of the label predictor's targets that is spread over all classes
    learning_rate, beta1, weight_decay   of Adam, with decoupled decay
    schedule               of the learning rate: constant, or one_cycle
    augment                move, turn and scale training pictures at random
    patience               stop after so many epochs without a better validation figure; 0 never stops early
    refit                  once the best epoch is known, train anew to that epoch on training and validation pairs
    monitor                the validation figure, mean over both directions, that chooses the best epoch
    """

    seed: int = 0
    epochs: int = 200
    batch_size: int = 64
    dim: int = 200
    image_hidden: tuple[int, ...] = (2000,)
    text_hidden: tuple[int, ...] = (500,)
    image_features: str = "none"
    text_features: str = "none"
    image_dropout: float = 0.0
    text_dropout: float = 0.0
    image_input_dropout: float = 0.0
    text_input_dropout: float = 0.0
    label_dropout: float = 0.0
    members: int = 1
    landmarks: int = 2000
    modality_hidden: tuple[int, ...] = (50,)
    label_hidden: tuple[int, ...] = ()
    invariance: str = "structure"
    alpha: float = 0.1
    beta: float = 0.1
    penalty: float = 1e-4
    margin: float = 1.0
    gamma: float = 0.05
    reduction: str = "mean"
    pair_weight: float = 0.0
    temperature: float = 0.07
    label_weight: float = 0.0
    label_similarity: str = "probability"
    reversal: float = 1.0
    reversal_schedule: bool = True
    projector_steps: int = 5
    train_label_predictor: bool = True
    mixup: float = 0.0
    smoothing: float = 0.0
    learning_rate: float = 1e-4
    beta1: float = 0.9
    weight_decay: float = 0.0
    schedule: str = "constant"
    augment: bool = True
    patience: int = 20
    refit: bool = False
    monitor: str = "map_all"
    precision: str = "32-true"

    def __post_init__(self) -> None:
        for name, least in (
            ("epochs", 1), ("batch_size", 2), ("dim", 1), ("patience", 0), ("seed", 0), ("projector_steps", 1),
            ("members", 1), ("landmarks", 1),
            ("alpha", 0), ("beta", 0), ("penalty", 0), ("margin", 0), ("gamma", 0), ("pair_weight", 0),
            ("mixup", 0), ("reversal", 0), ("weight_decay", 0),
        ):  # fmt: skip
            if not (value := getattr(self, name)) >= least:
                raise UserError(f"{name} must be at least {least}, got {value}")
        for name in (
            "image_dropout",
            "text_dropout",
            "image_input_dropout",
            "text_input_dropout",
            "label_dropout",
            "smoothing",
            "beta1",
        ):
            if not 0 <= (value := getattr(self, name)) < 1:
                raise UserError(f"{name} must lie in 0..1, got {value}")
        if self.dim % self.members:
            raise UserError(f"members must divide dim, {self.dim}, got {self.members}")
        if not 0 <= self.label_weight <= 1:
            raise UserError(f"label_weight must lie in 0..1, got {self.label_weight}")
        for name, allowed in (
            ("monitor", MONITORS), ("invariance", ("structure", "batch_hinge")), ("reduction", ("mean", "sum")),
            ("label_similarity", ("probability", "bhattacharyya")),
            ("schedule", ("constant", "one_cycle")), ("image_features", FEATURES), ("text_features", FEATURES),
        ):  # fmt: skip
            if (choice := getattr(self, name)) not in allowed:
                raise UserError(f"{name} must be one of {', '.join(allowed)}, got {choice!r}")
        for name in ("image_hidden", "text_hidden", "modality_hidden", "label_hidden"):
            setattr(self, name, tuple(getattr(self, name)))  # a list in JSON

    @classmethod
    def preset(cls, name: str, data: str = "", **options: Any) -> ACMRConfig:
        """The options of a preset, for a data set where it has its own, with some of them changed."""
        if name not in (names := [known for known in PRESETS if " " not in known]):
            raise UserError(f"preset must be one of {', '.join(names)}, got {name!r}")
        return cls(**{**PRESETS[name], **PRESETS.get(f"{name} {data.removesuffix('-1300')}", {}), **options})

    def to_dict(self) -> dict[str, Any]:
        """The options as JSON has them."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> ACMRConfig:
        """Ignores nothing: an unknown option is an error."""
        if unknown := values.keys() - {field.name for field in fields(cls)}:
            raise UserError(f"config.json holds options that this version does not know: {', '.join(sorted(unknown))}")
        return cls(**values)


def projector_specs(config: ACMRConfig, data: PairData) -> tuple[BranchSpec, BranchSpec]:
    """The projectors that suit the data: a small CNN for pictures, fully connected layers for features."""
    image, text = data.train.image, data.train.text

    def projector(width: int, hidden: tuple[int, ...], features: str, dropout: tuple[float, float]) -> BranchSpec:
        arguments = {"in_features": width, "out_features": config.dim, "hidden": list(hidden), "features": features}
        rest = {"dropout": dropout[0], "input_dropout": dropout[1], "members": config.members}
        if features == "kernel":
            rest["landmarks"] = min(len(data.train), config.landmarks)
        return {"name": "Projector", "arguments": {**arguments, **rest}}

    text_spec = projector(
        text.shape[1], config.text_hidden, config.text_features, (config.text_dropout, config.text_input_dropout)
    )
    if image.ndim == 2:
        dropout = (config.image_dropout, config.image_input_dropout)
        return projector(image.shape[1], config.image_hidden, config.image_features, dropout), text_spec
    channels, height, width = image.shape[1:]
    if height != width or height % 16:
        raise UserError(f"image must be square with a side that 16 divides, got {height}×{width}")
    arguments = {"out_features": config.dim, "side": height, "in_channels": channels}
    return {"name": "SmallCNN", "arguments": arguments}, text_spec


def label_kind(data: PairData) -> tuple[int, bool]:
    """The number of classes, and whether an item may have several. Refuses data without labels."""
    labels = data.train.labels
    if labels is None:
        raise UserError(f"ACMR learns from labels, and {data.name} has none: name classes, or train dcca")
    if labels.ndim == 2:
        return labels.shape[1], True
    parts = (data.train, data.validation, data.test)
    largest = max(int(part.labels.max()) for part in parts if part.labels is not None)
    classes = len(data.classes) if data.classes is not None else largest + 1
    if classes < 2:
        raise UserError(f"ACMR needs at least 2 classes, {data.name} has {classes}")
    return classes, False


def absent_classes(data: PairData) -> list[str]:
    """Lines about classes that a split lacks: figures then say nothing about them, which is no error."""
    _, several = label_kind(data)

    def present(labels: torch.Tensor | None) -> set[int]:
        assert labels is not None
        return set((labels.any(0).nonzero()[:, 0] if several else labels.unique()).tolist())

    def names(missing: set[int]) -> str:
        return ", ".join(str(c) if data.classes is None else data.classes[c] for c in sorted(missing))

    train, validation, test = (present(part.labels) for part in (data.train, data.validation, data.test))
    lines = []
    if missing := (validation | test) - train:
        lines.append(f"classes without a training pair, which cannot be learnt: {names(missing)}")
    if missing := train - validation:
        lines.append(f"classes without a validation pair, which do not count in choosing the epoch: {names(missing)}")
    return lines
