"""Pairs in files larger than memory, HDF5 or one npy per view, read a chunk at a time."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ..errors import one_line
from .pairs import DataError

Array = np.ndarray[Any, Any]


class FileRows(ABC):
    """The rows of a matrix in a file: has a length, and reads a slice when it is indexed."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    def __init__(self, path: Path, name: str) -> None:
        self.path, self.name = path, name
        try:
            self.shape, self.dtype = self._describe()
        except FileNotFoundError:
            raise DataError(f"{name} must be an existing file, got {path}") from None
        except Exception as error:  # a damaged file raises almost anything: EOFError, KeyError, AttributeError
            raise DataError(f"cannot read {name} from {path}: {one_line(error)}") from None
        if len(self.shape) != 2 or 0 in self.shape or self.dtype.kind != "f" or self.dtype.itemsize > 8:
            raise DataError(f"{name} in {path} must be a floating (n, d) matrix, got {self.dtype} {self.shape}")

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: slice | Array) -> Tensor:
        """Reads the rows of a slice or of an index array."""
        order: Array | None = None
        if not isinstance(rows, slice):
            rows, order = np.unique(np.asarray(rows), return_inverse=True)  # HDF5 requires ascending rows
        try:
            values = self._read(rows)
        except Exception as error:
            raise DataError(f"cannot read {self.name} from {self.path}: {one_line(error)}") from None
        tensor = torch.from_numpy(np.ascontiguousarray(values, self.dtype.newbyteorder("=")))
        return tensor if order is None else tensor[torch.from_numpy(order)]

    @abstractmethod
    def _describe(self) -> tuple[tuple[int, ...], np.dtype[Any]]: ...

    @abstractmethod
    def _read(self, rows: slice | Array) -> Array: ...


class _Npy(FileRows):
    # Mapped again for each read: the pages that a mapping has touched count as this process's memory.
    def _describe(self) -> tuple[tuple[int, ...], np.dtype[Any]]:
        mapped = np.load(self.path, mmap_mode="r")
        return mapped.shape, mapped.dtype

    def _read(self, rows: slice | Array) -> Array:
        return np.array(np.load(self.path, mmap_mode="r")[rows])


class _HDF5(FileRows):
    # Opened for each read: a handle must not be shared between processes.
    def _describe(self) -> tuple[tuple[int, ...], np.dtype[Any]]:
        import h5py

        if not self.path.exists():
            raise FileNotFoundError
        with h5py.File(self.path, "r") as file:
            if self.name not in file:
                raise KeyError(f"it holds {', '.join(sorted(file)) or 'nothing'}, not {self.name}")
            return file[self.name].shape, file[self.name].dtype

    def _read(self, rows: slice | Array) -> Array:
        import h5py

        with h5py.File(self.path, "r") as file:
            return np.asarray(file[self.name][rows])


class PairStream:
    """Pairs in files larger than memory.

    Args:
        image: an HDF5 file with the data sets "image" (n, dv) and "text" (n, dt), or an npy file of the images.
        text: the npy file of the texts, if `image` is an npy file.

    Attributes:
        image, text: the views. They have a length and can be sliced, so `large_batch_loss` accepts them.

    Raises:
        DataError: a file is missing or damaged, or the views are not floating matrices with equal numbers of rows.

    >>> pairs = PairStream("pairs.h5")
    >>> cca = LinearCCA().fit(pairs.chunks(progress=True))
    """

    def __init__(self, image: str | Path, text: str | Path | None = None) -> None:
        self.image: FileRows
        self.text: FileRows
        if text is None:
            self.image, self.text = _HDF5(Path(image), "image"), _HDF5(Path(image), "text")
        else:
            self.image, self.text = _Npy(Path(image), "image"), _Npy(Path(text), "text")
        if len(self.image) != len(self.text):
            raise DataError(f"text must have as many rows as image, {len(self.image)}, got {len(self.text)}")

    def __len__(self) -> int:
        return len(self.image)

    def chunks(
        self, rows: int = 16384, *, workers: int = 2, pin_memory: bool | None = None, progress: bool = False
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Yields all pairs in order, `rows` at a time.

        Args:
            rows: the number of rows in a chunk. Up to `2 * workers + 2` chunks are in memory at once.
            workers: the number of processes that read ahead; 0 reads each chunk on demand.
            pin_memory: use page-locked buffers, so that `to("cuda", non_blocking=True)` does not wait. By default,
                if there is a CUDA device.
            progress: show a progress bar (needs rich).
        """
        for option, least, value in (("rows", 1, rows), ("workers", 0, workers)):
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise ValueError(f"{option} must be an integer >= {least}, got {value!r}")
        loader: DataLoader[tuple[Tensor, Tensor]] = DataLoader(
            _Chunks(self, rows),
            batch_size=None,
            num_workers=workers,
            pin_memory=torch.cuda.is_available() if pin_memory is None else pin_memory,
        )
        chunks: Iterable[tuple[Tensor, Tensor]] = loader
        if progress:
            from rich.progress import track

            chunks = track(loader, description="pairs", total=len(loader))
        for chunk in chunks:
            image, text = chunk  # the loader turns tuples into lists
            yield image, text


class _Chunks(Dataset[tuple[Tensor, Tensor]]):
    def __init__(self, pairs: PairStream, rows: int) -> None:
        self.pairs, self.rows = pairs, rows

    def __len__(self) -> int:
        return -(-len(self.pairs) // self.rows)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        rows = slice(index * self.rows, (index + 1) * self.rows)
        return self.pairs.image[rows], self.pairs.text[rows]
