"""Files of a run on a disk that is full, damaged or shared: each is whole or not there."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch

from xmodal_ops import training
from xmodal_ops.errors import RunWarning, UserError
from xmodal_ops.models import ACMR, DCCA
from xmodal_ops.training import ACMRConfig, DCCAConfig, RunDirectory, evaluate, load_run, report
from xmodal_ops.training.files import replacing, save, write_json

CONFIG = DCCAConfig(epochs=2, batch_size=100, output_dim=4, hidden=(8,), learning_rate=1e-2)
train_dcca = partial(training.train_dcca, device="cpu", pictures=False)


@contextmanager
def no_file_larger_than(size: int):
    """As on a full disk, writing fails in the middle of a larger file."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@pytest.mark.parametrize(
    "write",
    [
        lambda path: write_json(path, list(range(9999))),
        lambda path: save(path, lambda name: torch.save(torch.zeros(9999), name)),
    ],
)
def test_a_full_disk_leaves_the_old_file(tmp_path, write):
    path = tmp_path / "file"
    path.write_text("old")
    with no_file_larger_than(4096), pytest.raises(UserError, match=f"cannot write {path}: "):
        write(path)
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["file"]
    write(path)
    assert path.read_bytes() != b"old"


def test_a_full_disk_ends_a_training_whose_last_checkpoint_resumes(tiny_features, tmp_path, monkeypatch):
    whole = train_dcca(tiny_features, CONFIG, tmp_path / "whole")
    write, saved = torch.save, []

    def full(content, file):
        saved.append(file.name)
        if len(saved) == 4:  # last.ckpt before the training, best.ckpt and last.ckpt of epoch 1, then epoch 2
            file.write(b"half")
            raise OSError(28, "No space left on device")
        write(content, file)

    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", full)
        with pytest.raises(UserError, match=r"cannot write .*\.ckpt: No space left on device"):
            train_dcca(tiny_features, CONFIG, tmp_path / "part")
    assert {Path(path).parent for path in saved} == {tmp_path / "part"}  # the rename must not cross file systems
    assert not list((tmp_path / "part").glob(".xmodal-*"))
    assert isinstance(load_run(tmp_path / "part", "cpu"), DCCA)
    assert train_dcca(tiny_features, CONFIG, tmp_path / "part", resume=True).metrics == whole.metrics


def test_links_and_devices_stay_what_they_are(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "target")
    os.mkfifo(tmp_path / "pipe")
    reader = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    for name in ("link", "pipe"):
        write_json(tmp_path / name, {"a": 1})
    assert (tmp_path / "link").is_symlink() and (tmp_path / "pipe").is_fifo()
    assert os.read(reader, 100) == (tmp_path / "target").read_bytes()
    os.close(reader)


def test_ctrl_c_while_a_file_is_written_leaves_the_old_one(tmp_path):
    path = tmp_path / "file"
    path.write_text("old")

    def interrupted() -> None:
        with replacing(path) as partial:
            partial.write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert {p.name: p.read_text() for p in tmp_path.iterdir()} == {"file": "old"}


@pytest.mark.parametrize("damage", [b"", b"hello", b"\x80\x04N.", None])
def test_a_damaged_file_is_named_and_the_next_best_is_used(tiny_features, tmp_path, damage):
    result = train_dcca(tiny_features, CONFIG, tmp_path)
    for name in ("model.pt", "last.ckpt"):
        path = tmp_path / name
        path.write_bytes(path.read_bytes()[:1000] if damage is None else damage)
    with pytest.warns(RunWarning, match=r"cannot read .*model.pt: .*; .*best.ckpt is used instead"):
        model = load_run(tmp_path, "cpu")
    assert evaluate(model, tiny_features.test)["mean"]["recall@10"] > 0.3
    with pytest.warns(RunWarning, match=r"cannot read .*last.ckpt: .*; .*best.ckpt is used instead"):
        again = train_dcca(tiny_features, CONFIG, tmp_path, resume=True)
    assert again.metrics == result.metrics
    for name in ("model.pt", "best.ckpt"):
        (tmp_path / name).write_bytes(b"")
    with pytest.raises(UserError, match=r"cannot read .*model.pt"):
        load_run(tmp_path, "cpu")


def test_two_trainings_in_one_directory_are_refused_and_a_killed_one_leaves_no_lock(tiny_features, tmp_path):
    code = f"""import sys, time
from xmodal_ops.training import RunDirectory
with RunDirectory({str(tmp_path / "run")!r}).reserved():
    print("held", flush=True)
    time.sleep(60)"""
    other = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert other.stdout is not None and other.stdout.readline() == "held\n"
    with pytest.raises(UserError, match=r"another training writes to .*run: wait for it, or choose another --output"):
        train_dcca(tiny_features, CONFIG, tmp_path / "run")
    other.send_signal(signal.SIGKILL)
    other.wait()
    assert train_dcca(tiny_features, replace(CONFIG, epochs=1), tmp_path / "run").best_epoch == 1


def test_a_directory_in_which_nothing_was_written_is_removed(tmp_path):
    (tmp_path / "mine").mkdir()
    for folder in (tmp_path / "a" / "b", tmp_path / "mine"):
        with pytest.raises(UserError), RunDirectory(folder).reserved():
            raise UserError("no data")
    assert os.listdir(tmp_path) == ["mine"]


def test_a_directory_of_seeds_is_loaded_as_an_ensemble(tiny_features, tmp_path):
    config = ACMRConfig(epochs=1, batch_size=50, dim=8, image_hidden=(8,), text_hidden=(8,))
    metrics = training.train_acmr_seeds(tiny_features, config, tmp_path, (0, 1), device="cpu", pictures=False)
    model = load_run(tmp_path, "cpu")
    assert evaluate(model, tiny_features.test) == metrics["ensemble"]
    for content in ("{", '{"acmr": 5}'):  # a damaged result is written again
        (tmp_path / "seed-0" / "metrics.json").write_text(content)
        options = {"device": "cpu", "pictures": False, "resume": True}
        assert training.train_acmr_seeds(tiny_features, config, tmp_path, (0, 1), **options) == metrics
    assert isinstance(load_run(tmp_path / "seed-1", "cpu"), ACMR)


def test_a_picture_that_fails_does_not_end_the_run(tiny_features, tmp_path, monkeypatch):
    def broken(*args, **options):
        raise RuntimeError("no fonts")

    monkeypatch.setattr(report, "retrieval_picture", broken)
    with pytest.warns(RunWarning, match="retrieval.png is not drawn: no fonts"):
        metrics = training.train_dcca(tiny_features, CONFIG, tmp_path, device="cpu").metrics
    assert report.rows({"dcca": metrics})
    assert not (tmp_path / "retrieval.png").exists()


def test_names_are_drawn_as_they_are(tiny_features, tmp_path):
    pairs = replace(tiny_features.test, names=[r"$\frac{1}$" for _ in range(len(tiny_features.test))])
    e = torch.rand(len(pairs), 3)
    report.retrieval_picture(e, e, pairs, tmp_path / "a.png")
    assert (tmp_path / "a.png").stat().st_size > 1000
