"""The embedded data set: images of characters paired with their Unicode names. It needs no download."""

from __future__ import annotations

import itertools
import os
import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from .._images import unit_range
from ..errors import one_line
from .pairs import DataError, PairData, PairSet

# Faces that come with matplotlib. The first one draws the validation and test galleries.
FACES = (
    "DejaVuSans.ttf",
    "DejaVuSans-Bold.ttf",
    "DejaVuSans-Oblique.ttf",
    "DejaVuSansMono.ttf",
    "DejaVuSerif.ttf",
    "DejaVuSerif-Bold.ttf",
    "DejaVuSerif-Italic.ttf",
    "STIXGeneral.ttf",
)

# The classes of symbols, by block (first code point, last, class). Other characters are classed by script.
BLOCKS = (
    (0x2000, 0x206F, "PUNCTUATION"),
    (0x2070, 0x209F, "SUPERSCRIPTS AND SUBSCRIPTS"),
    (0x20A0, 0x20CF, "CURRENCY SYMBOLS"),
    (0x2100, 0x214F, "LETTERLIKE SYMBOLS"),
    (0x2150, 0x218F, "NUMBER FORMS"),
    (0x2190, 0x21FF, "ARROWS"),
    (0x2200, 0x22FF, "MATHEMATICAL OPERATORS"),
    (0x2300, 0x23FF, "TECHNICAL SYMBOLS"),
    (0x2460, 0x24FF, "ENCLOSED ALPHANUMERICS"),
    (0x2500, 0x257F, "BOX DRAWING"),
    (0x2580, 0x259F, "BLOCK ELEMENTS"),
    (0x25A0, 0x25FF, "GEOMETRIC SHAPES"),
    (0x2600, 0x26FF, "MISCELLANEOUS SYMBOLS"),
    (0x2700, 0x27BF, "DINGBATS"),
    (0x27C0, 0x27EF, "MATHEMATICAL OPERATORS"),
    (0x27F0, 0x27FF, "ARROWS"),
    (0x2800, 0x28FF, "BRAILLE"),
    (0x2900, 0x297F, "ARROWS"),
    (0x2980, 0x2AFF, "MATHEMATICAL OPERATORS"),
    (0x2B00, 0x2BFF, "ARROWS"),
    (0x4DC0, 0x4DFF, "HEXAGRAMS"),
    (0xA700, 0xA71F, "MODIFIER TONE LETTERS"),
    (0x1D300, 0x1D35F, "TETRAGRAMS"),
    (0x1D400, 0x1D7FF, "MATHEMATICAL ALPHANUMERICS"),
    (0x1F030, 0x1F09F, "DOMINO TILES"),
    (0x1F0A0, 0x1F0FF, "PLAYING CARDS"),
    (0x1F300, 0x1FAFF, "PICTOGRAPHS"),
)

# Words of a name that are attributes. Attributes such as "WITH ACUTE" are read from the names.
ATTRIBUTES = (
    "CAPITAL SMALL DIGIT COMBINING MODIFIER BOLD ITALIC SANS-SERIF SCRIPT FRAKTUR DOUBLE-STRUCK MONOSPACE "
    "DOUBLE TRIPLE BLACK WHITE HEAVY LIGHT CIRCLED SQUARED TURNED REVERSED INVERTED LONG "
    "VERTICAL HORIZONTAL LEFTWARDS RIGHTWARDS UPWARDS DOWNWARDS ISOLATED INITIAL MEDIAL FINAL "
    "LEFT RIGHT UP DOWN UPPER LOWER ABOVE BELOW HALF OPEN NOT TONE LIGATURE "
    "ARROW HARPOON TRIANGLE CIRCLE SQUARE BRACKET EQUAL"
)

_RARE = 20  # rarer classes join OTHER, rarer attributes are left out
_HELD_OUT = 1000  # characters in each of the two galleries

Array = npt.NDArray[Any]


def load(
    size: int = 32,
    seed: int = 0,
    fonts: Sequence[str | os.PathLike[str]] | None = None,
    *,
    multi_label: bool = False,
) -> PairData:
    """Draws images of characters and computes TF-IDF features of their Unicode names.

    The split is by character, never by face: 1,000 characters are held out for testing and 1,000 for validation (a
    fifth each if the first face draws fewer than 5,000), with one image each, in the first face. The training set
    holds all images of all other characters, in every face. No image occurs twice: if characters look alike, such as
    LATIN, GREEK and CYRILLIC CAPITAL LETTER A, only the first by code point keeps the image. Blank and .notdef glyphs
    are left out. Drawing takes about two seconds and is repeated at every call, so no cache can go stale.

    Args:
        size: the side of the square images in pixels.
        seed: draws the split.
        fonts: font files instead of matplotlib's (FACES); the first one draws the galleries.
        multi_label: label characters by the attributes in their names (CAPITAL, DOUBLE, WITH ACUTE, ...), any number
            each, instead of by script or block (LATIN, ARROWS, ...), one each.

    Returns:
        The data set. `image` is float32 (n, 1, size, size) in 0..1, and ink is 1. `text` is float32 (n, terms): TF-IDF
        of the words, single digits, pairs of neighbours and pieces of words in the name, fitted to the training
        characters only. `labels` is int64 (n,), or bool (n, C) with `multi_label`. `names` holds the Unicode names;
        `unicodedata.lookup` returns the character.

    Raises:
        DataError: a font is missing, cannot be read, or draws too few named characters.
    """
    if size < 8:
        raise ValueError(f"size must be at least 8 pixels, got {size}")
    paths = _matplotlib_faces() if fonts is None else [Path(f) for f in fonts]
    if not paths:
        raise ValueError("fonts must hold at least one file, got none")
    images, points, faces = _draw(size, paths)
    characters, of = np.unique(points, return_inverse=True)
    names = [unicodedata.name(chr(c)) for c in characters]

    in_first = np.random.default_rng(seed).permutation(of[faces == 0])
    held_out = min(_HELD_OUT, len(in_first) // 5)
    if held_out < 1:
        raise DataError(f"{paths[0]}: draws {len(in_first)} named characters, at least 5 are needed")
    split = np.full(len(characters), "train", "<U10")
    split[in_first[:held_out]] = "test"
    split[in_first[held_out : 2 * held_out]] = "validation"

    text = _name_features(names, split == "train")
    classes, labels = _attributes(names) if multi_label else _scripts(characters.tolist(), names)

    def pairs(which: str) -> PairSet:
        rows = np.flatnonzero((split[of] == which) & ((faces == 0) | (which == "train")))
        image = unit_range(torch.from_numpy(images[rows]).unsqueeze(1))
        c = of[rows]
        return PairSet(image, torch.from_numpy(text[c]), torch.from_numpy(labels[c]), [names[i] for i in c])

    characters_in = f"{len(characters)} characters in {len(paths)} faces"
    return PairData(
        pairs("train"),
        pairs("validation"),
        pairs("test"),
        name="glyphs",
        classes=classes,
        description=f"{len(images)} images of {characters_in}, {size}x{size} pixels",
    )


def _matplotlib_faces() -> list[Path]:
    import matplotlib

    return [Path(matplotlib.get_data_path(), "fonts", "ttf", face) for face in FACES]


def _draw(size: int, fonts: Sequence[Path]) -> tuple[Array, Array, Array]:
    """Distinct images uint8 (n, size, size), their code points (n,) and the indices of their fonts (n,)."""
    drawn = [(point, face, image) for face, font in enumerate(fonts) for point, image in _face(size, font).items()]
    first: dict[bytes, tuple[int, int]] = {}
    for point, face, image in sorted(drawn):
        first.setdefault(image, (point, face))
    images = np.frombuffer(b"".join(first), np.uint8).reshape(-1, size, size)
    points, faces = np.array(list(first.values()), np.int64).reshape(-1, 2).T
    return images, points, faces


def _face(size: int, path: Path) -> dict[int, bytes]:
    """The images of a font's named characters by code point, without blank and .notdef glyphs.

    A glyph is centred horizontally. Vertically it keeps its position on the line, which distinguishes a comma from an
    apostrophe. A glyph larger than the image is scaled down. Drawing at four times the size, then averaging, keeps
    the distortion by hinting small.
    """
    from matplotlib.ft2font import FT2Font
    from PIL import Image, ImageDraw, ImageFont

    big = 4 * size
    try:
        charmap = FT2Font(str(path)).get_charmap()
        font = ImageFont.truetype(str(path), 3 * size, layout_engine=ImageFont.Layout.BASIC)
    except FileNotFoundError:
        raise DataError(f"{path}: no such font file") from None
    except (OSError, RuntimeError) as error:
        raise DataError(f"{path}: not a font that FreeType can read ({one_line(error)})") from None
    canvas = Image.new("L", (big, big))
    pen = ImageDraw.Draw(canvas)

    def draw(character: str) -> bytes:
        face = font
        left, top, right, bottom = face.getbbox(character, anchor="ls")
        extent = max(right - left, bottom - top)
        if extent > big:
            face = font.font_variant(size=3 * size * big // extent)
            left, top, right, bottom = face.getbbox(character, anchor="ls")
        baseline = max(min(3 * size, big - bottom), -top)
        canvas.paste(0, (0, 0, big, big))
        pen.text(((big - right - left) // 2, baseline), character, fill=255, font=face, anchor="ls")
        return canvas.reduce(4).tobytes()

    unwanted = {bytes(size * size), draw("\U0010ffff")}  # a noncharacter, which every font draws as .notdef
    drawn = {point: draw(chr(point)) for point in charmap if unicodedata.name(chr(point), "")}
    return {point: image for point, image in drawn.items() if image not in unwanted}


def _name_features(names: list[str], train: Array) -> Array:
    """TF-IDF (n, terms) of the names, fitted to the training rows."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    vectorizer = TfidfVectorizer(analyzer=_terms, min_df=5, dtype=np.float32)
    try:
        vectorizer.fit([name for name, t in zip(names, train) if t])
    except ValueError:
        raise DataError("too few named characters: no word occurs in five of their names") from None
    features: Array = vectorizer.transform(names).toarray()
    return features


def _terms(name: str) -> list[str]:
    """Words, single digits, pairs of neighbours, and pieces of words with two and three letters.

    Single digits describe names such as BRAILLE PATTERN DOTS-125. Pieces describe words that occur only once, such as
    the last one of CANADIAN SYLLABICS WEST-CREE PWII; without them a fifth of the test names would have a duplicate.
    """
    words = re.findall(r"[^\W\d]+|\d", name)  # runs of letters, and every digit by itself
    pairs = [f"{a} {b}" for a, b in itertools.pairwise(words)]
    bounded = [f"<{word}>" for word in words if len(word) > 1]
    pieces = [w[i : i + n] for w in bounded for n in (2, 3) for i in range(len(w) - n + 1)]
    return words + pairs + pieces


def _scripts(points: list[int], names: list[str]) -> tuple[list[str], Array]:
    """One class per character, int64 (n,): its block of symbols, or the script that its name begins with."""

    def script(point: int, name: str) -> str:
        block = next((label for first, last, label in BLOCKS if first <= point <= last), None)
        # The first word after any EXTENDED, with OLD if it precedes: LATIN, OLD ITALIC.
        return block or re.sub(r"^(?:EXTENDED )?((?:OLD )?\w+).*", r"\1", name)

    labels = [script(point, name) for point, name in zip(points, names)]
    count = Counter(labels)
    classes = sorted(label for label in count if count[label] >= _RARE)
    index = {label: i for i, label in enumerate(classes)}
    if len(index) < len(count):
        classes.append("OTHER")
    return classes, np.array([index.get(label, len(index)) for label in labels], np.int64)


def _attributes(names: list[str]) -> tuple[list[str], Array]:
    """Any number of attributes per character, bool (n, C): words of ATTRIBUTES, and the additions after WITH."""
    words = set(ATTRIBUTES.split())
    found = []
    for name in names:
        base, _, additions = name.partition(" WITH ")
        found.append(words.intersection(base.split()) | {f"WITH {a}" for a in additions.split(" AND ") if a})
    count = Counter(attribute for attributes in found for attribute in attributes)
    classes = sorted(attribute for attribute in count if count[attribute] >= _RARE)
    labels = np.array([[attribute in attributes for attribute in classes] for attributes in found], np.bool_)
    return classes, labels.reshape(len(names), len(classes))
