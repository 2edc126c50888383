"""Pair files: every format gives the same pairs, and a damaged file gives an error of one line."""

from __future__ import annotations

import os
import zipfile

import h5py
import numpy as np
import pytest
import scipy.io
import scipy.sparse
from typer.testing import CliRunner

from xmodal_ops.cli.commands import app
from xmodal_ops.data import DataError, DataWarning, load, roles
from xmodal_ops.data.files import read

N = 40


@pytest.fixture
def arrays():
    rng = np.random.default_rng(0)
    return {
        "labels": np.arange(N) % 4,
        "text": rng.random((N, 3)),
        "image": rng.random((N, 5)),
    }


def write(path, arrays):
    if path.suffix == ".npz":
        np.savez(path, **arrays)
    elif path.suffix == ".mat":
        scipy.io.savemat(path, arrays)
    else:
        with h5py.File(path, "w") as file:
            for name, array in arrays.items():
                strings = array.dtype.kind == "U"
                file.create_dataset(name, data=array.astype(object) if strings else array)
    return path


def message(path, **options):
    with pytest.raises(DataError) as info:
        read(path, **options)
    text = str(info.value)
    assert "\n" not in text
    assert text.startswith(f"{path}: ")
    return text.removeprefix(f"{path}: ")


suffixes = pytest.mark.parametrize("suffix", [".npz", ".h5", ".hdf5", ".mat"])


@suffixes
def test_formats_agree(tmp_path, arrays, suffix):
    arrays["names"] = np.array([f"pair {i}" for i in range(N)])
    arrays["classes"] = np.array(["a", "bcd", "e", "fg"])
    data = load(write(tmp_path / f"mine{suffix}", arrays), seed=3, fractions=(0.1, 0.25))
    assert (len(data.train), len(data.validation), len(data.test)) == (26, 4, 10)
    assert (data.name, data.classes) == ("mine", ["a", "bcd", "e", "fg"])
    rows = []
    for part in (data.train, data.validation, data.test):
        of = [int(name.split()[1]) for name in part.names]
        rows += of
        np.testing.assert_array_equal(part.image.numpy(), arrays["image"][of].astype(np.float32))
        np.testing.assert_array_equal(part.text.numpy(), arrays["text"][of].astype(np.float32))
        np.testing.assert_array_equal(part.labels.numpy(), arrays["labels"][of])
    assert sorted(rows) == list(range(N))
    again = read(tmp_path / f"mine{suffix}", seed=3, fractions=(0.1, 0.25))
    assert again.test.names == data.test.names
    assert read(tmp_path / f"mine{suffix}", seed=4, fractions=(0.1, 0.25)).test.names != data.test.names


@pytest.mark.parametrize(
    "names",
    [
        ("I_tr", "T_tr", "I_te", "T_te"),
        ("train_image", "train_text", "test_image", "test_text"),
        ("X_train", "Y_train", "X_test", "Y_test"),
        ("img-training", "txt-training", "img-testing", "txt-testing"),
    ],
)
def test_arrays_per_split(tmp_path, arrays, names):
    image, text = arrays["image"], arrays["text"]
    parts = dict(zip(names, (image[:30], text[:30], image[30:], text[30:])))
    data = read(write(tmp_path / "a.npz", parts), fractions=(0.1, 0.5))
    assert (len(data.train), len(data.validation), len(data.test)) == (27, 3, 10)
    np.testing.assert_array_equal(data.test.image.numpy(), image[30:].astype(np.float32))
    np.testing.assert_array_equal(data.test.text.numpy(), text[30:].astype(np.float32))
    assert data.train.labels is None


@pytest.mark.parametrize(
    ("name", "pair_file", "published"),
    [
        ("train_img", ("train", "image"), ("train", "image")),
        ("txtValid", ("validation", "text"), ("validation", "text")),
        ("test_idx", ("test", "rows"), None),
        ("label_names", ("", "classes"), None),
        ("train_img_lab", None, ("train", "labels")),
        ("I_tr_CNN", None, ("train", "image")),
        ("teTxtCat", None, ("test", "labels")),
        ("databaseL", ("train", "labels"), ("train", "labels")),
        ("XAll", None, ("", "image")),
        ("V_te", ("test", "image"), None),
        ("train_test_image", None, None),
        ("comment", None, None),
    ],
)
def test_roles_by_name(name, pair_file, published):
    assert roles.role_of(name) == pair_file
    assert roles.role_of(name, roles.PUBLISHED) == published


def test_hdf5_groups(tmp_path, arrays):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        for split, rows in (("train", slice(0, 20)), ("val", slice(20, 30)), ("test", slice(30, 40))):
            for name, array in arrays.items():
                file[f"{split}/{name}"] = array[rows]
    data = read(tmp_path / "a.h5")
    np.testing.assert_array_equal(data.validation.text.numpy(), arrays["text"][20:30].astype(np.float32))
    np.testing.assert_array_equal(data.test.labels.numpy(), arrays["labels"][30:])


def test_split_array(tmp_path, arrays):
    arrays["split"] = np.array(["train"] * 20 + ["dev"] * 5 + ["test"] * 15)
    data = read(write(tmp_path / "a.mat", arrays))
    assert (len(data.train), len(data.validation), len(data.test)) == (20, 5, 15)
    np.testing.assert_array_equal(data.validation.labels.numpy(), arrays["labels"][20:25])
    arrays["split"][3] = "?"
    assert message(write(tmp_path / "a.npz", arrays)) == "split must be train, validation, test, got '?' in row 3"


def test_row_numbers_and_masks(tmp_path, arrays):
    arrays |= {"train": np.arange(25)[None], "test_idx": np.arange(N) >= 30, "val": np.array([27, 26])}
    data = read(write(tmp_path / "a.npz", arrays))
    assert (len(data.train), len(data.validation), len(data.test)) == (25, 2, 10)
    np.testing.assert_array_equal(data.validation.labels.numpy(), arrays["labels"][[27, 26]])
    overlap = arrays | {"val": np.array([24, 26])}
    assert message(write(tmp_path / "b.npz", overlap)) == "the splits must not overlap, row 24 occurs twice"
    outside = arrays | {"val": np.array([24, 40])}
    assert message(write(tmp_path / "c.npz", outside)) == "validation must hold row numbers in 0..39 or be bool (40,)"
    del arrays["test_idx"]
    assert message(write(tmp_path / "d.npz", arrays)) == "the split needs train and test, got train, validation"


def test_labels_of_every_kind(tmp_path, arrays):
    def labels(value, **more):
        data = read(write(tmp_path / "a.npz", arrays | {"labels": value} | more))
        return data, data.test.labels

    _, column = labels(np.arange(N)[:, None] % 4.0)
    assert (column.dtype.is_floating_point, column.ndim) == (False, 1)
    data, strings = labels(np.array(["dog", "cat"])[np.arange(N) % 2])
    assert data.classes == ["cat", "dog"]
    assert set(strings.tolist()) == {0, 1}
    many = np.random.default_rng(0).random((N, 6)) < 0.3
    _, multi = labels(many.astype(np.float64))
    assert multi.shape == (4, 6)
    assert multi.numpy().dtype == np.bool_
    bad = np.arange(N).astype(float)
    bad[7] = np.nan
    for value, expected in (
        (bad, "labels must be whole numbers, got others in row 7"),
        (np.eye(N)[:, :6] * 2, "labels must be 0 or 1 in every column, got others in row 0"),
        (np.zeros((N, 2, 2)), "labels must be numbers (n,) or (n, C), or strings, got float64 (40, 2, 2)"),
        (np.zeros(3), "labels must have as many rows as image, 40, got 3"),
    ):
        assert message(write(tmp_path / "b.npz", arrays | {"labels": value})) == expected
    classes = {"classes": np.array(["a", "b", "c"])}
    assert "labels must lie in 0..2, got 3 in row" in message(write(tmp_path / "c.npz", arrays | classes))
    unknown = classes | {"labels": np.array(["a", "x"] * 20)}
    assert message(write(tmp_path / "d.npz", arrays | unknown)) == "labels must be among the classes, got 'x' in row 1"


def test_pictures(tmp_path, arrays):
    pictures = np.random.default_rng(0).integers(0, 256, (N, 8, 8), np.uint8)
    pictures[0] = 255
    data = read(write(tmp_path / "a.npz", arrays | {"image": pictures, "test": np.arange(4), "train": np.arange(4, N)}))
    assert data.test.image.shape == (4, 1, 8, 8)
    assert data.test.image[0].min() == 1
    data = read(write(tmp_path / "a.h5", arrays | {"image": np.zeros((N, 3, 8, 8), np.float32)}))
    assert data.train.image.shape[1:] == (3, 8, 8)


def test_sparse_text_and_foreign_arrays(tmp_path, arrays):
    sparse = scipy.sparse.random(N, 12, 0.4, random_state=0)
    foreign = {
        "text": sparse,
        "comment": np.array(["x"]),
        "extra": np.zeros(3),
        "test": np.arange(9),
        "tr": np.arange(9, N),
    }
    data = read(write(tmp_path / "a.mat", arrays | foreign))
    np.testing.assert_array_equal(data.test.text.numpy(), sparse.toarray()[:9].astype(np.float32))


def test_matlab_7_3_is_transposed_hdf5(tmp_path, arrays):
    path = tmp_path / "a.mat"
    with h5py.File(path, "w", userblock_size=512) as file:
        for name, array in arrays.items():
            file[name] = np.atleast_2d(array).T if array.ndim == 2 else array[None]
    with open(path, "r+b") as file:  # MATLAB's header: its text, then the version and the byte order
        file.write(b"MATLAB 7.3 MAT-file".ljust(124) + b"\x00\x02IM")
    data = read(path, fractions=(0.1, 0.5))
    assert (data.train.image.shape[1], data.train.text.shape[1]) == (5, 3)
    rows = [int(np.flatnonzero((arrays["image"].astype(np.float32) == x).all(1))[0]) for x in data.test.image.numpy()]
    np.testing.assert_array_equal(data.test.text.numpy(), arrays["text"][rows].astype(np.float32))
    np.testing.assert_array_equal(data.test.labels.numpy(), arrays["labels"][rows])


@suffixes
def test_truncated_anywhere(tmp_path, arrays, suffix):
    path = write(tmp_path / f"a{suffix}", arrays)
    whole = path.read_bytes()
    read(path)
    for size in {*range(0, len(whole), len(whole) // 25), len(whole) - 1}:
        path.write_bytes(whole[:size])
        message(path)


@suffixes
def test_something_else(tmp_path, arrays, suffix):
    path = tmp_path / f"a{suffix}"
    assert message(path) == "no such file"
    for content in (
        b"",
        b"hello\nworld\n" * 100,
        np.random.default_rng(0).bytes(5000),
        b"PK\x03\x04" + bytes(500),
    ):
        path.write_bytes(content)
        assert message(path).startswith(f"damaged, or not a {suffix} file (")
    path.unlink()
    path.mkdir()
    assert message(path) == "a directory, not a file"


def test_flipped_bit(tmp_path, arrays):
    path = write(tmp_path / "a.npz", arrays)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)
    assert message(path).startswith("damaged, or not a .npz file (")


def test_pickles_are_not_loaded(tmp_path, arrays):
    path = tmp_path / "a.npz"
    np.savez(path, **arrays, names=np.array([object()]))
    assert message(path) == (
        "names is a pickled array of Python objects (builtins.object), which may run any code: "
        "save numbers or strings, such as np.savez(..., names=names.astype(str))"
    )


@pytest.mark.parametrize(
    "labels",
    [
        np.array(["dog", "cat"] * 20, object),
        np.array([b"dog", b"cat"] * 20, object),
        np.array([np.str_("dog"), np.str_("cat")] * 20, object),
        np.array([["dog"], ["cat"]] * 20, object),
    ],
)
def test_objects_that_are_strings_are_read(tmp_path, arrays, labels):
    data = read(write(tmp_path / "a.npz", arrays | {"labels": labels, "train": np.arange(9, N), "test": np.arange(9)}))
    assert data.classes == ["cat", "dog"]
    assert data.test.labels.tolist() == [1, 0] * 4 + [1]


def test_objects_that_are_numbers_are_read(tmp_path, arrays):
    ids = np.array([np.int64(7), 9] * 20, object)
    assert read(write(tmp_path / "a.npz", arrays | {"labels": ids})).classes == ["7", "9"]


def test_a_pickle_runs_nothing(tmp_path, arrays):
    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "made"),)

    path = write(tmp_path / "a.npz", arrays | {"labels": np.array([Evil()] * N, object)})
    assert message(path).startswith(
        "labels is a pickled array of Python objects (posix.mkdir), which may run any code: "
    )
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize(
    ("labels", "classes"),
    [
        (np.array([2_000_000_000, 5] * 20), ["5", "2000000000"]),
        (np.array([2**63 + 1, 2**63 + 2] * 20, np.uint64), [str(2**63 + 1), str(2**63 + 2)]),
        (np.array([-7, 3] * 20), ["-7", "3"]),
        (np.array([1.0, 2.0] * 20), ["1", "2"]),
        (np.array(["n02084071", "n02121808"] * 20), ["n02084071", "n02121808"]),
        (np.array([True, False] * 20), None),
    ],
)
def test_any_integers_and_strings_are_classes(tmp_path, arrays, labels, classes):
    parts = {"train": np.arange(10, N), "test": np.arange(10)}
    data = read(write(tmp_path / "a.npz", arrays | parts | {"labels": labels}))
    assert data.classes == classes
    number = {str(value): i for i, value in enumerate(classes or ["False", "True"])}
    values = [str(int(v)) if v.dtype.kind == "f" else str(v) for v in labels[:10]]
    assert data.test.labels.tolist() == [number[value] for value in values]


@pytest.mark.parametrize("missing", [-1, "", "zeros"])
def test_items_without_a_label_are_rows_of_zeros(tmp_path, arrays, missing):
    labels = np.arange(N) % 3
    if missing == "":
        labels = np.array(["a", "b", "c"])[labels]
    labels = np.eye(3, dtype=int)[labels] if missing == "zeros" else labels.copy()
    labels[::4] = 0 if missing == "zeros" else missing
    with pytest.warns(DataWarning, match=r"a.npz: 10 of 40 items have no label$"):
        data = read(
            write(tmp_path / "a.npz", arrays | {"labels": labels, "train": np.arange(9, N), "test": np.arange(9)})
        )
    expected = np.eye(3, dtype=bool)[np.arange(9) % 3]
    expected[::4] = False
    np.testing.assert_array_equal(data.test.labels, expected)
    assert data.notes == ("10 of 40 items have no label",)


def test_nothing_labelled(tmp_path, arrays):
    with pytest.warns(DataWarning, match="labels not used: no item has a label"):
        assert read(write(tmp_path / "a.npz", arrays | {"labels": np.zeros((N, 3))})).train.labels is None
    labels = np.eye(3)[np.arange(N) % 3]
    labels[:9] = 0
    parts = {"labels": labels, "train": np.arange(9, N), "test": np.arange(9)}
    with pytest.warns(DataWarning, match="test holds no labelled item: its metrics are those without labels"):
        read(write(tmp_path / "b.npz", arrays | parts))


def test_arrays_that_are_not_used_are_named(tmp_path, arrays):
    with pytest.warns(DataWarning, match=r"a.npz: not used: audio, comment$"):
        data = read(write(tmp_path / "a.npz", arrays | {"audio": np.zeros((N, 2)), "comment": np.zeros(3)}))
    assert data.notes == ("not used: audio, comment",)


def test_the_command_line_names_what_is_not_used(tmp_path, arrays, capsys):
    path = write(tmp_path / "a.npz", arrays | {"audio": np.zeros((N, 2))})
    result = CliRunner().invoke(app, ["train", "linear-cca", "--data", str(path), "--output", str(tmp_path / "run")])
    assert result.exit_code == 0
    assert f"{path}: not used: audio\n" in result.stderr


@pytest.mark.parametrize("kind", [int, str])
def test_groups_stay_together(tmp_path, arrays, kind):
    groups = np.random.default_rng(1).integers(0, 15, N).astype(kind)
    arrays["names"] = np.arange(N).astype(str)
    for seed in range(5):
        data = read(write(tmp_path / "a.npz", arrays | {"groups": groups}), seed=seed, fractions=(0.2, 0.2))
        rows = [[int(name) for name in part.names] for part in (data.train, data.validation, data.test)]
        assert sorted(row for of in rows for row in of) == list(range(N))
        members = [set(groups[of]) for of in rows]
        assert all(members)
        assert sum(map(len, members)) == len(set(groups))
        assert not data.notes
    parts = {"groups": groups, "train": np.arange(20), "test": np.arange(20, N)}
    with pytest.warns(DataWarning, match="of the groups occur in several splits"):
        read(write(tmp_path / "b.npz", arrays | parts))


@pytest.mark.parametrize("path", [None, 3, b"a.npz"])
def test_what_is_no_path(path):
    for function in (read, load):
        with pytest.raises(TypeError, match="must be a string or a path, got"):
            function(path)


def test_a_file_that_may_not_be_read(tmp_path, arrays, monkeypatch):
    path = write(tmp_path / "a.npz", arrays)

    def refuse(*_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(type(path), "open", refuse)
    assert message(path) == "cannot be read (Permission denied)"


def test_hdf5_types_that_are_no_arrays(tmp_path, arrays):
    for value, what in (
        (h5py.Empty("f8"), "no value"),
        (h5py.ref_dtype, "references"),
        (h5py.vlen_dtype(float), "ragged rows"),
    ):
        path = write(tmp_path / "a.h5", arrays)
        with h5py.File(path, "r+") as file:
            del file["labels"]
            if what == "no value":
                file["labels"] = value
            else:
                file.create_dataset("labels", (2,), value)
        assert message(path) == f"labels must hold numbers or strings, got {what}"


def test_another_file_in_the_archive(tmp_path, arrays):
    path = write(tmp_path / "a.npz", arrays)
    with zipfile.ZipFile(path, "a") as file:
        file.writestr("names", "a, b, c")
    assert message(path) == "names must be an array in NumPy's format, got another file in the archive"


@suffixes
def test_what_is_missing_and_what_was_found(tmp_path, arrays, suffix):
    arrays["pixels"] = arrays.pop("image")
    expected = "needs an array image (or images, img, imgs, image_features, img_features, visual, x, i, v)"
    assert message(write(tmp_path / f"a{suffix}", arrays)) == f"{expected}, found labels, pixels, text"


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"images": np.zeros((N, 2))}, "image and images both mean image"),
        ({"image_train": np.zeros((N, 2))}, "image and text are stored by split, but labels is not"),
        ({"labels_test": np.zeros(N)}, "image and text are not stored by split, but labels is"),
        ({"text": np.zeros((N - 1, 2))}, "text must have as many rows as image, 40, got 39"),
        ({"image": np.full((N, 2), 1e300)}, "image holds NaN or infinity in row 0"),
        ({"text": np.array(["words"] * N)}, "text must be numbers, got <U5"),
        ({"image": np.zeros(N)}, "image must have shape (n, dv) or (n, c, H, W), got (40,)"),
        ({"names": np.zeros(N)}, "names, classes and split must be strings, got float64"),
        (
            {"image": np.zeros((1, 2)), "text": np.zeros((1, 2)), "labels": np.zeros(1)},
            "fraction must leave pairs on both sides of the split, got 0.1 of 1 pairs",
        ),
    ],
)
def test_wrong_contents(tmp_path, arrays, change, expected):
    assert message(write(tmp_path / "a.npz", arrays | change)) == expected


def test_a_split_may_not_be_missing(tmp_path, arrays):
    parts = {"I_tr": arrays["image"], "T_tr": arrays["text"], "I_te": arrays["image"]}
    assert message(write(tmp_path / "a.npz", parts)) == "test text missing"
    del parts["I_te"]
    assert message(write(tmp_path / "b.npz", parts)) == "test image and text missing"


def test_nan_names_its_row(tmp_path, arrays):
    arrays["text"][11, 2] = np.nan
    assert message(write(tmp_path / "a.npz", arrays)) == "text holds NaN or infinity in row 11"
    parts = {
        "I_tr": arrays["image"],
        "T_tr": arrays["image"],
        "I_te": arrays["image"],
        "T_te": arrays["text"],
    }
    assert message(write(tmp_path / "b.npz", parts)) == "test text holds NaN or infinity in row 11"


def test_load_names_what_it_knows():
    with pytest.raises(
        ValueError,
        match=r"name must be one of glyphs, .*, or a file that ends in .npz, .h5, .hdf5, .mat, got glyph$",
    ):
        load("glyph")
    with pytest.raises(ValueError, match="wikipedia needs path"):
        load("wikipedia")
