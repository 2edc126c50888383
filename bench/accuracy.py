"""Accuracy: value and gradient of deep CCA losses against fp64, on well-conditioned and on degenerate inputs.

    python -m bench.accuracy [--quick]

Compares this package, textbook autograd and cca_zoo, if it is installed. The truth is the trace norm in fp64: a loss
with another objective shows in its value. Results: bench/results/cpu/accuracy.{json,md}.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from bench.harness import machine, markdown, parser, write
from bench.peers import RIDGE, Loss, errors, losses, views


def judge(loss: Loss, x: Tensor, y: Tensor) -> dict[str, Any]:
    """Relative errors of value and gradient; "NaN" and the name of an exception are results too."""
    try:
        found = errors(loss, x, y)
    except Exception as error:
        return dict.fromkeys(("value", "gradient"), type(error).__name__)
    return {name: error if math.isfinite(error) else "NaN" for name, error in found.items()}


def degenerate() -> dict[str, tuple[Tensor, Tensor]]:
    x, y = views(512, 64, 64)
    dead, constant = x.clone(), x.clone()
    dead[:, ::8] = 0
    constant[:, 0] = 3
    rows = torch.arange(512) % 256
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
        "batch 48 < dimension 64": views(48, 64, 64),
    }


def short(error: float | str) -> str:
    return error if isinstance(error, str) else f"{error:.0e}"


def main() -> None:
    options = parser(__doc__, quick="leave out (4096, 1024)").parse_args()
    sizes = [(512, 64), (1024, 256), (4096, 1024), (256, 1024)]
    parts = {
        "Against fp64, well conditioned, fp32": {
            f"m={m} d={d}": views(m, d, d) for m, d in sizes if not (options.quick and m == 4096)
        },
        "Degenerate inputs, fp32": degenerate(),
    }
    systems = losses()
    results: dict[str, Any] = {"machine": machine("cpu"), "ridge": RIDGE}
    text = ["Relative errors of value / gradient against the trace norm in fp64."]
    for title, cases in parts.items():
        results[title] = {case: {n: judge(loss, *pair) for n, loss in systems.items()} for case, pair in cases.items()}
        rows = [
            [case, *(f"{short(e['value'])} / {short(e['gradient'])}" for e in judged.values())]
            for case, judged in results[title].items()
        ]
        text += [f"## {title}", markdown(["value / gradient error", *systems], rows)]
    print(write("accuracy", "cpu", results, "Accuracy of deep CCA losses", *text).read_text())


if __name__ == "__main__":
    main()
