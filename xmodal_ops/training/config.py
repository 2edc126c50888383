"""What a training is made from, as plain data that JSON holds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from ..data import PairData
from ..models.branches import BranchSpec
from .run import UserError

MONITORS = ("recall@1", "recall@5", "recall@10", "map_all", "map_50", "mrr")
PRECISIONS = ("32-true", "bf16-mixed", "16-mixed")

PRESETS: dict[str, dict[str, Any]] = {
    "wikipedia": {
        "epochs": 60,
        "batch_size": 256,
        "output_dim": 10,
        "ridge": 1.0,
        "dropout": 0.5,
        "learning_rate": 3e-3,
        "weight_decay": 0.1,
        "monitor": "map_all",
    },
}


@dataclass
class DCCAConfig:
    """Options of a DCCA training.

    chunk_size       pairs for which activations are held, for batches that do not fit: see large_batch_loss; the
                     gradients stay exact, batch norm sees chunks. 0 holds the whole batch
    output_dim       outputs of both branches
    ridge            of the covariances, absolute
    top_k            how many leading correlations count; None counts all
    power            exponent of the correlations that weigh the retrieval space
    image_branch     auto, cnn, alexnet or mlp
    hidden, dropout  of the text branch, and of the image branch where it is an MLP
    learning_rate    the peak of a one-cycle schedule of AdamW over all epochs
    augment          move, turn and scale training pictures at random
    patience         stop after so many epochs without a better validation figure; 0 never stops early
    refit            once the best epoch is known, train anew to that epoch on training and validation pairs
    monitor          the validation figure, mean over both directions, that chooses the best epoch
    precision        as in Lightning: 32-true, bf16-mixed, 16-mixed
    """

    seed: int = 0
    epochs: int = 20
    batch_size: int = 1024
    chunk_size: int = 0
    output_dim: int = 100
    ridge: float = 1e-3
    top_k: int | None = None
    power: float = 1.0
    image_branch: str = "auto"
    hidden: tuple[int, ...] = (512,)
    dropout: float = 0.3
    learning_rate: float = 4e-3
    weight_decay: float = 0.01
    augment: bool = False
    patience: int = 0
    refit: bool = False
    monitor: str = "recall@10"
    precision: str = "32-true"

    def __post_init__(self) -> None:
        least_of = {"epochs": 1, "batch_size": 2, "chunk_size": 0, "output_dim": 1, "patience": 0, "seed": 0}
        for name, least in least_of.items():
            if (value := getattr(self, name)) < least:
                raise UserError(f"{name} must be at least {least}, got {value}")
        if self.monitor not in MONITORS:
            raise UserError(f"monitor must be one of {', '.join(MONITORS)}, got {self.monitor!r}")
        if self.precision not in PRECISIONS:
            raise UserError(f"precision must be one of {', '.join(PRECISIONS)}, got {self.precision!r}")
        if not 0 <= self.dropout < 1:
            raise UserError(f"dropout must be at least 0 and less than 1, got {self.dropout}")
        for name in ("ridge", "weight_decay", "power", "learning_rate"):
            if not (value := getattr(self, name)) >= 0:
                raise UserError(f"{name} must not be negative, got {value}")
        if self.top_k is not None and not 1 <= self.top_k <= self.output_dim:
            raise UserError(f"top_k must lie in 1..{self.output_dim}, the outputs, got {self.top_k}")
        if any(units < 1 for units in self.hidden):
            raise UserError(f"hidden must be at least 1, got {min(self.hidden)}")
        self.hidden = tuple(self.hidden)  # a list in JSON

    @classmethod
    def preset(cls, data: str, **options: Any) -> DCCAConfig:
        """The options that were chosen for a data set on its validation split, with some of them changed."""
        return cls(**{**PRESETS.get(data, {}), **options})

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> DCCAConfig:
        """Ignores nothing: an unknown option is an error."""
        if unknown := values.keys() - {field.name for field in fields(cls)}:
            raise UserError(f"config.json holds options that this version does not know: {', '.join(sorted(unknown))}")
        return cls(**values)


def branch_specs(config: DCCAConfig, data: PairData) -> tuple[BranchSpec, BranchSpec]:
    """The image and text branches that suit the data."""
    image, text = data.train.image, data.train.text
    out, hidden = config.output_dim, list(config.hidden)
    kind = config.image_branch
    if kind == "auto":
        kind = "mlp" if image.ndim == 2 else "alexnet" if tuple(image.shape[1:]) == (3, 227, 227) else "cnn"
    if (kind == "mlp") != (image.ndim == 2) or kind not in ("mlp", "cnn", "alexnet"):
        allowed = "mlp" if image.ndim == 2 else "cnn or alexnet"
        raise UserError(f"image_branch must be {allowed} for images of shape {tuple(image.shape[1:])}, got {kind!r}")
    image_spec: BranchSpec
    if kind == "mlp":
        arguments = {"in_features": image.shape[1], "out_features": out, "hidden": hidden, "dropout": config.dropout}
        image_spec = {"name": "MLP", "arguments": arguments}
    elif kind == "alexnet":
        image_spec = {"name": "AlexNet", "arguments": {"out_features": out}}
    else:
        channels, height, width = image.shape[1:]
        if height != width or height % 16:
            raise UserError(f"image must be square with a side that 16 divides, got {height}×{width}")
        image_spec = {"name": "SmallCNN", "arguments": {"out_features": out, "side": height, "in_channels": channels}}
    arguments = {"in_features": text.shape[1], "out_features": out, "hidden": hidden, "dropout": config.dropout}
    return image_spec, {"name": "TextBranch", "arguments": arguments}
