"""Trained models of any kind: loading, embedding, metrics."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from .. import retrieval
from ..data import PairData, PairSet
from ..errors import RunWarning, UserError, one_line
from ..models import ACMR, DCCA, LinearCCA
from ..models.branches import build
from . import report
from .files import first_readable, load_tensors, read_json, reading, replacing, save, write_json
from .run import RunDirectory, pick_device


class Ensemble:
    """Models side by side: their unit vectors are concatenated, so that the cosine is the mean of their cosines."""

    def __init__(self, models: Sequence[ACMR | DCCA]) -> None:
        self.models = list(models)

    def embed_image(self, image: Tensor) -> Tensor:
        """Images (m, ...) in the common space (m, k)."""
        return torch.cat([F.normalize(model.embed_image(image)) for model in self.models], 1)

    def embed_text(self, text: Tensor) -> Tensor:
        """Texts (m, dt) in the common space (m, k)."""
        return torch.cat([F.normalize(model.embed_text(text)) for model in self.models], 1)


Model = ACMR | DCCA | LinearCCA | Ensemble
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


def finish(
    run: RunDirectory, name: str, model: ACMR | DCCA | LinearCCA, data: PairData, pictures: bool = True
) -> dict[str, Any]:
    """Writes the model, its metrics on the test split and the picture of retrieved items; returns the metrics."""
    save(run.model, model.save)
    metrics = evaluate(model, data.test)
    write_json(run.metrics, {name: metrics})
    if pictures:
        with drawing(run.retrieval) as path:
            report.retrieval_picture(*embed(model, data.test), data.test, path, classes=data.classes)
    return metrics


def saved_metrics(file: Path, *keys: str) -> dict[str, Any]:
    """The metrics under the keys of a JSON file. UserError if they cannot be read."""
    content: Any = read_json(file)
    with reading(file):
        for key in keys:
            content = content[key]
        for direction in (*report.DIRECTIONS, "chance"):
            for name in report.COLUMNS:
                float(content[direction][name])
        return dict(content)


@contextmanager
def drawing(path: Path) -> Iterator[Path]:
    """The name under which to save a picture. A picture that fails leaves a RunWarning: the run is worth more."""
    try:
        with replacing(path) as partial:
            yield partial
    except Exception as error:
        reason = str(error) if isinstance(error, UserError) else one_line(error)
        warnings.warn(f"{path.name} is not drawn: {reason}", RunWarning, stacklevel=3)


def load_run(output: str | Path, device: str = "auto") -> Model:
    """The model in a run directory; if the run was interrupted, that of its best epoch so far.

    A directory with one run per seed gives an `Ensemble`. If `model.pt` is damaged, a RunWarning says so and the best
    checkpoint is used.

    Raises:
        UserError: the directory holds no run, or no finished epoch, or no file that can be read, or the device is not
            available.
    """
    run, place = RunDirectory(output), pick_device(device)
    if not run.config.exists() and run.seeds:
        return Ensemble([load_run(seed.path, device) for seed in run.seeds])  # type: ignore[misc]  # all networks
    config = run.read_config()
    name = config["model"]

    def read(path: Path) -> ACMR | DCCA | LinearCCA:
        if path == run.model:
            with reading(path):
                return LinearCCA.load(path) if name == "linear_cca" else NETWORKS[name].load(path, map_location=place)
        model = new_model(run)
        load_weights(model, path)
        return model.to(place)

    files = [run.model] if name == "linear_cca" else [run.model, run.best]
    if (model := first_readable(files, read)) is None:
        raise UserError(f"{run.path} holds no finished epoch yet; continue it with --resume")
    return model


def new_model(run: RunDirectory) -> ACMR | DCCA:
    """The untrained network that a run's `config.json` describes."""
    config, options = run.read_config(), run.read_options()
    kind: Any = NETWORKS[config["model"]]
    labels = {name: config[name] for name in ("classes", "multi_label") if name in config}
    try:
        model: ACMR | DCCA = kind(
            *(build(config[name]) for name in kind.NETWORKS), **labels, **options.part(kind.OPTIONS)
        )
    except Exception as error:
        if isinstance(error, MemoryError) or "memory" in str(error):
            raise
        own = isinstance(error, (KeyError, ValueError))  # torch's words would not help
        reason = f" ({one_line(error)})" if own else ""
        raise UserError(
            f"cannot use {run.config}: it does not describe the networks of a {config['model']}{reason}"
        ) from None
    return model


def load_weights(model: ACMR | DCCA, checkpoint: Path) -> dict[str, Any]:
    """Loads the model's part of a Lightning checkpoint, which is returned. UserError if it cannot be read."""
    content = load_tensors(checkpoint)
    with reading(checkpoint):
        state = {name.removeprefix("model."): value for name, value in content["state_dict"].items()}
        if not isinstance(content["history"], list) or not isinstance(content["epoch"], int):
            raise TypeError
    try:
        model.load_state_dict(state)
    except (RuntimeError, TypeError, AttributeError):  # other names or shapes, or no tensors
        raise UserError(f"cannot use {checkpoint}: it does not fit the networks in config.json") from None
    return content
