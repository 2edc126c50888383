"""The Wikipedia data set of Rasiwasia et al. (ACM MM 2010): features of 2,866 pairs in ten categories."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from ..errors import one_line
from .files import arrays, assemble
from .pairs import DataError, PairData, PairSet


def load(path: str | os.PathLike[str], *, seed: int = 0, validation: float = 0.2, split: str = "official") -> PairData:
    """Reads the official split, 2,173 training and 693 test pairs, and holds out training pairs for validation.

    Args:
        path: the directory that holds raw_features.mat (I_tr, I_te: 128-d counts of SIFT words; T_tr, T_te: 10-d LDA
            topics), trainset_txt_img_cat.list, testset_txt_img_cat.list and categories.list.
        seed: draws the validation pairs.
        validation: the fraction of the training pairs, and of each category among them, held out.
        split: "official", or "1300" for 1,300 training and 1,566 test pairs as in ACMR's paper. The paper does not say
            which pairs these are. Here all pairs are sorted by the names of their texts and divided by
            `PairSet.split(1566 / 2866, seed=0)`, with every category in proportion.

    Returns:
        The data set; `PairSet.names` holds the names of the texts.

    Raises:
        DataError: one line: a file is missing or damaged.
    """
    if split not in ("official", "1300"):
        raise ValueError(f"split must be official or 1300, got {split!r}")
    path = Path(path)
    if not path.is_dir():
        raise DataError(f"{path}: no such directory")
    found = arrays(path / "raw_features.mat")
    classes = [line for line in _lines(path / "categories.list") if line]
    found["", "classes"] = np.array(classes)
    for part in ("train", "test"):
        file = path / f"{part}set_txt_img_cat.list"
        names, labels = [], []
        for number, line in enumerate(_lines(file), 1):
            fields = line.split()
            if len(fields) != 3 or fields[2] not in map(str, range(1, len(classes) + 1)):
                raise DataError(f"{file}: line {number} must be text, image, category 1..{len(classes)}, got {line!r}")
            names.append(fields[0])
            labels.append(int(fields[2]) - 1)
        found[part, "names"], found[part, "labels"] = np.array(names), np.array(labels)
    try:
        data = assemble(found, "wikipedia", seed, (validation, 0.0))
    except DataError as error:
        raise DataError(f"{path}: {error}") from None
    if split == "official":
        return data
    whole = PairSet.concatenate(PairSet.concatenate(data.train, data.validation), data.test)
    names = whole.names or []
    whole = whole.subset(sorted(range(len(whole)), key=names.__getitem__))
    rest, test = whole.split(1566 / 2866, seed=0)
    train, held = rest.split(validation, seed)
    return PairData(train, held, test, "wikipedia-1300", data.classes, data.description)


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        raise DataError(f"{path}: no such file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read ({one_line(error)})") from None
