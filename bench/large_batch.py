"""Large batches: exact two-pass training steps against a full batch in memory, and streamed moments.

    python -m bench.large_batch [--device cpu|cuda] [--quick]

1. One training step (forward, loss, backward) of deep CCA with two-layer perceptrons, as the batch grows: the textbook
   loss on the full batch, ours on the full batch, ours in two passes over chunks. Time and peak memory growth.
2. The gradients of the two-pass step against those of one pass, and its memory against that of one chunk.
3. The covariance of many rows with a large mean: streamed, and by naive sums in the same precision.

Each case runs in a process of its own. Results: bench/results/<device>/large_batch.{json,md,png}.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bench.harness import in_subprocess, machine, markdown, memory_growth, parser, side_by_side, write
from bench.peers import RIDGE, textbook_loss, views
from tests.helpers import LiveBytes, relative
from xmodal_ops import MomentAccumulator, large_batch_loss, trace_norm_loss
from xmodal_ops.nn import TraceNormLoss

CHUNK = 4096
Views = tuple[Tensor, Tensor]
Step = Callable[[list[nn.Module], Views], Tensor]


def networks(columns: int, hidden: int, outputs: int, device: str) -> list[nn.Module]:
    torch.manual_seed(0)
    return [
        nn.Sequential(nn.Linear(columns, hidden), nn.ReLU(), nn.Linear(hidden, outputs)).to(device) for _ in range(2)
    ]


def textbook(nets: list[nn.Module], batch: Views) -> Tensor:
    return textbook_loss(*(net(view) for net, view in zip(nets, batch)))


def full(nets: list[nn.Module], batch: Views) -> Tensor:
    return trace_norm_loss(*(net(view) for net, view in zip(nets, batch)), ridge=RIDGE)


def two_passes(nets: list[nn.Module], batch: Views) -> Tensor:
    return large_batch_loss(nets, batch, TraceNormLoss(RIDGE), chunk_size=CHUNK)


def two_passes_of_any_loss(nets: list[nn.Module], batch: Views) -> Tensor:
    """As for losses that need all outputs at once."""
    return large_batch_loss(nets, batch, lambda x, y: trace_norm_loss(x, y, ridge=RIDGE), chunk_size=CHUNK)


OURS = f"ours, two passes of {CHUNK}"
STEPS: dict[str, Step] = {"textbook, full batch": textbook, "ours, full batch": full, OURS: two_passes}
EXACT: dict[str, Step] = {"trace norm": two_passes, "any loss": two_passes_of_any_loss}


def measure_step(name: str, m: int, device: str, what: str) -> float:
    """Milliseconds or MiB of one step on 128 columns, 256 hidden units and 64 outputs."""
    nets, step = networks(128, 256, 64, device), STEPS[name]

    def run(batch: Views) -> None:
        for net in nets:
            net.zero_grad(set_to_none=True)
        step(nets, batch).backward()

    run(views(512, 128, 128, device))  # libraries load, threads start
    batch = views(m, 128, 128, device)
    if what == "mib":
        return memory_growth(lambda: run(batch), device)
    return side_by_side({name: lambda: run(batch)}, device, seconds=5)[name]


def gradients(nets: list[nn.Module]) -> Tensor:
    return torch.cat([p.grad.double().flatten() for net in nets for p in net.parameters()])


def measure_exactness(name: str, m: int, d: int, device: str) -> dict[str, float]:
    """Gradients against one pass in fp32 and fp64; memory of m rows against that of one chunk."""
    nets = networks(256, 2 * d, d, device)

    def run(step: Step, batch: Views) -> tuple[Tensor, float]:
        for net in nets:
            net.zero_grad(set_to_none=True)
        if device == "cuda":
            mib = memory_growth(lambda: step(nets, batch).backward(), device)
            return gradients(nets), mib
        with LiveBytes(*batch, *(p for net in nets for p in net.parameters())) as live:
            step(nets, batch).backward()
        return gradients(nets), live.peak / 2**20

    batch = views(m, 256, 256, device)
    _, chunk_mib = run(EXACT[name], views(CHUNK, 256, 256, device))
    two_pass, mib = run(EXACT[name], batch)
    one_pass, one_pass_mib = run(full, batch)
    for net in nets:
        net.double()
    truth, _ = run(full, (batch[0].double(), batch[1].double()))
    outputs_mib = m * d * 4 / 2**20
    return {
        "m": m,
        "difference": relative(two_pass, one_pass),
        "two_pass_error": relative(two_pass, truth),
        "one_pass_error": relative(one_pass, truth),
        "one_pass_mib": one_pass_mib,
        "two_pass_mib": mib,
        "one_chunk_mib": chunk_mib,
        "outputs_mib": outputs_mib,
        "ratio": mib / (chunk_mib + outputs_mib),
    }


def measure_covariance(rows: int, device: str) -> dict[str, float]:
    """64 columns, means near 1e3, unit variances; the truth by two passes in fp64 over the same chunks."""
    size, d = 100_000, 64
    mix = torch.eye(d, device=device) + 0.1 * torch.randn(
        d, d, generator=torch.Generator(device).manual_seed(0), device=device
    )

    def chunk(index: int) -> Tensor:
        noise = torch.randn(size, d, generator=torch.Generator(device).manual_seed(index), device=device)
        return noise @ mix + 1e3

    chunks, half = range(rows // size), d // 2
    moments, seconds = MomentAccumulator(), 0.0
    product, total = torch.zeros(d, d, device=device), torch.zeros(d, device=device)
    mean = torch.zeros(d, dtype=torch.float64, device=device)
    for index in chunks:
        z = chunk(index)
        start = time.perf_counter()
        moments.update(z[:, :half], z[:, half:])
        seconds += time.perf_counter() - start
        product += z.mT @ z
        total += z.sum(0)
        mean += z.double().sum(0)
    mean /= rows
    truth = torch.zeros(d, d, dtype=torch.float64, device=device)
    for index in chunks:
        z = chunk(index).double() - mean
        truth += z.mT @ z
    truth /= rows - 1
    s = moments.covariance()
    assert s.xy is not None and s.yy is not None
    streamed = torch.cat([torch.cat([s.xx, s.xy], 1), torch.cat([s.xy.mT, s.yy], 1)])
    naive = (product - total.outer(total / rows)) / (rows - 1)
    errors = {"error": relative(streamed, truth), "naive_error": relative(naive, truth)}
    return {"rows": rows, "d": d, **errors, "seconds": seconds}


def plot(results: list[dict[str, Any]], file: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 4), layout="constrained")
    for axis, key, label in zip(
        figure.subplots(1, 2), ("ms", "mib"), ("one training step, ms", "peak memory growth, MiB")
    ):
        for name in STEPS:
            points = [r for r in results if r["name"] == name and key in r]
            style = {"linewidth": 2.5, "color": "black"} if name == OURS else {}
            axis.loglog([p["m"] for p in points], [max(p[key], 1) for p in points], marker="o", label=name, **style)
        axis.set_xlabel("pairs in the batch")
        axis.set_ylabel(label)
    axis.legend()
    figure.savefig(file, dpi=120)


def main() -> None:
    options = parser(__doc__, quick="up to 10⁵ pairs, 10⁶ rows", device=True).parse_args()
    sizes = [1000, 10_000, 100_000, *([] if options.quick else [300_000, 1_000_000])]
    results: list[dict[str, Any]] = []
    for name in STEPS:
        for m in sizes:
            result: dict[str, Any] = {"name": name, "m": m}
            for what in ("ms", "mib"):
                # For memory, freed blocks go back to the system at once; else the resident set depends on malloc.
                os.environ.update({"MALLOC_MMAP_THRESHOLD_": "65536"} if what == "mib" else {})
                limit = 14 * (options.device == "cpu")
                found = in_subprocess(measure_step, name, m, options.device, what, limit_gib=limit)
                os.environ.pop("MALLOC_MMAP_THRESHOLD_", None)
                result["failed" if isinstance(found, str) else what] = found
            results.append(result)
            print(result, flush=True)
            if "failed" in result:
                break
    exactness = {}
    for name in EXACT:
        rows = 20_000 if options.quick else 100_000
        exactness[name] = in_subprocess(measure_exactness, name, rows, 256, options.device)
        print(name, exactness[name], flush=True)
    covariance = in_subprocess(measure_covariance, 10**6 if options.quick else 10**7, options.device)
    print(covariance, flush=True)

    own = {r["m"]: r for r in results if r["name"] == OURS}
    steps = []
    for r in results:
        us = own.get(r["m"], {})
        if "failed" in r or "failed" in us or not us:
            steps.append([r["name"], r["m"], r.get("failed", ""), "", "", ""])
            continue
        steps.append([r["name"], r["m"], r["ms"], r["mib"], r["ms"] / us["ms"], max(r["mib"], 1) / max(us["mib"], 1)])
    columns = {
        "m": "pairs",
        "difference": "two passes against one",
        "two_pass_error": "two passes against float64",
        "one_pass_error": "one pass against float64",
        "one_pass_mib": "one pass MiB",
        "two_pass_mib": "two passes MiB",
        "one_chunk_mib": "one chunk MiB",
        "outputs_mib": "m·d floats MiB",
        "ratio": "two passes / (chunk + m·d)",
    }
    exact = [[name, *(found[key] for key in columns)] for name, found in exactness.items()]
    row = [covariance[key] for key in ("rows", "d", "error", "naive_error", "seconds")]
    written = write(
        "large_batch",
        options.device,
        {"machine": machine(options.device), "steps": results, "exactness": exactness, "covariance": covariance},
        "Large batches",
        "## One training step, 128 → 256 → 64 twice, float32",
        markdown(["", "pairs", "ms", "MiB", "time / two passes", "memory / two passes"], steps),
        f"## Two passes against one, chunks of {CHUNK}, 256 → 512 → 256 twice, float32",
        "Relative errors of all gradients; memory of live tensors without the batch itself.",
        markdown(["loss", *columns.values()], exact),
        "## Covariance of rows with means of 1e3, float32, against two passes in float64",
        markdown(["rows", "columns", "streamed error", "naive error", "streaming s"], [row]),
    )
    plot(results, written.with_suffix(".png"))
    print(written.read_text())


if __name__ == "__main__":
    main()
