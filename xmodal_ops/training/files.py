"""The files of a run: written as a whole or not at all, and read with one line for what is damaged."""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

import torch

from ..errors import RunWarning, UserError, one_line

T = TypeVar("T")

PARTIAL = ".xmodal-"  # begins the names of files that are being written


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """The name of a file to write, in the directory of `path`; it then takes the place of `path`.

    A crash, a full disk or Ctrl-C at any moment leaves the old file or the new one, never a part of one. The new name
    has the suffix of `path`. A pipe or a device is written directly.

    Raises:
        UserError: the file cannot be written.
    """
    try:
        if path.is_dir():
            raise UserError(f"cannot write {path}: Is a directory")
        if path.exists() and not path.is_file():
            yield path
            return
        target = Path(os.path.realpath(path))  # a symbolic link stays
        partial = target.with_name(f"{PARTIAL}{os.getpid()}{target.suffix}")
        try:
            yield partial
            with partial.open("rb+") as file:
                os.fsync(file.fileno())
            os.replace(partial, target)
        finally:
            with suppress(OSError):
                partial.unlink(missing_ok=True)
        with suppress(OSError):  # not every file system can flush a directory
            folder = os.open(target.parent, os.O_RDONLY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}") from None


def write_json(path: Path, content: Any) -> None:
    """Writes JSON. UserError if it cannot be written."""
    with replacing(path) as partial:
        partial.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def read_json(path: Path) -> dict[str, Any]:
    """A JSON file that holds an object. UserError if it cannot be read."""
    with reading(path):
        content = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(content, dict):
        raise UserError(f"cannot read {path}: it must hold a JSON object, got {type(content).__name__}")
    return content


def save(path: Path, write: Callable[[Any], None]) -> None:
    """Writes a file of tensors by `write(file)`, such as `model.save`. UserError if it cannot be written.

    An open file, since torch keeps the name of a file in its content: equal tensors make equal files.
    """
    with replacing(path) as partial, partial.open("wb") as file:
        try:
            write(file)
        except RuntimeError as error:  # how torch says that the file has another length than it should
            if "inline_container" not in str(error):
                raise
            reason = error.__context__ if isinstance(error.__context__, OSError) else None
            raise reason or OSError("the disk is full, or a file may not be this large") from None


def load_tensors(path: Path) -> dict[str, Any]:
    """What `torch.save` wrote; never runs pickled code. UserError if it cannot be read."""
    with reading(path):
        return dict(torch.load(path, map_location="cpu", weights_only=True))


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turns whatever a damaged file raises into a UserError that names it in one line."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch warns of files that it then refuses
            yield
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or one_line(error)}") from None
    except Exception:  # EOFError, UnpicklingError, RuntimeError, KeyError, RecursionError, ...
        raise UserError(f"cannot read {path}: it is damaged, or not what this version of xmodal writes") from None


def first_readable(paths: Sequence[Path], read: Callable[[Path], T]) -> T | None:
    """`read(path)` of the first file that can be read; None if there are no files.

    A RunWarning names each damaged one before it. UserError if all are damaged.
    """
    errors: list[UserError] = []
    for path in paths:
        if path.exists():
            try:
                result = read(path)
            except UserError as error:
                errors.append(error)
            else:
                for skipped in errors:
                    warnings.warn(f"{skipped}; {path} is used instead", RunWarning, stacklevel=2)
                return result
    if errors:
        raise errors[0]
    return None
