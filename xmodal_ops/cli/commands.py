"""The commands of `xmodal`, on typer and rich. Everything heavy is imported by the command that needs it."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from typer.core import TyperGroup

from ..data import NAMES, DataError, DataWarning, PairData
from ..training import DCCAConfig, Interrupted, RunDirectory, UserError

GLYPHS: dict[str, Any] = {"data": "glyphs"}
out = Console()
err = Console(stderr=True)


class Commands(TyperGroup):
    """Commands whose errors are one line on stderr: exit code 2, or 130 after Ctrl-C."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except (DataError, UserError) as error:
            _say(f"xmodal: {error}")
            raise typer.Exit(2) from None
        except Interrupted as error:
            _say(f"xmodal: {error}")
            raise typer.Exit(130) from None
        except KeyboardInterrupt:
            _say("xmodal: interrupted")
            raise typer.Exit(130) from None


def _say(line: str, console: Console = err) -> None:
    console.print(line, markup=False, highlight=False, soft_wrap=True)


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


def _option(name: str, text: str) -> Any:
    """An option of a training, with its default for data that have no preset."""
    return typer.Option(help=text, show_default=str(getattr(DCCAConfig(), name)))


Seed = Annotated[int | None, _option("seed", "Of weights and batches. Equal seeds, equal runs on a CPU.")]
Epochs = Annotated[int | None, _option("epochs", "Passes over the training pairs.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:N or mps.")]
Json = Annotated[Path | None, typer.Option("--json", help="Write the figures to this file.", metavar="FILE")]
Data = Annotated[
    str | None, typer.Option(help="glyphs, wikipedia, another name of docs/data.md, or a pair file.", metavar="DATA")
]
DataPath = Annotated[Path | None, typer.Option("--path", help="Where the files of a named set are.", metavar="DIR")]
Font = Annotated[list[Path] | None, typer.Option(help="Draw the glyphs with this; may be repeated.", metavar="FILE")]
Output = Annotated[Path | None, typer.Option(help="Run directory; runs/MODEL-DATA unless told.", metavar="DIR")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace an earlier run in --output.")]
Monitor = Annotated[str | None, typer.Option(help="The validation figure that decides.", metavar="FIGURE")]


@app.command()
def demo(
    epochs: Epochs = None,
    seed: Seed = None,
    device: Device = "auto",
    output: Annotated[Path, typer.Option(help="Run directory; an earlier demo in it is replaced.")] = Path("runs/demo"),
    json_file: Json = None,
) -> None:
    """Linear CCA and deep CCA on pictures of characters and their Unicode names. No download, some minutes on a CPU.

    Ends with a table of retrieval figures on 1,000 characters that no training picture shows, and the path of a
    picture of what is found.

    Example: [bold]xmodal demo --json demo.json[/bold]
    """
    from ..training import evaluate as evaluate_model
    from ..training import select_linear_cca, train_dcca

    run = _prepare(output, json_file, device)
    config = DCCAConfig.preset("glyphs", **_given(epochs=epochs, seed=seed))
    data = _load(GLYPHS)
    with err.status("linear CCA: choosing ridge, components and weights on the validation split"):
        linear = select_linear_cca(data, config.monitor)
    result = train_dcca(data, config, output, source=GLYPHS, device=device, console=err)
    results = {"linear_cca": evaluate_model(linear, data.test), "dcca": result.metrics}
    run.write(run.metrics, results)
    _show(results, data, "test", json_file)
    _say(f"retrieved items: {run.retrieval}", out)


@train.command("dcca")
def train_dcca_command(
    data: Data = None,
    path: DataPath = None,
    font: Font = None,
    output: Output = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue the run in --output.")] = False,
    overwrite: Overwrite = False,
    seed: Seed = None,
    epochs: Epochs = None,
    batch_size: Annotated[int | None, _option("batch_size", "Pairs per step: several times the outputs.")] = None,
    chunk_size: Annotated[int | None, _option("chunk_size", "Pairs whose activations fit; 0: all of them.")] = None,
    output_dim: Annotated[int | None, _option("output_dim", "Outputs of either branch.")] = None,
    ridge: Annotated[float | None, _option("ridge", "Added to the diagonals of the covariances.")] = None,
    top_k: Annotated[int | None, _option("top_k", "Count only so many leading correlations.")] = None,
    power: Annotated[float | None, _option("power", "Correlations to this power weigh the retrieval space.")] = None,
    image_branch: Annotated[str | None, _option("image_branch", "auto, cnn, alexnet (227x227 RGB) or mlp.")] = None,
    hidden: Annotated[list[int] | None, _option("hidden", "Units of a hidden layer; repeat for more layers.")] = None,
    dropout: Annotated[float | None, _option("dropout", "After every hidden layer.")] = None,
    learning_rate: Annotated[float | None, _option("learning_rate", "Peak of the one-cycle schedule.")] = None,
    weight_decay: Annotated[float | None, _option("weight_decay", "Of AdamW.")] = None,
    augment: Annotated[bool | None, _option("augment", "Move and turn training pictures at random.")] = None,
    patience: Annotated[int | None, _option("patience", "Stop after epochs without progress; 0: never.")] = None,
    refit: Annotated[bool | None, _option("refit", "Train anew on validation pairs too, to the best epoch.")] = None,
    monitor: Monitor = None,
    precision: Annotated[str | None, _option("precision", "32-true, bf16-mixed or 16-mixed.")] = None,
    device: Device = "auto",
    json_file: Json = None,
) -> None:
    """Train deep CCA end to end, and retrieve the test split with its best epoch on the validation split.

    Ctrl-C leaves a checkpoint; --resume continues it, with the same result as an uninterrupted run.

    Examples:

    [bold]xmodal train dcca --epochs 30 --output runs/glyphs[/bold]

    [bold]xmodal train dcca --data wikipedia --path DIR --output runs/wikipedia[/bold]

    [bold]xmodal train dcca --data features.npz --batch-size 4096 --device cuda[/bold]

    [bold]xmodal train dcca --resume --output runs/glyphs[/bold]
    """
    from ..training import train_dcca

    options = _given(
        seed=seed, epochs=epochs, batch_size=batch_size, output_dim=output_dim, ridge=ridge, top_k=top_k, power=power,
        image_branch=image_branch, hidden=tuple(hidden) if hidden else None, dropout=dropout,
        learning_rate=learning_rate, weight_decay=weight_decay, augment=augment, patience=patience,
        monitor=monitor, precision=precision, chunk_size=chunk_size, refit=refit,
    )  # fmt: skip
    source = _source(data, path, font)
    if resume:
        if output is None:
            raise UserError("--resume needs --output DIR, the run to continue")
        saved = RunDirectory(output).read_config()
        _same({**saved["options"], **saved["data"]}, {**options, **source}, free={"epochs"})
        source = saved["data"]
        config = DCCAConfig.from_dict({**saved["options"], **_given(epochs=epochs)})
        run = _prepare(output, json_file, device)
    else:
        source = {**GLYPHS, **source}
        config = DCCAConfig.preset(source["data"], **options)
        run = _new_run("dcca", source, output, overwrite, json_file, device)
    pairs = _load(source)
    result = train_dcca(pairs, config, run.path, source=source, device=device, resume=resume, console=err)
    _show({"dcca": result.metrics}, pairs, "test", json_file)
    _say(f"best epoch {result.best_epoch} of {len(result.history)}; retrieved items: {run.retrieval}", out)


@train.command("linear-cca")
def linear_cca_command(
    data: Data = None,
    path: DataPath = None,
    font: Font = None,
    output: Output = None,
    overwrite: Overwrite = False,
    monitor: Monitor = None,
    json_file: Json = None,
) -> None:
    """Linear CCA, with ridge, components and weights chosen on the validation split.

    Example: [bold]xmodal train linear-cca --data wikipedia --path DIR[/bold]
    """
    from ..training import train_linear_cca

    source = {**GLYPHS, **_source(data, path, font)}
    run = _new_run("linear_cca", source, output, overwrite, json_file)
    pairs = _load(source)
    monitor = DCCAConfig.preset(source["data"], **_given(monitor=monitor)).monitor
    metrics = train_linear_cca(pairs, run.path, monitor=monitor, source=source)
    _show({"linear_cca": metrics}, pairs, "test", json_file)
    _say(f"retrieved items: {run.retrieval}", out)


@train.command("acmr")
def train_acmr_command(
    data: Data = None,
    path: DataPath = None,
    font: Font = None,
    output: Output = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue the run, or the runs, in --output.")] = False,
    overwrite: Overwrite = False,
    preset: Annotated[str, typer.Option(help="paper, demo (as the released code does) or best.")] = "best",
    seed: Annotated[int, typer.Option(help="Of weights and batches; the first of several.")] = 0,
    seeds: Annotated[int, typer.Option(help="Train so many seeds, and report mean and deviation.")] = 1,
    epochs: Annotated[int | None, typer.Option(help="Passes over the training pairs.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Pairs per step.")] = None,
    learning_rate: Annotated[float | None, typer.Option(help="Of Adam; the peak of a one-cycle schedule.")] = None,
    reversal: Annotated[float | None, typer.Option(help="Strength of the adversary; 0 switches it off.")] = None,
    patience: Annotated[int | None, typer.Option(help="Stop after epochs without progress; 0: never.")] = None,
    monitor: Monitor = None,
    option: Annotated[
        list[str] | None, typer.Option("--set", help="Any option of ACMRConfig; may be repeated.", metavar="NAME=VALUE")
    ] = None,
    device: Device = "auto",
    json_file: Json = None,
) -> None:
    """Train adversarial cross-modal retrieval on labelled pairs, and retrieve the test split with its best epoch.

    Examples:

    [bold]xmodal train acmr --data wikipedia --path DIR --seeds 5 --json acmr.json[/bold]

    [bold]xmodal train acmr --data wikipedia --path DIR --preset paper --set alpha=0.05[/bold]

    [bold]xmodal train acmr --resume --output runs/acmr-glyphs[/bold]
    """
    from ..training import ACMRConfig, train_acmr, train_acmr_seeds

    options = _given(
        epochs=epochs, batch_size=batch_size, learning_rate=learning_rate, reversal=reversal, patience=patience,
        monitor=monitor,
    )  # fmt: skip
    options |= dict(_assignment(text) for text in option or ())
    if seeds < 1:
        raise UserError(f"--seeds must be at least 1, got {seeds}")
    source = _source(data, path, font)
    if resume:
        if output is None:
            raise UserError("--resume needs --output DIR, the run to continue")
        first = output if RunDirectory(output).config.exists() else output / f"seed-{seed}"
        saved = RunDirectory(first).read_config()
        _same({**saved["options"], **saved["data"]}, {**options, **source}, free={"epochs"})
        source = saved["data"]
        config = ACMRConfig.from_dict({**saved["options"], **_given(epochs=epochs)})
        run = _prepare(output, json_file, device)
    else:
        source = {**GLYPHS, **source}
        try:
            config = ACMRConfig.preset(preset, source["data"], **{"seed": seed, **options})
        except TypeError as error:
            raise UserError(f"--set: {error}") from None
        run = _new_run("acmr", source, output, overwrite, json_file, device)
    pairs = _load(source)
    rest: dict[str, Any] = {"source": source, "device": device, "resume": resume, "console": err}
    if seeds > 1:
        metrics = train_acmr_seeds(pairs, config, run.path, range(seed, seed + seeds), **rest)
        _show({"acmr": metrics}, pairs, "test", json_file)
        return
    result = train_acmr(pairs, config, run.path, **rest)
    _show({"acmr": result.metrics}, pairs, "test", json_file)
    line = f"best epoch {result.best_epoch} of {len(result.history)}; the common space: {run.space}"
    _say(f"{line}; retrieved items: {run.retrieval}", out)


@app.command()
def benchmark(
    data: Data = None,
    path: DataPath = None,
    font: Font = None,
    output: Annotated[Path, typer.Option(help="Where the runs of the models go.")] = Path("runs/benchmark"),
    models: Annotated[list[str] | None, typer.Option("--model", help="Only this; may be repeated.")] = None,
    seeds: Annotated[int, typer.Option(help="Of DCCA and ACMR: means and deviations over so many.")] = 1,
    monitor: Annotated[str, typer.Option(help="The validation figure that decides.")] = "map_all",
    device: Device = "auto",
    json_file: Json = None,
) -> None:
    """Baselines and models on one data set, in one table: chance, linear CCA, three-view CCA with labels, semantic
    matching (logistic, random forest), DCCA, ACMR.

    Example: [bold]xmodal benchmark --data wikipedia --path DIR --seeds 5 --json benchmark.json[/bold]
    """
    from ..training import report
    from ..training.benchmark import benchmark as run_benchmark

    if seeds < 1:
        raise UserError(f"--seeds must be at least 1, got {seeds}")
    run = _prepare(output, json_file, device)
    source = {**GLYPHS, **_source(data, path, font)}
    pairs = _load(source)
    result = run_benchmark(
        pairs, output=run.path, seeds=range(seeds), models=models, monitor=monitor, source=source, device=device,
        on_model=lambda name: _say(report.NAMES[name]),
    )  # fmt: skip
    protocol = result["protocol"]
    sizes = "/".join(f"{count:,}" for count in protocol["pairs"].values())
    title = (
        f"{pairs.name}: {sizes} pairs for training/validation/test, gallery of {protocol['gallery']:,}, "
        f"chosen by {protocol['chosen_by']}, seeds {', '.join(map(str, protocol['seeds']))}"
    )
    out.print(report.table(result["models"], title))
    if json_file is not None:
        _write(json_file, result)


@app.command()
def evaluate(
    run: Annotated[Path, typer.Argument(help="Directory of a run.", metavar="RUN")],
    split: Annotated[str, typer.Option(help="test, validation or train.")] = "test",
    data: Data = None,
    path: DataPath = None,
    font: Font = None,
    device: Device = "auto",
    json_file: Json = None,
) -> None:
    """Retrieve a split of the data with the model of a run: its own data, or others of the same widths.

    Example: [bold]xmodal evaluate runs/demo --split validation --json figures.json[/bold]
    """
    from ..training import check_shapes, load_run
    from ..training import evaluate as evaluate_model

    if split not in ("test", "validation", "train"):
        raise UserError(f"split must be test, validation or train, got {split!r}")
    config = RunDirectory(run).read_config()
    model = load_run(run, device)
    pairs = _load(_source(data, path, font) if data else {**config["data"], **_source(data, path, font)})
    check_shapes(config, pairs)
    results = {config["model"]: evaluate_model(model, getattr(pairs, split))}
    _show(results, pairs, split, json_file)


@app.command()
def info(json_file: Json = None) -> None:
    """Versions, devices, compiled architectures, and the path that each op takes."""
    from .._build import build_info, describe

    if json_file is not None:
        _write(json_file, build_info())
    typer.echo(describe())


def _given(**options: Any) -> dict[str, Any]:
    """The options that were set on the command line."""
    return {name: value for name, value in options.items() if value is not None}


def _assignment(text: str) -> tuple[str, Any]:
    """NAME=VALUE; the value is JSON, or else a word."""
    name, equals, value = text.partition("=")
    if not equals or not name:
        raise UserError(f"--set must be NAME=VALUE, got {text!r}")
    try:
        return name, json.loads(value)
    except ValueError:
        return name, value


def _source(data: str | None, path: Path | None, fonts: Sequence[Path] | None) -> dict[str, Any]:
    """Where the data are, as far as the command line says, in absolute paths: config.json keeps it."""
    if data is not None and data not in NAMES:
        data = str(Path(data).absolute())
    return _given(
        data=data, path=path and str(path.absolute()), fonts=[str(font.absolute()) for font in fonts] if fonts else None
    )


def _same(saved: Mapping[str, Any], given: Mapping[str, Any], free: set[str]) -> None:
    """Refuses to resume with other options than the run has."""
    for name, value in given.items():
        known = saved.get(name)
        if name not in free and json.dumps(value) != json.dumps(known):
            raise UserError(f"--resume keeps the run's options: {name} is {known!r} there, got {value!r}")


def _new_run(
    model: str,
    source: Mapping[str, Any],
    output: Path | None,
    overwrite: bool,
    json_file: Path | None,
    device: str = "cpu",
) -> RunDirectory:
    """The directory of a run that begins; an earlier one is not replaced unasked."""
    output = output or Path("runs", f"{model}-{Path(source['data']).stem}")
    if RunDirectory(output).config.exists() and not overwrite:
        raise UserError(f"{output} holds a run already: replace it with --overwrite, or choose another --output")
    return _prepare(output, json_file, device)


def _prepare(output: Path, json_file: Path | None, device: str) -> RunDirectory:
    """Everything that can be refused before time is spent on data and training."""
    from ..training import pick_device

    pick_device(device)
    run = RunDirectory(output)
    run.prepare()
    if json_file is not None:
        RunDirectory(json_file.parent).prepare()
    return run


def _load(source: Mapping[str, Any]) -> PairData:
    from ..data import load

    kind = source["data"]
    options = _given(path=source.get("path"), fonts=source.get("fonts"))
    allowed = "fonts" if kind == "glyphs" else "path" if kind in NAMES else None
    for name, flag in (("path", "--path"), ("fonts", "--font")):
        if name in options and name != allowed:
            raise UserError(f"{flag} does not go with --data {kind}")
    with err.status(f"loading {kind}"), warnings.catch_warnings():
        warnings.simplefilter("ignore", DataWarning)  # the notes, printed below
        try:
            pairs = load(kind, **options)
        except DataError:
            raise
        except ValueError as error:
            raise UserError(str(error)) from None
    for note in pairs.notes:
        err.print(f"{kind}: {note}", markup=False, highlight=False, soft_wrap=True)
    return pairs


def _show(results: Mapping[str, Mapping[str, Any]], data: PairData, split: str, json_file: Path | None) -> None:
    from ..training import report

    gallery = next(iter(results.values()))["gallery"]
    out.print(report.table(results, f"{data.name}, {split} split, gallery of {gallery:,}"))
    if json_file is not None:
        _write(json_file, results)


def _write(file: Path, content: Any) -> None:
    try:
        file.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    except OSError as error:
        raise UserError(f"cannot write {file}: {error.strerror or error}") from None
