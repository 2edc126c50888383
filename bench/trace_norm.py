"""Time, memory and error of the trace norm loss, forward and backward, against textbook torch and cca_zoo.

    python -m bench.trace_norm [--device cpu|cuda] [--quick] [--threads N]

The candidates of a size are timed in interleaved rounds in one process; the memory of each is measured in a process of
its own. Results, written after every size: bench/results/<device>/trace_norm.{json,md}. With --device cuda,
bench/trace_norm_cuda.py takes over.
"""

from __future__ import annotations

from typing import Any

import torch

from bench.harness import in_subprocess, machine, markdown, memory_growth, parser, side_by_side, write
from bench.peers import OURS, errors, losses, step, views

# (m, d), and the speed-up over the fastest baseline that is the goal.
SIZES = [(512, 64, 2.5), (1024, 256, 1.6), (4096, 1024, 1.4), (256, 1024, 30), (256, 4096, 500)]


def peak(name: str, m: int, d: int, threads: int) -> float:
    """The MiB that a step of a candidate needs beyond its inputs, after a small step has loaded the libraries."""
    torch.set_num_threads(threads)
    loss = losses()[name]
    step(loss, *views(40, 8, 8))()
    return memory_growth(step(loss, *views(m, d, d)))


def line(row: dict[str, Any], others: list[str]) -> list[Any]:
    ratios = [row["ratio"].get(name, "–") for name in others]
    memory = [row["peak_mib"].get(name, "–") for name in (OURS, *others)]
    return [row["m"], row["d"], row["ms"][OURS], *ratios, f"≥ {row['goal']}", *memory, *row["error"].values()]


def main() -> None:
    arguments = parser(__doc__, quick="leave out the sizes at which baselines take minutes", device=True)
    arguments.add_argument("--threads", type=int, default=torch.get_num_threads(), help="CPU threads")
    options = arguments.parse_args()
    if options.device == "cuda":
        from bench import trace_norm_cuda

        return trace_norm_cuda.main()
    torch.set_num_threads(options.threads)
    candidates = losses()
    others = [name for name in candidates if name != OURS]
    columns = ["m", "d", "ours ms", *(f"× {name}" for name in others), "goal", "MiB", *(f"{n} MiB" for n in others)]
    columns += ["value error", "gradient error"]
    title = "Trace norm loss, forward + backward, fp32"
    results: dict[str, Any] = {"machine": machine("cpu"), "work": title, "rows": []}
    for m, d, goal in SIZES:
        if options.quick and m * d >= 256 * 4096:
            continue
        x, y = views(m, d, d)
        # At (256, 4096) a baseline takes minutes: one call of the textbook alone.
        chosen = {n: loss for n, loss in candidates.items() if d < 4096 or n != "cca_zoo"}
        ms = side_by_side({n: step(loss, x, y) for n, loss in chosen.items()})
        row = {
            "m": m,
            "d": d,
            "ms": ms,
            "ratio": {n: ms[n] / ms[OURS] for n in others if n in ms},
            "goal": goal,
            "peak_mib": {n: in_subprocess(peak, n, m, d, options.threads) for n in chosen if ms[n] < 20e3},
            "error": errors(candidates[OURS], x, y),
        }
        results["rows"].append(row)
        table = markdown(columns, [line(row, others) for row in results["rows"]])
        written = write("trace_norm", "cpu", results, title, table)
    print(written.read_text())


if __name__ == "__main__":
    main()
