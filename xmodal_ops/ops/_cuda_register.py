"""Hands the CUDA implementations to the dispatcher. Looks at no device: importing the package must not."""

from __future__ import annotations

from ..reference import trace_norm, triplets, whiten
from . import _cuda_mining, _cuda_moments, _cuda_trace_norm, _cuda_triplets
from ._cuda import with_fallback
from ._library import implement
from .canonical_correlations import _backward as canonical_correlations_backward
from .canonical_correlations import _forward as canonical_correlations
from .covariance import _backward as covariance_backward
from .covariance import _forward as covariance


def register() -> None:
    for name, kernels, portable, path in (
        ("covariance", _cuda_moments.covariance, covariance, "kernels"),
        ("covariance_backward", _cuda_moments.covariance_backward, covariance_backward, "kernels"),
        ("whiten", _cuda_moments.whiten, whiten.whiten, "kernels"),
        ("whiten_backward", _cuda_moments.whiten_backward, whiten.whiten_backward, "kernels"),
        ("mine_triplets", _cuda_mining.mine_triplets, triplets.mine_triplets, "kernels"),
        ("structure_preserving", _cuda_triplets.structure_preserving, triplets.structure_preserving, "kernels"),
        (
            "weighted_structure_preserving",
            _cuda_triplets.weighted_structure_preserving,
            triplets.weighted_structure_preserving,
            "kernels",
        ),
        ("triplet_margin", _cuda_triplets.triplet_margin, triplets.triplet_margin, "kernels"),
        ("trace_norm", _cuda_trace_norm.trace_norm, trace_norm.trace_norm, "kernels"),
        (
            "canonical_correlations",
            _cuda_trace_norm.canonical_correlations,
            canonical_correlations,
            "kernels",
        ),
        (
            "canonical_correlations_backward",
            _cuda_trace_norm.canonical_correlations_backward,
            canonical_correlations_backward,
            "kernels",
        ),
    ):
        implement(name, with_fallback(kernels, portable), "CUDA", path)
