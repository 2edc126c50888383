"""The Lightning side of training: the module of DCCA, and the callbacks of a run."""

from __future__ import annotations

import csv
import math
import time
from collections.abc import Callable, Iterator
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Callback, Checkpoint
from torch import Tensor
from torch.utils.data import DataLoader, Sampler

from ..data import PairData
from ..models import DCCA
from ..scale.large_batch import large_batch_loss
from .augment import augment
from .config import DCCAConfig
from .evaluation import Model, evaluate
from .run import RunDirectory, UserError

Row = dict[str, float]
OnEpoch = Callable[[Row], None]


class EpochSampler(Sampler[Tensor]):
    """Batches of shuffled rows. The order depends on seed and epoch alone, so a resumed run repeats none of it."""

    def __init__(self, rows: int, batch_size: int, seed: int) -> None:
        self.rows, self.batch_size, self.seed = rows, min(batch_size, rows), seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:  # called by Lightning
        self.epoch = epoch

    def __len__(self) -> int:
        return self.rows // self.batch_size

    def __iter__(self) -> Iterator[Tensor]:
        generator = torch.Generator().manual_seed(stream(self.seed, self.epoch))
        order = torch.randperm(self.rows, generator=generator)
        # A short last batch would weigh its few pairs more, and its correlations would be too large: left out.
        return iter(order[: len(self) * self.batch_size].split(self.batch_size))


def stream(seed: int, number: int) -> int:
    """The seed of an epoch or a step: what is drawn in it depends on nothing that was drawn before."""
    return seed * 1_000_003 + number


class RunModule(pl.LightningModule):
    """What trainings have in common: batches and random numbers by epoch, a history, a figure that chooses the best
    epoch. The heirs do the steps, and report every epoch to :meth:`finish_epoch`.
    """

    model: Model

    def __init__(self, data: PairData, seed: int, batch_size: int, monitor: str, on_epoch: OnEpoch) -> None:
        super().__init__()
        self.data = data
        self.seed, self.monitor, self.on_epoch = seed, monitor, on_epoch
        self.history: list[Row] = []
        self.sampler = EpochSampler(len(data.train), batch_size, seed)

    def train_dataloader(self) -> DataLoader[dict[str, Tensor]]:
        return DataLoader(self.data.train, sampler=self.sampler, batch_size=None)  # a batch costs one indexing

    def on_train_epoch_start(self) -> None:
        self.started = time.perf_counter()

    # Retrieval needs the whole gallery at once, so validation is no loop of batches but part of the epoch's end.
    def finish_epoch(self, **losses: float) -> None:
        """Retrieves the validation split, and logs its figures after the losses."""
        self.require_finite(losses)
        result = evaluate(self.model, self.data.validation)
        self.log("monitor", result["mean"][self.monitor])
        optimizers = self.optimizers()
        optimizer = optimizers[0] if isinstance(optimizers, list) else optimizers
        row = {
            "epoch": self.current_epoch + 1,
            **losses,
            **{f"validation {name}": float(value) for name, value in result["mean"].items()},
            "learning rate": optimizer.param_groups[0]["lr"],
            "seconds": time.perf_counter() - self.started,
        }
        self.history.append(row)
        self.on_epoch(row)

    def require_finite(self, losses: dict[str, float]) -> None:
        """Ends a training that has diverged."""
        for name, value in losses.items():
            if not math.isfinite(value):
                epoch = self.current_epoch + 1
                raise UserError(
                    f"the {name} is {value} in epoch {epoch}: a smaller learning rate or a larger ridge may help"
                )

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["history"] = self.history

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.history = checkpoint["history"]
        self.sampler.set_epoch(len(self.history))  # Lightning sets it for later epochs, but not for the first


class DCCAModule(RunModule):
    """Trains a DCCA; after every epoch it fits the CCA to some training pairs and retrieves the validation split."""

    def __init__(self, model: DCCA, data: PairData, config: DCCAConfig, on_epoch: OnEpoch) -> None:
        super().__init__(data, config.seed, config.batch_size, config.monitor, on_epoch)
        self.model: DCCA = model
        self.config = config
        self.losses: list[Tensor] = []
        # The CCA of each epoch sees a fixed part of the training pairs: many more than it has dimensions suffice.
        rows = torch.randperm(len(data.train), generator=torch.Generator().manual_seed(config.seed))
        self.sample = data.train.subset(rows[: max(4096, 16 * config.output_dim)])

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
        self.require_finite(losses)  # before a CCA of what is no number
        self.model.fit_cca(self.sample.image, self.sample.text)
        self.finish_epoch(**losses)

    def configure_optimizers(self) -> Any:
        # Biases and norms are not decayed.
        decayed = [p for p in self.model.parameters() if p.ndim > 1]
        others = [p for p in self.model.parameters() if p.ndim <= 1]
        groups = [{"params": decayed, "weight_decay": self.config.weight_decay}, {"params": others, "weight_decay": 0}]
        optimizer = torch.optim.AdamW(groups, lr=self.config.learning_rate)
        steps = int(self.trainer.estimated_stepping_batches)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: one_cycle((step + 1) / (steps + 1)))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def one_cycle(progress: float, warmup: float = 0.2) -> float:
    """The factor of the learning rate: a linear rise, then half a cosine down to zero (Smith & Topin 2019)."""
    if progress < warmup:
        return progress / warmup
    return 0.5 * (1 + math.cos(math.pi * (progress - warmup) / (1 - warmup)))


class RunCheckpoint(Checkpoint):
    """``last.ckpt`` before the first epoch and after each, and ``best.ckpt``, for a run directory.

    Every checkpoint is the end of an epoch, and all that is random depends on the number of the epoch and the step: so
    a resumed run does exactly what an uninterrupted one does. An interrupted epoch is repeated.
    """

    def __init__(self, run: RunDirectory) -> None:
        self.run = run
        self.best = -math.inf
        self.best_epoch = 0
        self.finished = 0

    def on_train_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        if not self.run.last.exists():
            trainer.save_checkpoint(self.run.last)

    def on_train_epoch_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        value = trainer.callback_metrics["monitor"].item()
        improved = value > self.best
        if improved:
            self.best, self.best_epoch = value, trainer.current_epoch + 1
            trainer.save_checkpoint(self.run.best)
        trainer.save_checkpoint(self.run.last)
        self.finished = trainer.current_epoch + 1
        assert isinstance(module, RunModule)
        with self.run.history.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, module.history[0].keys())
            writer.writeheader()
            writer.writerows(module.history)

    def state_dict(self) -> dict[str, Any]:
        return {"best": self.best, "best_epoch": self.best_epoch}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.best, self.best_epoch = state["best"], state["best_epoch"]

    def on_load_checkpoint(self, trainer: pl.Trainer, module: pl.LightningModule, checkpoint: dict[str, Any]) -> None:
        self.finished = len(checkpoint["history"])


class StepCallback(Callback):
    """Tells somebody about every training step."""

    def __init__(self, on_step: Callable[[int, float], None]) -> None:
        self.on_step = on_step

    def on_train_batch_end(
        self, trainer: pl.Trainer, module: pl.LightningModule, out: Any, batch: Any, batch_idx: int
    ) -> None:
        step = trainer.current_epoch * int(trainer.num_training_batches) + batch_idx + 1
        self.on_step(step, float(out["loss"]))
