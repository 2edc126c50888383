"""A training from data to a finished run directory, the same for every model.

`train` is the whole of it: it prepares the run directory, calls `fit` to train with checkpoints and early stopping,
calls it again on training + validation pairs if `refit` is set, and writes model, metrics and pictures. What differs
between models is in the subclasses of `RunModule`.
"""

from __future__ import annotations

import logging
import signal
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Generic, TypeVar

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import EarlyStopping
from rich.console import Console

from ..data import PairData
from ..errors import Interrupted, UserError, one_line
from ..models import ACMR, DCCA
from ..options import TrainingConfig
from .evaluation import finish, load_weights, new_model, saved_metrics
from .files import first_readable
from .lightning import Row, RunCheckpoint, RunModule, StepCallback, WholeFiles
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
            training. Also if the loss diverges, or the disk is full; the checkpoints of earlier epochs are kept.
        Interrupted: the user pressed Ctrl-C.
    """
    run, place = RunDirectory(output), pick_device(device)
    description = kind.describe(config, data)
    if len(data.train) < 2:
        raise UserError(f"the training split must hold at least 2 pairs, got {len(data.train)}")
    console = console or Console(stderr=True)
    for line in kind.notes(config, data):
        _say(console, line)
    with run.reserved(), _explained(run):
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
        load_weights(module.model, weights)
        module.model.to(place)
        module.complete()
        metrics = finish(run, kind.NAME, module.model, data, pictures)
        if pictures:
            module.draw(run, history, before)
    return Result(module.model, metrics, history, best_epoch)


@contextmanager
def _explained(run: RunDirectory) -> Iterator[None]:
    """Turns what an op says about diverged or degenerate networks into a UserError that says what may help."""
    try:
        yield
    except UserError:
        raise
    except (ValueError, torch.linalg.LinAlgError) as error:  # type: ignore[attr-defined]
        line = f"the training failed: {one_line(error)}"
        if "finite" in line or "singular" in line or not isinstance(error, ValueError):
            line += ": a smaller learning rate or a larger ridge may help"
        if run.best.exists():
            line += f"; {run.best} holds the best epoch until then"
        raise UserError(line) from error


def train_seeds(
    train: Callable[..., Result[Any]],
    name: str,
    data: PairData,
    config: TrainingConfig,
    output: str | Path,
    seeds: Sequence[int],
    resume: bool = False,
    **options: Any,
) -> list[dict[str, Any]]:
    """Trains one model per seed in `output/seed-N`; returns their metrics. With `resume`, finished seeds are kept."""
    results = []
    for seed in seeds:
        run = RunDirectory(Path(output) / f"seed-{seed}")
        if resume:
            with suppress(UserError):  # not finished, or damaged: a resumed run writes the same metrics again
                results.append(saved_metrics(run.metrics, name))
                continue
        own = {**options, "resume": resume and run.last.exists()}
        results.append(train(data, replace(config, seed=seed), run.path, **own).metrics)
    return results


def _initial(kind: type[RunModule], data: PairData, config: TrainingConfig, run: RunDirectory) -> RunModule:
    """The module before its first step. The seed determines its weights."""
    torch.manual_seed(config.seed)
    return kind(new_model(run), data, config)


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
    start = _checkpoint(module, run) if resume else None
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
            plugins=[WholeFiles()],
            default_root_dir=run.path,
            limit_val_batches=0,
            logger=False,
            enable_checkpointing=True,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        handler = signal.getsignal(signal.SIGINT)
        try:
            trainer.fit(module, ckpt_path=start)
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


def _checkpoint(module: RunModule, run: RunDirectory) -> Path:
    """The checkpoint to resume from: the last one, or the best if the last is damaged."""

    def read(path: Path) -> Path:
        load_weights(module.model, path)
        return path

    if (path := first_readable([run.last, run.best], read)) is None:
        raise UserError(f"{run.path} holds no checkpoint to resume from")
    return path


def refit(
    module: RunModule, run: RunDirectory, device: torch.device, console: Console, resume: bool, epochs: int
) -> None:
    """Trains a module on training + validation pairs for the given epochs; leaves `run.refit.last`."""
    second = run.refit
    second.path.mkdir(exist_ok=True)
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
