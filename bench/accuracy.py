"""Right or wrong: value and gradient of each system's deep CCA loss against fp64, and on degenerate inputs.

    python bench/accuracy.py [--quick]

Reproduces the two tables "against fp64" and "degenerate inputs" for this package, textbook autograd and the peers
that are installed, and writes bench/results/cpu/accuracy.{json,md}. The truth is the trace norm in fp64: a peer that
optimises another objective shows by its value.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

import torch
from common import machine, markdown, write
from peers import RIDGE, Loss, cca_zoo_loss, textbook_loss, views
from torch import Tensor

from xmodal_ops import trace_norm_loss
from xmodal_ops.ops.portable import trace_norm as reference


def systems() -> dict[str, Loss]:
    found = {"xmodal_ops": trace_norm_loss, "textbook autograd": textbook_loss, "cca_zoo": cca_zoo_loss()}
    return {name: loss for name, loss in found.items() if loss is not None}


def truth(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    k = min(x.shape[1], y.shape[1])
    value, gradient, _ = reference.trace_norm(x.double(), y.double(), RIDGE, RIDGE, k, True, False)
    return value, gradient


def judge(loss: Loss, x: Tensor, y: Tensor) -> dict[str, Any]:
    """Relative errors of value and gradient; "NaN" and the exception's name are results, too."""
    value, gradient = truth(x, y)
    x = x.detach().requires_grad_()
    try:
        result = loss(x, y)
        (found,) = torch.autograd.grad(result, x)
    except Exception as error:
        return {"value": type(error).__name__, "gradient": type(error).__name__}
    off_value = (-result.detach().double() - value).abs() / value.clamp_min(1e-6)
    off_gradient = (-found.double() - gradient).norm() / gradient.norm().clamp_min(1e-6)
    return {
        "value": float(off_value) if torch.isfinite(result) else "NaN",
        "gradient": float(off_gradient) if torch.isfinite(found).all() else "NaN",
    }


def degenerate() -> dict[str, tuple[Tensor, Tensor]]:
    x, y = views(512, 64, 64)
    dead, constant = x.clone(), x.clone()
    dead[:, ::8] = 0
    constant[:, 0] = 3
    rows = torch.arange(512) % 256
    small = views(48, 64, 64)
    return {
        "12.5 % dead units": (dead, y),
        "a constant column": (constant, y),
        "one view constant": (torch.ones_like(x), y),
        "identical views": (x, x.clone()),
        "every row twice": (x[rows], y[rows]),
        "every column twice": (torch.cat([x, x], 1), y),
        "mean 1e3": (x + 1e3, y + 1e3),
        "scale 1e3": (x * 1e3, y * 1e3),
        "scale 1e-3": (x * 1e-3, y * 1e-3),
        "batch 48 < dimension 64": small,
    }


def table(cases: dict[str, tuple[Tensor, Tensor]], judged: dict[str, dict[str, Any]]) -> str:
    names = list(systems())
    rows = []
    for case in cases:
        cells = [judged[case][name] for name in names]
        rows.append([case, *(f"{short(c['value'])} / {short(c['gradient'])}" for c in cells)])
    return markdown(["value / gradient error", *names], rows)


def short(value: float | str) -> str:
    return value if isinstance(value, str) else f"{value:.0e}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="leave out (4096, 1024)")
    options = parser.parse_args()
    sizes = [(512, 64), (1024, 256), (4096, 1024), (256, 1024)]
    sized = {f"m={m} d={d}": views(m, d, d) for m, d in sizes if not (options.quick and m == 4096)}
    parts: dict[str, Callable[[], dict[str, tuple[Tensor, Tensor]]]] = {
        "Against fp64, well conditioned, fp32": lambda: sized,
        "Degenerate inputs, fp32": degenerate,
    }
    results: dict[str, Any] = {"machine": machine("cpu"), "ridge": RIDGE}
    text = ["# Accuracy of deep CCA losses", "", "Relative errors of value / gradient against the trace norm in fp64."]
    for title, make in parts.items():
        cases = make()
        judged = {case: {name: judge(loss, *pair) for name, loss in systems().items()} for case, pair in cases.items()}
        results[title] = judged
        text += ["", f"## {title}", "", table(cases, judged)]
    write("accuracy", "cpu", results, "\n".join(text))
    print("\n".join(text))


if __name__ == "__main__":
    main()
