"""Baselines: three-view CCA with labels, and semantic matching by scikit-learn. Linear CCA is in linear_cca.py.

Hyperparameters are chosen on the validation split, by the same metric as for the models. With `refit`, the chosen
baseline is fitted again to the training and validation pairs.
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
    """Test metrics of a baseline, and the hyperparameters chosen on the validation split."""

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
    """The joint covariance of image, text and label indicators, and the solutions for a ridge."""

    def __init__(self, pairs: PairSet, labels: Array) -> None:
        third = np.eye(int(labels.max()) + 1)[labels] if labels.ndim == 1 else labels.astype(float)
        views = [*_features(pairs), third]
        self.means = [v.mean(0) for v in views]
        self.joint = np.cov(np.hstack([v - m for v, m in zip(views, self.means)]).T)
        ends = np.cumsum([0, *(v.shape[1] for v in views)]).tolist()
        self.blocks = [slice(a, b) for a, b in pairwise(ends)]
        self.count = min(views[0].shape[1], views[1].shape[1], max(COMPONENTS))

    def solve(self, ridge: float) -> tuple[Array, Array]:
        """Eigenvalues in descending order, and their eigenvectors."""
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

    The components are the leading solutions of C w = λ D w. C is the joint covariance of the three views, D its
    diagonal blocks with a ridge. Components are weighted by a power of their eigenvalues.
    """
    model = _ThreeViews(data.train, _labels(data.train, data.name))
    best: tuple[float, dict[str, Any]] = (-1.0, {})
    for ridge in RIDGES:
        solution = model.solve(ridge)
        for k, power in product([k for k in COMPONENTS if k < model.count] + [model.count], POWERS):
            score = model.score(*solution, k, power, data.validation)["mean"][monitor]
            if score > best[0]:
                best = score, {"ridge": ridge, "n_components": k, "power": power}
    chosen = best[1]
    if refit:
        whole = data.with_validation().train
        model = _ThreeViews(whole, _labels(whole, data.name))
    solution = model.solve(chosen["ridge"])
    return Baseline(model.score(*solution, chosen["n_components"], chosen["power"], data.test), chosen)


def semantic_matching(data: PairData, monitor: str, refit: bool = False, *, kind: str, seed: int = 0) -> Baseline:
    """Semantic matching: compares class probabilities predicted from either modality (Rasiwasia et al., ACM MM 2010).

    The comparison is by cosine, by Pearson's correlation, or by the probability of a common label,
    sum_c p(c|v) p(c|t), whichever scores best on the validation split.

    Args:
        data: the data set, with labels.
        monitor: the metric that selects hyperparameters.
        refit: fit the chosen baseline again to the training and validation pairs.
        kind: "logistic" (regression on standardised features, with one of two penalties) or "forest" (500 trees, with
            one of two smallest leaf sizes).
        seed: of the forest.
    """
    labels = _labels(data.train, data.name)
    if labels.ndim == 1 and (labels == labels[0]).all():
        raise UserError(f"semantic matching needs at least 2 classes, {data.name} has 1 in training")
    strengths = (0.01, 0.1) if kind == "logistic" else (1, 10)
    tables = [
        [_probabilities(kind, s, seed, x, labels, np.concatenate(rows)) for s in strengths]
        for x, *rows in zip(_features(data.train), _features(data.validation), _features(data.test))
    ]
    held = len(data.validation)
    best: tuple[float, dict[str, Any]] = (-1.0, {})
    for i, j, comparison in product(range(2), range(2), COMPARISONS):
        views = _comparable(comparison, tables[0][i][:held], tables[1][j][:held])
        score = _score(*views, data.validation)["mean"][monitor]
        if score > best[0]:
            best = score, {"image": strengths[i], "text": strengths[j], "comparison": comparison}
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
    """Class probabilities (n, C) of the rows, from a classifier trained on x."""
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
    if isinstance(p, list):  # multi-label forest: for each label, columns for the values 0 and 1 that it takes
        p = np.stack([table[:, list(known).index(1)] if 1 in known else np.zeros(len(table))
                      for table, known in zip(p, model.classes_)], 1)  # fmt: skip
    return np.asarray(p)


def _comparable(comparison: str, image: Array, text: Array) -> tuple[Array, Array]:
    """Vectors whose cosines give the comparison."""
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
