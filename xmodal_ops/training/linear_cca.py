"""Linear CCA with its parameters chosen on the validation split."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

from .. import retrieval
from ..data import PairData
from ..models import LinearCCA
from .evaluation import embed, finish
from .run import RunDirectory

RIDGES = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0)
COMPONENTS = (2, 3, 5, 7, 10, 20, 50, 100, 200, 500)
POWERS = (0.0, 1.0, 2.0, 4.0)


def select_linear_cca(data: PairData, monitor: str, ridges: Sequence[float] = RIDGES, refit: bool = False) -> LinearCCA:
    """The linear CCA of the training split whose ridge, components and power serve the validation split best.

    ``ridges`` are relative to the mean variances, ``monitor`` names a figure of retrieval.evaluate. The covariances
    are accumulated once, and one decomposition is done for each ridge. With ``refit``, the validation pairs join the
    training pairs once all is chosen.
    """
    train, validation = data.train, data.validation
    labels = validation.labels if monitor.startswith("map") else None
    model = LinearCCA(relative=True).partial_fit(train.image.flatten(1), train.text)
    best: tuple[float, dict[str, Any]] = (-1.0, {})
    for ridge in ridges:
        model.set_params(ridge=ridge, power=0.0, n_components=None)
        image, text = embed(model, validation)
        correlations = model.correlations_
        sizes = [k for k in COMPONENTS if k < len(correlations)] + [len(correlations)]
        for k, power in product(sizes, POWERS):
            weights = correlations[:k] ** power
            scores = retrieval.evaluate(image[:, :k] * weights, text[:, :k] * weights, labels)
            if scores["mean"][monitor] > best[0]:
                best = scores["mean"][monitor], {"ridge": ridge, "n_components": k, "power": power}
    if refit:
        model.partial_fit(validation.image.flatten(1), validation.text)
    return model.set_params(**best[1])


def train_linear_cca(
    data: PairData, output: str | Path, *, monitor: str = "recall@10", source: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Selects a linear CCA and leaves a run directory; returns the figures on the test split."""
    run = RunDirectory(output)
    run.prepare()
    run.clear()
    model = select_linear_cca(data, monitor)
    run.describe("linear_cca", data, source, {"monitor": monitor, **model.get_params()})
    return finish(run, "linear_cca", model, data)
