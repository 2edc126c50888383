"""Which array is which, by its name: the aliases that pair files and published feature files share.

A name consists of words, such as `train`, `img` and `lab` in `train_img_lab`. At most one word names a split. The
others, joined by underscores, name a role.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from .pairs import DataError

Array = npt.NDArray[Any]
ByRole = dict[tuple[str, str], Array]  # keys: (split or "", role)

ROLES = {
    "image": "image images img imgs image_features img_features visual x i v",
    "text": "text texts txt txts text_features txt_features y t",
    "labels": "labels label lab l targets target",
    "names": "names name",
    "classes": "classes class_names label_names categories",
    "groups": "groups group group_ids group_id",
    "split": "split splits",
    "rows": "rows idx index indices",  # of one split; the word may be left out: train, test_idx
}
NEEDED = ("image", "text")
SPLITS = {"train": "train training tr database", "validation": "validation valid val dev", "test": "test testing te"}


def _by_alias(aliases: Mapping[str, str]) -> dict[str, str]:
    return {alias: name for name, words in aliases.items() for alias in words.split()}


SPLIT_OF = _by_alias(SPLITS)
PAIR_FILES = _by_alias(ROLES)
PUBLISHED = _by_alias(
    {
        "image": ROLES["image"] + " feats features i_cnn x_all",
        "text": ROLES["text"] + " t_bow y_all",
        "labels": ROLES["labels"] + " img_lab txt_lab img_cat txt_cat l_all",
    }
)
del PUBLISHED["v"]  # video in XMedia

# A capital begins a word after a small letter (train|Img) and before one (X|Database, but not CNN).
_CAPITALS = re.compile(r"(?<=[a-z])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")


def role_of(name: str, aliases: Mapping[str, str] = PAIR_FILES) -> tuple[str, str] | None:
    """The split (or "") and the role that an array's name stands for; None if it stands for none."""
    words = re.findall(r"[a-z0-9]+", _CAPITALS.sub("_", name).lower())
    splits = [SPLIT_OF[word] for word in words if word in SPLIT_OF]
    role = aliases.get("_".join(word for word in words if word not in SPLIT_OF) or "rows")
    if role is None or len(splits) > 1 or (role == "rows" and not splits):
        return None
    return (splits[0] if splits else ""), role


def by_role(
    contents: Mapping[str, Array | None], aliases: Mapping[str, str] = PAIR_FILES, needed: Sequence[str] = NEEDED
) -> ByRole:
    """The arrays of a file by split and role, without those that have no role.

    Raises:
        DataError: a needed role is missing, or two names stand for one role (equal arrays of labels may do so).
    """
    found: ByRole = {}
    name_of: dict[tuple[str, str], str] = {}
    for name, array in contents.items():
        key = role_of(name, aliases)
        if key is None or array is None:
            continue
        if key not in found:
            found[key], name_of[key] = array, name
        elif key[1] != "labels":
            raise DataError(f"{name_of[key]} and {name} both mean {' '.join(key).strip()}")
        elif not np.array_equal(found[key].squeeze(), array.squeeze()):
            raise DataError(f"{name_of[key]} and {name} must agree: the rows of both views must be pairs")
    for role in needed:
        if all(present != role for _, present in found):
            others, names = ", ".join(ROLES[role].split()[1:]), ", ".join(sorted(contents)[:20])
            raise DataError(f"needs an array {role} (or {others}), found {names or 'none'}")
    return found
