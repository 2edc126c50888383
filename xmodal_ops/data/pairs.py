"""Image-text pairs, and data sets of pairs split for training, validation and test."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from .. import _checks
from .._dtypes import dtype_name
from ..errors import UserError

_LABELS = ((torch.int64, 1), (torch.bool, 2))


class DataError(UserError):
    """Unusable data, such as a missing or damaged file, unequal rows or NaN. The message is one line."""


class DataWarning(UserWarning):
    """Something about a data set that its user should know, such as the names of arrays that are not used."""


@dataclass(frozen=True, eq=False)
class PairSet(Dataset[dict[str, Tensor]]):
    """n pairs; row i of `image` and row i of `text` belong together. Rows are counted from 0.

    `pairs[i]` is a dict of tensors with the keys "image", "text" and, if the set has labels, "labels". The index may
    be an int, a slice, or a list or tensor of rows, so a whole batch costs one indexing operation.

    Args:
        image: (n, dv) features or (n, c, H, W) images, floating.
        text: (n, dt) features, floating.
        labels: int64 (n,), one class per pair, or bool (n, C), any number of classes per pair.
        names: n strings that identify the pairs in tables and plots.
        groups: int64 (n,). `split` keeps the pairs of a group together.

    Raises:
        DataError: the views have unequal numbers of rows, a value is NaN or infinite, or a label is negative (the
            message gives the row).
    """

    image: Tensor
    text: Tensor
    labels: Tensor | None = None
    names: list[str] | None = None
    groups: Tensor | None = None

    def __post_init__(self) -> None:
        for name, x, ranks in (("image", self.image, (2, 4)), ("text", self.text, (2,))):
            if not isinstance(x, Tensor):
                raise TypeError(f"{name} must be a torch.Tensor, got {type(x).__name__}")
            if x.ndim not in ranks or 0 in x.shape[1:]:
                shape = "(n, dv) or (n, c, H, W)" if name == "image" else "(n, dt)"
                raise DataError(f"{name} must have shape {shape}, got {tuple(x.shape)}")
            if not x.is_floating_point():
                raise DataError(f"{name} must be floating, got {dtype_name(x.dtype)}")
            if (row := _checks.nonfinite_row(x)) is not None:
                raise DataError(f"{name} holds NaN or infinity in row {row}")
        for name, given in (("labels", self.labels), ("groups", self.groups)):
            if given is not None and not isinstance(given, Tensor):
                raise TypeError(f"{name} must be a torch.Tensor, got {type(given).__name__}")
        if self.groups is not None and (self.groups.dtype, self.groups.ndim) != (torch.int64, 1):
            raise DataError(
                f"groups must be int64 (n,), got {dtype_name(self.groups.dtype)} {tuple(self.groups.shape)}"
            )
        if self.labels is not None and (self.labels.dtype, self.labels.ndim) not in _LABELS:
            got = f"{dtype_name(self.labels.dtype)} {tuple(self.labels.shape)}"
            raise DataError(f"labels must be int64 (n,) or bool (n, C), got {got}")
        n = len(self.image)
        views = ("text", self.text), ("labels", self.labels), ("names", self.names), ("groups", self.groups)
        for name, rows in views:
            if rows is not None and len(rows) != n:
                raise DataError(f"{name} must have as many rows as image, {n}, got {len(rows)}")
        if self.labels is not None and self.labels.ndim == 1 and (self.labels < 0).any():
            row = int((self.labels < 0).nonzero()[0])
            raise DataError(f"labels must be >= 0, got {int(self.labels[row])} in row {row}")

    def __len__(self) -> int:
        return len(self.image)

    def __getitem__(self, index: int | slice | Sequence[int] | Tensor) -> dict[str, Tensor]:
        item = {"image": self.image[index], "text": self.text[index]}
        if self.labels is not None:
            item["labels"] = self.labels[index]
        return item

    def subset(self, indices: Sequence[int] | Tensor | np.ndarray) -> PairSet:
        """The pairs of the given rows, in that order."""
        rows = torch.as_tensor(indices, dtype=torch.int64)
        names = None if self.names is None else [self.names[i] for i in rows.tolist()]
        labels, groups = (None if x is None else x[rows] for x in (self.labels, self.groups))
        return PairSet(self.image[rows], self.text[rows], labels, names, groups)

    @staticmethod
    def concatenate(first: PairSet, second: PairSet) -> PairSet:
        """The pairs of `first`, then those of `second`."""
        labels, groups = (
            None if a is None or b is None else torch.cat([a, b])
            for a, b in ((first.labels, second.labels), (first.groups, second.groups))
        )
        names = None if first.names is None or second.names is None else first.names + second.names
        image, text = (torch.cat(views) for views in ((first.image, second.image), (first.text, second.text)))
        return PairSet(image, text, labels, names, groups)

    def split(self, fraction: float, seed: int = 0) -> tuple[PairSet, PairSet]:
        """Splits off a random `fraction` of the pairs, max(1, round(fraction * n)) of them.

        Single labels stratify the split: each class contributes its share, to within one pair. Rows keep their order.
        If the pairs have groups, the fraction is one of the groups, whose first pairs stand for them.

        Returns:
            The remaining pairs and those split off.
        """
        n = len(self)
        if isinstance(seed, bool) or not isinstance(seed, (int, np.integer)) or seed < 0:
            raise DataError(f"seed must be an integer >= 0, got {seed!r}")
        first, group = np.arange(n), np.arange(n)
        if self.groups is not None:
            _, first, group = np.unique(self.groups.numpy(force=True), return_index=True, return_inverse=True)
        units, what = len(first), "pairs" if self.groups is None else "groups"
        if not 0 < fraction < 1 or (held := max(1, round(fraction * units))) >= units:
            raise DataError(f"fraction must leave {what} on both sides of the split, got {fraction} of {units} {what}")
        order = np.random.default_rng(seed).permutation(units)
        if self.labels is not None and self.labels.ndim == 1:
            order = order[np.argsort(self.labels.numpy(force=True)[first][order], kind="stable")]
        chosen = np.zeros(units, np.bool_)
        # Evenly spaced ones in the order of their classes.
        chosen[order[(np.arange(held) * 2 + 1) * units // (2 * held)]] = True
        chosen = chosen[group]
        return self.subset(np.flatnonzero(~chosen)), self.subset(np.flatnonzero(chosen))


@dataclass(frozen=True, eq=False)
class PairData:
    """A data set of pairs, split for training, model selection and final evaluation.

    Args:
        train, validation, test: the splits.
        name: identifies the data set in reports.
        classes: the class names, one for each value of single labels or each column of multi-labels.
        description: one line about the data set.
        notes: lines about what is not used or missing in its files.

    Raises:
        DataError: a split is empty, the splits' widths or kinds of labels differ, or a label has no class.
    """

    train: PairSet
    validation: PairSet
    test: PairSet
    name: str
    classes: list[str] | None = None
    description: str = ""
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for split, pairs in (("train", self.train), ("validation", self.validation), ("test", self.test)):
            if not len(pairs):
                raise DataError(f"{split} holds no pairs")
            for view in ("image", "text"):
                shape, needed = (tuple(getattr(p, view).shape[1:]) for p in (pairs, self.train))
                if shape != needed:
                    raise DataError(f"{split} {view} must have rows of shape {needed} as in train, got {shape}")
            if (pairs.labels is None) != (self.train.labels is None):
                raise DataError(f"{split} and train must both have labels or both have none")
            if pairs.labels is None or self.train.labels is None:
                continue
            kinds = [
                f"bool (n, {p.shape[1]})" if p.ndim == 2 else "int64 (n,)" for p in (self.train.labels, pairs.labels)
            ]
            if kinds[0] != kinds[1]:
                raise DataError(f"{split} labels must be {kinds[0]} as in train, got {kinds[1]}")
            if self.classes is None:
                continue
            if pairs.labels.ndim == 2 and pairs.labels.shape[1] != len(self.classes):
                raise DataError(f"{split} labels must have {len(self.classes)} columns, got {pairs.labels.shape[1]}")
            if pairs.labels.ndim == 1 and int(pairs.labels.max()) >= len(self.classes):
                row = int((pairs.labels >= len(self.classes)).nonzero()[0])
                got = int(pairs.labels[row])
                raise DataError(f"{split} labels must lie in 0..{len(self.classes) - 1}, got {got} in row {row}")

    def with_validation(self) -> PairData:
        """The data set with the validation pairs added to the training pairs, for retraining after model selection."""
        return replace(self, train=PairSet.concatenate(self.train, self.validation))

    def whole(self) -> PairSet:
        """All pairs: those for training, then those for validation, then those for testing."""
        return PairSet.concatenate(self.with_validation().train, self.test)
