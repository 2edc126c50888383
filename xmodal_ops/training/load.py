"""Models of run directories."""

from __future__ import annotations

from pathlib import Path

from ..models import LinearCCA
from .acmr import load_acmr
from .dcca import load_dcca
from .evaluation import Model
from .run import RunDirectory, UserError, pick_device


def load_run(output: str | Path, device: str = "auto") -> Model:
    """The model that a run directory holds; of an interrupted run, that of its best epoch so far."""
    run, place = RunDirectory(output), pick_device(device)
    config = run.read_config()
    if config["model"] == "dcca":
        return load_dcca(run, config, place)
    if config["model"] == "acmr":
        return load_acmr(run, config, place)
    if config["model"] == "linear_cca":
        return LinearCCA.load(run.model)
    raise UserError(f"{run.path} holds a run of {config['model']!r}, which this version does not know")
