"""The commands of `xmodal`, on typer and rich. Everything heavy is imported by the command that needs it."""

from __future__ import annotations

import io
import json
import os
import re
import sys
import tempfile
import traceback
import warnings
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from typer.core import TyperGroup

from ..errors import Interrupted, UserError, one_line
from ..options import CONFIGS, ACMRConfig, DCCAConfig, LinearCCAConfig
from .options import Device, Group, Json, Output, Overwrite, Resume, with_options, with_source

if TYPE_CHECKING:
    from ..data import PairData
    from ..training import RunDirectory

GLYPHS: Group = {"data": "glyphs"}
TRACEBACK = "XMODAL_TRACEBACK"
out = Console()
err = Console(stderr=True)
held = ExitStack()  # the directories that the running command has reserved


class Commands(TyperGroup):
    """Commands that answer whatever goes wrong with one line on stderr and an exit code.

    0: done. 1: a fault of the program; the line says in which file its traceback is, or XMODAL_TRACEBACK=1 prints it.
    2: something that the user can fix. 130: Ctrl-C.
    """

    def main(self, args: Any = None, *rest: Any, standalone_mode: bool = True, **named: Any) -> Any:
        for stream in (sys.stdout, sys.stderr):
            if isinstance(stream, io.TextIOWrapper):  # names that the terminal cannot show must not end a training
                stream.reconfigure(errors="backslashreplace")
        with warnings.catch_warnings(), held:
            warnings.showwarning = _show_warning
            try:
                code = super().main(args, *rest, **{**named, "standalone_mode": False})
            except (Exception, KeyboardInterrupt) as error:
                code = _report(error)
        if standalone_mode:
            sys.exit(code)
        return code

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except (EOFError, KeyboardInterrupt) as error:  # which typer would call "Aborted."
            raise typer.Exit(_report(error)) from None


def _report(error: BaseException) -> int:
    """Says in one line what went wrong; returns the exit code."""
    if isinstance(error, (KeyboardInterrupt, typer.Abort)):
        _say("xmodal: interrupted")
        return 130
    if isinstance(error, Interrupted):
        _say(f"xmodal: {error}")
        return 130
    context = getattr(error, "ctx", None)  # of typer's errors
    if type(error).__name__ == "NoArgsIsHelpError" and context is not None:
        typer.echo(context.get_help())
        return 2
    if os.environ.get(TRACEBACK, "0") not in ("", "0"):
        err.print("".join(traceback.format_exception(error)), markup=False, highlight=False, soft_wrap=True)
    if (line := _user_error(error)) is not None:
        _say(f"xmodal: {line}")
        return 2
    where = f"run it again with {TRACEBACK}=1"
    with (
        suppress(OSError),
        tempfile.NamedTemporaryFile(
            "w", prefix="xmodal-", suffix=".log", delete=False, encoding="utf-8", errors="backslashreplace"
        ) as file,
    ):
        file.write(" ".join(sys.argv) + "\n" + "".join(traceback.format_exception(error)))
        where = f"see {file.name}"
    _say(f"xmodal: internal error, {type(error).__name__}: {one_line(error)}; for the traceback, {where}")
    return 1


def _user_error(error: BaseException) -> str | None:
    """The line about an error that the user can fix; None for other errors."""
    if isinstance(error, UserError):
        return str(error)
    if hasattr(error, "format_message"):  # of typer: an unknown command or option, or a value of the wrong type
        context = getattr(error, "ctx", None)
        words = ["xmodal", *(context.command_path.split()[1:] if context is not None else ())]
        return f"{error.format_message().rstrip('.')} (see {' '.join(words)} --help)"
    if isinstance(error, OSError):
        return f"{error.filename}: {error.strerror}" if error.filename is not None else one_line(error)
    if isinstance(error, MemoryError) or re.search("out of memory|can't allocate memory|not enough memory", str(error)):
        return "not enough memory: a smaller batch, model or file may help"
    *_, last = traceback.walk_tb(error.__traceback__)
    if isinstance(error, ValueError) and last[0].f_globals.get("__name__", "").startswith("xmodal_ops."):
        return one_line(error)  # what the package itself refuses
    return None


def _show_warning(message: Warning | str, category: type[Warning], *rest: Any, **named: Any) -> None:
    """Prints the package's own warnings in one line; those of libraries are not for users of commands."""
    if category.__module__.startswith("xmodal_ops."):
        _say(f"xmodal: {message}")


def _say(line: str, console: Console = err) -> None:
    console.print(" ".join(line.split()), markup=False, highlight=False, soft_wrap=True)


def _status(line: str) -> Any:
    from rich.markup import escape

    return err.status(escape(" ".join(line.split())))


def _print_table(results: Mapping[str, Mapping[str, Any]], title: str) -> None:
    from ..training import report

    # Only a terminal limits the width; a pipe or a file takes whole lines.
    console = out if out.is_terminal else Console(width=1000)
    console.print(report.table(results, title))


app = typer.Typer(
    cls=Commands,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    help="Cross-modal retrieval of images and text: linear CCA, deep CCA, ACMR.",
)
train = typer.Typer(no_args_is_help=True, rich_markup_mode="rich", help="Train a model on image-text pairs.")
app.add_typer(train, name="train")


@app.command()
@with_options(DCCAConfig, only=("epochs", "seed"))
def demo(
    options: Group,
    device: Device = "auto",
    output: Annotated[
        Path, typer.Option(help="Run directory; an earlier demo in it is replaced.", metavar="DIR")
    ] = Path("runs/demo"),
    json_file: Json = None,
) -> None:
    """Linear CCA and deep CCA on images of characters and their Unicode names: no download, a few minutes on a CPU.

    Prints a table of retrieval metrics on 1,000 characters that no training image shows, and draws what is retrieved.

    Example: [bold]xmodal demo --json demo.json[/bold]
    """
    from ..training import evaluate as evaluate_model
    from ..training import select_linear_cca, train_dcca
    from ..training.files import write_json

    run = _prepare(output, json_file, device)
    config = DCCAConfig.preset("glyphs", **options)
    data = _load(GLYPHS)
    with _status("linear CCA: selecting ridge, components and powers on the validation split"):
        linear = select_linear_cca(data, config.monitor)
    result = train_dcca(data, config, output, source=GLYPHS, device=device, console=err)
    results = {"linear_cca": evaluate_model(linear, data.test), "dcca": result.metrics}
    write_json(run.metrics, results)
    _show(results, data, "test split", json_file)
    _say(f"retrieved items: {run.retrieval}", out)


@train.command("linear-cca")
@with_source
@with_options(LinearCCAConfig, "Linear CCA")
def train_linear_cca_command(
    source: Group,
    options: Group,
    output: Output = None,
    overwrite: Overwrite = False,
    json_file: Json = None,
) -> None:
    """Train linear CCA, with ridge, components and powers selected on the validation split.

    Example: [bold]xmodal train linear-cca --data wikipedia --path DIR[/bold]
    """
    from ..training import train_linear_cca

    run, config, source = _begin("linear_cca", source, options, output, overwrite, json_file)
    pairs = _load(source)
    metrics = train_linear_cca(pairs, run.path, source=source, **vars(config))
    _show({"linear_cca": metrics}, pairs, "test split", json_file)
    _say(f"retrieved items: {run.retrieval}", out)


@train.command("dcca")
@with_source
@with_options(DCCAConfig, "DCCA")
def train_dcca_command(
    source: Group,
    options: Group,
    output: Output = None,
    resume: Resume = False,
    overwrite: Overwrite = False,
    device: Device = "auto",
    json_file: Json = None,
) -> None:
    """Train deep CCA end to end, and evaluate its best validation epoch on the test split.

    Ctrl-C leaves a checkpoint; --resume continues it, with the same result as an uninterrupted run.
    The defaults are those for glyphs; a data set may have its own.

    Examples:

    [bold]xmodal train dcca --epochs 30 --output runs/glyphs[/bold]

    [bold]xmodal train dcca --data wikipedia --path DIR --output runs/wikipedia[/bold]

    [bold]xmodal train dcca --data features.npz --batch-size 4096 --device cuda[/bold]

    [bold]xmodal train dcca --resume --output runs/glyphs[/bold]
    """
    from ..training import train_dcca

    run, config, source = _begin("dcca", source, options, output, overwrite, json_file, device, resume)
    pairs = _load(source)
    result = train_dcca(pairs, config, run.path, source=source, device=device, resume=resume, console=err)
    _show({"dcca": result.metrics}, pairs, "test split", json_file)
    _say(f"best epoch {result.best_epoch} of {len(result.history)}; retrieved items: {run.retrieval}", out)


@train.command("acmr")
@with_source
@with_options(ACMRConfig, "ACMR", ACMRConfig.preset("best", "glyphs"))
def train_acmr_command(
    source: Group,
    options: Group,
    output: Output = None,
    resume: Resume = False,
    overwrite: Overwrite = False,
    preset: Annotated[str, typer.Option(help="paper, demo (as the released code) or best.", metavar="NAME")] = "best",
    seeds: Annotated[
        int, typer.Option(help="Number of seeds, from --seed on; several report mean and deviation.", metavar="INTEGER")
    ] = 1,
    device: Device = "auto",
    json_file: Json = None,
) -> None:
    """Train adversarial cross-modal retrieval on labelled pairs, and evaluate its best validation epoch on the test
    split.

    The defaults are those of the preset best for glyphs; a data set may have its own.

    Examples:

    [bold]xmodal train acmr --data wikipedia --path DIR --seeds 5 --json acmr.json[/bold]

    [bold]xmodal train acmr --data wikipedia --path DIR --preset paper --set alpha=0.05[/bold]

    [bold]xmodal train acmr --resume --output runs/acmr-glyphs[/bold]
    """
    from ..training import train_acmr, train_acmr_seeds

    if seeds < 1:
        raise UserError(f"--seeds must be at least 1, got {seeds}")
    run, config, source = _begin(
        "acmr", source, options, output, overwrite, json_file, device, resume, preset=(preset,)
    )
    if resume and not run.config.exists():
        seeds = max(seeds, len(run.seeds))
    pairs = _load(source)
    rest: dict[str, Any] = {"source": source, "device": device, "resume": resume, "console": err}
    if seeds > 1:
        metrics = train_acmr_seeds(pairs, config, run.path, range(config.seed, config.seed + seeds), **rest)
        _show({"acmr": metrics}, pairs, "test split", json_file)
        return
    result = train_acmr(pairs, config, run.path, **rest)
    _show({"acmr": result.metrics}, pairs, "test split", json_file)
    line = f"best epoch {result.best_epoch} of {len(result.history)}; the common space: {run.space}"
    _say(f"{line}; retrieved items: {run.retrieval}", out)


@app.command()
@with_source
def benchmark(
    source: Group,
    output: Annotated[Path, typer.Option(help="Directory for the runs of the models.", metavar="DIR")] = Path(
        "runs/benchmark"
    ),
    models: Annotated[
        list[str] | None, typer.Option("--model", help="Only this model; repeatable.", metavar="NAME")
    ] = None,
    seeds: Annotated[int, typer.Option(help="Number of seeds of DCCA and ACMR, to be averaged.")] = 1,
    monitor: Annotated[str, typer.Option(help="Validation metric that selects.", metavar="NAME")] = "map_all",
    resume: Annotated[bool, typer.Option("--resume", help="Keep the finished models in --output.")] = False,
    device: Device = "auto",
    json_file: Json = None,
) -> None:
    """Compare baselines and models on one data set in one table: chance, linear CCA, three-view CCA with labels,
    semantic matching (logistic, random forest), DCCA, ACMR.

    Example: [bold]xmodal benchmark --data wikipedia --path DIR --seeds 5 --json benchmark.json[/bold]
    """
    from ..training import report
    from ..training.benchmark import benchmark as run_benchmark
    from ..training.files import write_json

    if seeds < 1:
        raise UserError(f"--seeds must be at least 1, got {seeds}")
    run = _prepare(output, json_file, device)
    source = {**GLYPHS, **source}
    pairs = _load(source)
    result = run_benchmark(
        pairs, output=run.path, seeds=range(seeds), models=models, monitor=monitor, source=source, device=device,
        resume=resume, on_model=lambda name: _say(report.NAMES[name]),
    )  # fmt: skip
    protocol = result["protocol"]
    sizes = "/".join(f"{count:,}" for count in protocol["pairs"].values())
    title = (
        f"{pairs.name}: {sizes} pairs for training/validation/test, gallery of {protocol['gallery']:,}, "
        f"chosen by {protocol['chosen_by']}, seeds {', '.join(map(str, protocol['seeds']))}"
    )
    _print_table(result["models"], title)
    if json_file is not None:
        write_json(json_file, result)


@app.command()
@with_source
def evaluate(
    source: Group,
    run: Annotated[Path, typer.Argument(help="Run directory.", metavar="RUN")],
    split: Annotated[
        str | None,
        typer.Option(help="test (default), validation or train. A pair file without splits is scored as a whole."),
    ] = None,
    device: Device = "auto",
    json_file: Json = None,
) -> None:
    """Evaluate the model of a run on a split of its own data, or on other data with the same widths.

    RUN may hold one run per seed; their models are then evaluated as an ensemble.

    Example: [bold]xmodal evaluate runs/demo --split validation --json scores.json[/bold]
    """
    from ..training import RunDirectory, check_shapes, load_run
    from ..training import evaluate as evaluate_model

    if split not in (None, "test", "validation", "train"):
        raise UserError(f"split must be test, validation or train, got {split!r}")
    _prepare_json(json_file)
    config = RunDirectory(run).read_config()
    model = load_run(run, device)
    own = config["data"]
    source = source if "data" in source else {**own, **source}
    pairs = _load(source)
    check_shapes(config, pairs)
    if split is None and source["data"] != own.get("data") and not _declares_split(source["data"]):
        results = {config["model"]: evaluate_model(model, pairs.whole())}
        _show(results, pairs, "all pairs", json_file)
    else:
        split = split or "test"
        results = {config["model"]: evaluate_model(model, getattr(pairs, split))}
        _show(results, pairs, f"{split} split", json_file)


@app.command()
def info(json_file: Json = None) -> None:
    """Print versions, devices, compiled architectures, and the implementation of each op."""
    from .._build import build_info, describe

    typer.echo(describe())  # first: it initialises CUDA, which gives the names of devices
    if json_file is not None:
        from ..training.files import write_json

        _prepare_json(json_file)
        write_json(json_file, build_info())


def _begin(
    model: str,
    source: Group,
    options: Group,
    output: Path | None,
    overwrite: bool,
    json_file: Path | None,
    device: str = "cpu",
    resume: bool = False,
    preset: tuple[str, ...] = (),
) -> tuple[RunDirectory, Any, Group]:
    """Run directory, configuration and source of a training that starts or is resumed."""

    if resume:
        if output is None:
            raise UserError("--resume needs --output DIR, the run to continue")
        config, source = _saved(model, output, source, options)
        return _prepare(output, json_file, device), config, source
    source = {**GLYPHS, **source}
    kind: Any = CONFIGS[model]
    config = kind.preset(*preset, source["data"], **options)
    output = output or Path("runs", f"{model}-{Path(source['data']).stem}")
    run = _prepare(output, json_file, device)
    if run.config.exists() and not overwrite:
        raise UserError(f"{output} holds a run already: replace it with --overwrite, or choose another --output")
    return run, config, source


def _saved(model: str, folder: Path, source: Group, options: Group) -> tuple[Any, Group]:
    """Configuration and source of a run to resume. UserError if the user gave other options, except for epochs."""
    from ..training import RunDirectory

    run = RunDirectory(folder)
    saved = run.read_config()
    if saved["model"] != model:
        raise UserError(f"{folder} holds a run of {saved['model']}, not of {model}")
    config: Any = run.read_options()
    known = {**config.to_dict(), **saved["data"]}
    for name, value in {**options, **source}.items():
        if name != "epochs" and json.dumps(value) != json.dumps(known.get(name)):
            raise UserError(f"--resume keeps the run's options: {name} is {known.get(name)!r} there, got {value!r}")
    return replace(config, epochs=options.get("epochs", config.epochs)), saved["data"]


def _prepare(output: Path, json_file: Path | None, device: str) -> RunDirectory:
    """Refuses what cannot work before time is spent on data and training, and reserves the run directory."""
    from ..training import RunDirectory, pick_device

    pick_device(device)
    run = RunDirectory(output)
    held.enter_context(run.reserved())
    _prepare_json(json_file)
    return run


def _prepare_json(file: Path | None) -> None:
    from ..training.run import made

    if file is not None:
        if file.is_dir():
            raise UserError(f"--json must name a file, got the directory {file}")
        held.enter_context(made(file.parent))


def _load(source: Mapping[str, Any]) -> PairData:
    from ..data import NAMES, DataWarning, load

    kind = source.get("data")
    options = {name: value for name, value in source.items() if name != "data"}
    if not isinstance(kind, str) or options.keys() - {"path", "fonts"}:
        raise UserError(f"the data of a run must be described by data, path and fonts, got {dict(source)}; give --data")
    allowed = "fonts" if kind == "glyphs" else "path" if kind in NAMES else None
    for name, flag in (("path", "--path"), ("fonts", "--font")):
        if name in options and name != allowed:
            raise UserError(f"{flag} does not go with --data {kind}")
    with _status(f"loading {kind}"), warnings.catch_warnings():
        warnings.simplefilter("ignore", DataWarning)  # the notes, printed below
        try:
            pairs = load(kind, **options)
        except UserError:
            raise
        except (ValueError, TypeError) as error:
            raise UserError(one_line(error)) from None
    for note in pairs.notes:
        _say(f"{kind}: {note}")
    return pairs


def _declares_split(kind: str) -> bool:
    """Whether a data set says itself which pairs are for testing."""
    from ..data import NAMES, files

    return kind in NAMES or files.declares_split(Path(kind))


def _show(results: Mapping[str, Mapping[str, Any]], data: PairData, scored: str, json_file: Path | None) -> None:
    from ..training.files import write_json

    gallery = next(iter(results.values()))["gallery"]
    _print_table(results, f"{data.name}, {scored}, gallery of {gallery:,}")
    if json_file is not None:
        write_json(json_file, results)
