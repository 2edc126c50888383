"""Published sets as the feature files that are passed around for them. Nothing is downloaded: fetch them by hand."""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from .files import READERS, assemble
from .pairs import DataError, PairData, one_line

Array = npt.NDArray[Any]


class Collection(NamedTuple):
    """A published set: what it is, what to fetch, and which protocol is usual."""

    title: str
    fetch: str
    several_labels: bool
    captions: bool = False  # its texts are captions in one of Karpathy's dataset_*.json


COLLECTIONS = {
    "pascal-sentence": Collection(
        "Pascal Sentence (Rashtchian et al. 2010): 1,000 pictures, five sentences each, 20 classes; 800/100/100",
        "train_img.mat, train_txt.mat, train_img_lab.mat and the same of test (and valid), of DSCMR's authors, "
        "say; or one file with these arrays",
        False,
    ),
    "nus-wide-10k": Collection(
        "NUS-WIDE-10k (Feng et al. 2014): 10,000 pictures with tags, the 10 largest classes; usually 8,000/1,000/1,000",
        "the arrays train_img, train_txt, train_lab and the same of valid and test, in one file or one each",
        False,
    ),
    "xmedia": Collection(
        "XMedia (Peng et al. 2016): 5,000 pictures and 5,000 texts of 20 classes; 4,000/1,000",
        "XMediaFeatures.mat of Peking University, with I_tr_CNN, T_tr_BOW, trImgCat, trTxtCat and the same of te",
        False,
    ),
    "iapr-tc12": Collection(
        "IAPR TC-12 (Escalante et al. 2010): 20,000 pictures with descriptions, 255 labels, any number each",
        "a .mat with XDatabase, YDatabase, databaseL, XTest, YTest, testL, or with XAll, YAll, LAll",
        True,
    ),
    "coco": Collection(
        "MS-COCO, Karpathy's split: 113,287/5,000/5,000 pictures, five captions each",
        "dataset_coco.json, and the features of its images in its order: vgg_feats.mat, or a .npz, .h5 or .mat with an "
        "array feats, features or image; an array labels (n, 80) beside it makes labels",
        True,
        True,
    ),
    "flickr8k": Collection(
        "Flickr8k, Karpathy's split: 6,000/1,000/1,000 pictures, five captions each",
        "dataset_flickr8k.json and vgg_feats.mat (flickr8k.zip of NeuralTalk)",
        True,
        True,
    ),
    "flickr30k": Collection(
        "Flickr30k, Karpathy's split: 29,000/1,014/1,000 pictures, five captions each",
        "dataset_flickr30k.json and vgg_feats.mat (flickr30k.zip of NeuralTalk)",
        True,
        True,
    ),
}

_SPLITS = {"train": "train", "tr": "train", "database": "train", "valid": "validation", "val": "validation",
           "validation": "validation", "test": "test", "te": "test", "all": "", "": ""}  # fmt: skip
# split and kind are found in these ways: train_img_lab, I_tr_CNN, trImgCat, XDatabase, testL, LAll
_SPLIT = "train|test|tr|te|valid|validation|val|database|all"
_IMAGE, _TEXT, _LABEL = (
    "img|imgs|image|images|i|x|visual|feats|features",
    "txt|txts|text|texts|t|y",
    "lab|label|labels|cat|l",
)
_FORMS = [
    re.compile(rf"^(?P<split>{_SPLIT})?_?(?P<view>{_IMAGE}|{_TEXT})??_?(?P<label>{_LABEL})$"),
    re.compile(rf"^(?P<split>{_SPLIT})?_?(?P<view>{_IMAGE}|{_TEXT})$"),
    re.compile(rf"^(?P<view>{_IMAGE}|{_TEXT})_?(?P<split>{_SPLIT})(_[a-z0-9]+)?$"),
    re.compile(rf"^(?P<label>{_LABEL})_?(?P<split>{_SPLIT})$"),
    re.compile(rf"^(?P<view>{_IMAGE}|{_TEXT})_(?P<label>{_LABEL})_(?P<split>{_SPLIT})$"),
]
_EXPECTED = "train_img, train_txt, train_lab and the same of test; or XDatabase, YDatabase, databaseL, XTest, ..."


def load(name: str, path: str | os.PathLike[str], *, seed: int = 0, validation: float = 0.1) -> PairData:
    """One of COLLECTIONS from the file or the directory at `path`; `fetch` there says what it is to hold.

    Labels may be classes from 0 or from 1, strings, one column for each class, and of images and texts separately,
    if these agree. Where there is no validation split, a fraction `validation` of the training pairs, drawn by
    `seed` and by class, is held out for it; test pairs never serve.
    Captions become one text for each picture: TF-IDF of the 3,000 commonest words that five training pictures have.

    Raises DataError, one line, for missing or damaged files, missing arrays (naming those found and expected),
    unequal rows, labels of a pair that differ.
    """
    if name not in COLLECTIONS:
        raise ValueError(f"name must be one of {', '.join(COLLECTIONS)}, got {name!r}")
    path, collection = Path(path), COLLECTIONS[name]
    try:
        if not path.exists():
            raise DataError("no such file or directory")
        found = _captions(path) if collection.captions else _by_role(_contents(path))
        for key in [key for key in found if key[1] == "labels"]:
            found[key] = _labels(found[key], collection.several_labels)
        return assemble(found, name, seed, (validation, 0.0 if ("test", "image") in found else validation))
    except DataError as error:
        raise DataError(f"{path}: {error}; {name} needs {collection.fetch}") from None


def _contents(path: Path) -> dict[str, Array]:
    """All numeric or string arrays of a file, or of the feature files of a directory; a lone array of no telling
    name (as in train_img.mat with a variable "data") goes by the file's.
    """
    files = sorted(p for p in path.iterdir() if p.suffix.lower() in READERS) if path.is_dir() else [path]
    if not files:
        raise DataError(f"holds no file that ends in {', '.join(READERS)}")
    out: dict[str, Array] = {}
    for file in files:
        if file.suffix.lower() not in READERS:
            raise DataError(f"must end in {', '.join(READERS)}")
        try:
            arrays = READERS[file.suffix.lower()](file, lambda _: True)
        except Exception as error:
            raise DataError(f"{file.name} is damaged, or no {file.suffix} file ({one_line(error)})") from None
        known = {key: a for key, a in arrays.items() if a is not None and not key.startswith("__")}
        if len(known) == 1 and _role(next(iter(known))) is None:
            known = {file.stem: known.popitem()[1]}
        for key, array in known.items():
            if key in out:
                raise DataError(f"{key} occurs in several files")
            out[key] = array
    return out


def _role(name: str) -> tuple[str, str, str] | None:
    """(split, "image", "text" or "labels", the view of the labels if told), or None for an array of no concern."""
    name = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name.strip("/").replace("/", "_")).lower()
    name = re.sub(r"^(x|y|l|i|t)(database|all|test|train)", r"\1_\2", name)
    name = re.sub(r"_(cnn|bow)$", "", name)
    for form in _FORMS:
        if match := form.match(name):
            parts = match.groupdict()
            view = parts.get("view") or ""
            side = "image" if view and re.fullmatch(_IMAGE, view) else "text" if view else ""
            role = "labels" if parts.get("label") else side
            return _SPLITS[parts.get("split") or ""], role, side
    return None


def _by_role(contents: dict[str, Array]) -> dict[tuple[str, str], Array]:
    found: dict[tuple[str, str], Array] = {}
    of: dict[tuple[str, str], str] = {}
    for name, array in contents.items():
        if (key := _role(name)) is None:
            continue
        split, role, _ = key
        if (split, role) in found:
            other = found[split, role]
            if role != "labels":
                raise DataError(f"{of[split, role]} and {name} both mean {split} {role}".strip())
            if other.shape != array.shape or not np.array_equal(other, array):
                raise DataError(f"{of[split, role]} and {name} must agree: the rows of both views must be pairs")
            continue
        found[split, role], of[split, role] = array, name
    splits = {split for split, _ in found}
    for role in ("image", "text"):
        if not any(r == role for _, r in found) or (
            splits - {""} and not {("train", role), ("test", role)} <= set(found)
        ):
            raise DataError(
                f"no {role} arrays by the names expected ({_EXPECTED}), found {', '.join(sorted(contents))}"
            )
    return found


def _labels(array: Array, several: bool) -> Array:
    """Classes from 0, or one column for each class; strings as they are."""
    if array.dtype.kind in "USO":
        return array
    if array.ndim == 2 and 1 in array.shape:
        array = array.ravel()
    if array.ndim == 2 and not several and ((array == 1).sum(1) == 1).all():
        return array.argmax(1)
    if array.ndim == 1 and len(array) and array.min() == 1:
        return array - 1
    return array


def _captions(path: Path) -> dict[tuple[str, str], Array]:
    """Karpathy's JSON with features of its images in the same order."""
    if not path.is_dir():
        raise DataError("must be a directory")
    documents = sorted(path.glob("dataset*.json"))
    if len(documents) != 1:
        raise DataError(f"must hold one dataset_*.json, found {len(documents)}")
    try:
        images = json.loads(documents[0].read_text(encoding="utf-8"))["images"]
        splits = np.array([{"restval": "train", "val": "validation"}.get(i["split"], i["split"]) for i in images])
        words = [[w.lower() for s in i["sentences"] for w in s.get("tokens") or s["raw"].split()] for i in images]
        names = np.array([str(i.get("filename", n)) for n, i in enumerate(images)])
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{documents[0].name} is damaged, or not one of Karpathy's ({one_line(error)})") from None
    contents = _contents(path)
    keys = {name: _role(name) for name in contents}
    features = [contents[name] for name, key in keys.items() if key is not None and key[1] == "image"]
    if len(features) != 1:
        raise DataError(f"needs one array feats, features or image, found {', '.join(sorted(contents))}")
    image = features[0].T if features[0].shape[0] != len(images) == features[0].shape[-1] else features[0]
    if len(image) != len(images):
        raise DataError(f"feats must have one row or column for each of {len(images)} images, got {features[0].shape}")
    found: dict[tuple[str, str], Array] = {("", "image"): image, ("", "text"): tf_idf(words, splits == "train")}
    found["", "split"], found["", "names"] = splits, names
    for name, key in keys.items():
        if key is not None and key[1] == "labels":
            found["", "labels"] = contents[name]
    return found


def tf_idf(words: list[list[str]], train: npt.NDArray[np.bool_], size: int = 3000, least: int = 5) -> Array:
    """float32 (n, vocabulary): (1 + log count) · log(pictures / pictures with the word), rows of length 1.

    Vocabulary and frequencies are those of the training rows: the `size` words that most of them have, each at least
    `least` (fewer where nothing would be left).
    """
    counts = [Counter(row) for row in words]
    documents = Counter(word for row, used in zip(counts, train) if used for word in row)
    least = min(least, max(documents.values(), default=0))
    vocabulary = sorted(w for w, n in documents.most_common(size) if n >= least)
    column = {word: i for i, word in enumerate(vocabulary)}
    if not vocabulary:
        raise DataError("the training captions hold no word")
    out = np.zeros((len(words), len(vocabulary)), np.float32)
    for row, count in enumerate(counts):
        for word, n in count.items():
            if word in column:
                out[row, column[word]] = 1 + np.log(n)
    out *= np.log((1 + int(train.sum())) / (1 + np.array([documents[w] for w in vocabulary]))).astype(np.float32) + 1
    return out / np.linalg.norm(out, axis=1, keepdims=True).clip(min=1e-12)
