"""One file per op: schema, fake, CPU and CUDA implementation, autograd, public function."""

from .. import _C
from .canonical_correlations import canonical_correlations
from .covariance import Covariance, covariance
from .trace_norm import trace_norm_loss
from .whiten import whiten

__all__ = ["Covariance", "canonical_correlations", "covariance", "trace_norm_loss", "whiten"]

if _C.with_cuda:
    from ._cuda_register import register

    register()
