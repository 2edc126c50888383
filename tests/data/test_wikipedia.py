"""The Wikipedia loader on small files of its layout, and on the real files if XMODAL_WIKIPEDIA names them."""

from __future__ import annotations

import os

import numpy as np
import pytest
import scipy.io
import torch

from xmodal_ops.data import DataError, load

REAL = os.environ.get("XMODAL_WIKIPEDIA")


@pytest.fixture
def directory(tmp_path):
    rng = np.random.default_rng(0)
    (tmp_path / "categories.list").write_text("art\nbiology\nmusic\n")
    features = {}
    for suffix, n in (("tr", 30), ("te", 12)):
        features |= {f"I_{suffix}": rng.random((n, 6)), f"T_{suffix}": rng.random((n, 4))}
        lines = [f"text-{suffix}-{i}\timage-{i}\t{i % 3 + 1}\n" for i in range(n)]
        split = {"tr": "train", "te": "test"}[suffix]
        (tmp_path / f"{split}set_txt_img_cat.list").write_text("".join(lines))
    scipy.io.savemat(tmp_path / "raw_features.mat", features)
    return tmp_path


def test_splits(directory):
    data = load("wikipedia", path=directory, validation=0.2, seed=1)
    features = scipy.io.loadmat(directory / "raw_features.mat")
    assert (len(data.train), len(data.validation), len(data.test)) == (24, 6, 12)
    assert (data.name, data.classes) == ("wikipedia", ["art", "biology", "music"])
    assert data.validation.labels.bincount().tolist() == [2, 2, 2]
    assert data.test.names == [f"text-te-{i}" for i in range(12)]
    assert data.test.labels.tolist() == [i % 3 for i in range(12)]
    assert sorted(data.train.names + data.validation.names) == sorted(f"text-tr-{i}" for i in range(30))
    for pairs in (data.train, data.validation):
        rows = [int(name.split("-")[2]) for name in pairs.names]
        np.testing.assert_array_equal(pairs.image.numpy(), features["I_tr"][rows].astype(np.float32))
        np.testing.assert_array_equal(pairs.text.numpy(), features["T_tr"][rows].astype(np.float32))
        assert pairs.labels.tolist() == [row % 3 for row in rows]
    assert load("wikipedia", path=directory, seed=1).validation.names == data.validation.names
    assert load("wikipedia", path=directory, seed=2).validation.names != data.validation.names


@pytest.mark.parametrize("name", ["raw_features.mat", "categories.list", "trainset_txt_img_cat.list"])
def test_missing_files(directory, name):
    (directory / name).unlink()
    with pytest.raises(DataError) as info:
        load("wikipedia", path=directory)
    assert str(info.value) == f"{directory / name}: no such file"


def test_missing_directory(tmp_path):
    with pytest.raises(DataError, match=r"nowhere: no such directory"):
        load("wikipedia", path=tmp_path / "nowhere")


def test_damaged_lists(directory):
    file = directory / "testset_txt_img_cat.list"
    whole = file.read_text()

    def message():
        with pytest.raises(DataError) as info:
            load("wikipedia", path=directory)
        assert "\n" not in str(info.value)
        return str(info.value)

    file.write_text(whole[: whole.index("image-6") + 3])
    assert message().startswith(f"{file}: line 7 must be text, image, category 1..3, got ")
    file.write_text("".join(whole.splitlines(keepends=True)[:7]))
    assert message() == f"{directory}: test labels must have as many rows as image, 12, got 7"
    file.write_text(whole.replace("\t3\n", "\t4\n"))
    assert message() == f"{file}: line 3 must be text, image, category 1..3, got 'text-te-2\\timage-2\\t4'"
    file.write_bytes(b"\xff\xfe")
    assert message().startswith(f"{file}: cannot be read (")


def test_damaged_features(directory):
    file = directory / "raw_features.mat"
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(DataError) as info:
        load("wikipedia", path=directory)
    assert str(info.value).startswith(f"{file}: damaged, or not a .mat file (")


@pytest.mark.skipif(not REAL, reason="XMODAL_WIKIPEDIA must name a directory with the data set")
def test_real_files():
    data = load("wikipedia", path=REAL)
    assert (len(data.train), len(data.validation), len(data.test)) == (1738, 435, 693)
    assert (data.train.image.shape[1], data.train.text.shape[1], len(data.classes)) == (128, 10, 10)
    counts = (data.train.labels.bincount(), data.validation.labels.bincount())
    assert torch.all((counts[0] / 4 - counts[1]).abs() <= 1.5)
    assert data.test.labels.bincount().tolist() == [34, 88, 96, 85, 65, 58, 51, 41, 71, 104]


def test_the_split_of_the_paper_is_one_rule(directory):
    a, b = (load("wikipedia-1300", path=directory, seed=seed) for seed in (0, 1))
    n = sum(len(part) for part in (a.train, a.validation, a.test))
    official = load("wikipedia", path=directory)
    assert n == sum(len(part) for part in (official.train, official.validation, official.test))
    assert len(a.test) == round(1566 / 2866 * n)
    assert a.test.names == b.test.names
    names = [*a.train.names, *a.validation.names, *a.test.names]
    assert len(set(names)) == n
