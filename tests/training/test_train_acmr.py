"""Training of ACMR: run directories, both players, resuming, several seeds, refitting, baselines, labels."""

import json
from dataclasses import replace
from functools import partial

import pytest
import torch
from rich.console import Console

from xmodal_ops import training
from xmodal_ops.data import PairData, PairSet
from xmodal_ops.training import (
    ACMRConfig,
    Interrupted,
    UserError,
    embed,
    evaluate,
    load_run,
    report,
    summarise,
)
from xmodal_ops.training.acmr import ACMRModule
from xmodal_ops.training.baselines import BASELINES
from xmodal_ops.training.benchmark import benchmark as run_benchmark
from xmodal_ops.training.lightning import StepCallback

CONFIG = ACMRConfig(
    epochs=3, batch_size=50, dim=8, image_hidden=(16,), text_hidden=(12,), image_features="standard", image_dropout=0.1,
    beta=1.0, label_weight=0.5, learning_rate=1e-2, mixup=0.5, smoothing=0.1, projector_steps=2, patience=0,
)  # fmt: skip


# Drawing takes longer than training here, so most tests do without it.
train_acmr = partial(training.train_acmr, pictures=False)
train_acmr_seeds = partial(training.train_acmr_seeds, pictures=False)
benchmark = partial(run_benchmark, pictures=False)


def same(a, b) -> bool:
    a, b = a.state_dict(), b.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_a_run_leaves_everything_and_is_found_again(tiny_features, tmp_path):
    result = training.train_acmr(tiny_features, replace(CONFIG, epochs=8), tmp_path, device="cpu")
    assert {path.name for path in tmp_path.iterdir()} - {".lock"} == {
        "config.json", "last.ckpt", "best.ckpt", "model.pt", "history.csv", "metrics.json", "loss.png",
        "retrieval.png", "space.png",
    }  # fmt: skip
    assert all((tmp_path / f"{name}.png").read_bytes()[:4] == b"\x89PNG" for name in ("loss", "retrieval", "space"))
    assert json.loads((tmp_path / "config.json").read_text())["class_names"] == ["low", "high"]
    assert json.loads((tmp_path / "metrics.json").read_text()) == {"acmr": result.metrics}
    assert result.metrics["mean"]["map_all"] > result.metrics["chance"]["map_all"] + 0.2
    first, last = result.history[0], result.history[-1]
    assert last["discrimination"] < first["discrimination"]
    assert last["adversary"] != first["adversary"]
    best = max(result.history, key=lambda row: row["validation map_all"])
    assert result.best_epoch == best["epoch"]
    again = load_run(tmp_path, "cpu")
    assert same(again, result.model)
    assert evaluate(again, tiny_features.test) == result.metrics


@pytest.mark.parametrize("steps", [1, 4])
def test_each_player_takes_its_steps(tiny_features, tmp_path, monkeypatch, steps):
    taken = [0, 0]

    class Counting(torch.optim.AdamW):
        def __init__(self, *args, **options):
            super().__init__(*args, **options)
            self.player = Counting.made % 2
            Counting.made += 1

        def step(self, *args, **options):
            taken[self.player] += 1
            return super().step(*args, **options)

    Counting.made = 0
    monkeypatch.setattr("xmodal_ops.training.lightning.torch.optim.AdamW", Counting)
    config = replace(CONFIG, projector_steps=steps, epochs=2)
    train_acmr(tiny_features, config, tmp_path, device="cpu")
    assert taken == [12, 12 // steps]


def test_pictures_of_items_and_several_labels(tiny, tmp_path):
    def several(pairs: PairSet) -> PairSet:
        labels = torch.stack([pairs.labels == 0, pairs.labels == 1, pairs.text[:, 0] > 0], 1)
        return PairSet(pairs.image, pairs.text, labels)

    data = PairData(*(several(p) for p in (tiny.train, tiny.validation, tiny.test)), name="several")
    result = train_acmr(data, CONFIG, tmp_path, device="cpu")
    assert result.model.options["multi_label"]
    assert result.metrics["mean"]["map_all"] > result.metrics["chance"]["map_all"]


def test_resumed_as_if_never_stopped(tiny_features, tmp_path, monkeypatch):
    whole = train_acmr(tiny_features, CONFIG, tmp_path / "whole", device="cpu")

    def stop(self, trainer, module, out, batch, batch_idx):
        if trainer.current_epoch == 1 and batch_idx == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(StepCallback, "on_train_batch_end", stop)
        with pytest.raises(Interrupted, match=r"interrupted in epoch 2 of 3; .* continue with --resume"):
            train_acmr(tiny_features, CONFIG, tmp_path / "part", device="cpu")
    rest = train_acmr(tiny_features, CONFIG, tmp_path / "part", device="cpu", resume=True)
    assert same(rest.model, whole.model)
    assert rest.metrics == whole.metrics
    assert [row["epoch"] for row in rest.history] == [1, 2, 3]


def test_several_seeds(tiny_features, tmp_path):
    summary = train_acmr_seeds(tiny_features, CONFIG, tmp_path, [3, 4], device="cpu")
    single = [json.loads((tmp_path / f"seed-{s}" / "metrics.json").read_text())["acmr"] for s in (3, 4)]
    a, b = (m["mean"]["map_all"] for m in single)
    assert a != b
    assert summary["mean"]["map_all"] == pytest.approx((a + b) / 2)
    assert summary["deviation"]["mean"]["map_all"] == pytest.approx(abs(a - b) / 2**0.5)
    assert summary["seeds"] == [3, 4]
    ensemble = summary.pop("ensemble")
    assert summary == summarise(single, [3, 4])
    views = [embed(load_run(tmp_path / f"seed-{s}", "cpu"), tiny_features.test) for s in (3, 4)]
    scores = sum(torch.nn.functional.cosine_similarity(v[:, None], t, dim=2) for v, t in views) / 2
    right = (scores.argmax(1) == torch.arange(80)).double().mean().item()
    assert ensemble["image_to_text"]["recall@1"] == pytest.approx(right)
    assert "±" in report.markdown({"acmr": summary})


def test_refit_trains_on_both_splits_to_the_chosen_epoch(tiny_features, tmp_path, monkeypatch):
    seen = []
    original = ACMRModule.on_train_epoch_end

    def spy(self):
        seen.append(len(self.data.train))
        original(self)

    monkeypatch.setattr(ACMRModule, "on_train_epoch_end", spy)
    result = train_acmr(tiny_features, replace(CONFIG, refit=True), tmp_path, device="cpu")
    assert seen == [300] * 3 + [360] * result.best_epoch
    plain = train_acmr(tiny_features, CONFIG, tmp_path / "plain", device="cpu")
    assert plain.history[0]["loss"] == result.history[0]["loss"]
    assert not same(plain.model, result.model)


def test_the_test_split_has_no_say(tiny_features, tmp_path):
    d = tiny_features
    other = PairData(d.train, d.validation, d.test.subset(range(40)), name="other", classes=d.classes)
    config = replace(CONFIG, refit=True)
    a = train_acmr(d, config, tmp_path / "a", device="cpu")
    b = train_acmr(other, config, tmp_path / "b", device="cpu")
    assert same(a.model, b.model)


def test_presets():
    paper, demo = ACMRConfig.preset("paper"), ACMRConfig.preset("demo")
    assert paper.image_hidden == (2000,) and paper.text_hidden == (500,) and paper.dim == 200
    assert paper.modality_hidden == (50,) and paper.projector_steps == 5 and paper.gamma == 0.05
    assert demo.reversal == 0 and not demo.train_label_predictor and demo.invariance == "batch_hinge"
    for preset in (paper, demo, ACMRConfig.preset("best", "wikipedia"), ACMRConfig.preset("best", "glyphs")):
        assert ACMRConfig.from_dict(json.loads(json.dumps(preset.to_dict()))) == preset
    with pytest.raises(UserError, match="preset must be one of paper, demo, best, got 'fast'"):
        ACMRConfig.preset("fast")
    with pytest.raises(UserError, match="text_dropout must be at least 0 and less than 1, got 1"):
        ACMRConfig(text_dropout=1)
    with pytest.raises(UserError, match="alpha must be at least 0, got -1"):
        ACMRConfig(alpha=-1)


def test_demo_preset_runs_and_leaves_the_label_predictor_alone(tiny_features, tmp_path):
    config = ACMRConfig.preset("demo", epochs=1, batch_size=50)
    result = train_acmr(tiny_features, config, tmp_path, device="cpu")
    initial = torch.load(tmp_path / "last.ckpt", weights_only=True)["state_dict"]["model.label_predictor.0.1.weight"]
    assert torch.equal(result.model.label_predictor[0][1].weight, initial)
    assert result.metrics["mean"]["map_50_hits"] > 0


def test_unlabelled_data_are_refused(tiny_features, tmp_path):
    bare = (PairSet(p.image, p.text) for p in (tiny_features.train, tiny_features.validation, tiny_features.test))
    data = PairData(*bare, name="bare")
    with pytest.raises(UserError, match="ACMR learns from labels, and bare has none"):
        train_acmr(data, CONFIG, tmp_path / "run", device="cpu")
    assert not (tmp_path / "run").exists()
    with pytest.raises(UserError, match="semantic_forest needs labels, and bare has none"):
        benchmark(data, output=tmp_path, models=["semantic_forest"])
    result = benchmark(data, output=tmp_path, models=["linear_cca"])
    assert result["protocol"]["chosen_by"].startswith("mrr")


def test_a_class_absent_from_validation_is_said(tiny_features, tmp_path):
    d, lines = tiny_features, []
    only = (d.validation.labels == 0).nonzero()[:, 0]
    data = PairData(d.train, d.validation.subset(only), d.test, name="half", classes=d.classes)
    with (tmp_path / "log").open("w") as file:
        train_acmr(data, replace(CONFIG, epochs=1), tmp_path / "run", device="cpu", console=Console(file=file))
    lines = (tmp_path / "log").read_text().splitlines()
    assert lines[0] == "classes without a validation pair, which do not count in choosing the epoch: high"


@pytest.mark.parametrize("name", list(BASELINES))
def test_baselines_beat_chance(tiny_features, name):
    baseline = BASELINES[name](tiny_features, "map_all")
    assert baseline.metrics["mean"]["map_all"] > baseline.metrics["chance"]["map_all"] + 0.1
    assert baseline.metrics["gallery"] == 80
    again = BASELINES[name](tiny_features, "map_all", True)
    assert again.chosen == baseline.chosen and again.metrics != baseline.metrics


def test_benchmark_names_its_protocol(tiny_features, tmp_path):
    models = ["linear_cca", "three_view_cca", "acmr"]
    result = benchmark(tiny_features, output=tmp_path, seeds=[0, 1], models=models, acmr=CONFIG, device="cpu")
    assert list(result["models"]) == models == list(result["chosen"]) == list(result["seconds"])
    protocol = result["protocol"]
    assert protocol["pairs"] == {"train": 300, "validation": 60, "test": 80}
    assert protocol["gallery"] == 80 and protocol["seeds"] == [0, 1]
    assert result["models"]["acmr"]["seeds"] == [0, 1]
    assert json.loads(json.dumps(result)) == result
    with pytest.raises(UserError, match=r"models must be among .*, got 'svm'"):
        benchmark(tiny_features, output=tmp_path, models=["svm"])
