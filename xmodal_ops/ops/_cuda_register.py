"""Hands the CUDA implementations to the dispatcher. Looks at no device: importing the package must not."""

from __future__ import annotations

from ..reference import trace_norm, whiten
from . import _cuda_moments, _cuda_trace_norm
from ._cuda import with_fallback
from ._library import implement
from .covariance import _backward as covariance_backward
from .covariance import _forward as covariance


def register() -> None:
    for name, kernels, portable, path in (
        ("covariance", _cuda_moments.covariance, covariance, "kernels"),
        ("covariance_backward", _cuda_moments.covariance_backward, covariance_backward, "kernels"),
        ("whiten", _cuda_moments.whiten, whiten.whiten, "kernels; torch for zca"),
        ("whiten_backward", _cuda_moments.whiten_backward, whiten.whiten_backward, "kernels; torch for zca"),
        ("trace_norm", _cuda_trace_norm.trace_norm, trace_norm.trace_norm, "kernels; torch for top_k"),
    ):
        implement(name, with_fallback(kernels, portable), "CUDA", path)
