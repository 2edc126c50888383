"""Training of DCCA."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..data import PairData
from ..errors import UserError
from ..models import DCCA
from ..models.branches import BranchSpec
from ..options import DCCAConfig
from ..scale.large_batch import large_batch_loss
from . import report
from .augment import augment
from .evaluation import drawing
from .fit import Result, train
from .lightning import Row, RunModule, adamw, one_cycle, stream
from .run import RunDirectory


def train_dcca(data: PairData, config: DCCAConfig, output: str | Path, **options: Any) -> Result[DCCA]:
    """Trains a DCCA; arguments, `options` and errors are those of `xmodal_ops.training.fit.train`."""
    return train(DCCAModule, data, config, output, **options)


class DCCAModule(RunModule):
    """Trains a DCCA. After every epoch it fits the CCA to a sample of training pairs, for validation."""

    NAME = "dcca"
    model: DCCA
    config: DCCAConfig

    def __init__(self, model: DCCA, data: PairData, config: DCCAConfig) -> None:
        super().__init__(model, data, config)
        self.losses: list[Tensor] = []
        # A fixed sample many times larger than the number of outputs is enough for the CCA of each epoch.
        rows = torch.randperm(len(data.train), generator=torch.Generator().manual_seed(config.seed))
        self.sample = data.train.subset(rows[: max(4096, 16 * config.output_dim)])

    @staticmethod
    def describe(config: DCCAConfig, data: PairData) -> dict[str, Any]:
        return dict(zip(DCCA.NETWORKS, branch_specs(config, data)))

    @staticmethod
    def notes(config: DCCAConfig, data: PairData) -> list[str]:
        batch = min(config.batch_size, len(data.train))
        if batch > 2 * config.output_dim:
            return []
        return [
            f"note: a batch of {batch} pairs is small for {config.output_dim} outputs: "
            "with so few samples, spurious correlations are close to 1"
        ]

    def complete(self) -> None:
        self.model.fit_cca(self.data.train.image, self.data.train.text)

    def draw(self, run: RunDirectory, history: list[Row], before: Any) -> None:
        with drawing(run.loss) as path:
            report.loss_curve(history, self.config.monitor, path)

    def training_step(self, batch: dict[str, Tensor], index: int) -> Tensor:
        torch.manual_seed(stream(self.config.seed, self.global_step))  # dropout and augmentation
        image = augment(batch["image"]) if self.config.augment and batch["image"].ndim == 4 else batch["image"]
        if self.config.chunk_size:
            views = image, batch["text"]
            loss = large_batch_loss(self.model, views, self.model.objective, chunk_size=self.config.chunk_size)
        else:
            loss = self.model.loss(image, batch["text"])
        self.losses.append(loss.detach())
        return loss

    def on_train_epoch_end(self) -> None:
        losses = {"loss": torch.stack(self.losses).mean().item()}
        self.losses.clear()
        self.require_finite(losses)  # a CCA of NaN would fail with a less helpful message
        self.model.fit_cca(self.sample.image, self.sample.text)
        self.finish_epoch(**losses)

    def configure_optimizers(self) -> Any:
        optimizer = adamw(self.model.parameters(), self.config)
        steps = int(self.trainer.estimated_stepping_batches)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: one_cycle((step + 1) / (steps + 1)))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def branch_specs(config: DCCAConfig, data: PairData) -> tuple[BranchSpec, BranchSpec]:
    """The image and text branches that suit the data. UserError if `image_branch` does not."""
    image, text = data.train.image, data.train.text
    out, hidden = config.output_dim, list(config.hidden)
    kind = config.image_branch
    if kind == "auto":
        kind = "mlp" if image.ndim == 2 else "alexnet" if tuple(image.shape[1:]) == (3, 227, 227) else "cnn"
    if (kind == "mlp") != (image.ndim == 2) or kind not in ("mlp", "cnn", "alexnet"):
        allowed = "mlp" if image.ndim == 2 else "cnn or alexnet"
        raise UserError(f"image_branch must be {allowed} for images of shape {tuple(image.shape[1:])}, got {kind!r}")
    dense = {"out_features": out, "hidden": hidden, "dropout": config.dropout}
    image_spec: BranchSpec
    if kind == "mlp":
        image_spec = {"name": "MLP", "arguments": {"in_features": image.shape[1], **dense}}
    elif kind == "alexnet":
        image_spec = {"name": "AlexNet", "arguments": {"out_features": out}}
    else:
        image_spec = cnn_spec(data, out)
    return image_spec, {"name": "TextBranch", "arguments": {"in_features": text.shape[1], **dense}}


def cnn_spec(data: PairData, out_features: int) -> BranchSpec:
    """The small CNN that suits the images. UserError if their shape does not suit it."""
    channels, height, width = data.train.image.shape[1:]
    if height != width or height % 16:
        raise UserError(f"image must be square with a side that is a multiple of 16, got {height}×{width}")
    return {"name": "SmallCNN", "arguments": {"out_features": out_features, "side": height, "in_channels": channels}}
