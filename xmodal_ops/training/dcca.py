"""Training of DCCA from data to a finished run directory."""

from __future__ import annotations

import logging
import signal
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ..data import PairData
from ..models import DCCA
from ..models.branches import build
from . import report
from .config import DCCAConfig, branch_specs
from .evaluation import finish
from .run import RunDirectory, UserError, check_shapes, pick_device

if TYPE_CHECKING:
    from rich.console import Console

    from .acmr_config import ACMRConfig
    from .lightning import RunModule


class Interrupted(Exception):
    """The user stopped a training; the message says what is left and how to go on."""


@dataclass
class Result:
    """A finished training: the model, its figures on the test split, and what happened in each epoch."""

    model: DCCA
    metrics: dict[str, Any]
    history: list[dict[str, float]]
    best_epoch: int


def train_dcca(
    data: PairData,
    config: DCCAConfig,
    output: str | Path,
    *,
    source: Mapping[str, Any] | None = None,
    device: str = "auto",
    resume: bool = False,
    console: Console | None = None,
) -> Result:
    """Trains a DCCA on ``data.train``, chooses its best epoch on ``data.validation``, and evaluates on ``data.test``.

    Writes a run directory (see :class:`RunDirectory`). ``source`` is kept in its config.json to find the data again.
    With ``resume`` the run in ``output`` is continued from its last finished epoch, with the same result as an
    uninterrupted one. The same seed gives the same model on a CPU with the same number of threads.

    Raises UserError for what cannot be done (no such device, a directory that cannot be written, branches that do not
    suit the data) before training; Interrupted after Ctrl-C.
    """
    from rich.console import Console

    run = RunDirectory(output)
    place = pick_device(device)
    specs = branch_specs(config, data)
    if len(data.train) < 2:
        raise UserError(f"the training split must hold at least 2 pairs, got {len(data.train)}")
    run.prepare()
    if resume and not run.last.exists():
        raise UserError(f"{run.path} holds no checkpoint to resume from")
    if resume:
        check_shapes(run.read_config(), data)
    else:
        run.clear()
    branches = dict(zip(("image_branch", "text_branch"), specs))
    run.describe("dcca", data, source, config.to_dict(), **branches)
    torch.manual_seed(config.seed)
    model = new_model(run.read_config())
    console = console or Console(stderr=True)
    if (batch := min(config.batch_size, len(data.train))) <= 2 * config.output_dim:
        hint = f"note: {batch} pairs a batch are few for {config.output_dim} outputs: any outputs correlate in so few"
        console.print(hint, markup=False, highlight=False, soft_wrap=True)

    def make(on_epoch: Callable[[dict[str, float]], None]) -> RunModule:
        from .lightning import DCCAModule

        return DCCAModule(model, data, config, on_epoch)

    history, best_epoch = fit(make, len(data.train), config, run, place, resume, console)
    if config.refit:
        torch.manual_seed(config.seed)
        model, data = new_model(run.read_config()), data.with_validation()
        fit_again(make, len(data.train), config, run, place, resume, console, best_epoch)
        model.load_state_dict(weights_of(run.refit.last))
    else:
        model.load_state_dict(weights_of(run.best))
    model.to(place).fit_cca(data.train.image, data.train.text)
    metrics = finish(run, "dcca", model, data)
    report.loss_curve(history, config.monitor, run.loss)
    return Result(model, metrics, history, best_epoch)


def fit(
    make_module: Callable[[Callable[[dict[str, float]], None]], RunModule],
    rows: int,
    config: DCCAConfig | ACMRConfig,
    run: RunDirectory,
    device: torch.device,
    resume: bool,
    console: Console,
    epochs: int | None = None,
) -> tuple[list[dict[str, float]], int]:
    """The epochs of the module that ``make_module`` makes, given whom to tell of each. Returns what happened in each
    and the best one. Leaves ``best.ckpt`` and ``last.ckpt``. ``epochs`` ends it sooner than config does.
    """
    import lightning.pytorch as pl
    from lightning.pytorch.callbacks import EarlyStopping

    from .lightning import RunCheckpoint, StepCallback
    from .progress import TrainingProgress

    steps = max(1, rows // config.batch_size)
    progress = TrainingProgress(console, config.epochs, steps, config.monitor)
    module = make_module(progress.epoch)
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
    return module.history, checkpoint.best_epoch


def fit_again(
    make_module: Callable[[Callable[[dict[str, float]], None]], RunModule],
    rows: int,
    config: DCCAConfig | ACMRConfig,
    run: RunDirectory,
    device: torch.device,
    resume: bool,
    console: Console,
    epochs: int,
) -> None:
    """The same schedule to the same epoch, now without a split to choose by; leaves ``run.refit.last``."""
    second = run.refit
    second.prepare()
    line = f"training anew on training and validation pairs, {epochs} epochs; the figures below know their pairs"
    console.print(line, markup=False, highlight=False, soft_wrap=True)
    again = resume and second.last.exists()
    if not again:
        second.clear()
    try:
        fit(make_module, rows, replace(config, patience=0), second, device, again, console, epochs)
    except Interrupted:
        message = f"interrupted while training on all pairs: continue with --resume --output {run.path}"
        raise Interrupted(message) from None


@contextmanager
def _quiet_lightning() -> Iterator[None]:
    """Without what Lightning says about hardware, workers and its own products; errors pass."""
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


def new_model(config: Mapping[str, Any]) -> DCCA:
    """The model that a run's config.json describes, untrained."""
    options = DCCAConfig.from_dict(config["options"])
    return DCCA(
        build(config["image_branch"]),
        build(config["text_branch"]),
        ridge=options.ridge,
        top_k=options.top_k,
        power=options.power,
    )


def load_dcca(run: RunDirectory, config: Mapping[str, Any], device: torch.device) -> DCCA:
    """The finished model of a run directory, or, while there is none, that of its best epoch so far."""
    if run.model.exists():
        return DCCA.load(run.model, map_location=device)
    if not run.best.exists():
        raise UserError(f"{run.path} holds no finished epoch yet; continue it with --resume")
    model = new_model(config)
    model.load_state_dict(weights_of(run.best))
    return model.to(device)


def weights_of(checkpoint: Path) -> dict[str, Any]:
    """The model's part of a Lightning checkpoint."""
    state = torch.load(checkpoint, map_location="cpu", weights_only=True)["state_dict"]
    return {name.removeprefix("model."): value for name, value in state.items()}
