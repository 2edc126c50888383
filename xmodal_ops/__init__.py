"""Fused, exact operations for cross-modal learning in PyTorch, and the models DCCA and ACMR on top of them.

Every name loads what it needs when it is first used, so that `xmodal --help` does not wait for torch. The ops in
`torch.ops.xmodal` are registered at once if torch is loaded already, otherwise by the first use of an op.
"""

import sys
from importlib.util import find_spec
from typing import TYPE_CHECKING

if find_spec("xmodal_ops._C") is None:
    raise ImportError(
        f"xmodal_ops was found in {__path__[0]}, where its native module has not been built: "
        "run `pip install -e .` there, or leave that directory to use the installed package"
    )

from ._lazy import lazy
from ._version import __version__

if TYPE_CHECKING:
    from ._build import build_info
    from .nn.gradient_reversal import gradient_reversal
    from .ops import (
        MinedTriplets,
        StructureStats,
        TripletStats,
        max_violation_loss,
        mine_triplets,
        pack_labels,
        structure_preserving_loss,
        trace_norm_loss,
        triplet_margin_loss,
    )
    from .ops.canonical_correlations import canonical_correlations
    from .ops.covariance import Covariance, covariance
    from .ops.whiten import whiten
    from .scale.large_batch import large_batch_loss
    from .scale.moments import MomentAccumulator

__all__ = [
    "Covariance",
    "MinedTriplets",
    "MomentAccumulator",
    "StructureStats",
    "TripletStats",
    "__version__",
    "build_info",
    "canonical_correlations",
    "covariance",
    "gradient_reversal",
    "large_batch_loss",
    "max_violation_loss",
    "mine_triplets",
    "pack_labels",
    "structure_preserving_loss",
    "trace_norm_loss",
    "triplet_margin_loss",
    "whiten",
]

_SUBMODULES = ("_C", "data", "distributed", "models", "nn", "ops", "options", "retrieval", "scale", "training")
_MODULES = {
    **dict.fromkeys(__all__, ".ops"),
    "MomentAccumulator": ".scale.moments",
    "build_info": "._build",
    "gradient_reversal": ".nn",
    "large_batch_loss": ".scale.large_batch",
    **{name: f".{name}" for name in _SUBMODULES},
}

if not TYPE_CHECKING:  # a module with __getattr__ has every name for a type checker
    __getattr__ = lazy(__name__, _MODULES)

if "torch" in sys.modules:
    from . import ops  # noqa: F401
