"""Time, memory and error of the joint covariance of two views, fp32, against centring and three products.

    python -m bench.covariance [--device cpu|cuda]

Columns: us | TFLOPS | share of floor | × textbook | × strong | peak MiB | error. The floor (CUDA only) is the time that
the measured ceilings of the card allow; "textbook" is three products of centred copies in eager torch; "strong" (CUDA
only) is the same under torch.compile. Results, written after every size: bench/results/<device>/covariance.{json,md}.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from bench.harness import ceilings, event_us, floor_us, machine, markdown, memory_growth, parser, side_by_side, write
from bench.peers import OURS, views
from tests.helpers import relative
from xmodal_ops import covariance
from xmodal_ops.ops.portable.covariance import covariance as portable

SIZES = {
    "cpu": [(512, 64, 64), (4096, 512, 512), (100_000, 64, 64)],
    "cuda": [(512, 64, 64), (4096, 1024, 1024), (8192, 4096, 4096), (1_000_000, 64, 64)],
}
GOALS = {("cuda", 8192, 4096): 2.5}
Step = Callable[[Tensor, Tensor], Any]


def textbook(x: Tensor, y: Tensor) -> tuple[Tensor, ...]:
    xc, yc, scale = x - x.mean(0), y - y.mean(0), 1 / (x.shape[0] - 1)
    return xc.mT @ xc * scale, xc.mT @ yc * scale, yc.mT @ yc * scale


def error(x: Tensor, y: Tensor) -> float:
    """The largest relative error of the three blocks against fp64."""
    actual, expected = covariance(x, y), portable(x.double(), y.double(), 0.0, 0.0)
    return max(relative(getattr(actual, name), getattr(expected, name)) for name in ("xx", "xy", "yy"))


def measure(m: int, dx: int, dy: int, device: str, found: dict[str, float]) -> dict[str, Any]:
    x, y = views(m, dx, dy, device)
    candidates: dict[str, Step] = {OURS: covariance, "textbook": textbook}
    if device == "cuda":
        candidates["strong"] = torch.compile(textbook)
    runs = {name: (lambda run=run: run(x, y)) for name, run in candidates.items()}
    if device == "cuda":
        us = {name: event_us(run) for name, run in runs.items()}
    else:
        us = {name: 1e3 * ms for name, ms in side_by_side(runs).items()}
    ours, flops = us[OURS], m * (dx + dy) ** 2
    row: dict[str, Any] = {"m": m, "dx": dx, "dy": dy, "us": us, "tflops": flops / ours / 1e6}
    if device == "cuda":
        row["share_of_floor"] = floor_us(flops, 4 * (m * (dx + dy) + dx * dx + dx * dy + dy * dy), found) / ours
    row["ratio"] = {name: t / ours for name, t in us.items() if name != OURS}
    row["peak_mib"] = memory_growth(lambda: covariance(x, y), device)
    row["error"] = error(x, y)
    row["goal"] = GOALS.get((device, m, dx))
    return row


def main() -> None:
    device = parser(__doc__, device=True).parse_args().device
    torch.backends.cuda.matmul.allow_tf32 = False
    found = ceilings() if device == "cuda" else {}
    results: dict[str, Any] = {"machine": machine(device), "ceilings": found, "work": "covariance, fp32", "rows": []}
    names = ["textbook", "strong"] if device == "cuda" else ["textbook"]
    columns = ["m", "dx", "dy", "us", "TFLOPS", "share of floor", *(f"× {n}" for n in names)]
    columns += ["goal", "peak MiB", "error"]
    for size in SIZES[device]:
        results["rows"].append(measure(*size, device, found))
        lines = [
            [r["m"], r["dx"], r["dy"], r["us"][OURS], r["tflops"], r.get("share_of_floor", "–"),
             *(r["ratio"][n] for n in names), r["goal"] or "–", r["peak_mib"], r["error"]]
            for r in results["rows"]
        ]  # fmt: skip
        written = write("covariance", device, results, "Covariance of two views, fp32", markdown(columns, lines))
    print(written.read_text())


if __name__ == "__main__":
    main()
