"""Run directories: configuration, checkpoints, metrics and pictures of a training."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout

from .._version import __version__
from ..data import PairData
from ..errors import UserError
from ..options import CONFIGS, Options
from .files import PARTIAL, read_json, write_json


class RunDirectory:
    """The files of one training.

    `config.json` describes data, model and options; `last.ckpt` is the end of the last finished epoch, `best.ckpt` that
    of the best one on the validation split; `model.pt` is the finished model. The rest is for people: `history.csv`,
    `metrics.json`, `loss.png`, `retrieval.png` and, for ACMR, `space.png`. Every file is written as a whole, see
    `files.replacing`; `.lock` is locked while a training writes to the directory.
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

    @property
    def seeds(self) -> list[RunDirectory]:
        """The runs of a directory with one run per seed, in the order of their seeds."""
        folders = [path for path in self.path.glob("seed-*") if path.name[5:].isdigit()]
        return [run for run in map(RunDirectory, sorted(folders, key=lambda p: int(p.name[5:]))) if run.config.exists()]

    @contextmanager
    def reserved(self) -> Iterator[None]:
        """Makes the directory and keeps other trainings out of it; removes it again if it stays empty.

        The operating system gives the lock up when its process ends, however that ends. Within a process, the lock may
        be taken again.

        Raises:
            UserError: another training uses the directory, or it cannot be written.
        """
        with ExitStack() as stack:
            stack.enter_context(made(self.path))
            lock = FileLock(self.path / ".lock", timeout=0, is_singleton=True)
            try:
                stack.enter_context(lock)
            except Timeout:
                raise UserError(
                    f"another training writes to {self.path}: wait for it, or choose another --output"
                ) from None
            except (OSError, NotImplementedError):  # a file system without locks
                pass
            yield

    def clear(self) -> None:
        """Removes the files of an earlier run, and nothing else."""
        for file in vars(self).values():
            if file != self.path:
                file.unlink(missing_ok=True)
        self.sweep()

    def sweep(self) -> None:
        """Removes files that a killed process left half written."""
        for file in self.path.glob(f"{PARTIAL}*"):
            file.unlink(missing_ok=True)

    def begin(self, data: PairData, resume: bool = False) -> None:
        """Clears the directory for a new run, or checks that its run can be resumed with these data."""
        if not resume:
            self.clear()
            return
        self.sweep()
        if not (self.last.exists() or self.best.exists()):
            raise UserError(f"{self.path} holds no checkpoint to resume from")
        check_shapes(self.read_config(), data)

    def describe(
        self, model: str, data: PairData, source: Mapping[str, Any] | None, options: Mapping[str, Any], **rest: Any
    ) -> None:
        """Writes `config.json`. `source` says where the data come from, as options of the command line."""
        source = dict(source or {"data": data.name})
        head = {"model": model, "version": __version__, "data": source, "shapes": shapes(data)}
        write_json(self.config, {**head, "options": dict(options), **rest})

    def read_config(self) -> dict[str, Any]:
        """The content of `config.json`; of a directory with one run per seed, that of the first."""
        if not self.config.exists():
            if self.seeds:
                return self.seeds[0].read_config()
            raise UserError(f"{self.path} holds no run: there is no config.json in it")
        config = read_json(self.config)
        for name, kind in {"model": str, "data": dict, "shapes": dict, "options": dict}.items():
            if not isinstance(config.get(name), kind):
                got = repr(config[name]) if name in config else "nothing"
                raise UserError(f"cannot use {self.config}: {name} must be {NOUNS[kind]}, got {got}")
        if config["model"] not in CONFIGS:
            known = ", ".join(CONFIGS)
            raise UserError(f"cannot use {self.config}: model must be one of {known}, got {config['model']!r}")
        for view in ("image", "text"):
            shape = config["shapes"].get(view)
            if not isinstance(shape, list) or not all(type(size) is int for size in shape):
                raise UserError(f"cannot use {self.config}: shapes must give the shape of {view}, got {shape!r}")
        return config

    def read_options(self) -> Options:
        """The options in `config.json`, checked."""
        config = self.read_config()
        try:
            return CONFIGS[config["model"]].from_dict(config["options"])
        except UserError as error:
            raise UserError(f"cannot use {self.config}: {error}") from None


NOUNS = {str: "a string", dict: "an object"}


@contextmanager
def made(folder: Path) -> Iterator[None]:
    """Makes a directory, and removes what it made if that stays empty. UserError if it cannot be written."""
    new = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=folder):
                pass
        except OSError as error:
            raise UserError(f"cannot write to the output directory {folder}: {error.strerror or error}") from None
        yield
    finally:
        if new and {path.name for path in _entries(folder)} <= {".lock"}:
            with suppress(OSError):
                (folder / ".lock").unlink()
            for path in new:
                with suppress(OSError):  # not made, or not empty
                    path.rmdir()


def _entries(folder: Path) -> Sequence[Path]:
    with suppress(OSError):
        return list(folder.iterdir())
    return ()


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
