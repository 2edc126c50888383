"""Time, memory and error of the joint covariance of two views, fp32, against centring and three products.

    python bench/covariance.py [--device cpu|cuda]

Writes bench/results/<device or card>/covariance.{json,md} as it goes. On CUDA: us | TFLOPS | share of floor |
× textbook | × strong | peak MiB | error, where the floor is what the card's measured ceilings allow, textbook is three
products of centred copies in eager torch, and strong the same under torch.compile.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

import torch
from common import machine, markdown, memory_growth, side_by_side, write
from peers import views
from torch import Tensor

from xmodal_ops import covariance
from xmodal_ops.ops.portable.covariance import covariance as reference

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
    """‖S − S₆₄‖ / ‖S₆₄‖ over the three blocks, the worst."""
    expected = reference(x.double(), y.double(), 0.0, 0.0)
    actual = covariance(x, y)
    pairs = ((actual.xx, expected.xx), (actual.xy, expected.xy), (actual.yy, expected.yy))
    return max(float((a.double() - e).norm() / e.norm()) for a, e in pairs)


def measure(m: int, dx: int, dy: int, device: str, found: dict[str, float]) -> dict[str, Any]:
    x, y = views(m, dx, dy, device)
    candidates: dict[str, Step] = {"xmodal_ops": covariance, "textbook": textbook}
    if device == "cuda":
        candidates["strong"] = torch.compile(textbook)
        from device import event_us, floor_us

        us = {name: event_us(lambda run=run: run(x, y)) for name, run in candidates.items()}
    else:
        runs = {name: (lambda run=run: run(x, y)) for name, run in candidates.items()}
        us = {name: 1e3 * ms for name, ms in side_by_side(runs, device).items()}
    ours, flops = us["xmodal_ops"], m * (dx + dy) ** 2
    row: dict[str, Any] = {"m": m, "dx": dx, "dy": dy, "us": us, "tflops": flops / ours / 1e6}
    if device == "cuda":
        row["share_of_floor"] = floor_us(flops, 4 * (m * (dx + dy) + dx * dx + dx * dy + dy * dy), found) / ours
    row["ratio"] = {name: t / ours for name, t in us.items() if name != "xmodal_ops"}
    row["peak_mib"] = memory_growth(lambda: covariance(x, y), device)
    row["error"] = error(x, y)
    row["goal"] = GOALS.get((device, m, dx))
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    device = parser.parse_args().device
    found: dict[str, float] = {}
    place = device
    if device == "cuda":
        from device import ceilings, folder

        torch.backends.cuda.matmul.allow_tf32 = False
        found, place = ceilings(), folder()
    results: dict[str, Any] = {"machine": machine(device), "ceilings": found, "work": "covariance, fp32", "rows": []}
    names = ["textbook", "strong"] if device == "cuda" else ["textbook"]
    columns = [
        "m",
        "dx",
        "dy",
        "us",
        "TFLOPS",
        "share of floor",
        *(f"× {n}" for n in names),
        "goal",
        "peak MiB",
        "error",
    ]
    for size in SIZES[device]:
        results["rows"].append(measure(*size, device, found))
        lines = [
            [r["m"], r["dx"], r["dy"], r["us"]["xmodal_ops"], r["tflops"], r.get("share_of_floor", "–"),
             *(r["ratio"][n] for n in names), r["goal"] or "–", r["peak_mib"], r["error"]]
            for r in results["rows"]
        ]  # fmt: skip
        table = markdown(columns, lines)
        write("covariance", place, results, f"# Covariance of two views, fp32\n\n{table}")
    print(table)


if __name__ == "__main__":
    main()
