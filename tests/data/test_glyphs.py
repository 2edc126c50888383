"""The embedded glyphs: the guarantees of the splits, and fonts made for these tests."""

from __future__ import annotations

import itertools
import re
import unicodedata
from collections import Counter

import pytest
import torch
from fontTools.fontBuilder import FontBuilder
from fontTools.pens.ttGlyphPen import TTGlyphPen

from xmodal_ops.data import DataError, glyphs, load


@pytest.fixture(scope="module")
def data():
    return load("glyphs")


def parts(data):
    return {"train": data.train, "validation": data.validation, "test": data.test}


def keys(pairs):
    return [picture.numpy().tobytes() for picture in pairs.image]


def test_sizes(data):
    assert (len(data.test), len(data.validation)) == (1000, 1000)
    assert 15_000 < len(data.train) < 25_000
    for pairs in parts(data).values():
        assert pairs.image.shape[1:] == (1, 32, 32)
        assert pairs.image.dtype == pairs.text.dtype == torch.float32
        assert 0 <= pairs.image.min() < pairs.image.max() <= 1


def test_characters_are_split_not_faces(data):
    names = {split: set(pairs.names) for split, pairs in parts(data).items()}
    assert len(names["test"]) == len(names["validation"]) == 1000  # one picture each
    assert (
        not names["test"] & names["validation"] | names["test"] & names["train"] | names["validation"] & names["train"]
    )
    most = Counter(data.train.names).most_common(1)[0][1]
    assert most == len(glyphs.FACES)


def test_no_picture_occurs_twice(data):
    pictures = [key for pairs in parts(data).values() for key in keys(pairs)]
    assert len(set(pictures)) == len(pictures)


def test_galleries_are_in_the_first_face(data):
    face = glyphs.load(fonts=[glyphs._matplotlib_faces()[0]])
    drawn = {key: name for pairs in parts(face).values() for key, name in zip(keys(pairs), pairs.names)}
    for pairs in (data.test, data.validation):
        assert [drawn[key] for key in keys(pairs)] == pairs.names


def test_one_seed_one_set(data):
    again, other = glyphs.load(seed=0), glyphs.load(seed=1)
    for split, pairs in parts(data).items():
        same = parts(again)[split]
        assert pairs.image.equal(same.image)
        assert pairs.text.equal(same.text)
        assert pairs.labels.equal(same.labels)
        assert pairs.names == same.names
        assert pairs.names != parts(other)[split].names


def test_text_knows_the_training_names_only(data):
    counts = Counter()
    for name in set(data.train.names):
        words = re.findall(r"[A-Z]+|\d", name)
        terms = {*words, *map(" ".join, itertools.pairwise(words))}
        for word in words:
            if len(word) > 1:
                terms.update(a + b for a, b in itertools.pairwise(f"<{word}>"))
                terms.update(f"<{word}>"[i : i + 3] for i in range(len(word)))
        counts.update(terms)
    assert data.train.text.shape[1] == sum(count >= 5 for count in counts.values())
    assert torch.allclose(data.test.text.norm(dim=1), torch.ones(1000))


def test_test_texts_differ(data):
    assert len(data.test.text.unique(dim=0)) >= 995


def test_names_lead_back_to_the_characters(data):
    assert all(unicodedata.name(unicodedata.lookup(name)) == name for name in data.test.names)


def test_scripts(data):
    expected = {
        "LATIN SMALL LETTER B": "LATIN",
        "GREEK SMALL LETTER PSI": "GREEK",
        "RIGHTWARDS ARROW": "ARROWS",
        "BRAILLE PATTERN DOTS-125": "BRAILLE",
        "OLD ITALIC LETTER ES": "OLD ITALIC",
        "AMPERSAND": "OTHER",
        "CIRCLED DIGIT THREE": "ENCLOSED ALPHANUMERICS",
    }
    label = {}
    for pairs in parts(data).values():
        assert pairs.labels.dtype == torch.int64
        label |= dict(zip(pairs.names, (data.classes[i] for i in pairs.labels)))
    assert {name: label[name] for name in expected} == expected
    assert set(range(len(data.classes))) == set(data.train.labels.tolist())


def test_attributes(data):
    multi = glyphs.load(multi_label=True)
    assert multi.test.names == data.test.names
    assert multi.test.image.equal(data.test.image)
    seen = Counter()
    for pairs in parts(multi).values():
        assert pairs.labels.dtype == torch.bool
        for name, row in zip(pairs.names, pairs.labels):
            found = {multi.classes[i] for i in row.nonzero().flatten()}
            seen.update(found)
            assert ("WITH ACUTE" in found) == bool(re.search(r"(WITH|AND) ACUTE( AND|$)", name)), name
            assert ("CAPITAL" in found) == ("CAPITAL" in name.partition(" WITH ")[0].split()), name
    assert set(seen) == set(multi.classes)
    assert multi.test.labels.any(1).float().mean() > 0.5


def test_sizes_of_pictures():
    small = glyphs.load(size=16, fonts=[glyphs._matplotlib_faces()[5]])
    assert small.train.image.shape[1:] == (1, 16, 16)


BOX = [(100, 0), (100, 700), (500, 700), (500, 0)]
WIDE = [(0, 300), (0, 400), (4000, 400), (4000, 300)]


def make_font(path, special, rectangles=60):
    """A font of different rectangles, from U+0100 on; `special` maps further characters to outlines."""
    outlines = {".notdef": BOX}
    for i in range(rectangles):
        top, right = 100 + 100 * (i % 6), 100 + 60 * (i // 6)
        outlines[f"g{i}"] = [(0, 0), (0, top), (right, top), (right, 0)]
    characters = {0x100 + i: f"g{i}" for i in range(rectangles)}
    for point, outline in special.items():
        characters[point] = f"s{point}"
        outlines[f"s{point}"] = outline
    builder = FontBuilder(1000)
    builder.setupGlyphOrder(list(outlines))
    builder.setupCharacterMap(characters)
    shapes = {}
    for name, outline in outlines.items():
        pen = TTGlyphPen(None)
        if outline:
            pen.moveTo(outline[0])
            for point in outline[1:]:
                pen.lineTo(point)
            pen.closePath()
        shapes[name] = pen.glyph()
    builder.setupGlyf(shapes)
    builder.setupHorizontalMetrics({name: (600, min((x for x, _ in o), default=0)) for name, o in outlines.items()})
    builder.setupHorizontalHeader(ascent=800, descent=-200)
    builder.setupNameTable({"familyName": "Test", "styleName": "Regular"})
    builder.setupOS2()
    builder.setupPost()
    builder.save(path)
    return path


def all_names(data):
    return [name for pairs in parts(data).values() for name in pairs.names]


def test_twins_blanks_notdef_and_controls_are_dropped(tmp_path):
    rectangle = [(0, 0), (0, 300), (220, 300), (220, 0)]  # g14's, of U+010E
    special = {
        0x41: [(0, 0), (0, 800), (50, 0)],
        0x20: [],
        0x2622: BOX,
        0x1: WIDE,
        0x416: rectangle,
        0xE000: WIDE[:3],
    }
    data = glyphs.load(fonts=[make_font(tmp_path / "a.ttf", special)])
    names = all_names(data)
    assert len(names) == len(set(names)) == 61
    assert "LATIN CAPITAL LETTER A" in names
    assert unicodedata.name("\u010e") in names
    for character in " \u2622\u0416":  # blank, drawn as .notdef, drawn as U+010E
        assert unicodedata.name(character) not in names
    assert (len(data.test), len(data.validation)) == (12, 12)


def test_large_glyphs_are_scaled_to_fit(tmp_path):
    data = glyphs.load(fonts=[make_font(tmp_path / "a.ttf", {0x41: WIDE})], size=32)
    pictures = {name: p[0] for pairs in parts(data).values() for name, p in zip(pairs.names, pairs.image)}
    columns = pictures["LATIN CAPITAL LETTER A"].sum(0)
    assert torch.all(columns[1:-1] > 0)
    assert columns.max() < 2  # 4000 x 100 units: 32 x 0.8 pixels


def test_more_faces_more_training_pictures(tmp_path):
    twin = make_font(tmp_path / "b.ttf", {0x41: WIDE})
    one = glyphs.load(fonts=[make_font(tmp_path / "a.ttf", {0x42: WIDE[:3]})])
    two = glyphs.load(fonts=[tmp_path / "a.ttf", twin])
    # The second face adds one character to those of the first; it is in training, as the first face lacks it.
    assert len(all_names(two)) == len(all_names(one)) + 1
    assert "LATIN CAPITAL LETTER A" in two.train.names


def test_font_errors(tmp_path):
    with pytest.raises(DataError) as info:
        glyphs.load(fonts=[tmp_path / "none.ttf"])
    assert str(info.value) == f"{tmp_path / 'none.ttf'}: no such font file"
    whole = make_font(tmp_path / "a.ttf", {}).read_bytes()
    for content in (b"", b"not a font\n" * 20, whole[:100], whole[: len(whole) // 2]):
        (tmp_path / "bad.ttf").write_bytes(content)
        with pytest.raises(DataError) as info:
            glyphs.load(fonts=[tmp_path / "bad.ttf"])
        assert str(info.value).startswith(f"{tmp_path / 'bad.ttf'}: ")
        assert "\n" not in str(info.value)
    with pytest.raises(DataError, match=r"no such font file|not a font"):
        glyphs.load(fonts=[tmp_path])
    (tmp_path / "tiny.ttf").write_bytes(make_font(tmp_path / "a.ttf", {}, rectangles=3).read_bytes())
    with pytest.raises(DataError, match=r"tiny.ttf: draws 3 named characters, at least 5 are needed"):
        glyphs.load(fonts=[tmp_path / "tiny.ttf"])
    with pytest.raises(ValueError, match="fonts must hold at least one file, got none"):
        glyphs.load(fonts=[])
    with pytest.raises(ValueError, match="size must be at least 8 pixels, got 4"):
        glyphs.load(size=4)
