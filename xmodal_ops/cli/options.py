"""The options of the commands: those that several commands share, and those that come from an `Options` class.

A decorator replaces one parameter of a command, `source` or `options`, by a group of command line options, and collects
their values into a dict again. So a new field of an `Options` class is an option of its command without further ado.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from ..errors import UserError
from ..options import Option, Options, TrainingConfig, options_of

Command = Callable[..., None]
Group = dict[str, Any]

Data = Annotated[
    str | None,
    typer.Option(help="glyphs (default), wikipedia, another name in docs/data.md, or a pair file.", metavar="DATA"),
]
DataPath = Annotated[Path | None, typer.Option("--path", help="Directory of a named data set.", metavar="DIR")]
Font = Annotated[list[Path] | None, typer.Option(help="Font to draw the glyphs; repeatable.", metavar="FILE")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:N or mps.", metavar="NAME")]
Json = Annotated[Path | None, typer.Option("--json", help="Write the metrics to this file.", metavar="FILE")]
Output = Annotated[Path | None, typer.Option(help="Run directory. Default: runs/MODEL-DATA.", metavar="DIR")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace an earlier run in --output.")]
Resume = Annotated[bool, typer.Option("--resume", help="Continue the run in --output.")]

METAVARS = {int: "INTEGER", float: "NUMBER", str: "NAME"}


def with_options(
    kind: type[Options], title: str = "", shown: Options | None = None, only: Sequence[str] = ()
) -> Callable[[Command], Command]:
    """Replaces the parameter `options` of a command by the options of a class.

    The command gets a dict of those that the user gave, checked.

    Args:
        kind: the class of options.
        title: heading of the model's own options in `--help`; without it, options have no headings.
        shown: the defaults in `--help`, those of the class if not given.
        only: the names of some options. The command then has no `--set`.
    """
    known = {name: option for name, option in options_of(kind).items() if not only or name in only}
    shown = shown or kind()
    parameters = [_parameter(option, getattr(shown, name), title) for name, option in known.items()]
    parameters.append(_keyword("context", typer.Context))
    if not only:
        help = "Any of the options below by name; repeatable."
        annotation = Annotated[list[str], typer.Option("--set", help=help, metavar="NAME=VALUE", show_default=False)]
        parameters.insert(0, _keyword("assignments", annotation, []))

    def collect(context: typer.Context, assignments: Sequence[str] = (), **values: Any) -> Group:
        given = {}
        for name, value in values.items():
            source = context.get_parameter_source(name)
            if source is not None and source.name == "COMMANDLINE":
                text = ",".join(value) if isinstance(value, list) else value
                given[name] = value if known[name].kind is bool else known[name].parse(text)
        return given | dict(_assignment(known, text) for text in assignments)

    return lambda command: _grouped(command, "options", parameters, collect)


def with_source(command: Command) -> Command:
    """Replaces the parameter `source` of a command by `--data`, `--path` and `--font`.

    The command gets a dict of those that the user gave, with absolute paths, as `config.json` keeps it.
    """
    return _grouped(command, "source", list(inspect.signature(_source, eval_str=True).parameters.values()), _source)


def _source(*, data: Data = None, path: DataPath = None, font: Font = None) -> Group:
    from ..data import NAMES

    if data is not None and data not in NAMES:
        data = str(Path(data).absolute())
    fonts = [str(file.absolute()) for file in font or ()]
    source = {"data": data, "path": path and str(path.absolute()), "fonts": fonts or None}
    return {name: value for name, value in source.items() if value is not None}


def _parameter(option: Option, default: Any, title: str) -> inspect.Parameter:
    """The command line option of an option."""
    panel = title and ("Training" if option.name in options_of(TrainingConfig) else title)
    help = option.help + (f" Choices: {', '.join(option.choices)}." if option.choices else "")
    info: dict[str, Any] = {"help": help, "rich_help_panel": panel or None}
    if option.kind is bool:
        return _keyword(option.name, Annotated[bool, typer.Option(**info)], default)
    info["metavar"] = METAVARS[option.kind] + ("[,...]" if option.sequence else "")
    text = None if default in (None, ()) else option.text(default)
    if option.sequence and not option.scalar:  # --hidden 512 --hidden 256 is --hidden 512,256
        return _keyword(option.name, Annotated[list[str], typer.Option(**info)], [text] if text else [])
    return _keyword(option.name, Annotated[str | None, typer.Option(**info)], text)


def _assignment(known: Mapping[str, Option], text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    if not equals or not name:
        raise UserError(f"--set must be NAME=VALUE, got {text!r}")
    if name not in known:
        raise UserError(f"--set must name one of {', '.join(known)}, got {name!r}")
    return name, known[name].parse(value)


def _keyword(name: str, annotation: Any, default: Any = inspect.Parameter.empty) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)


def _grouped(
    command: Command,
    name: str,
    parameters: Sequence[inspect.Parameter],
    collect: Callable[..., Group],
) -> Command:
    """The command with `parameters` in place of its parameter `name`, for which it gets what `collect` returns."""

    def call(**values: Any) -> None:
        group = {parameter.name: values.pop(parameter.name) for parameter in parameters}
        command(**{name: collect(**group)}, **values)

    merged: list[inspect.Parameter] = []
    for own in inspect.signature(command, eval_str=True).parameters.values():
        own = own.replace(kind=inspect.Parameter.KEYWORD_ONLY)
        merged += parameters if own.name == name else [own]
    call.__name__, call.__doc__ = command.__name__, command.__doc__
    call.__signature__ = inspect.Signature(merged)  # type: ignore[attr-defined]  # typer reads both
    call.__annotations__ = {parameter.name: parameter.annotation for parameter in merged}
    return call
