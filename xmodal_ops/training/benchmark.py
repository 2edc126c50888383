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
    unlabelled = data.train.labels is None
    models = tuple(models) if models else UNLABELLED if unlabelled else MODELS
    if unknown := [name for name in models if name not in MODELS]:
        raise UserError(f"models must be among {', '.join(MODELS)}, got {unknown[0]!r}")
    if unlabelled and (needs := [name for name in models if name not in UNLABELLED]):
        raise UserError(f"{needs[0]} needs labels, and {data.name} has none")
    if unlabelled and monitor == "map_all":
        monitor = "mrr"  # the same metric if only the partner is relevant
    game = replace(acmr or ACMRConfig.preset("best", data.name), monitor=monitor)
    deep = replace(dcca or DCCAConfig.preset(data.name), monitor=monitor, refit=game.refit)
    rest: dict[str, Any] = {"source": source, "device": device, "pictures": pictures, "resume": resume}
    run = RunDirectory(output)
    file = run.path / "benchmark.json"
    protocol = {
        "data": data.name,
        "description": data.description,
        "pairs": {split: len(getattr(data, split)) for split in ("train", "validation", "test")},
        "gallery": len(data.test),
        "similarity": "cosine",
        "chosen_by": f"{monitor} on the validation split, mean of both directions",
        "refit": game.refit,
        "seeds": list(seeds),
        "version": __version__,
    }
    asked = {"protocol": protocol, "dcca": deep.to_dict(), "acmr": game.to_dict(), "source": dict(source or {})}
    result: dict[str, Any] = {"protocol": protocol, "models": {}, "chosen": {}, "seconds": {}}

    def train_model(name: str) -> tuple[dict[str, Any], dict[str, Any]]:
        """The metrics of a model and the options that were chosen."""
        if name == "linear_cca":
            model = select_linear_cca(data, monitor, refit=game.refit)
            return evaluate(model, data.test), model.get_params()
        if name == "dcca":
            return summarise(
                train_seeds(train_dcca, name, data, deep, run.path / name, seeds, **rest), seeds
            ), deep.to_dict()
        if name == "acmr":
            return train_acmr_seeds(data, game, run.path / name, seeds, **rest), game.to_dict()
        from .baselines import BASELINES

        return BASELINES[name](data, monitor, game.refit)

    with run.reserved():
        if resume and file.exists():
            saved = read_json(file)
            if json.dumps(saved.get("asked")) != json.dumps(asked):
                raise UserError(f"{file} holds a benchmark with other data or options: run it without --resume")
            with reading(file):
                for part in ("models", "chosen", "seconds"):
                    result[part] = dict(saved[part])
                for name in result["models"]:
                    saved_metrics(file, "models", name)
        for name in models:
            if name in result["models"]:
                continue
            on_model(name)
            started = time.perf_counter()
            try:
                result["models"][name], result["chosen"][name] = train_model(name)
            except UserError:
                raise
            except (ValueError, np.linalg.LinAlgError) as error:
                raise UserError(f"{name} cannot be fitted to these data: {one_line(error)}") from error
            result["seconds"][name] = round(time.perf_counter() - started, 1)
            write_json(file, {**result, "asked": asked})
    for part in ("models", "chosen", "seconds"):
        result[part] = {name: result[part].get(name) for name in models}
    return result
