"""Data sets of image-text pairs: the embedded glyphs, Wikipedia, and pair files."""

from __future__ import annotations

import os
from typing import Any

from .pairs import DataError, PairData, PairSet

__all__ = ["DataError", "PairData", "PairSet", "load"]


def load(name: str | os.PathLike[str], **options: Any) -> PairData:
    """A data set by its name, "glyphs" or "wikipedia", or a pair file (npz, HDF5, mat) by its path.

    `options` go to glyphs.load, wikipedia.load (which needs `path`, its directory) or files.read; `seed` is
    common to all.
    """
    if name == "glyphs":
        from . import glyphs

        return glyphs.load(**options)
    if name == "wikipedia":
        from . import wikipedia

        if options.get("path") is None:
            raise ValueError("wikipedia needs path, the directory of raw_features.mat and its lists, got none")
        return wikipedia.load(**options)
    from . import files

    if os.path.splitext(name)[1].lower() not in files.READERS:
        kinds = ", ".join(files.READERS)
        raise ValueError(f"name must be glyphs, wikipedia or a file that ends in {kinds}, got {os.fspath(name)}")
    return files.read(name, **options)
