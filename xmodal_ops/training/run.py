"""Run directories: configuration, checkpoints, metrics and pictures of a training."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from .._version import __version__
from ..data import PairData
from ..errors import UserError


class RunDirectory:
    """The files of one training.

    `config.json` describes data, model and options; `last.ckpt` is the end of the last finished epoch, `best.ckpt` that
    of the best one on the validation split; `model.pt` is the finished model. The rest is for people: `history.csv`,
    `metrics.json`, `loss.png`, `retrieval.png` and, for ACMR, `space.png`.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.config = self.path / "config.json"
        self.last = self.path / "last.ckpt"
        self.best = self.path / "best.ckpt"
        self.model = self.path / "model.pt"
        self.history = self.path / "history.csv"
        self.metrics = self.path / "metrics.json"
        self.loss = self.path / "loss.png"
        self.retrieval = self.path / "retrieval.png"
        self.space = self.path / "space.png"

    @property
    def refit(self) -> RunDirectory:
        """The directory of the second training, on training + validation pairs."""
        return RunDirectory(self.path / "refit")

    def prepare(self) -> None:
        """Makes the directory. UserError if it cannot be written, before time is spent on anything else."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=self.path):
                pass
        except OSError as error:
            raise UserError(f"cannot write to the output directory {self.path}: {error.strerror or error}") from None

    def clear(self) -> None:
        """Removes the files of an earlier run, and nothing else."""
        for file in vars(self).values():
            if file != self.path:
                file.unlink(missing_ok=True)

    def begin(self, data: PairData, resume: bool = False) -> None:
        """Prepares the directory for a new run, or checks that its run can be resumed with these data."""
        self.prepare()
        if not resume:
            self.clear()
            return
        if not self.last.exists():
            raise UserError(f"{self.path} holds no checkpoint to resume from")
        check_shapes(self.read_config(), data)

    def write(self, file: Path, content: Any) -> None:
        """Writes JSON."""
        file.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")

    def describe(
        self, model: str, data: PairData, source: Mapping[str, Any] | None, options: Mapping[str, Any], **rest: Any
    ) -> None:
        """Writes `config.json`. `source` says where the data come from, as options of the command line."""
        source = dict(source or {"data": data.name})
        head = {"model": model, "version": __version__, "data": source, "shapes": shapes(data)}
        self.write(self.config, {**head, "options": dict(options), **rest})

    def read_metrics(self) -> dict[str, Any]:
        """The content of `metrics.json`: metrics by model."""
        try:
            return dict(json.loads(self.metrics.read_text(encoding="utf-8")))
        except (OSError, ValueError) as error:
            raise UserError(f"cannot read {self.metrics}: {error}") from None

    def read_config(self) -> dict[str, Any]:
        """The content of `config.json`."""
        try:
            config = json.loads(self.config.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise UserError(f"{self.path} holds no run: there is no config.json in it") from None
        except (OSError, ValueError) as error:
            raise UserError(f"cannot read {self.config}: {error}") from None
        if not isinstance(config, dict) or "model" not in config:
            raise UserError(f"cannot read {self.config}: it is not the configuration of a run")
        return config


def shapes(data: PairData) -> dict[str, list[int]]:
    """The shape of one item of each view."""
    return {"image": list(data.train.image.shape[1:]), "text": list(data.train.text.shape[1:])}


def check_shapes(config: Mapping[str, Any], data: PairData) -> None:
    """Raises UserError for data whose shapes do not suit the model of a run."""
    for view, shape in shapes(data).items():
        if config["shapes"][view] != shape:
            raise UserError(f"{view} must have items of shape {config['shapes'][view]} for this run, got {shape}")


def pick_device(name: str) -> torch.device:
    """The device named auto, cpu, cuda, cuda:N or mps. UserError if it is not available."""
    if name == "auto":
        accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
        return accelerator or torch.device("cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UserError(f"device must be auto, cpu, cuda, cuda:N or mps, got {name!r}") from None
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        count = torch.cuda.device_count()
        found = f"torch {torch.__version__} finds {count} CUDA device{'s' * (count != 1)}"
        raise UserError(f"device {name} is not available: {found}; use --device cpu")
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise UserError(f"device {name} is not available here; use --device cpu")
    if device.type not in ("cpu", "cuda", "mps"):
        raise UserError(f"device must be auto, cpu, cuda, cuda:N or mps, got {name!r}")
    return device
