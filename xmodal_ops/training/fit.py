"""A training from data to a finished run directory, the same for every model.

`train` is the whole of it: it prepares the run directory, calls `fit` to train with checkpoints and early stopping,
calls it again on training + validation pairs if `refit` is set, and writes model, metrics and pictures. What differs
between models is in the subclasses of `RunModule`.
"""

from __future__ import annotations

import logging
import signal
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Generic, TypeVar

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import EarlyStopping
from rich.console import Console

from ..data import PairData
from ..errors import Interrupted, UserError
from ..models import ACMR, DCCA
from ..options import TrainingConfig
from .evaluation import finish, new_model, weights_of
from .lightning import Row, RunCheckpoint, RunModule, StepCallback
from .progress import TrainingProgress
from .run import RunDirectory, pick_device

M = TypeVar("M", ACMR, DCCA)


@dataclass
class Result(Generic[M]):
    """A finished training."""

    model: M
    metrics: dict[str, Any]  # on the test split, see retrieval.evaluate
    history: list[Row]  # losses and validation metrics of each epoch
    best_epoch: int  # counted from 1


def train(
    kind: type[RunModule],
    data: PairData,
    config: TrainingConfig,
    output: str | Path,
    *,
    source: Mapping[str, Any] | None = None,
    device: str = "auto",
    resume: bool = False,
    console: Console | None = None,
    pictures: bool = True,
) -> Result[Any]:
    """Trains on `data.train`, selects the best epoch on `data.validation`, and evaluates on `data.test`.

    The same seed gives the same model on a CPU with the same number of threads.

    Args:
        kind: the Lightning module of the model.
        data: the pairs.
        config: the options.
        output: the run directory, see `RunDirectory`.
        source: where the data come from; kept in `config.json` so that they can be found again.
        device: auto, cpu, cuda, cuda:N or mps.
        resume: continue the run in `output` from its last finished epoch. The result is that of an uninterrupted run.
        console: where progress is shown, stderr by default.
        pictures: draw curves and retrieved items. Drawing can take longer than a small training.

    Raises:
        UserError: something cannot work: the device, the directory, data that do not suit the model. Raised before any
            training. Also if the loss diverges.
        Interrupted: the user pressed Ctrl-C.
    """
    run, place = RunDirectory(output), pick_device(device)
    description = kind.describe(config, data)
    if len(data.train) < 2:
        raise UserError(f"the training split must hold at least 2 pairs, got {len(data.train)}")
    console = console or Console(stderr=True)
    for line in kind.notes(config, data):
        _say(console, line)
    run.begin(data, resume)
    run.describe(kind.NAME, data, source, config.to_dict(), **description)
    module = _initial(kind, data, config, run)
    before = module.snapshot() if pictures else None
    best_epoch = fit(module, run, place, console, resume)
    history, weights = module.history, run.best
    if config.refit:
        module = _initial(kind, data.with_validation(), replace(config, patience=0), run)
        refit(module, run, place, console, resume, best_epoch)
        weights = run.refit.last
    module.model.load_state_dict(weights_of(weights))
    module.model.to(place)
    module.complete()
    metrics = finish(run, kind.NAME, module.model, data, pictures)
    if pictures:
        module.draw(run, history, before)
    return Result(module.model, metrics, history, best_epoch)


def _initial(kind: type[RunModule], data: PairData, config: TrainingConfig, run: RunDirectory) -> RunModule:
    """The module before its first step. The seed determines its weights."""
    torch.manual_seed(config.seed)
    return kind(new_model(run.read_config()), data, config)


def fit(
    module: RunModule,
    run: RunDirectory,
    device: torch.device,
    console: Console,
    resume: bool = False,
    epochs: int | None = None,
) -> int:
    """Trains a module for `epochs`, by default those of its configuration; returns the best epoch.

    Leaves `best.ckpt` and `last.ckpt` in the run directory. Raises Interrupted after Ctrl-C.
    """
    config = module.config
    progress = TrainingProgress(console, config.epochs, len(module.sampler), config.monitor)
    module.on_epoch = progress.epoch
    checkpoint = RunCheckpoint(run)
    callbacks: list[pl.Callback] = [StepCallback(progress.step), checkpoint]
    if config.patience:
        stop = EarlyStopping("monitor", mode="max", patience=config.patience, check_on_train_epoch_end=True)
        callbacks.append(stop)
    with _quiet_lightning(), progress:
        trainer = pl.Trainer(
            accelerator="gpu" if device.type == "cuda" else device.type,
            devices=[device.index or 0] if device.type == "cuda" else 1,
            precision=config.precision,  # type: ignore[arg-type]
            max_epochs=epochs or config.epochs,
            callbacks=callbacks,
            default_root_dir=run.path,
            limit_val_batches=0,
            logger=False,
            enable_checkpointing=True,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        handler = signal.getsignal(signal.SIGINT)
        try:
            trainer.fit(module, ckpt_path=run.last if resume else None)
        except SystemExit:  # how Lightning leaves after Ctrl-C, which it ignores from then on
            if not trainer.interrupted:
                raise
        signal.signal(signal.SIGINT, handler)
    if trainer.interrupted:
        done = checkpoint.finished
        raise Interrupted(
            f"interrupted in epoch {done + 1} of {config.epochs}; {run.last} holds the end of epoch {done}: "
            f"continue with --resume --output {run.path}"
        )
    return checkpoint.best_epoch


def refit(
    module: RunModule, run: RunDirectory, device: torch.device, console: Console, resume: bool, epochs: int
) -> None:
    """Trains a module on training + validation pairs for the given epochs; leaves `run.refit.last`."""
    second = run.refit
    second.prepare()
    _say(console, f"retraining on training + validation pairs for {epochs} epochs; "
                  "the validation scores below are no longer held out")  # fmt: skip
    resume = resume and second.last.exists()
    if not resume:
        second.clear()
    try:
        fit(module, second, device, console, resume, epochs)
    except Interrupted:
        message = f"interrupted while retraining on all pairs: continue with --resume --output {run.path}"
        raise Interrupted(message) from None


def _say(console: Console, line: str) -> None:
    console.print(line, markup=False, highlight=False, soft_wrap=True)


@contextmanager
def _quiet_lightning() -> Iterator[None]:
    """Hides Lightning's remarks about hardware, workers and its own products; errors pass."""
    logger = logging.getLogger("lightning.pytorch")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module="lightning.*")
            warnings.filterwarnings("ignore", message=".*num_workers|.*GPU available but not used")
            yield
    finally:
        logger.setLevel(level)
