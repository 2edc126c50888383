"""Pair files: your own features in one npz, HDF5 or mat file."""

from __future__ import annotations

import os
import pickle
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from .._images import unit_range
from ..errors import one_line
from . import matlab, pickled
from .labels import STRINGS, class_numbers, plain
from .pairs import DataError, DataWarning, PairData, PairSet
from .roles import NEEDED, SPLIT_OF, SPLITS, ByRole, by_role, role_of

Array = npt.NDArray[Any]


def read(path: str | os.PathLike[str], *, seed: int = 0, fractions: tuple[float, float] = (0.1, 0.1)) -> PairData:
    """Reads a pair file: .npz, .h5 or .hdf5, .mat (any version).

    The names of its arrays say what they hold, in upper or lower case:

    * `image`: (n, dv) features, or (n, c, H, W) or (n, H, W) images (uint8 ones are divided by 255).
    * `text`: (n, dt) features, such as TF-IDF; they may be sparse in .mat.
    * `labels` (optional): (n,) classes, any integers or strings, or (n, C) of 0 and 1, any number per row. The class
      -1, an empty string and a row of zeros mark an item without a label. Classes are numbered from 0 in ascending
      order, and `PairData.classes` keeps their names.
    * `names` (optional): (n,) strings, the name of each pair.
    * `classes` (optional): (C,) strings, the name of each class; integer labels then count from 0.
    * `groups` (optional): (n,) integers or strings. A random split keeps the pairs of a group, such as those of one
      person or document, together.

    `roles.ROLES` lists the other accepted names, such as img, txt, label; X and Y stand for image and text. Other
    arrays are not read, and a warning names them. Strings may be MATLAB's cells or char arrays, or NumPy's arrays of
    objects.

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

    Warns:
        DataWarning: each line of `PairData.notes`, such as the names of arrays that are not used.

    Raises:
        DataError: one line that begins with the path: the file is missing, damaged or of another format, arrays are
            missing (the message names those found), or `PairSet` or `PairData` refuses them.
    """
    if not isinstance(path, (str, os.PathLike)):
        raise TypeError(f"path must be a string or a path, got {type(path).__name__}")
    path = Path(path)
    contents = _contents(path)
    try:
        data = assemble(by_role(contents), path.stem, seed, fractions, unused(contents))
    except DataError as error:
        raise DataError(f"{path}: {error}") from None
    for note in data.notes:
        warnings.warn(f"{path}: {note}", DataWarning, stacklevel=2)
    return data


def arrays(path: Path) -> ByRole:
    """The arrays of a pair file by split and role; arrays without a role are not read."""
    try:
        return by_role(_contents(path))
    except DataError as error:
        raise error if str(error).startswith(f"{path}: ") else DataError(f"{path}: {error}") from None


def _contents(path: Path) -> dict[str, Array | None]:
    if path.suffix.lower() not in READERS:
        raise DataError(f"{path}: a pair file ends in {', '.join(READERS)}")
    try:
        return contents_of(path, lambda name: role_of(name) is not None)
    except DataError as error:
        raise DataError(f"{path}: {error}") from None


def declares_split(path: Path) -> bool:
    """Whether the names of a file's arrays say which pairs are for testing; no array is read."""
    found = filter(None, map(role_of, contents_of(path, lambda name: False)))
    return any(split or role == "split" for split, role in found)


def unused(contents: Mapping[str, Array | None]) -> list[str]:
    """One line that names the arrays without a role, if there are any."""
    names = sorted(name for name in contents if role_of(name) is None)
    return [f"not used: {', '.join(names[:20])}{' ...' * (len(names) > 20)}"] if names else []


def contents_of(path: Path, wanted: Callable[[str], bool]) -> dict[str, Array | None]:
    """All arrays of a file by name; None for those that are not wanted, which are not read.

    Strings and cells are arrays of strings (`labels.plain`).
    """
    try:
        path.stat()
        if path.is_dir():
            raise DataError("a directory, not a file")
        with path.open("rb"):
            pass
        contents = READERS[path.suffix.lower()](path, wanted)
    except DataError:
        raise
    except FileNotFoundError:
        raise DataError("no such file") from None
    except ModuleNotFoundError as error:
        raise DataError(f"needs {error.name}, which is not installed: pip install xmodal-ops[train]") from None
    except PermissionError as error:
        raise DataError(f"cannot be read ({error.strerror})") from None
    except MemoryError:
        raise DataError("larger than the memory, or damaged") from None
    except Exception as error:  # a damaged file raises almost anything: zlib.error, BadZipFile, KeyError
        raise DataError(f"damaged, or not a {path.suffix} file ({one_line(error)})") from None
    return {name: None if array is None else plain(name, array) for name, array in contents.items()}


def _npz(path: Path, wanted: Callable[[str], bool]) -> dict[str, Array | None]:
    with np.load(path, allow_pickle=False) as file:
        return {name: _member(file, name) if wanted(name) else None for name in file.files}


def _member(file: Any, name: str) -> Array:
    member = f"{name}.npy" if f"{name}.npy" in file.zip.namelist() else name
    with file.zip.open(member) as stream:
        magic = stream.read(len(np.lib.format.MAGIC_PREFIX))
    if magic != np.lib.format.MAGIC_PREFIX:
        raise DataError(f"{name} must be an array in NumPy's format, got another file in the archive")
    try:
        return np.asarray(file[name])
    except ValueError:  # an array of objects, if the file is not damaged
        try:
            with file.zip.open(member) as stream:
                return pickled.read(stream)
        except pickle.UnpicklingError as error:
            raise DataError(
                f"{name} is a pickled array of Python objects ({one_line(error)}), which may run any code: "
                f"save numbers or strings, such as np.savez(..., {name}={name}.astype(str))"
            ) from None


def _hdf5(path: Path, wanted: Callable[[str], bool]) -> dict[str, Array | None]:
    import h5py

    with h5py.File(path, "r") as file:
        names: list[str] = []
        file.visititems(lambda name, item: names.append(name) if isinstance(item, h5py.Dataset) else None)
        return {name: _dataset(name, file[name]) if wanted(name) else None for name in names}


def _dataset(name: str, item: Any) -> Array:
    import h5py

    if item.shape is None or (item.dtype.kind == "O" and h5py.check_string_dtype(item.dtype) is None):
        what = "no value" if item.shape is None else "references" if h5py.check_ref_dtype(item.dtype) else "ragged rows"
        raise DataError(f"{name} must hold numbers or strings, got {what}")
    return np.asarray(item[()])


READERS = {".npz": _npz, ".h5": _hdf5, ".hdf5": _hdf5, ".mat": matlab.read}


def assemble(
    arrays: ByRole, name: str, seed: int, fractions: tuple[float, float], notes: list[str] | None = None
) -> PairData:
    """The data set of the given arrays; `read` describes the splits."""
    notes = list(notes or ())
    per_split = {split for split, role in arrays if split and role in NEEDED}
    for split, role in arrays:
        if role not in ("classes", "rows") and bool(split) != bool(per_split):
            these, this = ("are", "is not") if per_split else ("are not", "is")
            raise DataError(f"image and text {these} stored by split, but {role} {this}")
    rows = [split for split, role in arrays if role == "rows"]
    if rows and (per_split or ("", "split") in arrays):
        notes.append(f"not used: the row numbers of {', '.join(rows)}, as the split is given otherwise")
    classes = _strings(arrays["", "classes"]) if ("", "classes") in arrays else None
    labelled = {split: vector(a) for (split, role), a in arrays.items() if role == "labels"}
    numbers, classes = class_numbers(list(labelled.values()), classes)
    labels = dict(zip(labelled, _with_unlabelled(numbers, len(classes) if classes else 0, notes)))
    grouped = {split: vector(a) for (split, role), a in arrays.items() if role == "groups"}
    groups = dict(zip(grouped, _group_numbers(list(grouped.values()))))

    def pairs(split: str) -> PairSet:
        missing = [role for role in NEEDED if (split, role) not in arrays]
        if missing:
            raise DataError(f"{split} {' and '.join(missing)} missing".lstrip())
        names = arrays.get((split, "names"))
        try:
            return PairSet(
                _features("image", arrays[split, "image"]),
                _features("text", arrays[split, "text"]),
                labels.get(split),
                None if names is None else _strings(names),
                groups.get(split),
            )
        except DataError as error:
            raise DataError(f"{split} {error}".lstrip()) from None

    if per_split:
        parts = {split: pairs(split) for split in sorted(per_split | {"train", "test"})}
    else:
        whole = pairs("")
        if not len(whole):
            raise DataError("image holds no rows")
        parts = {split: whole.subset(rows) for split, rows in _split_rows(arrays, len(whole)).items()}
        if not parts:
            rest, parts["test"] = whole.split(fractions[1], seed)
            parts["train"], parts["validation"] = rest.split(fractions[0] / (1 - fractions[1]), seed)
    if "validation" not in parts:
        parts["train"], parts["validation"] = parts["train"].split(fractions[0], seed)
    for split, part in parts.items():
        if part.labels is not None and part.labels.ndim == 2 and not part.labels.any():
            notes.append(f"{split} holds no labelled item: its metrics are those without labels")
    members = [set() if p.groups is None else set(p.groups.tolist()) for p in (parts[s] for s in sorted(parts))]
    if straddling := sum(map(len, members)) - len(set().union(*members)):
        notes.append(f"{straddling} of the groups {'occurs' if straddling == 1 else 'occur'} in several splits")
    count = sum(len(part) for part in parts.values())
    return PairData(**parts, name=name, classes=classes, description=f"{count} pairs", notes=tuple(notes))


def _with_unlabelled(numbers: list[Tensor], classes: int, notes: list[str]) -> list[Tensor | None]:
    """The labels of all splits as `PairSet` takes them: columns if an item has no label, None if none has one."""
    single = bool(numbers) and numbers[0].ndim == 1
    lacking = sum(int((n < 0).sum() if single else (~n.any(1)).sum()) for n in numbers)
    count = sum(map(len, numbers))
    if lacking == count:
        if count:
            notes.append("labels not used: no item has a label")
        return [None] * len(numbers)
    if lacking:
        notes.append(f"{lacking} of {count} items have no label")
    if not (single and lacking):
        return list(numbers)
    classes = classes or max(int(n.max()) for n in numbers if len(n)) + 1
    return [n[:, None] == torch.arange(classes) for n in numbers]


def _group_numbers(groups: list[Array]) -> list[Tensor]:
    """int64 (n,) for each split: equal numbers for equal groups."""
    for array in groups:
        if array.ndim != 1 or array.dtype.kind not in "fiubUST":
            raise DataError(f"groups must be integers or strings (n,), got {array.dtype} {array.shape}")
    if not groups:
        return []
    number = np.unique(np.concatenate(groups), return_inverse=True)[1].astype(np.int64)
    return [torch.from_numpy(part) for part in np.split(number, np.cumsum([len(a) for a in groups])[:-1])]


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
        elif r.ndim != 1 or r.dtype.kind not in "fiu" or not np.isin(r, np.arange(n)).all():
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
    """The strings of an array of unicode, bytes or objects."""
    array = plain("names, classes and split", array)
    if array.dtype.kind not in STRINGS and array.size:
        raise DataError(f"names, classes and split must be strings, got {array.dtype}")
    return [str(value).strip() for value in array.ravel().tolist()]


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
