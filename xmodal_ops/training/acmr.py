"""Training of ACMR from data to a finished run directory, for one seed or several."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from .. import retrieval
from ..data import PairData
from ..models import ACMR
from ..models.branches import build
from ..models.projector import Projector
from . import report
from .acmr_config import ACMRConfig, absent_classes, label_kind, projector_specs
from .dcca import fit, fit_again, weights_of
from .evaluation import embed, finish
from .run import RunDirectory, UserError, check_shapes, pick_device

if TYPE_CHECKING:
    from rich.console import Console

    from .lightning import RunModule


@dataclass
class ACMRResult:
    """A finished training: the model, its figures on the test split, and what happened in each epoch."""

    model: ACMR
    metrics: dict[str, Any]
    history: list[dict[str, float]]
    best_epoch: int


def train_acmr(
    data: PairData,
    config: ACMRConfig,
    output: str | Path,
    *,
    source: Mapping[str, Any] | None = None,
    device: str = "auto",
    resume: bool = False,
    console: Console | None = None,
) -> ACMRResult:
    """Trains an ACMR on ``data.train``, chooses its best epoch on ``data.validation``, and evaluates on ``data.test``.

    Writes a run directory as :func:`train_dcca` does, and in ``space.png`` the common space before and after; the
    names of the classes are in config.json. ``source``, ``resume`` and the errors are those of :func:`train_dcca`;
    also UserError for data without labels.
    """
    from rich.console import Console

    run = RunDirectory(output)
    place = pick_device(device)
    classes, several = label_kind(data)
    specs = projector_specs(config, data)
    if len(data.train) < 2:
        raise UserError(f"the training split must hold at least 2 pairs, got {len(data.train)}")
    console = console or Console(stderr=True)
    for line in absent_classes(data):
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    run.prepare()
    if resume and not run.last.exists():
        raise UserError(f"{run.path} holds no checkpoint to resume from")
    if resume:
        check_shapes(run.read_config(), data)
    else:
        run.clear()
    head = {"classes": classes, "multi_label": several, "class_names": data.classes}
    projectors = dict(zip(("image_projector", "text_projector"), specs))
    run.describe("acmr", data, source, config.to_dict(), **head, **projectors)
    torch.manual_seed(config.seed)
    model = new_model(run.read_config())
    fit_features(model, data)
    before = common_space(model, data)

    def make(on_epoch: Callable[[dict[str, float]], None]) -> RunModule:
        from .acmr_module import ACMRModule

        return ACMRModule(model, data, config, on_epoch)

    history, best_epoch = fit(make, len(data.train), config, run, place, resume, console)
    if config.refit:
        torch.manual_seed(config.seed)
        model, data = new_model(run.read_config()), data.with_validation()
        fit_features(model, data)
        fit_again(make, len(data.train), config, run, place, resume, console, best_epoch)
        model.load_state_dict(weights_of(run.refit.last))
    else:
        model.load_state_dict(weights_of(run.best))
    model.to(place)
    metrics = finish(run, "acmr", model, data)
    report.game_curves(history, config.monitor, run.loss)
    report.space_picture(before, common_space(model, data), data.test.labels, run.space, classes=data.classes)
    return ACMRResult(model, metrics, history, best_epoch)


def train_acmr_seeds(
    data: PairData, config: ACMRConfig, output: str | Path, seeds: Sequence[int], **rest: Any
) -> dict[str, Any]:
    """One training for each seed, in ``output/seed-N``; the figures of all of them by :func:`summarise`.

    Beside the mean of single seeds, "ensemble" holds the figures of all networks as one model.
    A seed draws weights, batches and all that is random in training. The validation pairs are the data's, the same
    for all. With ``resume``, finished seeds stay as they are.
    """
    results = []
    runs = [RunDirectory(Path(output) / f"seed-{seed}") for seed in seeds]
    for seed, run in zip(seeds, runs):
        if rest.get("resume") and run.metrics.exists():
            results.append(run.read_metrics()["acmr"])
            continue
        resume = bool(rest.get("resume")) and run.last.exists()
        options = {**rest, "resume": resume}
        results.append(train_acmr(data, replace(config, seed=seed), run.path, **options).metrics)
    summary = summarise(results, seeds)
    if len(runs) > 1:
        # One model of several networks: unit vectors side by side, so that a cosine is the mean of theirs.
        views = [embed(ACMR.load(run.model), data.test) for run in runs]
        image, text = (torch.cat(view, 1) for view in zip(*views))
        summary["ensemble"] = dict(retrieval.evaluate(image, text, data.test.labels))
    top = RunDirectory(output)
    top.write(top.metrics, {"acmr": summary})
    return summary


def summarise(results: Sequence[Mapping[str, Any]], seeds: Sequence[int]) -> dict[str, Any]:
    """Means over single seeds where one evaluation has its figures, and in ``deviation`` the sample's deviations."""
    directions = ("image_to_text", "text_to_image", "mean")
    out = dict(results[0])
    out["deviation"] = {}
    for name in directions:
        values = {figure: [float(r[name][figure]) for r in results] for figure in results[0][name]}
        out[name] = {figure: statistics.fmean(v) for figure, v in values.items()}
        out["deviation"][name] = {figure: statistics.stdev(v) if len(v) > 1 else 0.0 for figure, v in values.items()}
    out["seeds"] = list(seeds)
    return out


def new_model(config: Mapping[str, Any]) -> ACMR:
    """The model that a run's config.json describes, untrained."""
    options = ACMRConfig.from_dict(config["options"])
    names = (
        "dim", "invariance", "alpha", "beta", "penalty", "pair_weight", "margin", "gamma", "reduction", "temperature",
        "label_hidden", "label_dropout", "members", "modality_hidden", "label_weight",
        "label_similarity", "train_label_predictor",
    )  # fmt: skip
    return ACMR(
        build(config["image_projector"]),
        build(config["text_projector"]),
        config["classes"],
        multi_label=config["multi_label"],
        **{name: getattr(options, name) for name in names},
    )


def fit_features(model: ACMR, data: PairData) -> None:
    """Takes the means and deviations that the projectors need from the training split."""
    parts: tuple[tuple[nn.Module, torch.Tensor], ...] = (
        (model.image_projector, data.train.image),
        (model.text_projector, data.train.text),
    )
    for projector, rows in parts:
        if isinstance(projector, Projector):
            projector.fit(rows)


def common_space(model: ACMR, data: PairData) -> tuple[torch.Tensor, torch.Tensor]:
    """The projections of the test split."""
    return model.project(0, data.test.image).cpu(), model.project(1, data.test.text).cpu()


def load_acmr(run: RunDirectory, config: Mapping[str, Any], device: torch.device) -> ACMR:
    """The finished model of a run directory, or, while there is none, that of its best epoch so far."""
    if run.model.exists():
        return ACMR.load(run.model, map_location=device)
    if not run.best.exists():
        raise UserError(f"{run.path} holds no finished epoch yet; continue it with --resume")
    model = new_model(config)
    model.load_state_dict(weights_of(run.best))
    return model.to(device)
