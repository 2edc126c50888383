"""Tables and pictures of a run, and linear CCA chosen on validation data."""

import warnings

import numpy as np
import pytest
import torch
from rich.console import Console

from xmodal_ops import retrieval
from xmodal_ops.data import PairData, PairSet
from xmodal_ops.models import LinearCCA
from xmodal_ops.training import embed, evaluate, report, select_linear_cca, train_linear_cca
from xmodal_ops.training.augment import augment


@pytest.fixture(scope="module")
def results() -> dict[str, dict[str, object]]:
    g = torch.Generator().manual_seed(0)
    image = torch.randn(50, 5, generator=g)
    return {
        "linear_cca": dict(retrieval.evaluate(image, torch.randn(50, 5, generator=g))),
        "dcca": dict(retrieval.evaluate(image, image + torch.randn(50, 5, generator=g))),
    }


def test_tables_hold_the_figures(results):
    console = Console(width=100, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(report.table(results, "title"))
    text, markdown = console.export_text(), report.markdown(results)
    for model in results.values():
        for direction in ("image_to_text", "text_to_image", "mean"):
            for figure in (f"{model[direction]['recall@10']:.3f}", f"{model[direction]['median_rank']:.1f}"):
                assert figure in text
                assert figure in markdown
    assert "chance" in text
    assert "0.200" in markdown.splitlines()[-1]  # chance of recall@10 among 50
    assert len({line.count("|") for line in markdown.splitlines()}) == 1


def test_pictures_are_drawn_for_all_kinds_of_data(tiny, tiny_features, tmp_path):
    from matplotlib.image import imread

    rgb = PairSet(torch.rand(4, 3, 8, 8), torch.rand(4, 5))
    for name, pairs in (("gray", tiny.test), ("features", tiny_features.test), ("rgb", rgb)):
        path = tmp_path / f"{name}.png"
        report.retrieval_picture(torch.rand(len(pairs), 5), torch.rand(len(pairs), 5), pairs, path, classes=["a", "b"])
        assert imread(path).std() > 0.05
        height, width = imread(path).shape[:2]
        assert 100 < height < width


def test_names_that_no_font_has_give_no_warning(tmp_path):
    pairs = PairSet(torch.rand(4, 3), torch.rand(4, 5), names=["北京", "東京", "서울", "\U0001f600"])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        report.retrieval_picture(torch.rand(4, 5), torch.rand(4, 5), pairs, tmp_path / "a.png")


def test_the_right_item_is_framed(tiny, tmp_path):
    """With perfect embeddings every first hit has a green frame, with opposite ones none."""
    from matplotlib.image import imread

    e = torch.randn(len(tiny.test), 30, generator=torch.Generator().manual_seed(0))
    green = []
    for sign in (1, -1):
        report.retrieval_picture(e, sign * e, tiny.test, tmp_path / "a.png")
        r, g, b = np.moveaxis(imread(tmp_path / "a.png")[:, :, :3], -1, 0)
        green.append(int(((g - r > 0.2) & (g - b > 0.1)).sum()))
    assert green[0] > 1000
    assert green[1] == 0


def test_linear_cca_is_chosen_on_the_validation_split(tiny):
    model = select_linear_cca(tiny, "recall@10")
    found = evaluate(model, tiny.validation)["mean"]["recall@10"]
    plain = LinearCCA(ridge=0.01, relative=True).fit(tiny.train.image.flatten(1), tiny.train.text)
    assert found >= evaluate(plain, tiny.validation)["mean"]["recall@10"]
    image, text = embed(model, tiny.test)
    assert image.shape == text.shape == (80, model.n_components)
    # The test split has no say.
    other = PairData(tiny.train, tiny.validation, tiny.test.subset(range(9)), "other", tiny.classes)
    assert select_linear_cca(other, "recall@10").get_params() == model.get_params()


def test_a_linear_run_leaves_its_files(tiny_features, tmp_path):
    metrics = train_linear_cca(tiny_features, tmp_path, monitor="map_all")
    assert {path.name for path in tmp_path.iterdir()} - {".lock"} == {
        "config.json",
        "model.pt",
        "metrics.json",
        "retrieval.png",
    }
    assert metrics["mean"]["map_all"] > metrics["chance"]["map_all"]


def test_augmented_pictures_stay_near_the_original():
    torch.manual_seed(0)
    x = torch.zeros(64, 1, 32, 32)
    x[:, :, 12:20, 12:20] = 1
    y = augment(x)
    assert y.shape == x.shape
    assert not torch.equal(x, y)
    assert y.min() >= 0 and y.max() <= 1 + 1e-6
    assert y.sum((1, 2, 3)).sub(64).abs().max() < 30  # about the same ink
    rows, columns = torch.arange(32.0)[:, None], torch.arange(32.0)
    for axis in (rows, columns):
        centre = (y * axis).sum((1, 2, 3)) / y.sum((1, 2, 3))
        assert (centre - 15.5).abs().max() < 4
    assert torch.equal(augment(x, shift=0, turn=0, scale=0), x)
    assert augment((x * 255).byte()).max() <= 1 + 1e-6
