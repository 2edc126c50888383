"""Data sets of image-text pairs: the embedded glyphs, Wikipedia, and pair files."""

from __future__ import annotations

import os
from typing import Any

from .pairs import DataError, DataWarning, PairData, PairSet

__all__ = ["NAMES", "DataError", "DataWarning", "PairData", "PairSet", "load"]

NAMES = (
    "glyphs", "wikipedia", "wikipedia-1300", "pascal-sentence", "nus-wide-10k", "xmedia", "iapr-tc12", "coco",
    "flickr8k", "flickr30k",
)  # fmt: skip


def load(name: str | os.PathLike[str], **options: Any) -> PairData:
    """Loads a data set by its name, or a pair file (npz, HDF5, mat) by its path.

    Args:
        name: one of NAMES, or the path of a pair file. "wikipedia-1300" is the split into 1,300 and 1,566 pairs.
        **options: arguments of `glyphs.load`, `wikipedia.load`, `collections.load` or `files.read`; all take `seed`.
            Wikipedia and the published collections need `path`, a directory or file.

    Raises:
        ValueError: the name is unknown, or `path` is missing.
        DataError: the files cannot be used.
    """
    if not isinstance(name, (str, os.PathLike)):
        raise TypeError(f"name must be a string or a path, got {type(name).__name__}")
    if name == "glyphs":
        from . import glyphs

        return glyphs.load(**options)
    if name in ("wikipedia", "wikipedia-1300"):
        from . import wikipedia

        if options.get("path") is None:
            raise ValueError(f"{name} needs path, the directory that holds raw_features.mat and its lists, got none")
        return wikipedia.load(**options, split="1300" if name == "wikipedia-1300" else "official")
    if name in NAMES:
        from . import collections

        if options.get("path") is None:
            raise ValueError(f"{name} needs path: {collections.COLLECTIONS[str(name)].fetch}")
        return collections.load(str(name), **options)
    from . import files

    if os.path.splitext(name)[1].lower() not in files.READERS:
        kinds = ", ".join(files.READERS)
        raise ValueError(
            f"name must be one of {', '.join(NAMES)}, or a file that ends in {kinds}, got {os.fspath(name)}"
        )
    return files.read(name, **options)
