"""Training and reports. Lightning, rich and matplotlib load where they are used."""

from .acmr import ACMRResult, summarise, train_acmr, train_acmr_seeds
from .acmr_config import ACMRConfig
from .config import DCCAConfig
from .dcca import Interrupted, Result, train_dcca
from .evaluation import embed, evaluate
from .linear_cca import select_linear_cca, train_linear_cca
from .load import load_run
from .run import RunDirectory, UserError, check_shapes, pick_device

__all__ = [
    "ACMRConfig",
    "ACMRResult",
    "DCCAConfig",
    "Interrupted",
    "Result",
    "RunDirectory",
    "UserError",
    "check_shapes",
    "embed",
    "evaluate",
    "load_run",
    "pick_device",
    "select_linear_cca",
    "summarise",
    "train_acmr",
    "train_acmr_seeds",
    "train_dcca",
    "train_linear_cca",
]
