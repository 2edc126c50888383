"""Trained models of any kind: loading, embedding, metrics."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .. import retrieval
from ..data import PairData, PairSet
from ..errors import UserError
from ..models import ACMR, DCCA, LinearCCA
from ..models.branches import build
from ..options import CONFIGS
from . import report
from .run import RunDirectory, pick_device

Model = ACMR | DCCA | LinearCCA
NETWORKS: dict[str, type[ACMR] | type[DCCA]] = {"dcca": DCCA, "acmr": ACMR}


def embed(model: Model, pairs: PairSet) -> tuple[Tensor, Tensor]:
    """Both views (m, k) in the model's common space. A linear CCA takes images as vectors of pixels."""
    if isinstance(model, LinearCCA):
        return model.transform(pairs.image.flatten(1).double(), pairs.text.double())
    return model.embed_image(pairs.image), model.embed_text(pairs.text)


def evaluate(model: Model, pairs: PairSet) -> dict[str, Any]:
    """Retrieval metrics of a model on a split, see `xmodal_ops.retrieval.evaluate`, by cosine."""
    image, text = embed(model, pairs)
    labels = None if pairs.labels is None else pairs.labels.to(image.device)
    return dict(retrieval.evaluate(image, text, labels))


def finish(run: RunDirectory, name: str, model: Model, data: PairData, pictures: bool = True) -> dict[str, Any]:
    """Writes the model, its metrics on the test split and the picture of retrieved items; returns the metrics."""
    model.save(run.model)
    metrics = evaluate(model, data.test)
    run.write(run.metrics, {name: metrics})
    if pictures:
        report.retrieval_picture(*embed(model, data.test), data.test, run.retrieval, classes=data.classes)
    return metrics


def load_run(output: str | Path, device: str = "auto") -> Model:
    """The model in a run directory; if the run was interrupted, that of its best epoch so far.

    Raises:
        UserError: the directory holds no run, or no finished epoch, or the device is not available.
    """
    run, place = RunDirectory(output), pick_device(device)
    config = run.read_config()
    if config["model"] == "linear_cca":
        return LinearCCA.load(run.model)
    if config["model"] not in NETWORKS:
        raise UserError(f"{run.path} holds a run of {config['model']!r}, which this version does not know")
    if run.model.exists():
        return NETWORKS[config["model"]].load(run.model, map_location=place)
    if not run.best.exists():
        raise UserError(f"{run.path} holds no finished epoch yet; continue it with --resume")
    model = new_model(config)
    model.load_state_dict(weights_of(run.best))
    return model.to(place)


def new_model(config: Mapping[str, Any]) -> ACMR | DCCA:
    """The untrained network that a run's `config.json` describes."""
    kind: Any = NETWORKS[config["model"]]
    options = CONFIGS[config["model"]].from_dict(config["options"]).part(kind.OPTIONS)
    labels = {name: config[name] for name in ("classes", "multi_label") if name in config}
    model: ACMR | DCCA = kind(*(build(config[name]) for name in kind.NETWORKS), **labels, **options)
    return model


def weights_of(checkpoint: Path) -> dict[str, Any]:
    """The model's part of a Lightning checkpoint."""
    state = torch.load(checkpoint, map_location="cpu", weights_only=True)["state_dict"]
    return {name.removeprefix("model."): value for name, value in state.items()}
