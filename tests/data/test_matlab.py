"""MATLAB's types, in the files of SciPy and in version 7.3: read right, or refused by name in one line."""

from __future__ import annotations

import struct

import h5py
import numpy as np
import pytest
import scipy.io
import scipy.sparse

from xmodal_ops.data import DataError
from xmodal_ops.data.files import read

N = 40
RNG = np.random.default_rng(0)
IMAGE, TEXT = RNG.random((N, 5)), RNG.random((N, 3))
WORDS = ["cat", "dog", "été", "日本"] * 10
TRAIN, TEST = np.arange(10.0, N), np.arange(10.0)


class Writer:
    """Writes variables as MATLAB does: a user block, the axes in the opposite order, cells as references."""

    def __init__(self, path):
        self.path, self.file = path, h5py.File(path, "w", userblock_size=512)
        self.refs, self.count = self.file.create_group("#refs#"), 0

    def put(self, parent, name, value, kind=None, **attributes):
        if isinstance(value, list):
            cells = np.empty((1, len(value)), h5py.ref_dtype)
            for i, item in enumerate(value):
                self.count += 1
                cells[0, i] = self.put(self.refs, f"c{self.count}", item).ref
            value, kind = cells, "cell"
        elif isinstance(value, str):
            value, kind = np.frombuffer(value.encode("utf-16-le"), np.uint16)[:, None], "char"
        elif isinstance(value, dict):
            group = parent.create_group(name)
            group.attrs["MATLAB_class"] = np.bytes_("struct")
            for key, item in value.items():
                self.put(group, key, item)
            return group
        elif scipy.sparse.issparse(value):
            group, value = parent.create_group(name), value.tocsc()
            group.attrs["MATLAB_class"] = np.bytes_("logical" if value.dtype == bool else "double")
            group.attrs["MATLAB_sparse"] = np.uint64(value.shape[0])
            group["jc"] = value.indptr.astype(np.uint64)
            if value.nnz:
                group["data"] = value.data.astype(np.uint8 if value.dtype == bool else float)
                group["ir"] = value.indices.astype(np.uint64)
            return group
        elif kind is None:
            value = np.asarray(value)
            if not value.size:
                attributes, value = {"MATLAB_empty": np.uint8(1)}, np.array(value.shape, np.uint64)
            if value.dtype.kind == "c":
                value, kind = value.view([("real", "f8"), ("imag", "f8")]).T, "double"
        if kind is None:
            names = {"bool": "logical", "float64": "double", "float32": "single"}
            kind = names.get(value.dtype.name, value.dtype.name)
            value = np.atleast_2d(value.astype(np.uint8) if value.dtype == bool else value).T
        item = parent.create_dataset(name, data=value)
        item.attrs["MATLAB_class"] = np.bytes_(kind)
        for key, attribute in attributes.items():
            item.attrs[key] = attribute
        return item

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.file.close()
        with self.path.open("r+b") as file:
            file.write(b"MATLAB 7.3 MAT-file".ljust(124) + b"\x00\x02IM")


def written(tmp_path, version, **variables):
    path = tmp_path / "a.mat"
    variables = {"image": IMAGE, "text": TEXT, "train": TRAIN, "test": TEST} | variables
    if version == 7:

        def cell(value):
            if not isinstance(value, list):
                return value
            out = np.empty((len(value), 1), object)
            out[:, 0] = [cell(item) for item in value]
            return out

        scipy.io.savemat(path, {name: cell(value) for name, value in variables.items()})
        return path
    with Writer(path) as writer:
        for name, value in variables.items():
            writer.put(writer.file, name, value)
    return path


def refused(path):
    with pytest.raises(DataError) as info:
        read(path)
    text = str(info.value)
    assert "\n" not in text
    return text.removeprefix(f"{path}: ")


versions = pytest.mark.parametrize("version", [7, 7.3])


@versions
@pytest.mark.parametrize(
    ("labels", "classes", "first"),
    [
        (WORDS, sorted(set(WORDS)), [0, 1, 2, 3]),
        ([[word] for word in WORDS], sorted(set(WORDS)), [0, 1, 2, 3]),
        ([float(i % 4) for i in range(N)], None, [0, 1, 2, 3]),
        (np.arange(N)[:, None] % 4 == 1, None, [0, 1, 0, 0]),
        ((np.arange(N) % 4).astype(np.uint8)[:, None], None, [0, 1, 2, 3]),
        ((np.arange(N) % 4).astype(np.int16)[None], None, [0, 1, 2, 3]),
        ((np.arange(N) % 4)[:, None] + 1.0, ["1", "2", "3", "4"], [0, 1, 2, 3]),
        (np.arange(N)[:, None] % 4 * 10.0 + 2e9, [str(2 * 10**9 + 10 * i) for i in range(4)], [0, 1, 2, 3]),
    ],
    ids=["cells", "nested cells", "cells of numbers", "logical", "uint8", "int16", "from 1", "large"],
)
def test_labels(tmp_path, version, labels, classes, first):
    data = read(written(tmp_path, version, labels=labels))
    assert data.classes == classes
    assert data.test.labels[:4].tolist() == first


@versions
def test_char_arrays_names_and_classes(tmp_path, version):
    rows = ["cat ", "dog ", "bear", "ox  "]
    if version == 7:
        chars = np.array(rows * 10)
        path = written(
            tmp_path, 7, labels=chars, names=[f"pair {i}" for i in range(N)], classes=["bear", "cat", "dog", "ox"]
        )
    else:
        path = tmp_path / "a.mat"
        with Writer(path) as writer:
            for name, value in {"image": IMAGE, "text": TEXT, "train": TRAIN, "test": TEST}.items():
                writer.put(writer.file, name, value)
            codes = np.array([[ord(c) for c in row] for row in rows * 10], np.uint16)
            writer.put(writer.file, "labels", codes.T, "char", MATLAB_int_decode=2)
            writer.put(writer.file, "names", [f"pair {i}" for i in range(N)])
            writer.put(writer.file, "classes", ["bear", "cat", "dog", "ox"])
    data = read(path)
    assert data.classes == ["bear", "cat", "dog", "ox"]
    assert data.test.labels[:4].tolist() == [1, 2, 0, 3]
    assert data.test.names[:2] == ["pair 0", "pair 1"]


@versions
@pytest.mark.parametrize("density", [0.3, 0.0])
def test_sparse_text_and_labels(tmp_path, version, density):
    text = scipy.sparse.random(N, 7, density, random_state=0, format="csc")
    labels = scipy.sparse.csc_matrix(np.eye(4, dtype=bool)[np.arange(N) % 4])
    data = read(written(tmp_path, version, text=text, labels=labels))
    np.testing.assert_array_equal(data.test.text, text.toarray()[:10].astype(np.float32))
    np.testing.assert_array_equal(data.test.labels, labels.toarray()[:10])


@versions
def test_fields_of_a_struct_are_arrays(tmp_path, version):
    train, test = ({"image": IMAGE[rows], "text": TEXT[rows]} for rows in (slice(10, N), slice(10)))
    path = tmp_path / "a.mat"
    if version == 7:
        scipy.io.savemat(path, {"train": train, "test": test})
    else:
        with Writer(path) as writer:
            writer.put(writer.file, "train", train)
            writer.put(writer.file, "test", test)
    np.testing.assert_array_equal(read(path).test.image, IMAGE[:10].astype(np.float32))


@versions
def test_logical_images_are_not_bytes(tmp_path, version):
    pixels = RNG.random((N, 4, 4)) < 0.5
    np.testing.assert_array_equal(read(written(tmp_path, version, image=pixels)).test.image[:, 0], pixels[:10])


@versions
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels": ["a", ["b", "c"]] * 20}, "labels must hold one value per item, got 2 in row 1"),
        ({"labels": ["a", 1.0] * 20}, "labels must not mix strings and numbers, got 'a' and 1.0"),
        ({"text": WORDS}, "text must be numbers, got <U3"),
        ({"image": IMAGE * 1j}, "image must be numbers, got complex128"),
        ({"image": np.zeros((0, 5)), "text": np.zeros((0, 3))}, "image holds no rows"),
    ],
)
def test_what_cannot_be_used(tmp_path, version, change, message):
    assert refused(written(tmp_path, version, **change)) == message


@versions
def test_empty_cells_are_items_without_a_label(tmp_path, version):
    labels = ["a", "b", "", "b"] * 10
    with pytest.warns(UserWarning, match="10 of 40 items have no label"):
        data = read(written(tmp_path, version, labels=labels))
    assert data.test.labels[:4].tolist() == [[True, False], [False, True], [False, False], [False, True]]


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("string", "labels is a MATLAB string object, which cannot be read: save cellstr(labels) instead"),
        ("categorical", "labels is a MATLAB categorical object, which cannot be read: save cellstr(labels) instead"),
        (
            "table",
            "labels is a MATLAB table object, which cannot be read: save numbers or a cell array of strings instead",
        ),
    ],
)
@versions
def test_objects(tmp_path, version, kind, message):
    path = written(tmp_path, version)
    numbers = np.array([[0xDD000000, 2, 1, 1, 1, 1]], np.uint32)
    if version == 7.3:
        with h5py.File(path, "r+") as file:
            file["labels"] = numbers.T
            file["labels"].attrs.update(MATLAB_class=np.bytes_(kind), MATLAB_object_decode=np.int32(3))
    else:

        def element(code, data):
            return struct.pack("<II", code, len(data)) + data.ljust(-(-len(data) // 8) * 8, b"\0")

        def matrix(*parts):
            return element(14, b"".join(parts))

        inner = matrix(
            element(6, struct.pack("<II", 13, 0)), element(5, struct.pack("<ii", 1, 6)), element(1, b""),
            element(6, numbers.tobytes()),
        )  # fmt: skip
        with path.open("ab") as file:
            names = (element(1, text.encode()) for text in ("labels", "MCOS", kind))
            file.write(matrix(element(6, struct.pack("<II", 17, 0)), *names, inner))
    assert refused(path) == message


def test_function_handles_and_references_to_nothing(tmp_path):
    path = written(tmp_path, 7.3)
    with h5py.File(path, "r+") as file:
        file["labels"] = np.zeros((6, 1), np.uint8)
        file["labels"].attrs.update(MATLAB_class=np.bytes_("function_handle"), MATLAB_object_decode=np.int32(1))
    assert refused(path).startswith("labels is a MATLAB function handle, which cannot be read: ")
    path = written(tmp_path, 7.3)
    with h5py.File(path, "r+") as file:
        file.create_dataset("labels", (1, N), h5py.ref_dtype).attrs["MATLAB_class"] = np.bytes_("cell")
    assert refused(path) == "labels holds a reference to nothing"


def test_empty_arrays_hold_their_shape(tmp_path):
    path = written(tmp_path, 7.3)
    with h5py.File(path, "r+") as file:
        file["labels"] = np.array([0, 0], np.uint64)
        file["labels"].attrs.update(MATLAB_class=np.bytes_("double"), MATLAB_empty=np.uint8(1))
    assert refused(path) == "labels must be numbers (n,) or (n, C), or strings, got float64 (0, 0)"
