"""What a neural result is to stand beside: three-view CCA with labels, and semantic matching by scikit-learn.

Everything that is to be chosen is chosen on the validation split, by the same figure as for the models. Chance is
part of every evaluation; linear CCA is in linear_cca.py.
"""

from __future__ import annotations

from itertools import pairwise, product
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import scipy.linalg
import torch

from .. import retrieval
from ..data import PairData, PairSet
from .linear_cca import COMPONENTS, POWERS, RIDGES
from .run import UserError

Array = npt.NDArray[Any]

COMPARISONS = ("cosine", "pearson", "probability")


class Baseline(NamedTuple):
    """Figures of a baseline on the test split, and what was chosen for it on the validation split."""

    metrics: dict[str, Any]
    chosen: dict[str, Any]


def _features(pairs: PairSet) -> tuple[Array, Array]:
    return pairs.image.flatten(1).double().numpy(), pairs.text.double().numpy()


def _labels(data: PairData) -> Array:
    if data.train.labels is None:
        raise UserError(f"three-view CCA and semantic matching need labels, and {data.name} has none")
    return data.train.labels.numpy()


def _score(image: Array, text: Array, pairs: PairSet) -> dict[str, Any]:
    return dict(retrieval.evaluate(image, text, pairs.labels))


def three_view_cca(data: PairData, monitor: str) -> Baseline:
    """CCA of image, text and label indicators (Gong et al., "A Multi-View Embedding Space", IJCV 2014).

    The leading solutions of C w = λ D w, where C holds the covariances of the three views side by side and D those
    within the views, ridged; components are weighted by their eigenvalues to a power.
    """
    labels = _labels(data)
    third = np.eye(int(labels.max()) + 1)[labels] if labels.ndim == 1 else labels.astype(float)
    views = [*_features(data.train), third]
    means = [v.mean(0) for v in views]
    joint = np.cov(np.hstack([v - m for v, m in zip(views, means)]).T)
    starts = np.cumsum([0, *(v.shape[1] for v in views)])
    blocks = [slice(a, b) for a, b in pairwise(starts.tolist())]
    best: tuple[float, dict[str, Any], tuple[Array, Array]] = (-1.0, {}, (joint, joint))
    x, y = _features(data.validation)
    for ridge in RIDGES:
        within = np.zeros_like(joint)
        for block in blocks:
            within[block, block] = joint[block, block]
            within[block, block] += ridge * np.trace(joint[block, block]) / (block.stop - block.start) * np.eye(
                block.stop - block.start
            )  # fmt: skip
        count = min(min(v.shape[1] for v in views[:2]), max(COMPONENTS))
        values, vectors = scipy.linalg.eigh(joint, within, subset_by_index=(len(joint) - count, len(joint) - 1))
        values, vectors = values[::-1].clip(min=0), vectors[:, ::-1]
        for k, power in product([k for k in COMPONENTS if k < count] + [count], POWERS):
            weights = tuple(vectors[block, :k] * values[:k] ** power for block in blocks[:2])
            figures = _score((x - means[0]) @ weights[0], (y - means[1]) @ weights[1], data.validation)
            if figures["mean"][monitor] > best[0]:
                chosen = {"ridge": ridge, "n_components": k, "power": power}
                best = figures["mean"][monitor], chosen, (weights[0], weights[1])
    x, y = _features(data.test)
    metrics = _score((x - means[0]) @ best[2][0], (y - means[1]) @ best[2][1], data.test)
    return Baseline(metrics, best[1])


def semantic_matching(data: PairData, monitor: str, kind: str, seed: int = 0) -> Baseline:
    """Retrieval by the class probabilities of two classifiers (Rasiwasia et al., ACM MM 2010).

    ``kind`` is "logistic" (standardised features, the inverse penalty chosen) or "forest" (500 random trees, the
    smallest leaf chosen). Probabilities are compared by cosine, by Pearson's correlation, or by the probability of
    one label, Σ_c p(c|v) p(c|t), whichever serves the validation split best.
    """
    labels = _labels(data)
    strengths = (0.01, 0.1) if kind == "logistic" else (1, 10)
    train, validation, test = (_features(part) for part in (data.train, data.validation, data.test))
    views = []
    for side in range(2):
        views.append([_probabilities(kind, s, seed, train[side], labels, (validation[side], test[side]))
                      for s in strengths])  # fmt: skip
    best: tuple[float, dict[str, Any], dict[str, Any]] = (-1.0, {}, {})
    for (i, image), (j, text), comparison in product(enumerate(views[0]), enumerate(views[1]), COMPARISONS):
        figures = _score(*_comparable(comparison, image[0], text[0]), data.validation)
        if figures["mean"][monitor] > best[0]:
            chosen = {"image": strengths[i], "text": strengths[j], "comparison": comparison}
            metrics = _score(*_comparable(comparison, image[1], text[1]), data.test)
            best = figures["mean"][monitor], chosen, metrics
    return Baseline(best[2], best[1])


def _probabilities(
    kind: str, strength: float, seed: int, x: Array, labels: Array, rows: tuple[Array, ...]
) -> list[Array]:
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
    model.fit(x, labels)
    out = []
    for r in rows:
        p = model.predict_proba(r)
        if isinstance(p, list):  # a forest of several labels: one table of two columns for each
            p = np.stack([1 - q[:, 0] if q.shape[1] == 2 else np.full(len(q), float(c[0])) for q, c in
                          zip(p, model.classes_)], 1)  # fmt: skip
        out.append(p)
    return out


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


BASELINES = {
    "three_view_cca": three_view_cca,
    "semantic_logistic": lambda data, monitor: semantic_matching(data, monitor, "logistic"),
    "semantic_forest": lambda data, monitor: semantic_matching(data, monitor, "forest"),
}
