"""Training and reports. Lightning, rich and matplotlib load where they are used."""

from .config import DCCAConfig
from .dcca import Interrupted, Result, load_run, train_dcca
from .run import RunDirectory, UserError

__all__ = ["DCCAConfig", "Interrupted", "Result", "RunDirectory", "UserError", "load_run", "train_dcca"]
