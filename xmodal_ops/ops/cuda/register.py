"""Hands the CUDA implementations to the dispatcher. Looks at no device: importing the package must not."""

from __future__ import annotations

from .._library import implement
from ..canonical_correlations import _backward as canonical_correlations_backward
from ..canonical_correlations import _forward as canonical_correlations
from ..covariance import _backward as covariance_backward
from ..covariance import _forward as covariance
from ..portable import trace_norm, triplets, whiten
from . import covariance as cuda_covariance
from . import mining as cuda_mining
from . import trace_norm as cuda_trace_norm
from . import triplets as cuda_triplets
from .driver import with_fallback


def register() -> None:
    for name, kernels, portable, path in (
        ("covariance", cuda_covariance.covariance, covariance, "kernels"),
        ("covariance_backward", cuda_covariance.covariance_backward, covariance_backward, "kernels"),
        ("whiten", cuda_covariance.whiten, whiten.whiten, "kernels"),
        ("whiten_backward", cuda_covariance.whiten_backward, whiten.whiten_backward, "kernels"),
        ("mine_triplets", cuda_mining.mine_triplets, triplets.mine_triplets, "kernels"),
        ("structure_preserving", cuda_triplets.structure_preserving, triplets.structure_preserving, "kernels"),
        (
            "weighted_structure_preserving",
            cuda_triplets.weighted_structure_preserving,
            triplets.weighted_structure_preserving,
            "kernels",
        ),
        ("triplet_margin", cuda_triplets.triplet_margin, triplets.triplet_margin, "kernels"),
        ("trace_norm", cuda_trace_norm.trace_norm, trace_norm.trace_norm, "kernels"),
        (
            "canonical_correlations",
            cuda_trace_norm.canonical_correlations,
            canonical_correlations,
            "kernels",
        ),
        (
            "canonical_correlations_backward",
            cuda_trace_norm.canonical_correlations_backward,
            canonical_correlations_backward,
            "kernels",
        ),
    ):
        implement(name, with_fallback(kernels, portable), "CUDA", path)
