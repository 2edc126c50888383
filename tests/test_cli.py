"""The command line from end to end, on small pair files."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from xmodal_ops import build_info, cli, data
from xmodal_ops.cli.commands import app
from xmodal_ops.models import DCCA, LinearCCA
from xmodal_ops.training import load_run

from .training.conftest import tiny_pairs

DIRECTIONS = {"image_to_text", "text_to_image", "mean", "chance"}
METRICS = {"map_all", "map_50", "map_50_hits", "recall@1", "recall@5", "recall@10", "median_rank", "mrr"}


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pair file with 500 pairs of features and classes."""
    path = tmp_path_factory.mktemp("data") / "pairs.npz"
    pairs = tiny_pairs(500, 0, features=True)
    np.savez(path, image=pairs.image.numpy(), text=pairs.text.numpy(), labels=pairs.labels.numpy())
    return path


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """A function that runs a command in an empty directory; returns exit code, stdout, stderr."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "120")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)

    def call(*args: str | Path) -> tuple[int, str, str]:
        result = CliRunner().invoke(app, [str(arg) for arg in args])
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result.exit_code, result.stdout, result.stderr

    yield call
    torch.set_num_threads(threads)


def train(file: Path, *rest: str | Path) -> tuple[str | Path, ...]:
    return (
        *["train", "dcca", "--epochs", "3", "--batch-size", "100", "--output-dim", "4", "--device", "cpu", "--data"],
        file,
        *rest,
    )


def one_line(stderr: str, *parts: str) -> None:
    """Checks that a refused command printed one line, which contains the parts."""
    assert len(stderr.strip().splitlines()) == 1, stderr
    assert stderr.startswith("xmodal: ")
    for part in parts:
        assert part in stderr


def test_train_evaluate_and_resume(run, file, tmp_path):
    code, out, err = run(*train(file, "--output", "a", "--json", "a.json"))
    assert code == 0, err
    figures = json.loads(Path("a.json").read_text())
    assert figures == json.loads(Path("a/metrics.json").read_text())
    assert figures.keys() == {"dcca"}
    assert figures["dcca"].keys() > DIRECTIONS
    assert figures["dcca"]["mean"].keys() == METRICS
    assert figures["dcca"]["mean"]["recall@10"] > 3 * figures["dcca"]["chance"]["recall@10"]
    assert "DCCA" in out and "chance" in out and f"{figures['dcca']['mean']['recall@10']:.3f}" in out
    assert Path("a/retrieval.png").exists() and "a/retrieval.png" in out
    assert [line[:9] for line in err.splitlines()] == ["epoch 1/3", "epoch 2/3", "epoch 3/3"]

    code, out, err = run("evaluate", "a", "--device", "cpu", "--json", "b.json")
    assert code == 0, err
    assert json.loads(Path("b.json").read_text()) == figures
    assert run("evaluate", "a", "--device", "cpu", "--split", "validation", "--json", "c.json")[0] == 0
    assert json.loads(Path("c.json").read_text())["dcca"]["mean"] != figures["dcca"]["mean"]

    # The same seed once more, in another directory; then the finished run, which resumes to itself.
    assert run(*train(file, "--output", "d", "--json", "d.json"))[0] == 0
    assert json.loads(Path("d.json").read_text()) == figures
    assert run("train", "dcca", "--resume", "--output", "a", "--device", "cpu", "--json", "e.json")[0] == 0
    assert json.loads(Path("e.json").read_text()) == figures
    assert run(*train(file, "--output", "f", "--seed", "1", "--json", "f.json"))[0] == 0
    assert json.loads(Path("f.json").read_text()) != figures


def start(*args: str, cwd: Path, env: dict[str, str]) -> subprocess.Popen[str]:
    """The command in a process of its own, ready for Ctrl-C."""

    def heed_interrupts() -> None:  # a shell's background jobs, such as these tests may be, ignore them
        signal.signal(signal.SIGINT, signal.SIG_DFL)

    command = [sys.executable, "-m", "xmodal_ops.cli", *args]
    return subprocess.Popen(command, cwd=cwd, env=env, stderr=subprocess.PIPE, text=True, preexec_fn=heed_interrupts)


@pytest.mark.parametrize("module", ["typer", "torch"])
def test_ctrl_c_while_modules_load_leaves_no_traceback(tmp_path, module):
    (tmp_path / f"{module}.py").write_text("import sys, time; print('loading', file=sys.stderr); time.sleep(60)")
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), str(Path(cli.__file__).parents[2])])}
    process = start("demo", cwd=tmp_path, env=env)
    assert process.stderr is not None
    assert process.stderr.readline() == "loading\n"
    process.send_signal(signal.SIGINT)
    assert process.stderr.read() in ("", "xmodal: interrupted\n")
    assert process.wait(60) == 130


def test_ctrl_c_leaves_what_resumes_to_the_same_end(run, file, tmp_path):
    """A real signal to a real process."""
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(cli.__file__).parents[2])}
    options = [str(option) for option in train(file, "--epochs", "40", "--output")]
    process = start(*options, "part", cwd=tmp_path, env=env)
    assert process.stderr is not None
    for line in process.stderr:
        if line.startswith("epoch 2/40"):
            break
    else:
        pytest.fail(f"ended with {process.wait()} before the signal")
    process.send_signal(signal.SIGINT)
    err = process.stderr.read()
    assert process.wait(60) == 130, err
    assert "Traceback" not in err
    last = err.strip().splitlines()[-1]
    assert last.startswith("xmodal: interrupted in epoch ") and last.endswith("continue with --resume --output part")
    assert isinstance(load_run(tmp_path / "part", "cpu"), DCCA)
    assert not (tmp_path / "part" / "model.pt").exists()
    assert run(*options, "part", "--resume", "--json", "part.json")[0] == 0
    assert run(*options, "whole", "--json", "whole.json")[0] == 0
    assert json.loads(Path("part.json").read_text()) == json.loads(Path("whole.json").read_text())


def test_linear_cca(run, file, tmp_path):
    code, out, err = run("train", "linear-cca", "--data", file, "--output", "a", "--json", "a.json")
    assert code == 0, err
    figures = json.loads(Path("a.json").read_text())
    assert figures["linear_cca"]["mean"]["recall@10"] > 3 * figures["linear_cca"]["chance"]["recall@10"]
    assert "linear CCA" in out
    assert isinstance(load_run("a"), LinearCCA)
    assert run("evaluate", "a", "--json", "b.json")[0] == 0
    assert json.loads(Path("b.json").read_text()) == figures


def test_demo(run, tiny_glyphs):
    code, out, err = run("demo", "--epochs", "2", "--device", "cpu", "--json", "demo.json", "--output", "demo")
    assert code == 0, err
    figures = json.loads(Path("demo.json").read_text())
    assert list(figures) == ["linear_cca", "dcca"]
    assert all(figures[model]["mean"].keys() == METRICS for model in figures)
    assert figures == json.loads(Path("demo/metrics.json").read_text())
    for word in ("linear CCA", "DCCA", "chance", "mAP", "R@1", "R@5", "R@10", "median rank", "demo/retrieval.png"):
        assert word in out
    assert run("demo", "--epochs", "1", "--device", "cpu", "--output", "demo")[0] == 0  # again: replaced


@pytest.fixture
def tiny_glyphs(monkeypatch: pytest.MonkeyPatch) -> None:
    pairs = data.PairData(tiny_pairs(300, 0), tiny_pairs(60, 1), tiny_pairs(80, 2), "glyphs", ["low", "high"])
    monkeypatch.setattr(data, "load", lambda name, **options: pairs)


def test_info(run):
    code, out, _ = run("info", "--json", "info.json")
    assert code == 0
    assert "trace_norm" in out
    assert json.loads(Path("info.json").read_text()) == json.loads(json.dumps(build_info()))


@pytest.mark.parametrize("command", [(), ("demo",), ("train",), ("train", "dcca"), ("evaluate",), ("info",)])
def test_help(run, command):
    code, out, _ = run(*command, "--help")
    assert code == 0
    assert "Usage" in out


def test_bad_input_is_one_line_and_exit_code_2(run, file, tmp_path):
    def refused(*args: str | Path, says: str) -> None:
        code, _, err = run(*args)
        assert code == 2, (args, err)
        one_line(err, says)

    Path("broken.npz").write_bytes(file.read_bytes()[:1000])
    Path("file").write_text("")
    holes = tiny_pairs(50, 0, features=True)
    holes.image[17, 3] = float("nan")
    np.savez("holes.npz", image=holes.image.numpy(), text=holes.text.numpy())
    np.savez("other.npz", image=np.random.rand(50, 7), text=np.random.rand(50, 12))

    refused(*train(Path("missing.npz")), says="missing.npz")
    refused(*train(Path("broken.npz")), says="broken.npz")
    refused(*train(Path("notes.txt")), says="notes.txt")
    refused(*train(Path("holes.npz")), says="row 17")
    refused(*train(file, "--font", "a.ttf"), says="--font does not go with --data")
    refused("train", "dcca", "--data", "wikipedia", says="wikipedia needs path")
    refused("train", "dcca", "--data", "wikipedia", "--path", "nowhere", says="nowhere: no such directory")
    refused("train", "dcca", "--font", "missing.ttf", says="missing.ttf")
    refused(*train(file, "--output", "file/run"), says="cannot write to the output directory file/run: Not a directory")
    refused(*train(file, "--json", "file/a.json"), says="cannot write to the output directory file: ")
    refused("demo", "--output", "file", says="cannot write to the output directory file: File exists")
    refused(*train(file, "--epochs", "0"), says="epochs must be at least 1, got 0")
    refused(*train(file, "--image-branch", "cnn"), says="image_branch must be mlp for images of shape (20,)")
    refused("train", "dcca", "--resume", says="--resume needs --output")
    refused("train", "dcca", "--resume", "--output", "nothing", says="nothing holds no run")
    refused("evaluate", "nothing", says="nothing holds no run")
    refused("train", "linear-cca", "--data", "holes.npz", says="row 17")

    assert run(*train(file, "--output", "a"))[0] == 0
    refused(*train(file, "--output", "a"), says="a holds a run already")
    refused(*train(file, "--output", "a", "--resume", "--seed", "3"), says="seed is 0 there, got 3")
    refused("evaluate", "a", "--data", "other.npz", says="image must have items of shape [20] for this run, got [7]")
    refused("evaluate", "a", "--split", "all", says="split must be test, validation or train")
    assert run(*train(file, "--output", "a", "--overwrite", "--epochs", "1"))[0] == 0


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
@pytest.mark.parametrize("command", [("demo",), ("train", "dcca")])
def test_cuda_without_a_device(run, command, monkeypatch):
    monkeypatch.setattr(data, "load", lambda *_, **__: pytest.fail("it loaded data"))
    code, _, err = run(*command, "--device", "cuda")
    assert code == 2
    one_line(err, "device cuda is not available", "--device cpu")


def test_every_model_takes_options_by_flag_and_by_set(run, file):
    data = ("--data", file, "--output")
    for model, flag, setting, name, value in (
        ("linear-cca", ("--components", "2,5"), "components=2,5", "components", [2, 5]),
        ("dcca", ("--hidden", "16", "--hidden", "8"), "hidden=16,8", "hidden", [16, 8]),
        ("acmr", ("--image-hidden", "16,8"), "image_hidden=16,8", "image_hidden", [16, 8]),
    ):
        few = () if model == "linear-cca" else ("--set", "epochs=1", "--device", "cpu")
        assert run("train", model, *few, *flag, *data, f"{model}-flag")[0] == 0
        assert run("train", model, *few, "--set", setting, *data, f"{model}-set")[0] == 0
        options = [json.loads(Path(f"{model}-{how}/config.json").read_text())["options"] for how in ("flag", "set")]
        assert options[0] == options[1]
        assert options[0][name] == value
        for wrong, says in (
            (f"{name}=2.5", f"{name} must be an integer, got '2.5'"),
            ("foo=1", "--set must name one of "),
            ("foo", "--set must be NAME=VALUE, got 'foo'"),
        ):
            code, _, err = run("train", model, "--set", wrong, *data, "wrong")
            assert code == 2
            one_line(err, says)
    code, _, err = run("train", "acmr", "--resume", "--output", "dcca-set", "--device", "cpu")
    assert code == 2
    one_line(err, "dcca-set holds a run of dcca, not of acmr")


@pytest.fixture(scope="module")
def trained(file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a DCCA run `dcca` and odd files."""
    folder = tmp_path_factory.mktemp("trained")
    args = map(str, train(file, "--epochs", "1", "--hidden", "8", "--output", folder / "dcca"))
    result = CliRunner().invoke(app, list(args))
    assert result.exit_code == 0, result.stderr
    features = tiny_pairs(60, 0, features=True)
    views = {"image": features.image.numpy(), "text": features.text.numpy(), "labels": features.labels.numpy()}
    (folder / "[").mkdir()
    np.savez(folder / "[/blue].npz", **views)
    np.savez(folder / "[red]x.npz", **views)
    np.savez(folder / "constant.npz", **{**views, "image": np.ones((60, 20), np.float32)})
    np.savez(folder / "one.npz", **{**views, "labels": np.zeros(60, int)})
    np.savez(folder / "small.npz", **{name: view[:12] for name, view in views.items()})
    np.savez(folder / "split.npz", **views, split=np.repeat(["train", "validation", "test"], 20))
    (folder / "text").write_text("hello")
    (folder / "folder").mkdir()
    return folder


@pytest.fixture
def copy(trained: Path, tmp_path: Path) -> Path:
    """A copy of that directory to spoil."""
    shutil.copytree(trained, tmp_path, dirs_exist_ok=True)
    return tmp_path


SMALL = "train dcca --data small.npz --epochs 1 --batch-size 8 --output-dim 2 --hidden 4 --device cpu --output new "


@pytest.mark.parametrize(
    ("line", "says"),
    [
        (SMALL + "--batch-size 2.5", "batch_size must be an integer, got '2.5'"),
        (SMALL + "--learning-rate nan", "learning_rate must be at least 0, got nan"),
        (SMALL + "--learning-rate 1e400", "learning_rate must be a finite number, got inf"),
        (SMALL + "--learning-rate 1e30 --epochs 3", "a smaller learning rate or a larger ridge may help"),
        (SMALL + "--seed 99999999999999999999", "seed must be at most 2147483647"),
        (SMALL + "--output-dim 2147483647", "not enough memory"),
        (SMALL + "--data text", "name must be one of"),
        (SMALL + "--data [/blue]", "[/blue]"),
        (SMALL + "--data folder", "folder"),
        (SMALL + "--output text", "cannot write to the output directory text"),
        (SMALL + "--output /proc/none", "cannot write to the output directory /proc/none"),
        (SMALL + "--output " + "x" * 300, "File name too long"),
        (SMALL + "--json folder", "--json must name a file, got the directory folder"),
        (SMALL + "--json text/a.json", "cannot write to the output directory text"),
        (SMALL + "--device cuda:99999999999999999999", "device must be auto, cpu, cuda, cuda:N or mps"),
        (SMALL + "--bogus", "No such option: --bogus (see xmodal train dcca --help)"),
        ("train dcca --font text --output new", "text: not a font"),
        ("train linear-cca --output new --data constant.npz", "all training rows of image are equal"),
        ("train linear-cca --output new --data small.npz --ridges ,", "ridges must hold at least one number, got none"),
        ("train acmr --output new --data one.npz", "ACMR needs at least 2 classes, one has 1"),
        ("train acmr --output new --seeds many", "Invalid value for '--seeds'"),
        (
            "benchmark --output new --data one.npz --model semantic_logistic",
            "semantic matching needs at least 2 classes",
        ),
        ("benchmark --output new --data small.npz --monitor none", "monitor must be one of"),
        ("evaluate text", "text holds no run"),
        ("evaluate", "Missing argument 'RUN'"),
        ("info --json folder", "--json must name a file, got the directory folder"),
        ("trian", "Did you mean 'train'?"),
    ],
)
def test_whatever_is_typed_is_answered_in_one_line(run, copy, line, says):
    code, _, err = run(*line.split())
    assert code == 2, err
    one_line("\n".join(err.splitlines()[-1:]), says)
    assert sum(text.startswith("xmodal: ") for text in err.splitlines()) == 1
    assert "Traceback" not in err
    assert not Path("new").exists() or any(path.name != ".lock" for path in Path("new").iterdir())


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda config: config.pop("options"), "options must be an object, got nothing"),
        (lambda config: config.update(model="vit"), "model must be one of linear_cca, dcca, acmr, got 'vit'"),
        (lambda config: config.update(model="acmr"), "options that this version does not know"),
        (lambda config: config.update(shapes={"image": "x"}), "shapes must give the shape of image, got 'x'"),
        (lambda config: config.update(data={"data": 7}), "must be described by data, path and fonts"),
        (lambda config: config["options"].update(batch_size=2.5), "batch_size must be an integer, got 2.5"),
        (lambda config: config.pop("image_branch"), "does not describe the networks of a dcca"),
        (lambda config: config["image_branch"].update(name="X"), "branch name must be one of"),
        (lambda config: config["image_branch"]["arguments"].update(out_features=-3), "does not describe the networks"),
        (
            lambda config: config["image_branch"]["arguments"].update(hidden=[9]),
            "does not fit the networks in config.json",
        ),
    ],
)
def test_an_edited_configuration_is_answered_in_one_line(run, copy, change, says):
    path = copy / "dcca" / "config.json"
    config = json.loads(path.read_text())
    change(config)
    path.write_text(json.dumps(config))
    (copy / "dcca" / "model.pt").unlink()  # so that the networks are built from the configuration
    code, _, err = run("evaluate", "dcca", "--device", "cpu")
    assert code == 2
    one_line(err, says)


@pytest.mark.parametrize("content", ["", "[]", "[" * 100_000, "\0"])
def test_a_damaged_configuration_is_answered_in_one_line(run, copy, content):
    (copy / "dcca" / "config.json").write_text(content)
    for args in (("evaluate", "dcca"), ("train", "dcca", "--resume", "--output", "dcca", "--device", "cpu")):
        code, _, err = run(*args)
        assert code == 2
        one_line(err, "cannot read dcca/config.json")


def test_a_damaged_model_is_named_and_the_checkpoint_is_evaluated(run, copy):
    (copy / "dcca" / "model.pt").write_bytes(b"")
    code, out, err = run("evaluate", "dcca", "--device", "cpu")
    assert code == 0 and "DCCA" in out
    one_line(err, "cannot read dcca/model.pt", "dcca/best.ckpt is used instead")


def test_a_second_training_in_a_directory_is_one_line(run, copy):
    before = (copy / "dcca" / "metrics.json").read_bytes()
    with (copy / "dcca" / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # as another process does
        for line in (
            SMALL + "--output dcca --overwrite",
            "train dcca --resume --output dcca --device cpu",
            "train linear-cca --data small.npz --output dcca --overwrite",
            "demo --output dcca --device cpu",
            "benchmark --data small.npz --output dcca --device cpu",
        ):
            code, _, err = run(*line.split())
            assert code == 2
            one_line(err, "another training writes to dcca")
    assert (copy / "dcca" / "metrics.json").read_bytes() == before


def test_a_directory_of_seeds_is_evaluated(run, copy):
    for seed in range(2):
        shutil.copytree("dcca", f"seeds/seed-{seed}")
    for folder in ("dcca", "seeds"):
        code, _, err = run("evaluate", folder, "--device", "cpu", "--json", f"{folder}.json")
        assert code == 0, err
    alone, together = (json.loads(Path(f"{folder}.json").read_text()) for folder in ("dcca", "seeds"))
    assert together["dcca"]["mean"] == pytest.approx(alone["dcca"]["mean"], abs=0.02)


def test_names_are_not_markup(run, copy):
    code, out, err = run(*(SMALL + "--data [red]x.npz --output [bold]x").split())
    assert code == 0, err
    assert "[red]x, test split" in out and "[bold]x/retrieval.png" in out


def test_a_file_without_splits_is_scored_as_a_whole(run, copy):
    for args, scored in (
        (("--data", "small.npz"), "small, all pairs, gallery of 12"),
        (("--data", "small.npz", "--split", "test"), "small, test split, gallery of 1"),
        (("--data", "split.npz"), "split, test split, gallery of 20"),
        ((), "pairs, test split, gallery of 50"),
    ):
        code, out, err = run("evaluate", "dcca", "--device", "cpu", *args)
        assert code == 0, err
        assert scored in out


def test_tables_are_whole_outside_a_terminal(run, copy, monkeypatch):
    monkeypatch.setenv("COLUMNS", "20")
    _, out, _ = run("evaluate", "dcca", "--device", "cpu")
    assert "median rank" in out and "…" not in out


def test_a_fault_of_the_program_is_one_line_with_its_traceback_in_a_file(run, copy, monkeypatch):
    monkeypatch.setattr("xmodal_ops.training.evaluate", lambda *_: {}["gone"])
    monkeypatch.setattr("tempfile.tempdir", str(copy))
    code, _, err = run("evaluate", "dcca", "--device", "cpu")
    assert code == 1
    one_line(err, "internal error, KeyError: KeyError 'gone'; for the traceback, see ")
    assert "Traceback" in Path(err.split("see ")[1].strip()).read_text()
    monkeypatch.setenv("XMODAL_TRACEBACK", "1")
    assert "Traceback" in run("evaluate", "dcca", "--device", "cpu")[2]


@pytest.mark.parametrize(
    "place", ["data.load", "training.load_run", "training.evaluate", "training.report.retrieval_picture"]
)
def test_ctrl_c_at_any_moment_is_one_line(run, copy, monkeypatch, place):
    def interrupt(*args: object, **options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(f"xmodal_ops.{place}", interrupt)
    command = SMALL if "picture" in place else "evaluate dcca --device cpu"
    code, _, err = run(*command.split())
    assert code == 130
    assert err.splitlines()[-1] == "xmodal: interrupted"


def test_a_benchmark_goes_on_where_it_was_killed(run, copy, monkeypatch):
    line = (
        "benchmark --data [/blue].npz --output b --device cpu --model linear_cca --model three_view_cca --json b.json"
    )
    with monkeypatch.context() as patch:
        patch.setattr("xmodal_ops.training.baselines.BASELINES", {"three_view_cca": lambda *_: {}["killed"]})
        assert run(*line.split())[0] == 1
    monkeypatch.setattr(
        "xmodal_ops.training.benchmark.select_linear_cca", lambda *_, **__: pytest.fail("it was fitted again")
    )
    code, _, err = run(*line.split(), "--resume")
    assert code == 0, err
    assert list(json.loads(Path("b.json").read_text())["models"]) == ["linear_cca", "three_view_cca"]
    code, _, err = run(*line.split(), "--resume", "--monitor", "mrr")
    assert code == 2
    one_line(err.splitlines()[-1], "holds a benchmark with other data or options")
    Path("b/benchmark.json").write_text("{")
    one_line(run(*line.split(), "--resume")[2], "cannot read b/benchmark.json")


def test_help_shows_the_defaults_that_apply(run):
    _, out, _ = run("train", "acmr", "--help")
    assert "[default: recall@10]" in out and "[default: 512]" in out  # the preset for glyphs
    assert "(" + "None)" not in out and "[default: (" not in out


def test_usage_errors_are_code_2(run):
    assert run("train", "dcca", "--epochs", "many")[0] == 2
    assert run("trian")[0] == 2


def test_without_the_extras_it_says_how_to_get_them(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "typer", None)
    monkeypatch.delitem(sys.modules, "xmodal_ops.cli.commands")
    with pytest.raises(SystemExit) as exit:
        cli.main()
    assert exit.value.code == 2
    assert capsys.readouterr().err == "xmodal needs typer: pip install 'xmodal-ops[train]'\n"


def test_importing_the_package_loads_no_extras():
    code = """import sys, xmodal_ops, xmodal_ops.models, xmodal_ops.nn
print([m for m in ("lightning", "matplotlib", "sklearn", "scipy", "h5py", "typer", "rich") if m in sys.modules])"""
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out == "[]\n"
