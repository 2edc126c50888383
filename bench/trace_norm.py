"""Time, memory and error of the trace norm loss, forward and backward, against textbook torch and cca_zoo.

    python bench/trace_norm.py [--device cpu|cuda] [--quick] [--threads N]

Writes bench/results/<device>/trace_norm.{json,md} as it goes. All candidates of a size take turns in one process; the
memory of each is measured in a process of its own. On CUDA bench/trace_norm_cuda.py takes over.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

import torch
from common import in_subprocess, machine, markdown, memory_growth, side_by_side, write
from peers import RIDGE, cca_zoo_loss, textbook_loss, views
from torch import Tensor

from xmodal_ops import trace_norm_loss
from xmodal_ops.ops.portable import trace_norm as reference

# (m, d) and the goal against the fastest baseline (design.md §8).
SIZES = [(512, 64, 2.5), (1024, 256, 1.6), (4096, 1024, 1.4), (256, 1024, 30), (256, 4096, 500)]


def losses() -> dict[str, Callable[[Tensor, Tensor], Tensor]]:
    """All candidates by name, ours first."""
    found = {"xmodal_ops": trace_norm_loss, "textbook": textbook_loss, "cca_zoo": cca_zoo_loss()}
    return {name: loss for name, loss in found.items() if loss is not None}


def step(loss: Callable[[Tensor, Tensor], Tensor], x: Tensor, y: Tensor) -> Callable[[], None]:
    """Forward and backward as a training step does them."""
    x, y = x.detach().requires_grad_(), y.detach().requires_grad_()

    def run() -> None:
        x.grad = y.grad = None
        loss(x, y).backward()

    return run


def peak(name: str, m: int, d: int, threads: int) -> float:
    """MiB that one step of a candidate takes beyond its inputs, after a small one has loaded the libraries."""
    torch.set_num_threads(threads)
    loss = losses()[name]
    step(loss, *views(40, 8, 8))()
    return memory_growth(step(loss, *views(m, d, d)))


def errors(m: int, d: int) -> dict[str, float]:
    """Relative error of value and gradient against fp64."""
    x, y = views(m, d, d)
    truth = reference.trace_norm(x.double(), y.double(), RIDGE, RIDGE, d, True, False)
    x.requires_grad_()
    loss = trace_norm_loss(x, y)
    (gradient,) = torch.autograd.grad(loss, x)
    return {
        "value": float((-loss.detach().double() - truth[0]).abs() / truth[0]),
        "gradient": float((-gradient.double() - truth[1]).norm() / truth[1].norm()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="CPU threads")
    parser.add_argument("--quick", action="store_true", help="leave out the sizes at which baselines take minutes")
    options = parser.parse_args()
    if options.device == "cuda":
        import trace_norm_cuda

        return trace_norm_cuda.main()
    torch.set_num_threads(options.threads)
    results: dict[str, Any] = {
        "machine": machine("cpu"),
        "work": "trace norm loss, forward + backward, fp32",
        "rows": [],
    }
    candidates = losses()
    others = [name for name in candidates if name != "xmodal_ops"]
    columns = ["m", "d", "ours ms", *(f"× {name}" for name in others), "goal", "MiB", *(f"{n} MiB" for n in others)]
    columns += ["value error", "gradient error"]
    for m, d, goal in SIZES:
        if options.quick and m * d >= 256 * 4096:
            continue
        x, y = views(m, d, d)
        # At (256, 4096) a baseline takes minutes: one call of the textbook alone.
        chosen = {n: loss for n, loss in candidates.items() if d < 4096 or n != "cca_zoo"}
        ms = side_by_side({n: step(loss, x, y) for n, loss in chosen.items()})
        memory = {n: in_subprocess(peak, n, m, d, options.threads) for n in chosen if ms[n] < 20e3}
        row = {
            "m": m,
            "d": d,
            "ms": ms,
            "ratio": {n: ms[n] / ms["xmodal_ops"] for n in others if n in ms},
            "goal": goal,
            "peak_mib": memory,
            "error": errors(m, d),
        }
        results["rows"].append(row)
        table = markdown(columns, [line(row, others) for row in results["rows"]])
        write("trace_norm", "cpu", results, f"# Trace norm loss, forward + backward, fp32\n\n{table}")
    print(table)


def line(row: dict[str, Any], others: list[str]) -> list[Any]:
    ratios = [row["ratio"].get(name, "–") for name in others]
    memory = [row["peak_mib"].get(name, "–") for name in ("xmodal_ops", *others)]
    error = row["error"]
    return [row["m"], row["d"], row["ms"]["xmodal_ops"], *ratios, f"≥ {row['goal']}", *memory, *error.values()]


if __name__ == "__main__":
    main()
