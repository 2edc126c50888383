"""All baselines and models on one data set, under one protocol."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from .._version import __version__
from ..data import PairData
from ..errors import UserError
from ..options import ACMRConfig, DCCAConfig
from .acmr import summarise, train_acmr_seeds
from .dcca import train_dcca
from .evaluation import evaluate
from .linear_cca import select_linear_cca

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
        on_model: called with the name of each model before its turn.

    Returns:
        Plain data for JSON: `protocol`; `models`, metrics as in `retrieval.evaluate`; `chosen` and `seconds` by model.

    Raises:
        UserError: an unknown model, or one that needs labels for data without.
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
    rest: dict[str, Any] = {"source": source, "device": device, "pictures": pictures}
    results: dict[str, Any] = {}
    chosen: dict[str, Any] = {}
    seconds: dict[str, float] = {}
    for name in models:
        on_model(name)
        started = time.perf_counter()
        if name == "linear_cca":
            model = select_linear_cca(data, monitor, refit=game.refit)
            results[name], chosen[name] = evaluate(model, data.test), model.get_params()
        elif name == "dcca":
            config = replace(dcca or DCCAConfig.preset(data.name), monitor=monitor, refit=game.refit)
            runs = [
                train_dcca(data, replace(config, seed=seed), Path(output) / name / f"seed-{seed}", **rest)
                for seed in seeds
            ]
            results[name], chosen[name] = summarise([run.metrics for run in runs], seeds), config.to_dict()
        elif name == "acmr":
            results[name] = train_acmr_seeds(data, game, Path(output) / name, seeds, **rest)
            chosen[name] = game.to_dict()
        else:
            from .baselines import BASELINES

            results[name], chosen[name] = BASELINES[name](data, monitor, game.refit)
        seconds[name] = round(time.perf_counter() - started, 1)
    first = next(iter(results.values()))
    protocol = {
        "data": data.name,
        "description": data.description,
        "pairs": {split: len(getattr(data, split)) for split in ("train", "validation", "test")},
        "gallery": first["gallery"],
        "similarity": first["similarity"],
        "chosen_by": f"{monitor} on the validation split, mean of both directions",
        "refit": game.refit,
        "seeds": list(seeds),
        "version": __version__,
    }
    return {"protocol": protocol, "models": results, "chosen": chosen, "seconds": seconds}
