"""Data sets of image-text pairs: the embedded glyphs, Wikipedia, and pair files."""

from .pairs import DataError, PairData, PairSet

__all__ = ["DataError", "PairData", "PairSet"]
