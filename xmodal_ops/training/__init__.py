"""Training and reports. Every name loads what it needs when it is first used."""

from typing import TYPE_CHECKING

from .._lazy import lazy

if TYPE_CHECKING:
    from ..errors import Interrupted as Interrupted
    from ..errors import UserError as UserError
    from ..options import ACMRConfig as ACMRConfig
    from ..options import DCCAConfig as DCCAConfig
    from ..options import LinearCCAConfig as LinearCCAConfig
    from .acmr import ACMRResult as ACMRResult
    from .acmr import summarise as summarise
    from .acmr import train_acmr as train_acmr
    from .acmr import train_acmr_seeds as train_acmr_seeds
    from .dcca import train_dcca as train_dcca
    from .evaluation import embed as embed
    from .evaluation import evaluate as evaluate
    from .evaluation import load_run as load_run
    from .fit import Result as Result
    from .linear_cca import select_linear_cca as select_linear_cca
    from .linear_cca import train_linear_cca as train_linear_cca
    from .run import RunDirectory as RunDirectory
    from .run import check_shapes as check_shapes
    from .run import pick_device as pick_device

_MODULES = {
    "ACMRConfig": "..options",
    "ACMRResult": ".acmr",
    "DCCAConfig": "..options",
    "Interrupted": "..errors",
    "LinearCCAConfig": "..options",
    "Result": ".fit",
    "RunDirectory": ".run",
    "UserError": "..errors",
    "check_shapes": ".run",
    "embed": ".evaluation",
    "evaluate": ".evaluation",
    "load_run": ".evaluation",
    "pick_device": ".run",
    "select_linear_cca": ".linear_cca",
    "summarise": ".acmr",
    "train_acmr": ".acmr",
    "train_acmr_seeds": ".acmr",
    "train_dcca": ".dcca",
    "train_linear_cca": ".linear_cca",
}

__all__ = list(_MODULES)

if not TYPE_CHECKING:  # a module with __getattr__ has every name for a type checker
    __getattr__ = lazy(__name__, _MODULES)
