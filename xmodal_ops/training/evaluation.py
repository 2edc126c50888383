"""Figures and pictures of a trained model, of whichever kind."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from .. import retrieval
from ..data import PairData, PairSet
from ..models import ACMR, DCCA, LinearCCA
from . import report
from .run import RunDirectory

Model = ACMR | DCCA | LinearCCA


def embed(model: Model, pairs: PairSet) -> tuple[Tensor, Tensor]:
    """Both views in the model's common space. A linear CCA sees pictures as vectors of pixels."""
    if isinstance(model, LinearCCA):
        return model.transform(pairs.image.flatten(1).double(), pairs.text.double())
    return model.embed_image(pairs.image), model.embed_text(pairs.text)


def evaluate(model: Model, pairs: PairSet) -> dict[str, Any]:
    """Retrieval figures of a model on a split: :func:`xmodal_ops.retrieval.evaluate` by cosine."""
    image, text = embed(model, pairs)
    labels = None if pairs.labels is None else pairs.labels.to(image.device)
    return dict(retrieval.evaluate(image, text, labels))


def finish(run: RunDirectory, name: str, model: Model, data: PairData) -> dict[str, Any]:
    """Retrieves the test split, and writes the figures and the picture into the run directory."""
    model.save(run.model)
    metrics = evaluate(model, data.test)
    run.write(run.metrics, {name: metrics})
    report.retrieval_picture(*embed(model, data.test), data.test, run.retrieval, classes=data.classes)
    return metrics
