"""The ops by the CUDA kernels. Importing these modules registers them, if the binary has kernels."""

from . import covariance, mining, trace_norm, triplets

__all__ = ["covariance", "mining", "trace_norm", "triplets"]
