"""Training of DCCA: run directories, resuming, early stopping, seeds."""

import copy
import csv
import json
from dataclasses import replace
from functools import partial

import pytest
import torch

from xmodal_ops import training
from xmodal_ops.data import PairData
from xmodal_ops.models import DCCA
from xmodal_ops.training import DCCAConfig, Interrupted, UserError, embed, evaluate, load_run
from xmodal_ops.training.lightning import EpochSampler, RunCheckpoint, StepCallback, one_cycle

CONFIG = DCCAConfig(epochs=3, batch_size=100, output_dim=4, hidden=(16,), learning_rate=1e-2)


# Drawing takes longer than training here, so most tests do without it.
train_dcca = partial(training.train_dcca, pictures=False)


def weights(model: DCCA) -> dict[str, torch.Tensor]:
    return {name: value.cpu() for name, value in model.state_dict().items()}


def same(a: DCCA, b: DCCA) -> bool:
    a, b = weights(a), weights(b)
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_a_run_leaves_everything(tiny, tmp_path, capsys):
    result = training.train_dcca(tiny, CONFIG, tmp_path / "a" / "b", device="cpu", source={"data": "tiny"})
    run = tmp_path / "a" / "b"
    assert {path.name for path in run.iterdir()} - {".lock"} == {
        "config.json", "last.ckpt", "best.ckpt", "model.pt", "history.csv", "metrics.json", "loss.png", "retrieval.png",
    }  # fmt: skip
    assert json.loads((run / "metrics.json").read_text()) == {"dcca": result.metrics}
    config = json.loads((run / "config.json").read_text())
    assert config["model"] == "dcca"
    assert config["data"] == {"data": "tiny"}
    assert DCCAConfig.from_dict(config["options"]) == CONFIG
    with (run / "history.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [int(row["epoch"]) for row in rows] == [1, 2, 3]
    assert float(rows[-1]["loss"]) < float(rows[0]["loss"]) < 0
    assert (run / "loss.png").read_bytes()[:4] == (run / "retrieval.png").read_bytes()[:4] == b"\x89PNG"
    assert [line[:9] for line in capsys.readouterr().err.splitlines()] == ["epoch 1/3", "epoch 2/3", "epoch 3/3"]


def test_the_model_learns_and_is_found_again(tiny, tmp_path):
    result = train_dcca(tiny, replace(CONFIG, epochs=8), tmp_path, device="cpu")
    mean, chance = result.metrics["mean"], result.metrics["chance"]
    assert mean["recall@10"] > 3 * chance["recall@10"]
    best = max(result.history, key=lambda row: row["validation recall@10"])
    assert result.best_epoch == best["epoch"]
    again = load_run(tmp_path, "cpu")
    assert same(again, result.model)
    assert evaluate(again, tiny.test) == result.metrics
    image, text = embed(again, tiny.test)
    assert image.shape == text.shape == (80, 4)


def test_the_test_split_has_no_say(tiny, tmp_path):
    """Training and selection depend on the other two splits only."""
    other = PairData(tiny.train, tiny.validation, tiny.test.subset(range(40)), name="other", classes=tiny.classes)
    a = train_dcca(tiny, CONFIG, tmp_path / "a", device="cpu")
    b = train_dcca(other, CONFIG, tmp_path / "b", device="cpu")
    assert same(a.model, b.model)


@pytest.mark.parametrize("augment", [True, False])
def test_equal_seeds_give_equal_runs(tiny, tmp_path, augment):
    config = replace(CONFIG, augment=augment, seed=5)
    a = train_dcca(tiny, config, tmp_path / "a", device="cpu")
    torch.rand(7)  # what was drawn before does not matter
    b = train_dcca(tiny, config, tmp_path / "b", device="cpu")
    c = train_dcca(tiny, replace(config, seed=6), tmp_path / "c", device="cpu")
    assert same(a.model, b.model)
    assert a.metrics == b.metrics
    assert not same(a.model, c.model)


def interrupt_after(steps: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C in a training step."""
    seen = []

    def raise_later(self, trainer, module, *rest):
        seen.append(1)
        if len(seen) == steps:
            raise KeyboardInterrupt

    monkeypatch.setattr(StepCallback, "on_train_batch_end", raise_later)


@pytest.mark.parametrize(("steps", "finished"), [(2, 0), (3, 0), (5, 1), (7, 2)])
def test_an_interrupted_run_resumes_to_the_same_end(tiny, tmp_path, monkeypatch, steps, finished):
    whole = train_dcca(tiny, CONFIG, tmp_path / "whole", device="cpu")
    with monkeypatch.context() as patch:
        interrupt_after(steps, patch)
        with pytest.raises(Interrupted, match=f"in epoch {finished + 1} of 3; .* the end of epoch {finished}:"):
            train_dcca(tiny, CONFIG, tmp_path / "part", device="cpu")
    assert torch.load(tmp_path / "part" / "last.ckpt", weights_only=True)["epoch"] <= finished
    if finished:
        assert isinstance(load_run(tmp_path / "part", "cpu"), DCCA)
    else:
        with pytest.raises(UserError, match="no finished epoch yet"):
            load_run(tmp_path / "part", "cpu")
    resumed = train_dcca(tiny, CONFIG, tmp_path / "part", device="cpu", resume=True)
    assert same(resumed.model, whole.model)
    assert resumed.metrics == whole.metrics
    assert resumed.best_epoch == whole.best_epoch
    drop = "seconds"
    assert [{k: v for k, v in row.items() if k != drop} for row in resumed.history] == [
        {k: v for k, v in row.items() if k != drop} for row in whole.history
    ]


def test_a_finished_run_can_be_resumed_and_prolonged(tiny, tmp_path):
    first = train_dcca(tiny, CONFIG, tmp_path, device="cpu")
    again = train_dcca(tiny, CONFIG, tmp_path, device="cpu", resume=True)
    assert same(first.model, again.model)
    longer = train_dcca(tiny, replace(CONFIG, epochs=5), tmp_path, device="cpu", resume=True)
    assert [row["epoch"] for row in longer.history] == [1, 2, 3, 4, 5]
    assert longer.history[:3] == first.history


def test_ctrl_c_while_an_epoch_ends_is_not_counted(tiny, tmp_path, monkeypatch):
    """The epoch has its metrics, but no checkpoint yet."""
    saved = []

    def raise_later(self, *args, save=RunCheckpoint.on_train_epoch_end):
        saved.append(1)
        if len(saved) == 2:
            raise KeyboardInterrupt
        save(self, *args)

    with monkeypatch.context() as patch:
        patch.setattr(RunCheckpoint, "on_train_epoch_end", raise_later)
        with pytest.raises(Interrupted, match=r"in epoch 2 of 3; .* the end of epoch 1:"):
            train_dcca(tiny, CONFIG, tmp_path / "part", device="cpu")
    resumed = train_dcca(tiny, CONFIG, tmp_path / "part", device="cpu", resume=True)
    assert same(resumed.model, train_dcca(tiny, CONFIG, tmp_path / "whole", device="cpu").model)


def test_a_loss_that_is_no_number_ends_the_training(tiny, tmp_path):
    with pytest.raises(UserError, match="the loss is nan in epoch 1: a smaller learning rate"):
        train_dcca(tiny, replace(CONFIG, learning_rate=1e30), tmp_path, device="cpu")


def test_training_stops_early_without_progress(tiny, tmp_path):
    config = replace(CONFIG, epochs=30, patience=2, learning_rate=1e-9)
    result = train_dcca(tiny, config, tmp_path, device="cpu")
    assert len(result.history) < 30
    assert len(result.history) == result.best_epoch + 2


def test_a_new_run_replaces_the_files_of_an_old_one_only(tiny, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    train_dcca(tiny, CONFIG, tmp_path, device="cpu")
    result = train_dcca(tiny, replace(CONFIG, epochs=1), tmp_path, device="cpu")
    assert len(result.history) == 1
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_features_take_an_mlp_and_a_list_of_names(tiny_features, tmp_path):
    result = training.train_dcca(tiny_features, CONFIG, tmp_path, device="cpu")
    assert type(result.model.image_branch).__name__ == "MLP"
    assert (tmp_path / "retrieval.png").stat().st_size > 10_000


def test_batches_are_whole_and_differ_by_epoch():
    sampler = EpochSampler(10, 4, seed=3)
    first = list(sampler)
    assert [len(batch) for batch in first] == [4, 4]
    assert torch.equal(torch.cat(first), torch.cat(list(sampler)))
    sampler.set_epoch(1)
    assert not torch.equal(torch.cat(first), torch.cat(list(sampler)))
    assert [len(batch) for batch in EpochSampler(10, 64, seed=3)] == [10]


def test_one_cycle_rises_and_falls():
    assert one_cycle(0.0) == 0
    assert one_cycle(0.1) == 0.5
    assert one_cycle(0.2) == 1
    assert one_cycle(0.6) == pytest.approx(0.5)
    assert one_cycle(1.0) == pytest.approx(0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"epochs": 0}, "epochs must be at least 1, got 0"),
        ({"batch_size": 1}, "batch_size must be at least 2, got 1"),
        ({"monitor": "accuracy"}, "monitor must be one of 'recall@1', .* got 'accuracy'"),
        ({"dropout": 1.0}, r"dropout must be at least 0 and less than 1, got 1.0"),
        ({"precision": "8"}, r"precision must be one of '32-true', 'bf16-mixed', '16-mixed', got '8'"),
        ({"ridge": -1.0}, r"ridge must be at least 0, got -1.0"),
        ({"top_k": 5}, r"top_k must lie in 1..4, the outputs, got 5"),
        ({"hidden": (0,)}, r"hidden must be at least 1, got 0"),
        ({"image_branch": "mlp"}, r"image_branch must be cnn or alexnet for images of shape \(1, 16, 16\), got 'mlp'"),
        ({"image_branch": "vit"}, r"image_branch must be cnn or alexnet .* got 'vit'"),
    ],
)
def test_options_are_checked_before_anything_is_written(tiny, tmp_path, changes, message):
    with pytest.raises(UserError, match=message):
        train_dcca(tiny, replace(CONFIG, **changes), tmp_path / "run", device="cpu")
    assert not (tmp_path / "run").exists()


def test_a_directory_that_cannot_be_written_is_said_before_training(tiny, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setattr("xmodal_ops.training.fit.fit", lambda *_: pytest.fail("it trained"))
    with pytest.raises(UserError, match=r"cannot write to the output directory .*file/run: Not a directory"):
        train_dcca(tiny, CONFIG, tmp_path / "file" / "run", device="cpu")


def test_devices_and_runs_that_are_not_there(tiny, tmp_path):
    with pytest.raises(UserError, match="device must be auto, cpu, cuda, cuda:N or mps, got 'gpu'"):
        train_dcca(tiny, CONFIG, tmp_path, device="gpu")
    with pytest.raises(UserError, match=r"device cuda:99 is not available: torch .* finds \d+ CUDA devices?; use"):
        train_dcca(tiny, CONFIG, tmp_path, device="cuda:99")
    with pytest.raises(UserError, match="holds no checkpoint to resume from"):
        train_dcca(tiny, CONFIG, tmp_path, device="cpu", resume=True)
    with pytest.raises(UserError, match="holds no run: there is no config"):
        load_run(tmp_path / "nothing")
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(UserError, match=r"cannot read .*config.json"):
        load_run(tmp_path)


def test_refit_trains_on_both_splits_to_the_chosen_epoch(tiny, tmp_path):
    result = train_dcca(tiny, replace(CONFIG, refit=True), tmp_path, device="cpu")
    plain = train_dcca(tiny, CONFIG, tmp_path / "plain", device="cpu")
    assert [epoch["loss"] for epoch in result.history] == [epoch["loss"] for epoch in plain.history]
    assert result.best_epoch == plain.best_epoch
    assert not same(result.model, plain.model)
    again = torch.load(tmp_path / "refit" / "last.ckpt", weights_only=True)
    assert again["epoch"] == result.best_epoch - 1
    whole = tiny.with_validation().train
    assert len(whole) == len(tiny.train) + len(tiny.validation)
    assert same(copy.deepcopy(result.model).fit_cca(whole.image, whole.text), result.model)
