"""The Lightning side of every training: the base of the modules, and the callbacks of a run."""

from __future__ import annotations

import csv
import math
import time
from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Callback, Checkpoint
from lightning.pytorch.plugins.io import TorchCheckpointIO
from torch import Tensor, nn
from torch.utils.data import DataLoader, Sampler

from ..data import PairData
from ..errors import UserError
from ..models import ACMR, DCCA
from ..options import TrainingConfig
from .evaluation import evaluate
from .files import load_tensors, replacing, save
from .run import RunDirectory

Row = dict[str, float]


class EpochSampler(Sampler[Tensor]):
    """Batches of shuffled rows. The order depends on seed and epoch alone, so a resumed run sees the same batches."""

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
        # A short last batch is left out: its few pairs would weigh more, and its correlations would be too large.
        return iter(order[: len(self) * self.batch_size].split(self.batch_size))


def stream(seed: int, number: int) -> int:
    """The seed of an epoch or a step, so that its random numbers do not depend on earlier ones."""
    return seed * 1_000_003 + number


class RunModule(pl.LightningModule):
    """What all trainings share: batches and random numbers by epoch, a history, a metric that selects the best epoch.

    Subclasses implement the training step and call `finish_epoch` at the end of every epoch.
    """

    NAME: ClassVar[str]
    model: ACMR | DCCA
    config: TrainingConfig

    def __init__(self, model: ACMR | DCCA, data: PairData, config: TrainingConfig) -> None:
        super().__init__()
        self.model, self.data, self.config = model, data, config
        self.on_epoch: Callable[[Row], None] = lambda row: None
        self.history: list[Row] = []
        self.sampler = EpochSampler(len(data.train), config.batch_size, config.seed)

    @staticmethod
    @abstractmethod
    def describe(config: Any, data: PairData) -> dict[str, Any]:
        """What `config.json` says about the model besides its options. UserError if the data do not suit it."""

    @staticmethod
    @abstractmethod
    def notes(config: Any, data: PairData) -> list[str]:
        """Lines for the user before the training."""

    def complete(self) -> None:
        """Completes the model once it has its final weights."""

    def snapshot(self) -> Any:
        """The state of the model that `draw` shows, before and after the training."""

    @abstractmethod
    def draw(self, run: RunDirectory, history: list[Row], before: Any) -> None:
        """Draws the training of a finished run."""

    def train_dataloader(self) -> DataLoader[dict[str, Tensor]]:
        return DataLoader(self.data.train, sampler=self.sampler, batch_size=None)  # one indexing per batch

    def on_train_epoch_start(self) -> None:
        self.started = time.perf_counter()

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        if self.config.gradient_clip:
            parameters = [p for group in optimizer.param_groups for p in group["params"]]
            nn.utils.clip_grad_norm_(parameters, self.config.gradient_clip)

    # Retrieval needs the whole gallery at once, so validation is part of the end of an epoch, not a loop of batches.
    def finish_epoch(self, **losses: float) -> None:
        """Evaluates on the validation split, and appends the losses and the metrics to the history."""
        self.require_finite(losses)
        result = evaluate(self.model, self.data.validation)
        self.log("monitor", result["mean"][self.config.monitor])
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
        """Raises UserError if the training has diverged."""
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


def adamw(parameters: Iterable[nn.Parameter], config: TrainingConfig, beta1: float = 0.9) -> torch.optim.AdamW:
    """AdamW that does not decay biases and norms."""
    parameters = list(parameters)
    groups: list[dict[str, Any]] = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": config.weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=config.learning_rate, betas=(beta1, 0.999))


def one_cycle(progress: float, warmup: float = 0.2) -> float:
    """Factor of the learning rate: a linear warmup, then half a cosine down to zero (Smith & Topin 2019)."""
    if progress < warmup:
        return progress / warmup
    return 0.5 * (1 + math.cos(math.pi * (progress - warmup) / (1 - warmup)))


class WholeFiles(TorchCheckpointIO):
    """Checkpoints that are on the disk as a whole or not at all, and that are read without running pickled code."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        save(Path(path), lambda file: torch.save(checkpoint, file))

    def load_checkpoint(self, path: Any, *args: Any, **options: Any) -> dict[str, Any]:
        return load_tensors(Path(path))


class RunCheckpoint(Checkpoint):
    """Writes `last.ckpt` before the first epoch and after each, and `best.ckpt`, into a run directory.

    Every checkpoint is the end of an epoch, and random numbers depend only on the numbers of epoch and step. So a
    resumed run does exactly what an uninterrupted one does; an interrupted epoch is repeated.
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
        with replacing(self.run.history) as path, path.open("w", newline="", encoding="utf-8") as file:
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
    """Calls `on_step(step, loss)` after every training step."""

    def __init__(self, on_step: Callable[[int, float], None]) -> None:
        self.on_step = on_step

    def on_train_batch_end(
        self, trainer: pl.Trainer, module: pl.LightningModule, out: Any, batch: Any, batch_idx: int
    ) -> None:
        step = trainer.current_epoch * int(trainer.num_training_batches) + batch_idx + 1
        self.on_step(step, float(out["loss"]))
