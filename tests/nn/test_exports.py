"""Every name that README mentions can be imported, and the modules state what the functions state."""

from __future__ import annotations

import importlib
import inspect
import re
from pathlib import Path

import pytest

import xmodal_ops
from xmodal_ops import distributed, models, nn

README = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
FUNCTIONS = sorted(set(re.findall(r"`(\w+)\(", README)))
CLASSES = sorted(set(re.findall(r"`([A-Z][a-z]\w*)`", README)))
MODULES = sorted(set(re.findall(r"`(xmodal_ops(?:\.\w+)+)`", README)))
IMPORTS = re.findall(r"^\s*(?:>>> )?(from xmodal_ops\S* import [\w, ]+)", README, re.MULTILINE)
LOSSES = ["max_violation_loss", "structure_preserving_loss", "trace_norm_loss", "triplet_margin_loss"]


def class_name(function: str) -> str:
    return "".join(word.capitalize() for word in function.split("_"))


def options(function: object) -> dict[str, object]:
    parameters = inspect.signature(function).parameters.values()
    return {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY and p.name != "return_stats"}


def test_readme_is_read() -> None:
    assert set(LOSSES) < set(FUNCTIONS)
    assert CLASSES
    assert "xmodal_ops.nn" in MODULES
    assert IMPORTS


@pytest.mark.parametrize("name", [*FUNCTIONS, *CLASSES])
def test_names_in_readme_are_exported(name: str) -> None:
    assert any(callable(getattr(module, name, None)) for module in (xmodal_ops, nn, models))


@pytest.mark.parametrize("name", MODULES)
def test_modules_in_readme_exist(name: str) -> None:
    module = importlib.import_module(name)
    assert all(hasattr(module, exported) for exported in module.__all__)


@pytest.mark.parametrize("line", IMPORTS)
def test_imports_in_readme_work(line: str) -> None:
    exec(line, {})


@pytest.mark.parametrize("name", LOSSES)
def test_a_loss_and_its_module_have_the_same_options_and_docstring(name: str) -> None:
    function, module = getattr(xmodal_ops, name), getattr(nn, class_name(name))
    parameters = inspect.signature(module).parameters
    assert {p.name: p.default for p in parameters.values()} == options(function)
    assert module().options().keys() == options(function).keys()
    assert inspect.getdoc(function) in inspect.getdoc(module)
    with pytest.raises(TypeError, match="unexpected"):
        module(misspelt=1)


@pytest.mark.parametrize("name", ["structure_preserving_loss", "trace_norm_loss", "triplet_margin_loss"])
def test_a_distributed_loss_has_the_same_defaults(name: str) -> None:
    own, there = options(getattr(xmodal_ops, name)), options(getattr(distributed, name))
    shared = own.keys() & there.keys()
    assert there.keys() - shared == {"group", "averaged"}
    assert {key: own[key] for key in shared} == {key: there[key] for key in shared}
