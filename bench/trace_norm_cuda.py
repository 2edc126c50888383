"""The CUDA side of bench/trace_norm.py: the same work, measured by events and by graph replay.

us | graph us | TFLOPS | share of floor | × textbook | × strong | peak MiB | error. Textbook is autograd through eigh
and svdvals in fp32; strong is this package's own algorithm (Cholesky, polar factor by products; on the dual side
coupled roots) in plain torch under torch.compile.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
from common import machine, markdown, memory_growth, write
from device import ceilings, event_us, floor_us, folder, graph_us
from peers import RIDGE, textbook_loss, views
from torch import Tensor

from xmodal_ops import _C, trace_norm_loss
from xmodal_ops.ops.cuda import trace_norm as ours
from xmodal_ops.ops.portable import trace_norm as reference

# (m, d), the goals against textbook and strong on an H200 (design.md §8).
SIZES = [(512, 64, 30, 5), (4096, 1024, 30, 2), (256, 4096, 1000, 2), (8192, 4096, 100, 2)]
SECONDS = 200.0  # after which the slow baselines are left out

Loss = Callable[[Tensor, Tensor], Tensor]


def closed_form(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """−‖T‖_* and its gradients in plain fp32 torch, primal or dual."""
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
    """Operations and bytes that the algorithm needs, symmetric results counted once."""
    moved = 4.0 * (4 * m * d)
    if m <= d:  # two kernels, 16 steps of four products, two applications
        return 2 * m * m * d + 16 * 8 * m**3 + 20 * m**3 + 4 * m * m * d, moved
    # moments; T, 12 polar steps of 4 d³, adjoints, factors; application
    return 4 * m * d * d + (4 + 48 + 12 + 3) * d**3 + 8 * m * d * d, moved


def step(loss: Loss, x: Tensor, y: Tensor) -> Callable[[], None]:
    x, y = x.detach().requires_grad_(), y.detach().requires_grad_()

    def run() -> None:
        x.grad = y.grad = None
        loss(x, y).backward()

    return run


def errors(m: int, d: int) -> dict[str, float]:
    """Relative errors against the fp64 reference; at d = 4096 against this op in fp64, where an SVD takes minutes."""
    x, y = views(m, d, d, "cuda")
    wide = x.double(), y.double()
    compute = ours.trace_norm if min(m, d) > 2048 else reference.trace_norm
    truth = compute(*wide, RIDGE, RIDGE, d, True, False)
    x.requires_grad_()
    loss = trace_norm_loss(x, y)
    (gradient,) = torch.autograd.grad(loss, x)
    return {
        "value": float((-loss.double() - truth[0]).abs() / truth[0]),
        "gradient": float((-gradient.double() - truth[1]).norm() / truth[1].norm()),
    }


def main() -> None:
    torch.backends.cuda.matmul.allow_tf32 = False
    began = time.perf_counter()
    found = ceilings()
    results: dict[str, Any] = {
        "machine": machine("cuda"),
        "ceilings": found,
        "work": "trace norm loss, forward + backward, fp32",
        "rows": [],
    }
    columns = ["m", "d", "us", "graph us", "TFLOPS", "share of floor", "× textbook", "goal", "× strong", "goal"]
    columns += ["peak MiB", "value error", "gradient error"]
    table = ""
    for m, d, textbook_goal, strong_goal in SIZES:
        x, y = views(m, d, d, "cuda")
        own = step(trace_norm_loss, x, y)
        row: dict[str, Any] = {"m": m, "d": d, "us": {"xmodal_ops": event_us(own)}}
        results["rows"].append(row)
        try:
            row["graph_us"] = graph_us(own)
        except RuntimeError as refused:  # a library call that cannot be captured here is a finding, not a crash
            row["graph_us"], row["graph_error"] = float("nan"), str(refused).splitlines()[0]
        row["peak_mib"] = memory_growth(own, "cuda")
        flops, moved = work(m, d)
        row["tflops"] = flops / row["us"]["xmodal_ops"] / 1e6
        row["share_of_floor"] = floor_us(flops, moved, found) / row["us"]["xmodal_ops"]
        row["us"]["strong"] = event_us(step(strong(), x, y), 20)
        if time.perf_counter() - began < SECONDS:
            row["us"]["textbook"] = event_us(step(textbook_loss, x, y), 5, seconds=5)
        row["error"] = errors(m, d)
        row["ratio"] = {n: t / row["us"]["xmodal_ops"] for n, t in row["us"].items() if n != "xmodal_ops"}
        row["goal"] = {"textbook": textbook_goal, "strong": strong_goal}
        table = markdown(columns, [line(r) for r in results["rows"]])
        write("trace_norm", folder(), results, f"# Trace norm loss, forward + backward, fp32\n\n{table}")
    print(table)


def line(row: dict[str, Any]) -> list[Any]:
    error = row["error"]
    return [
        row["m"], row["d"], row["us"]["xmodal_ops"], row["graph_us"], row["tflops"], row["share_of_floor"],
        row["ratio"].get("textbook", "–"), f"≥ {row['goal']['textbook']}",
        row["ratio"]["strong"], f"≥ {row['goal']['strong']}", row["peak_mib"], error["value"], error["gradient"],
    ]  # fmt: skip


if __name__ == "__main__":
    main()
