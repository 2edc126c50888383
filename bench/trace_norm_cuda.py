"""The CUDA side of bench/trace_norm.py: the same work, timed by events and by graph replay.

Columns: us | graph us | TFLOPS | share of floor | × textbook | × strong | peak MiB | errors. "textbook" is autograd
through eigh and svdvals in fp32; "strong" is this package's own algorithm (Cholesky, polar factor by products; coupled
roots on the dual side) in plain torch under torch.compile.
"""

from __future__ import annotations

import time
from typing import Any

import torch
from torch import Tensor

from bench.harness import ceilings, event_us, floor_us, graph_us, machine, markdown, memory_growth, write
from bench.peers import OURS, RIDGE, Loss, errors, step, textbook_loss, views
from xmodal_ops import _C, trace_norm_loss
from xmodal_ops.ops.cuda import trace_norm as ours
from xmodal_ops.ops.portable import trace_norm as portable

# (m, d), and the speed-ups over textbook and strong that are the goals on an H200.
SIZES = [(512, 64, 30, 5), (4096, 1024, 30, 2), (256, 4096, 1000, 2), (8192, 4096, 100, 2)]
SECONDS = 200.0  # the slow baselines are left out once this has passed


def closed_form(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The loss −‖T‖_* and its gradients in plain fp32 torch, primal or dual."""
    m, d = x.shape
    scale = 1 / (m - 1)
    xc, yc = x - x.mean(0), y - y.mean(0)
    if m <= d:
        hx, ix = ours.hat_matrix((xc @ xc.mT * scale).double(), RIDGE)
        hy, iy = ours.hat_matrix((yc @ yc.mT * scale).double(), RIDGE)
        root, inverse = ours.roots(hx @ hy + 1 / m)
        ex, ey = hy @ inverse, inverse @ hx
        gx = (ix @ (ex + ex.mT) @ ix * (0.5 * RIDGE * scale)).float() @ xc
        gy = (iy @ (ey + ey.mT) @ iy * (0.5 * RIDGE * scale)).float() @ yc
        return -(root.diagonal().sum() - 1).float(), -gx, -gy
    eye = torch.eye(d, device=x.device)
    ix, iy = (
        torch.linalg.solve_triangular(torch.linalg.cholesky_ex(v.mT @ v * scale + RIDGE * eye)[0], eye, upper=False)
        for v in (xc, yc)
    )
    t = ix @ (xc.mT @ yc * scale) @ iy.mT
    p = t
    for a, b, c in _C.cuda.polar_steps(False):
        gram = p.mT @ p
        p = p @ (a * eye + b * gram + c * gram @ gram)
    gxy = ix.mT @ p @ iy * scale
    gxx = ix.mT @ (p @ t.mT) @ ix * -scale
    gyy = iy.mT @ (p.mT @ t) @ iy * -scale
    return -(p * t).sum(), -(xc @ gxx + yc @ gxy.mT), -(yc @ gyy + xc @ gxy)


def strong() -> Loss:
    compiled = torch.compile(closed_form)

    class Closed(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor, y: Tensor) -> Tensor:
            value, *gradients = compiled(x, y)
            ctx.save_for_backward(*gradients)
            return value

        @staticmethod
        def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, ...]:
            return tuple(g * grad for g in ctx.saved_tensors)

    return lambda x, y: Closed.apply(x, y)


def work(m: int, d: int) -> tuple[float, float]:
    """Operations and bytes that the algorithm needs; symmetric results are counted once."""
    moved = 4.0 * (4 * m * d)
    if m <= d:  # two kernels, 16 steps of four products, two applications
        return 2 * m * m * d + 16 * 8 * m**3 + 20 * m**3 + 4 * m * m * d, moved
    # moments; T, 12 polar steps of 4 d³, adjoints, factors; application
    return 4 * m * d * d + (4 + 48 + 12 + 3) * d**3 + 8 * m * d * d, moved


def main() -> None:
    torch.backends.cuda.matmul.allow_tf32 = False
    began = time.perf_counter()
    found = ceilings()
    title = "Trace norm loss, forward + backward, fp32"
    results: dict[str, Any] = {"machine": machine("cuda"), "ceilings": found, "work": title, "rows": []}
    columns = ["m", "d", "us", "graph us", "TFLOPS", "share of floor", "× textbook", "goal", "× strong", "goal"]
    columns += ["peak MiB", "value error", "gradient error"]
    for m, d, textbook_goal, strong_goal in SIZES:
        x, y = views(m, d, d, "cuda")
        own = step(trace_norm_loss, x, y)
        us = {OURS: event_us(own)}
        row: dict[str, Any] = {"m": m, "d": d, "us": us}
        results["rows"].append(row)
        try:
            row["graph_us"] = graph_us(own)
        except RuntimeError as refused:  # a library call that cannot be captured is a finding, not a crash
            row["graph_us"], row["graph_error"] = float("nan"), str(refused).splitlines()[0]
        row["peak_mib"] = memory_growth(own, "cuda")
        flops, moved = work(m, d)
        row["tflops"] = flops / us[OURS] / 1e6
        row["share_of_floor"] = floor_us(flops, moved, found) / us[OURS]
        us["strong"] = event_us(step(strong(), x, y), 20)
        if time.perf_counter() - began < SECONDS:
            us["textbook"] = event_us(step(textbook_loss, x, y), 5, seconds=5)
        # At d = 4096, an SVD in fp64 takes minutes: the truth is this op in fp64 there.
        row["error"] = errors(trace_norm_loss, x, y, ours.trace_norm if min(m, d) > 2048 else portable.trace_norm)
        row["ratio"] = {n: t / us[OURS] for n, t in us.items() if n != OURS}
        row["goal"] = {"textbook": textbook_goal, "strong": strong_goal}
        table = markdown(columns, [line(r) for r in results["rows"]])
        written = write("trace_norm", "cuda", results, title, table)
    print(written.read_text())


def line(row: dict[str, Any]) -> list[Any]:
    error = row["error"]
    return [
        row["m"], row["d"], row["us"][OURS], row["graph_us"], row["tflops"], row["share_of_floor"],
        row["ratio"].get("textbook", "–"), f"≥ {row['goal']['textbook']}",
        row["ratio"]["strong"], f"≥ {row['goal']['strong']}", row["peak_mib"], error["value"], error["gradient"],
    ]  # fmt: skip
