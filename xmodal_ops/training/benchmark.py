"""All baselines and models on one data set, under one protocol."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from .._version import __version__
from ..data import PairData
from .acmr import summarise, train_acmr_seeds
from .acmr_config import ACMRConfig
from .config import DCCAConfig
from .dcca import train_dcca
from .evaluation import evaluate
from .linear_cca import select_linear_cca
from .run import UserError

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
    on_model: Callable[[str], None] = lambda name: None,
) -> dict[str, Any]:
    """Figures of :data:`MODELS`, or some of them, on the test split; data without labels have only two of them.

    What there is to choose, parameters of baselines and epochs of models, is chosen by ``monitor`` on the validation
    split. Where ACMR then takes its pairs for training too (``refit``), all do. Baselines have no seeds but the
    forest's, 0; DCCA and ACMR are means over ``seeds``, with deviations. Run directories of the models go into
    ``output``. Returns plain data for JSON: ``protocol``, ``models`` with figures as :func:`retrieval.evaluate` names
    them, and ``chosen`` and ``seconds`` by model.
    """
    unlabelled = data.train.labels is None
    models = tuple(models) if models else UNLABELLED if unlabelled else MODELS
    if unknown := [name for name in models if name not in MODELS]:
        raise UserError(f"models must be among {', '.join(MODELS)}, got {unknown[0]!r}")
    if unlabelled and (needs := [name for name in models if name not in UNLABELLED]):
        raise UserError(f"{needs[0]} needs labels, and {data.name} has none")
    if unlabelled and monitor == "map_all":
        monitor = "mrr"  # without labels the same figure
    game = replace(acmr or ACMRConfig.preset("best", data.name), monitor=monitor)
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
                train_dcca(data, replace(config, seed=seed), Path(output) / name / f"seed-{seed}", source=source,
                           device=device)
                for seed in seeds
            ]  # fmt: skip
            results[name], chosen[name] = summarise([run.metrics for run in runs], seeds), config.to_dict()
        elif name == "acmr":
            results[name] = train_acmr_seeds(data, game, Path(output) / name, seeds, source=source, device=device)
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
