"""Linear CCA with its parameters selected on the validation split."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import torch

from .. import retrieval
from ..data import PairData
from ..errors import UserError
from ..models import LinearCCA
from ..options import COMPONENTS, POWERS, RIDGES, LinearCCAConfig
from .evaluation import embed, finish
from .run import RunDirectory


def select_linear_cca(
    data: PairData,
    monitor: str,
    ridges: Sequence[float] = RIDGES,
    refit: bool = False,
    components: Sequence[int] = COMPONENTS,
    powers: Sequence[float] = POWERS,
) -> LinearCCA:
    """The linear CCA of the training split whose ridge, components and power score best on the validation split.

    The covariances are accumulated once, with one decomposition per ridge.

    Args:
        data: the pairs.
        monitor: a metric of `retrieval.evaluate`.
        ridges: candidates, relative to the mean variances.
        refit: add the validation pairs to the training pairs once the parameters are selected.
        components: candidate numbers of components, besides all of them.
        powers: candidate exponents of the correlations that weight the components.

    Raises:
        UserError: a view does not vary, or the training split holds fewer than 2 pairs.
    """
    train, validation = data.train, data.validation
    if len(train) < 2:
        raise UserError(f"the training split must hold at least 2 pairs, got {len(train)}")
    for name, view in (("image", train.image), ("text", train.text)):
        if torch.equal(view, view[:1].expand_as(view)):
            raise UserError(f"linear CCA needs views that vary, and all training rows of {name} are equal")
    labels = validation.labels if monitor.startswith("map") else None
    model = LinearCCA(relative=True).partial_fit(train.image.flatten(1), train.text)
    best: tuple[float, dict[str, Any]] = (-1.0, {})
    for ridge in ridges:
        model.set_params(ridge=ridge, power=0.0, n_components=None)
        image, text = embed(model, validation)
        correlations = model.correlations_
        sizes = [k for k in components if k < len(correlations)] + [len(correlations)]
        for k, power in product(sizes, powers):
            weights = correlations[:k] ** power
            scores = retrieval.evaluate(image[:, :k] * weights, text[:, :k] * weights, labels)
            if scores["mean"][monitor] > best[0]:
                best = scores["mean"][monitor], {"ridge": ridge, "n_components": k, "power": power}
    if refit:
        model.partial_fit(validation.image.flatten(1), validation.text)
    return model.set_params(**best[1])


def train_linear_cca(
    data: PairData,
    output: str | Path,
    *,
    source: Mapping[str, Any] | None = None,
    pictures: bool = True,
    **options: Any,
) -> dict[str, Any]:
    """Selects a linear CCA and leaves a run directory; returns the metrics on the test split.

    Args:
        data: the pairs.
        output: the run directory.
        source: where the data come from, for `config.json`.
        pictures: draw retrieved items.
        options: the fields of `xmodal_ops.options.LinearCCAConfig`.
    """
    config = LinearCCAConfig(**options)
    run = RunDirectory(output)
    with run.reserved():
        model = select_linear_cca(data, **vars(config))
        run.begin(data)
        run.describe("linear_cca", data, source, config.to_dict(), selected=model.get_params())
        return finish(run, "linear_cca", model, data, pictures)
