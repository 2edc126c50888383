"""Pair files: your own features in one npz, HDF5 or mat file."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from .._images import unit_range
from .pairs import DataError, PairData, PairSet, one_line
from .roles import NEEDED, SPLIT_OF, SPLITS, ByRole, by_role, role_of

Array = npt.NDArray[Any]


def read(path: str | os.PathLike[str], *, seed: int = 0, fractions: tuple[float, float] = (0.1, 0.1)) -> PairData:
    """Reads a pair file: .npz, .h5 or .hdf5, .mat (any version).

    The names of its arrays say what they hold, in upper or lower case:

    * `image`: (n, dv) features, or (n, c, H, W) or (n, H, W) images (uint8 ones are divided by 255).
    * `text`: (n, dt) features, such as TF-IDF; they may be sparse in .mat.
    * `labels` (optional): (n,) classes, counted from 0 or strings, or (n, C) of 0 and 1, any number per row.
    * `names` (optional): (n,) strings, the name of each pair.
    * `classes` (optional): (C,) strings, the name of each class.

    `roles.ROLES` lists the other accepted names, such as img, txt, label; X and Y stand for image and text.

    The split is given by the first of these that is present:

    * arrays per split: `image_train`, `test_image`, `I_tr`, `train/image`, ... (`roles.SPLITS` lists the words);
    * `split`: (n,) of "train", "validation", "test";
    * `train`, `test`, `validation`: row numbers, counted from 0, or (n,) bool;
    * otherwise `fractions` of the pairs are drawn for validation and test.

    Args:
        path: the file.
        seed: draws the validation and test pairs that the file does not declare.
        fractions: the fractions of validation and test pairs. If only validation is missing, the first fraction of
            the training pairs becomes the validation split.

    Returns:
        The data set, named after the file.

    Raises:
        DataError: one line that begins with the path: the file is missing, damaged or of another format, arrays are
            missing (the message names those found), or `PairSet` or `PairData` refuses them.
    """
    path = Path(path)
    found = arrays(path)
    try:
        return assemble(found, path.stem, seed, fractions)
    except DataError as error:
        raise DataError(f"{path}: {error}") from None


def arrays(path: Path) -> ByRole:
    """The arrays of a pair file by split and role; arrays without a role are not read."""
    if path.suffix.lower() not in READERS:
        raise DataError(f"{path}: a pair file ends in {', '.join(READERS)}")
    if not path.exists():
        raise DataError(f"{path}: no such file")
    try:
        return by_role(contents_of(path, lambda name: role_of(name) is not None))
    except DataError as error:
        raise DataError(f"{path}: {error}") from None


def declares_split(path: Path) -> bool:
    """Whether the names of a file's arrays say which pairs are for testing; no array is read."""
    found = filter(None, map(role_of, contents_of(path, lambda name: False)))
    return any(split or role == "split" for split, role in found)


def contents_of(path: Path, wanted: Callable[[str], bool]) -> dict[str, Array | None]:
    """All arrays of a file by name; None for those that are not wanted, which are not read."""
    try:
        return READERS[path.suffix.lower()](path, wanted)
    except Exception as error:  # a damaged file raises almost anything: zlib.error, BadZipFile, KeyError, MemoryError
        raise DataError(f"damaged, or not a {path.suffix} file ({one_line(error)})") from None


def _npz(path: Path, wanted: Callable[[str], bool]) -> dict[str, Array | None]:
    with np.load(path, allow_pickle=False) as file:
        return {name: file[name] if wanted(name) else None for name in file.files}


def _hdf5(path: Path, wanted: Callable[[str], bool]) -> dict[str, Array | None]:
    import h5py

    with h5py.File(path, "r") as file:
        names: list[str] = []
        file.visititems(lambda name, item: names.append(name) if isinstance(item, h5py.Dataset) else None)
        return {name: np.asarray(file[name]) if wanted(name) else None for name in names}


def _mat(path: Path, wanted: Callable[[str], bool]) -> dict[str, Array | None]:
    import scipy.io

    try:
        names = [name for name, _, _ in scipy.io.whosmat(path)]
        variables = scipy.io.loadmat(path, variable_names=[name for name in names if wanted(name)])
    except NotImplementedError:  # version 7.3 is HDF5, with the axes in the opposite order
        return {name: None if a is None else a.T for name, a in _hdf5(path, wanted).items()}
    dense = {name: a.toarray() if hasattr(a, "toarray") else a for name, a in variables.items()}
    return {name: dense.get(name) for name in names}


READERS = {".npz": _npz, ".h5": _hdf5, ".hdf5": _hdf5, ".mat": _mat}


def assemble(arrays: ByRole, name: str, seed: int, fractions: tuple[float, float]) -> PairData:
    """The data set of the given arrays; `read` describes the splits."""
    per_split = {split for split, role in arrays if split and role in NEEDED}
    for split, role in arrays:
        if role not in ("classes", "rows") and bool(split) != bool(per_split):
            these, this = ("are", "is not") if per_split else ("are not", "is")
            raise DataError(f"image and text {these} stored by split, but {role} {this}")
    classes = _strings(arrays["", "classes"]) if ("", "classes") in arrays else None
    if classes is None:
        classes = _label_names([a for (_, role), a in arrays.items() if role == "labels"])

    def pairs(split: str) -> PairSet:
        missing = [role for role in NEEDED if (split, role) not in arrays]
        if missing:
            raise DataError(f"{split} {' and '.join(missing)} missing".lstrip())
        labels, names = arrays.get((split, "labels")), arrays.get((split, "names"))
        try:
            return PairSet(
                _features("image", arrays[split, "image"]),
                _features("text", arrays[split, "text"]),
                None if labels is None else _labels(labels, classes),
                None if names is None else _strings(names),
            )
        except DataError as error:
            raise DataError(f"{split} {error}".lstrip()) from None

    if per_split:
        parts = {split: pairs(split) for split in sorted(per_split | {"train", "test"})}
    else:
        whole = pairs("")
        parts = {split: whole.subset(rows) for split, rows in _split_rows(arrays, len(whole)).items()}
        if not parts:
            rest, parts["test"] = whole.split(fractions[1], seed)
            parts["train"], parts["validation"] = rest.split(fractions[0] / (1 - fractions[1]), seed)
    if "validation" not in parts:
        parts["train"], parts["validation"] = parts["train"].split(fractions[0], seed)
    count = sum(len(part) for part in parts.values())
    return PairData(**parts, name=name, classes=classes, description=f"{count} pairs")


def _split_rows(arrays: ByRole, n: int) -> dict[str, Array]:
    """The row numbers of every split that the file itself declares."""
    if ("", "split") in arrays:
        values = _strings(arrays["", "split"])
        if len(values) != n:
            raise DataError(f"split must have as many rows as image, {n}, got {len(values)}")
        unknown = next((row for row, value in enumerate(values) if value not in SPLIT_OF), None)
        if unknown is not None:
            raise DataError(f"split must be {', '.join(SPLITS)}, got {values[unknown]!r} in row {unknown}")
        of = np.array([SPLIT_OF[value] for value in values])
        rows = {split: np.flatnonzero(of == split) for split in SPLITS if (of == split).any()}
    else:
        rows = {split: vector(a) for (split, role), a in arrays.items() if role == "rows"}
    for split, r in rows.items():
        if r.dtype == np.bool_ and r.shape == (n,):
            rows[split] = np.flatnonzero(r)
        elif r.ndim != 1 or not np.issubdtype(r.dtype, np.number) or not np.isin(r, np.arange(n)).all():
            raise DataError(f"{split} must hold row numbers in 0..{n - 1} or be bool ({n},)")
    if rows and not {"train", "test"} <= set(rows):
        raise DataError(f"the split needs train and test, got {', '.join(rows)}")
    numbers, times = np.unique(np.concatenate([*rows.values(), []]), return_counts=True)
    if (times > 1).any():
        raise DataError(f"the splits must not overlap, row {int(numbers[times > 1][0])} occurs twice")
    return rows


def vector(array: Array) -> Array:
    """(n,) from (n, 1) or (1, n), the shapes of vectors in MATLAB; other arrays are returned as they are."""
    return array.ravel() if array.ndim == 2 and 1 in array.shape else array


def _strings(array: Array) -> list[str]:
    """The strings of an array of unicode, bytes or objects; the latter may be MATLAB cells, one array each."""
    if array.dtype.kind not in "USO":
        raise DataError(f"names, classes and split must be strings, got {array.dtype}")
    values = [np.asarray(value).ravel() for value in array.ravel()]
    items = [value[0] if len(value) else "" for value in values]
    return [(v.decode("utf-8", "replace") if isinstance(v, bytes) else str(v)).strip() for v in items]


def _features(name: str, array: Array) -> Tensor:
    """float32 (n, d) features, or (n, c, H, W) images in [0, 1]."""
    if array.dtype.kind not in "fiub":
        raise DataError(f"{name} must be numbers, got {array.dtype}")
    if name == "image" and array.ndim > 2 and array.dtype == np.uint8:
        x = unit_range(torch.from_numpy(np.ascontiguousarray(array)))
    else:
        with np.errstate(over="ignore"):  # a number too large for float32 becomes infinity, which PairSet refuses
            x = torch.from_numpy(np.ascontiguousarray(array, np.float32))
    return x.unsqueeze(1) if name == "image" and x.ndim == 3 else x


def _label_names(labels: list[Array]) -> list[str] | None:
    """The classes of string labels, in alphabetical order."""
    if not any(a.dtype.kind in "USO" for a in labels):
        return None
    return sorted({label for a in labels for label in _strings(a)})


def _labels(array: Array, classes: list[str] | None) -> Tensor:
    """int64 (n,) or bool (n, C)."""
    if array.dtype.kind in "USO":
        index = {label: i for i, label in enumerate(classes or [])}
        values = _strings(array)
        unknown = next((row for row, value in enumerate(values) if value not in index), None)
        if unknown is not None:
            raise DataError(f"labels must be among the classes, got {values[unknown]!r} in row {unknown}")
        return torch.tensor([index[value] for value in values])
    array = vector(array)
    if array.dtype.kind not in "fiub" or array.ndim not in (1, 2):
        raise DataError(f"labels must be numbers (n,) or (n, C), or strings, got {array.dtype} {array.shape}")
    good = array == np.round(array) if array.ndim == 1 else ((array == 0) | (array == 1)).all(1)
    if not good.all():
        needed = "whole numbers" if array.ndim == 1 else "0 or 1 in every column"
        raise DataError(f"labels must be {needed}, got others in row {int(np.flatnonzero(~good)[0])}")
    return torch.from_numpy(array.astype(np.bool_ if array.ndim == 2 else np.int64))
