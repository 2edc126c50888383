"""Published data sets: small files in the documented layouts."""

import json
import re

import h5py
import numpy as np
import pytest
import scipy.io
import torch

from xmodal_ops.data import DataError, collections, load

RNG = np.random.default_rng(0)
CLASSES = np.arange(60) % 3


def views(n: int) -> tuple[np.ndarray, np.ndarray]:
    return RNG.random((n, 6), np.float32), RNG.random((n, 4), np.float32)


def parts(prefixes: dict[str, int]) -> dict[str, np.ndarray]:
    out = {}
    for prefix, n in prefixes.items():
        out[f"{prefix}_img"], out[f"{prefix}_txt"] = views(n)
        out[f"{prefix}_img_lab"] = out[f"{prefix}_txt_lab"] = (np.arange(n) % 3 + 1)[:, None]
    return out


def test_pascal_sentence_as_one_file_for_each_array(tmp_path):
    arrays = parts({"train": 30, "test": 12})
    for name, array in arrays.items():
        scipy.io.savemat(tmp_path / f"{name}.mat", {name: array})
    data = load("pascal-sentence", path=tmp_path)
    assert (len(data.train), len(data.validation), len(data.test)) == (27, 3, 12)
    np.testing.assert_array_equal(data.test.image, arrays["test_img"])
    assert data.test.labels.tolist() == [0, 1, 2] * 4
    assert sorted(torch.cat([data.train.labels, data.validation.labels]).tolist()) == sorted([0, 1, 2] * 10)


def test_a_single_array_takes_the_name_of_its_file(tmp_path):
    for name, array in parts({"train": 30, "valid": 6, "test": 12}).items():
        np.savez(tmp_path / f"{name}.npz", data=array)
    data = load("nus-wide-10k", path=tmp_path)
    assert (len(data.train), len(data.validation), len(data.test)) == (30, 6, 12)


def test_nus_wide_in_one_h5_with_columns_for_classes(tmp_path):
    with h5py.File(tmp_path / "nus.h5", "w") as file:
        for name, array in parts({"train": 30, "test": 12}).items():
            file[name] = np.eye(3)[array[:, 0] - 1] if name.endswith("lab") else array
    data = load("nus-wide-10k", path=tmp_path / "nus.h5")
    assert data.test.labels.dtype == torch.int64
    assert data.test.labels.tolist() == [0, 1, 2] * 4


def test_names_of_xmedia(tmp_path):
    arrays = {}
    for split, n in (("tr", 30), ("te", 12)):
        arrays[f"I_{split}_CNN"], arrays[f"T_{split}_BOW"] = views(n)
        arrays[f"{split}ImgCat"] = arrays[f"{split}TxtCat"] = np.arange(n) % 3 + 1
    scipy.io.savemat(tmp_path / "XMediaFeatures.mat", arrays)
    data = load("xmedia", path=tmp_path)
    assert data.test.labels.tolist() == [0, 1, 2] * 4
    np.testing.assert_array_equal(data.test.text, arrays["T_te_BOW"])
    scipy.io.savemat(tmp_path / "XMediaFeatures.mat", {**arrays, "teTxtCat": np.arange(12) % 2 + 1})
    with pytest.raises(DataError, match="teImgCat and teTxtCat must agree: the rows of both views must be pairs"):
        load("xmedia", path=tmp_path)


@pytest.mark.parametrize(
    "forms", [("XDatabase", "YDatabase", "databaseL", "XTest", "YTest", "testL"), ("XAll", "YAll", "LAll")]
)
def test_names_of_iapr_tc12(tmp_path, forms):
    labels = RNG.random((60, 5)) < 0.4
    values = []
    for rows in (slice(0, 48), slice(48, 60)) if len(forms) == 6 else (slice(0, 60),):
        n = len(range(60)[rows])
        values += [*views(n), labels[rows].astype(np.uint8)]
    scipy.io.savemat(tmp_path / "iapr.mat", dict(zip(forms, values)))
    data = load("iapr-tc12", path=tmp_path / "iapr.mat")
    assert data.test.labels.dtype == torch.bool and data.test.labels.shape[1] == 5
    assert len(data.train) + len(data.validation) + len(data.test) == 60
    if len(forms) == 6:
        np.testing.assert_array_equal(data.test.labels, labels[48:])


def karpathy(path, features: dict[str, np.ndarray]) -> list[str]:
    splits = ["train"] * 20 + ["restval"] * 4 + ["val"] * 3 + ["test"] * 3
    images = [
        {
            "split": s,
            "filename": f"{i}.jpg",
            "sentences": [{"tokens": ["a", "dog" if i % 2 else "cat", f"only{i}"]}] * 5,
        }
        for i, s in enumerate(splits)
    ]
    (path / "dataset_flickr8k.json").write_text(json.dumps({"images": images, "dataset": "flickr8k"}))
    scipy.io.savemat(path / "vgg_feats.mat", features)
    return splits


def test_captions_in_karpathy_s_format(tmp_path):
    feats = RNG.random((7, 30), np.float32)
    karpathy(tmp_path, {"feats": feats})  # one column for each image, as in vgg_feats.mat
    data = load("flickr8k", path=tmp_path)
    assert (len(data.train), len(data.validation), len(data.test)) == (24, 3, 3)
    assert data.train.labels is None
    assert data.test.names == ["27.jpg", "28.jpg", "29.jpg"]
    np.testing.assert_array_equal(data.test.image, feats[:, 27:].T)
    assert data.train.text.shape[1] == 3  # a, cat, dog: the other words are in too few texts
    assert torch.equal(data.test.text[0], data.test.text[2])
    assert not torch.equal(data.test.text[0], data.test.text[1])
    torch.testing.assert_close(data.test.text.norm(dim=1), torch.ones(3))


def test_coco_with_labels(tmp_path):
    labels = RNG.random((30, 4)) < 0.5
    karpathy(tmp_path, {"feats": RNG.random((7, 30)), "labels": labels.astype(np.uint8)})
    data = load("coco", path=tmp_path)
    np.testing.assert_array_equal(data.test.labels, labels[27:])


def test_tf_idf_takes_nothing_from_other_splits():
    words = [["a", "b"], ["a"], ["c"]]
    train = np.array([True, True, False])
    out = collections.tf_idf(words, train)
    assert out.shape == (3, 1)  # "a", which two training rows have
    np.testing.assert_array_equal(out, [[1], [1], [0]])


def test_string_labels_are_mapped(tmp_path):
    arrays = parts({"train": 30, "test": 12})
    del arrays["train_txt_lab"], arrays["test_txt_lab"]
    for split in ("train", "test"):
        arrays[f"{split}_img_lab"] = np.array(["cat", "bird", "dog"])[arrays[f"{split}_img_lab"][:, 0] - 1]
    np.savez(tmp_path / "pascal.npz", **arrays)
    data = load("pascal-sentence", path=tmp_path / "pascal.npz")
    assert data.classes == ["bird", "cat", "dog"]
    assert data.test.labels.tolist() == [1, 0, 2] * 4


def test_a_split_without_the_lowest_class_is_numbered_as_the_others(tmp_path):
    arrays = parts({"train": 30, "test": 12})
    for name in ("test_img_lab", "test_txt_lab"):
        arrays[name] = (np.arange(12) % 2 + 2)[:, None]
    np.savez(tmp_path / "pascal.npz", **arrays)
    data = load("pascal-sentence", path=tmp_path / "pascal.npz")
    assert data.test.labels.tolist() == [1, 2] * 6
    assert sorted(set(data.train.labels.tolist())) == [0, 1, 2]
    assert data.classes == ["1", "2", "3"]


def test_errors_name_what_was_found_and_what_is_needed(tmp_path):
    def refused(name: str, message: str, path=tmp_path) -> None:
        with pytest.raises(DataError) as error:
            load(name, path=path)
        text = str(error.value)
        assert text.startswith(f"{path}: {message}"), text
        assert text.endswith(f"; {name} needs {collections.COLLECTIONS[name].fetch}")
        assert "\n" not in text

    refused("pascal-sentence", "holds no file that ends in .npz, .h5, .hdf5, .mat")
    refused("pascal-sentence", "no such file or directory", tmp_path / "absent")
    np.savez(tmp_path / "a.npz", pictures=np.ones((3, 2)), words=np.ones((3, 2)))
    refused(
        "pascal-sentence",
        "needs an array image (or images, img, imgs, image_features, img_features, visual, x, i, v), found pictures, "
        "words",
    )
    arrays = parts({"train": 30, "test": 12})
    np.savez(tmp_path / "a.npz", **{**arrays, "train_txt": arrays["train_txt"][:-1]})
    refused("pascal-sentence", "train text must have as many rows as image, 30, got 29")
    (tmp_path / "a.npz").write_bytes(b"PK nothing")
    refused("pascal-sentence", "a.npz: damaged, or not a .npz file")
    (tmp_path / "a.npz").unlink()
    refused("flickr30k", "must hold one dataset_*.json, found 0")
    karpathy(tmp_path, {"feats": np.ones((7, 29))})
    refused("flickr8k", "feats must have one row or column for each of 30 images, got (7, 29)")
    (tmp_path / "dataset_flickr8k.json").write_text("{}")
    refused("flickr8k", "dataset_flickr8k.json is damaged, or not one of Karpathy's ('images')")
    with pytest.raises(ValueError, match=re.escape(f"coco needs path: {collections.COLLECTIONS['coco'].fetch}")):
        load("coco")
