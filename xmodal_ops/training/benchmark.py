"""All baselines and models on one data set, under one protocol."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from .._version import __version__
from ..data import PairData
from ..errors import UserError, one_line
from ..options import ACMRConfig, DCCAConfig
from .acmr import summarise, train_acmr_seeds
from .dcca import train_dcca
from .evaluation import evaluate, saved_metrics
from .files import read_json, reading, write_json
from .fit import train_seeds
from .linear_cca import select_linear_cca
from .run import RunDirectory

UNLABELLED = ("linear_cca", "dcca")
PARTS = ("models", "chosen", "seconds")  # of the result, each by model
MODELS = ("linear_cca", "three_view_cca", "semantic_logistic", "semantic_forest", "dcca", "acmr")


def benchmark(
    data: PairData,
    *,
    output: str | Path,
    seeds: Sequence[int] = (0,),
    models: Sequence[str] | None = None,
    monitor: str = "map_all",
    dcca: DCCAConfig | None = None,
    acmr: ACMRConfig | None = None,
    source: Mapping[str, Any] | None = None,
    device: str = "auto",
    pictures: bool = True,
    resume: bool = False,
    on_model: Callable[[str], None] = lambda name: None,
) -> dict[str, Any]:
    """Evaluates baselines and models on the test split.

    Parameters of baselines and epochs of models are selected by `monitor` on the validation split. If ACMR's options
    say `refit`, every model is refitted on training + validation pairs. The baselines run once, the forest with seed
    0; DCCA and ACMR are averaged over `seeds`.

    Args:
        data: the pairs. Without labels, only linear CCA and DCCA can be compared, by mrr instead of map_all.
        output: directory for the run directories of DCCA and ACMR.
        seeds: seeds of DCCA and ACMR.
        models: some of `MODELS`; all that the data allow by default.
        monitor: the validation metric, mean of both directions.
        dcca: options of DCCA, the preset for the data by default.
        acmr: options of ACMR, the preset `best` by default.
        source: where the data come from, for `config.json`.
        device: auto, cpu, cuda, cuda:N or mps.
        pictures: draw curves and retrieved items of DCCA and ACMR.
        resume: keep the models that an earlier call with the same data and options has finished. `benchmark.json` in
            `output` holds their results, and is written after each model.
        on_model: called with the name of each model before its turn.

    Returns:
        Plain data for JSON: `protocol`; `models`, metrics as in `retrieval.evaluate`; `chosen` and `seconds` by model.

    Raises:
        UserError: an unknown model, one that needs labels for data without, or one that cannot be fitted to the data.
    """
    names = _allowed(data, models)
    if data.train.labels is None and monitor == "map_all":
        monitor = "mrr"  # the same metric if only the partner is relevant
    game = replace(acmr or ACMRConfig.preset("best", data.name), monitor=monitor)
    deep = replace(dcca or DCCAConfig.preset(data.name), monitor=monitor, refit=game.refit)
    run = RunDirectory(output)
    trainings: dict[str, Any] = {"source": source, "device": device, "pictures": pictures, "resume": resume}
    protocol = _protocol(data, monitor, game.refit, seeds)
    asked = {"protocol": protocol, "dcca": deep.to_dict(), "acmr": game.to_dict(), "source": dict(source or {})}
    file = run.path / "benchmark.json"
    with run.reserved():
        parts = _finished(file, asked) if resume and file.exists() else {part: {} for part in PARTS}
        for name in names:
            if name in parts["models"]:
                continue
            on_model(name)
            started = time.perf_counter()
            try:
                fitted = _fit(name, data, deep, game, run.path / name, seeds, trainings)
            except UserError:
                raise
            except (ValueError, np.linalg.LinAlgError) as error:
                raise UserError(f"{name} cannot be fitted to these data: {one_line(error)}") from error
            for part, value in zip(PARTS, (*fitted, round(time.perf_counter() - started, 1))):
                parts[part][name] = value
            write_json(file, {"protocol": protocol, **parts, "asked": asked})
    return {"protocol": protocol, **{part: {name: parts[part].get(name) for name in names} for part in PARTS}}


def _allowed(data: PairData, models: Sequence[str] | None) -> tuple[str, ...]:
    """The given models, or all that the data allow."""
    unlabelled = data.train.labels is None
    names = tuple(models) if models else UNLABELLED if unlabelled else MODELS
    if unknown := [name for name in names if name not in MODELS]:
        raise UserError(f"models must be among {', '.join(MODELS)}, got {unknown[0]!r}")
    if unlabelled and (needs := [name for name in names if name not in UNLABELLED]):
        raise UserError(f"{needs[0]} needs labels, and {data.name} has none")
    return names


def _protocol(data: PairData, monitor: str, refit: bool, seeds: Sequence[int]) -> dict[str, Any]:
    return {
        "data": data.name,
        "description": data.description,
        "pairs": {split: len(getattr(data, split)) for split in ("train", "validation", "test")},
        "gallery": len(data.test),
        "similarity": "cosine",
        "chosen_by": f"{monitor} on the validation split, mean of both directions",
        "refit": refit,
        "seeds": list(seeds),
        "version": __version__,
    }


def _finished(file: Path, asked: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The parts of an interrupted benchmark. UserError if it had other data or options."""
    saved = read_json(file)
    if json.dumps(saved.get("asked")) != json.dumps(asked):
        raise UserError(f"{file} holds a benchmark with other data or options: run it without --resume")
    with reading(file):
        parts = {part: dict(saved[part]) for part in PARTS}
        for name in parts["models"]:
            saved_metrics(file, "models", name)
    return parts


def _fit(
    name: str,
    data: PairData,
    dcca: DCCAConfig,
    acmr: ACMRConfig,
    output: Path,
    seeds: Sequence[int],
    trainings: Mapping[str, Any],
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The metrics of a model on the test split, and the options that were chosen."""
    monitor, refit = acmr.monitor, acmr.refit
    if name == "linear_cca":
        model = select_linear_cca(data, monitor, refit=refit)
        return evaluate(model, data.test), model.get_params()
    if name == "dcca":
        metrics = train_seeds(train_dcca, name, data, dcca, output, seeds, **trainings)
        return summarise(metrics, seeds), dcca.to_dict()
    if name == "acmr":
        return train_acmr_seeds(data, acmr, output, seeds, **trainings), acmr.to_dict()
    from .baselines import BASELINES

    return BASELINES[name](data, monitor, refit)
