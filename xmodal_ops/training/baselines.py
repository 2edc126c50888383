"""What a neural result is to stand beside: three-view CCA with labels, and semantic matching by scikit-learn.

Everything that is to be chosen is chosen on the validation split, by the same figure as for the models. Chance is
part of every evaluation; linear CCA is in linear_cca.py. With ``refit``, what was chosen is fitted anew to training and
validation pairs.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import pairwise, product
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import scipy.linalg
import torch

from .. import retrieval
from ..data import PairData, PairSet
from ..errors import UserError
from ..options import COMPONENTS, POWERS, RIDGES

Array = npt.NDArray[Any]

COMPARISONS = ("cosine", "pearson", "probability")


class Baseline(NamedTuple):
    """Figures of a baseline on the test split, and what was chosen for it on the validation split."""

    metrics: dict[str, Any]
    chosen: dict[str, Any]


def _features(pairs: PairSet) -> tuple[Array, Array]:
    return pairs.image.flatten(1).double().numpy(), pairs.text.double().numpy()


def _labels(pairs: PairSet, name: str) -> Array:
    if pairs.labels is None:
        raise UserError(f"three-view CCA and semantic matching need labels, and {name} has none")
    return pairs.labels.numpy()


def _score(image: Array, text: Array, pairs: PairSet) -> dict[str, Any]:
    return dict(retrieval.evaluate(image, text, pairs.labels))


class _ThreeViews:
    """The covariances of image, text and label indicators, and the solutions for a ridge."""

    def __init__(self, pairs: PairSet, labels: Array) -> None:
        third = np.eye(int(labels.max()) + 1)[labels] if labels.ndim == 1 else labels.astype(float)
        views = [*_features(pairs), third]
        self.means = [v.mean(0) for v in views]
        self.joint = np.cov(np.hstack([v - m for v, m in zip(views, self.means)]).T)
        ends = np.cumsum([0, *(v.shape[1] for v in views)]).tolist()
        self.blocks = [slice(a, b) for a, b in pairwise(ends)]
        self.count = min(views[0].shape[1], views[1].shape[1], max(COMPONENTS))

    def solve(self, ridge: float) -> tuple[Array, Array]:
        """Eigenvalues and vectors, the largest first."""
        within = np.zeros_like(self.joint)
        for block in self.blocks:
            part = self.joint[block, block]
            within[block, block] = part + ridge * np.trace(part) / len(part) * np.eye(len(part))
        n = len(self.joint)
        values, vectors = scipy.linalg.eigh(self.joint, within, subset_by_index=(n - self.count, n - 1))
        return values[::-1].clip(min=0), vectors[:, ::-1]

    def score(self, values: Array, vectors: Array, k: int, power: float, pairs: PairSet) -> dict[str, Any]:
        weights = (vectors[block, :k] * values[:k] ** power for block in self.blocks)
        image, text = ((x - mean) @ w for x, mean, w in zip(_features(pairs), self.means, weights))
        return _score(image, text, pairs)


def three_view_cca(data: PairData, monitor: str, refit: bool = False) -> Baseline:
    """CCA of image, text and label indicators (Gong et al., "A Multi-View Embedding Space", IJCV 2014).

    The leading solutions of C w = λ D w, where C holds the covariances of the three views side by side and D those
    within the views, ridged; components are weighted by their eigenvalues to a power.
    """
    model = _ThreeViews(data.train, _labels(data.train, data.name))
    best: tuple[float, dict[str, Any]] = (-1.0, {})
    for ridge in RIDGES:
        solution = model.solve(ridge)
        for k, power in product([k for k in COMPONENTS if k < model.count] + [model.count], POWERS):
            figure = model.score(*solution, k, power, data.validation)["mean"][monitor]
            if figure > best[0]:
                best = figure, {"ridge": ridge, "n_components": k, "power": power}
    chosen = best[1]
    if refit:
        whole = data.with_validation().train
        model = _ThreeViews(whole, _labels(whole, data.name))
    solution = model.solve(chosen["ridge"])
    return Baseline(model.score(*solution, chosen["n_components"], chosen["power"], data.test), chosen)


def semantic_matching(data: PairData, monitor: str, refit: bool = False, *, kind: str, seed: int = 0) -> Baseline:
    """Classes predicted from either modality, compared (Rasiwasia et al., ACM MM 2010).

    ``kind``: "logistic" (regression of standardised features, two penalties) or "forest" (500 trees, the
    smallest leaf chosen). Probabilities are compared by cosine, by Pearson's correlation, or by the probability of
    one label, Σ_c p(c|v) p(c|t), whichever serves the validation split best.
    """
    labels = _labels(data.train, data.name)
    strengths = (0.01, 0.1) if kind == "logistic" else (1, 10)
    tables = [
        [_probabilities(kind, s, seed, x, labels, np.concatenate(rows)) for s in strengths]
        for x, *rows in zip(_features(data.train), _features(data.validation), _features(data.test))
    ]
    held = len(data.validation)
    best: tuple[float, dict[str, Any]] = (-1.0, {})
    for i, j, comparison in product(range(2), range(2), COMPARISONS):
        views = _comparable(comparison, tables[0][i][:held], tables[1][j][:held])
        figure = _score(*views, data.validation)["mean"][monitor]
        if figure > best[0]:
            best = figure, {"image": strengths[i], "text": strengths[j], "comparison": comparison}
    chosen = best[1]
    image, text = (tables[side][strengths.index(chosen[view])][held:] for side, view in enumerate(("image", "text")))
    if refit:
        whole = data.with_validation().train
        labels = _labels(whole, data.name)
        image, text = (
            _probabilities(kind, chosen[view], seed, x, labels, rows)
            for view, x, rows in zip(("image", "text"), _features(whole), _features(data.test))
        )
    return Baseline(_score(*_comparable(chosen["comparison"], image, text), data.test), chosen)


def _probabilities(kind: str, strength: float, seed: int, x: Array, labels: Array, rows: Array) -> Array:
    """(rows, C) of a classifier that is trained on x."""
    from sklearn.ensemble import RandomForestClassifier
    from sklearn.linear_model import LogisticRegression
    from sklearn.multiclass import OneVsRestClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    model: Any
    if kind == "logistic":
        model = LogisticRegression(C=strength, max_iter=100)
        model = make_pipeline(StandardScaler(), OneVsRestClassifier(model) if labels.ndim == 2 else model)
    else:
        model = RandomForestClassifier(500, min_samples_leaf=int(strength), random_state=seed)
    p = model.fit(x, labels).predict_proba(rows)
    if isinstance(p, list):  # a forest of several labels: a table of two columns for each, or of one if all are alike
        p = np.stack([table[:, list(known).index(1)] if 1 in known else np.zeros(len(table))
                      for table, known in zip(p, model.classes_)], 1)  # fmt: skip
    return np.asarray(p)


def _comparable(comparison: str, image: Array, text: Array) -> tuple[Array, Array]:
    """Vectors whose cosines compare probabilities as told."""
    if comparison == "pearson":
        return image - image.mean(1, keepdims=True), text - text.mean(1, keepdims=True)
    if comparison == "probability":
        from ..models.acmr import inner_product_form

        longest = max(1.0, *(float(np.linalg.norm(p, axis=1).max()) for p in (image, text)))
        sides = (inner_product_form(torch.from_numpy(p / longest), side) for side, p in enumerate((image, text)))
        a, b = (vectors.numpy() for vectors in sides)
        return a, b
    return image, text


BASELINES: dict[str, Callable[[PairData, str, bool], Baseline]] = {
    "three_view_cca": three_view_cca,
    "semantic_logistic": partial(semantic_matching, kind="logistic"),
    "semantic_forest": partial(semantic_matching, kind="forest"),
}
