"""Published data sets, read from the feature files in circulation (docs/data.md). Nothing is downloaded."""

from __future__ import annotations

import json
import os
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from ..errors import one_line
from .files import READERS, assemble, contents_of, vector
from .pairs import DataError, PairData
from .roles import PUBLISHED, ByRole, by_role, role_of

Array = npt.NDArray[Any]


class Collection(NamedTuple):
    """A published data set: the files to fetch, and how to read them."""

    fetch: str
    several_labels: bool = False  # an item may have several labels
    captions: bool = False  # texts are captions in one of Karpathy's dataset_*.json


COLLECTIONS = {
    "pascal-sentence": Collection(
        "train_img.mat, train_txt.mat, train_img_lab.mat and the same of test (and valid), for example those of "
        "DSCMR's authors; or one file with these arrays"
    ),
    "nus-wide-10k": Collection(
        "the arrays train_img, train_txt, train_lab and the same of valid and test, in one file or one each"
    ),
    "xmedia": Collection(
        "XMediaFeatures.mat of Peking University, with I_tr_CNN, T_tr_BOW, trImgCat, trTxtCat and the same of te"
    ),
    "iapr-tc12": Collection(
        "a .mat with XDatabase, YDatabase, databaseL, XTest, YTest, testL, or with XAll, YAll, LAll",
        several_labels=True,
    ),
    "coco": Collection(
        "dataset_coco.json, and the features of its images in its order: vgg_feats.mat, or a .npz, .h5 or .mat with an "
        "array feats, features or image; an optional array labels (n, 80) in the same file gives the labels",
        several_labels=True,
        captions=True,
    ),
    "flickr8k": Collection(
        "dataset_flickr8k.json and vgg_feats.mat (flickr8k.zip of NeuralTalk)", several_labels=True, captions=True
    ),
    "flickr30k": Collection(
        "dataset_flickr30k.json and vgg_feats.mat (flickr30k.zip of NeuralTalk)", several_labels=True, captions=True
    ),
}


def load(name: str, path: str | os.PathLike[str], *, seed: int = 0, validation: float = 0.1) -> PairData:
    """Reads one of COLLECTIONS from a file or a directory.

    Labels may be any integers, strings, or one column for each class. They may be stored for images and
    texts separately if these agree. The captions of an image become one text (`tf_idf`).

    Args:
        name: a key of COLLECTIONS.
        path: the file or directory that holds what `COLLECTIONS[name].fetch` describes.
        seed: draws the validation pairs, by class, if the files declare none.
        validation: the fraction of the training pairs drawn for validation. Test pairs are never used for it.

    Raises:
        DataError: one line: files are missing or damaged, arrays are missing (the message names those found and
            expected), views have unequal numbers of rows, or the labels of images and texts differ.
    """
    if name not in COLLECTIONS:
        raise ValueError(f"name must be one of {', '.join(COLLECTIONS)}, got {name!r}")
    path, collection = Path(path), COLLECTIONS[name]
    try:
        if not path.exists():
            raise DataError("no such file or directory")
        found = _captions(path) if collection.captions else by_role(_contents(path), PUBLISHED)
        labels = {key: vector(array) for key, array in found.items() if key[1] == "labels"}
        if not collection.several_labels and all(map(_one_per_row, labels.values())):
            labels = {key: array.argmax(1) for key, array in labels.items()}
        found |= labels
        return assemble(found, name, seed, (validation, 0.0 if ("test", "image") in found else validation))
    except DataError as error:
        raise DataError(f"{path}: {error}; {name} needs {collection.fetch}") from None


def _contents(path: Path) -> dict[str, Array]:
    """All arrays of a file, or of the feature files of a directory.

    A file's only array takes the file's name if its own has no role, such as `data` in train_img.mat.
    """
    files = sorted(p for p in path.iterdir() if p.suffix.lower() in READERS) if path.is_dir() else [path]
    if not files:
        raise DataError(f"holds no file that ends in {', '.join(READERS)}")
    out: dict[str, Array] = {}
    for file in files:
        if file.suffix.lower() not in READERS:
            raise DataError(f"must end in {', '.join(READERS)}")
        try:
            contents = contents_of(file, lambda _: True)
        except DataError as error:
            raise DataError(f"{file.name}: {error}") from None
        arrays = {name: array for name, array in contents.items() if array is not None}
        if len(arrays) == 1 and role_of(next(iter(arrays)), PUBLISHED) is None:
            arrays = {file.stem: arrays.popitem()[1]}
        for name in arrays.keys() & out.keys():
            raise DataError(f"{name} occurs in several files")
        out |= arrays
    return out


def _one_per_row(labels: Array) -> bool:
    """Whether the labels are columns for the classes, one of which is 1 in every row."""
    return labels.ndim == 2 and labels.dtype.kind in "fiub" and bool(((labels == 1).sum(1) == 1).all())


def _captions(path: Path) -> ByRole:
    """Karpathy's JSON, and the features of its images in the same order."""
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
    except KeyError as error:
        raise DataError(f"{documents[0].name} is damaged, or not one of Karpathy's ({error})") from None
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise DataError(f"{documents[0].name} is damaged, or not one of Karpathy's ({one_line(error)})") from None
    found = by_role(_contents(path), PUBLISHED, needed=("image",))
    if ("", "image") not in found:
        raise DataError("the features of all splits must be in one array")
    image = found["", "image"]
    if image.shape[0] != len(images) == image.shape[-1]:
        image = image.T
    if len(image) != len(images):
        raise DataError(f"feats must have one row or column for each of {len(images)} images, got {image.shape}")
    labels = {key: array for key, array in found.items() if key == ("", "labels")}
    text = tf_idf(words, splits == "train")
    return {("", "image"): image, ("", "text"): text, ("", "split"): splits, ("", "names"): names, **labels}


def tf_idf(words: list[list[str]], train: npt.NDArray[np.bool_], size: int = 3000, least: int = 5) -> Array:
    """TF-IDF features of texts with sublinear term frequencies, fitted to the training rows.

    Args:
        words: the words of every text.
        train: bool (n,), the training rows. Vocabulary and document frequencies are theirs.
        size: the vocabulary holds at most this number of words, those in most training texts.
        least: a word must occur in this number of training texts, or in the largest number that any word reaches.

    Returns:
        float32 (n, vocabulary), rows of length 1, or 0 for a text without a word of the vocabulary.
    """
    from sklearn.feature_extraction.text import TfidfVectorizer

    training = [row for row, used in zip(words, train) if used]
    documents = Counter(word for row in training for word in dict.fromkeys(row))
    if not documents:
        raise DataError("the training captions hold no word")
    least = min(least, max(documents.values()))
    vocabulary = sorted(word for word, count in documents.most_common(size) if count >= least)
    vectorizer = TfidfVectorizer(
        analyzer=lambda row: row, vocabulary=vocabulary, sublinear_tf=True, dtype=np.float32
    ).fit(training)
    features: Array = vectorizer.transform(words).toarray()
    return features
