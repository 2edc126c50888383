"""Modules over the ops."""

from .trace_norm import TraceNormLoss

__all__ = ["TraceNormLoss"]
