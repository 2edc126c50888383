"""Large batches: exact two-pass training steps against a full batch in memory, and streaming moments.

    python bench/large_batch.py [--device cpu|cuda] [--quick]

1. One training step (forward, loss, backward) of deep CCA, two-layer perceptrons, as the batch grows: the textbook
   loss on the full batch, ours on the full batch, ours in two passes over chunks. Time and peak memory growth.
2. The gradients of the two-pass step against those of one pass, and its memory against that of one chunk.
3. The covariance of many rows with a large mean: streamed, and by naive sums in the same precision.
Each case runs in a process of its own. Results: bench/results/<device>/large_batch.{json,md,png}.
"""

from __future__ import annotations

import argparse
import os
import time
import weakref
from collections.abc import Callable
from typing import Any

import common
import torch
from peers import RIDGE, textbook_loss
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

from xmodal_ops import large_batch_loss, trace_norm_loss
from xmodal_ops.nn import TraceNormLoss
from xmodal_ops.scale.moments import MomentAccumulator

CHUNK = 4096
Views = tuple[Tensor, Tensor]


def views(m: int, columns: int, device: str) -> Views:
    """Two noisy views of common factors."""
    generator = torch.Generator(device).manual_seed(m)
    x = torch.randn(m, columns, generator=generator, device=device)
    y = 0.7 * x + torch.randn(m, columns, generator=generator, device=device)
    return x, y


def networks(columns: int, hidden: int, outputs: int, device: str) -> list[nn.Module]:
    torch.manual_seed(0)
    return [
        nn.Sequential(nn.Linear(columns, hidden), nn.ReLU(), nn.Linear(hidden, outputs)).to(device) for _ in range(2)
    ]


def step_textbook(nets: list[nn.Module], batch: Views) -> Tensor:
    return textbook_loss(*(net(view) for net, view in zip(nets, batch)))


def step_full(nets: list[nn.Module], batch: Views) -> Tensor:
    return trace_norm_loss(*(net(view) for net, view in zip(nets, batch)), ridge=RIDGE)


def step_two_pass(nets: list[nn.Module], batch: Views) -> Tensor:
    return large_batch_loss(nets, batch, TraceNormLoss(RIDGE), chunk_size=CHUNK)


def step_two_pass_any_loss(nets: list[nn.Module], batch: Views) -> Tensor:
    """As for losses that need all outputs at once."""
    return large_batch_loss(nets, batch, lambda x, y: trace_norm_loss(x, y, ridge=RIDGE), chunk_size=CHUNK)


Step = Callable[[list[nn.Module], Views], Tensor]
STEPS: dict[str, Step] = {
    "textbook, full batch": step_textbook,
    "ours, full batch": step_full,
    f"ours, two passes of {CHUNK}": step_two_pass,
}
OURS = f"ours, two passes of {CHUNK}"


def measure_step(name: str, m: int, device: str, what: str) -> float:
    """Milliseconds or MiB of one step on 128 columns, 256 hidden units and 64 outputs."""
    nets, step = networks(128, 256, 64, device), STEPS[name]

    def run(batch: Views) -> None:
        for net in nets:
            net.zero_grad(set_to_none=True)
        step(nets, batch).backward()

    run(views(512, 128, device))  # libraries load, threads start
    batch = views(m, 128, device)
    if what == "mib":
        return common.memory_growth(lambda: run(batch), device)
    if m <= 20_000:
        return common.median_ms(lambda: run(batch), device, seconds=5)
    if device == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    run(batch)
    if device == "cuda":
        torch.cuda.synchronize()
    return 1e3 * (time.perf_counter() - start)


class LiveTensors(TorchDispatchMode):
    """Bytes of the storages that ops make and that are alive; the most at any time is `peak`.

    Unlike the resident set it knows no allocator: that keeps pages, and depends on what ran before.
    """

    def __init__(self, *given: Tensor) -> None:
        super().__init__()
        self.live, self.peak = 0, 0
        self.known = {t.untyped_storage()._cdata for t in given}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for t in tree_flatten(result)[0]:
            if isinstance(t, Tensor) and (key := t.untyped_storage()._cdata) not in self.known:
                self.known.add(key)
                self.live += t.untyped_storage().nbytes()
                weakref.finalize(t.untyped_storage(), self._gone, key, t.untyped_storage().nbytes())
        self.peak = max(self.peak, self.live)
        return result

    def _gone(self, key: int, size: int) -> None:
        self.known.discard(key)
        self.live -= size


def gradients(nets: list[nn.Module]) -> Tensor:
    return torch.cat([p.grad.double().flatten() for net in nets for p in net.parameters()])


def measure_exactness(step_name: str, m: int, d: int, device: str) -> dict[str, float]:
    """Gradients against one pass, in single and double precision; memory of m rows against that of one chunk."""
    nets = networks(256, 2 * d, d, device)

    def run(step: Step, batch: Views) -> tuple[Tensor, float]:
        for net in nets:
            net.zero_grad(set_to_none=True)
        if device == "cuda":
            mib = common.memory_growth(lambda: step(nets, batch).backward(), device)
            return gradients(nets), mib
        with LiveTensors(*batch, *(p for net in nets for p in net.parameters())) as tensors:
            step(nets, batch).backward()
        return gradients(nets), tensors.peak / 2**20

    step: Step = globals()[step_name]
    batch = views(m, 256, device)
    _, chunk_mib = run(step, views(CHUNK, 256, device))
    two_pass, mib = run(step, batch)
    one_pass, one_pass_mib = run(step_full, batch)
    for net in nets:
        net.double()
    truth, _ = run(step_full, (batch[0].double(), batch[1].double()))
    outputs_mib = m * d * 4 / 2**20
    return {
        "m": m,
        "difference": float((two_pass - one_pass).norm() / one_pass.norm()),
        "two_pass_error": float((two_pass - truth).norm() / truth.norm()),
        "one_pass_error": float((one_pass - truth).norm() / truth.norm()),
        "one_pass_mib": one_pass_mib,
        "two_pass_mib": mib,
        "one_chunk_mib": chunk_mib,
        "outputs_mib": outputs_mib,
        "ratio": mib / (chunk_mib + outputs_mib),
    }


def measure_covariance(rows: int, device: str) -> dict[str, float]:
    """64 columns, means near 1e3, unit variances; the truth in fp64 by NumPy's two passes over the same chunks."""
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

    def error(value: Tensor) -> float:
        return float((value - truth).norm() / truth.norm())

    return {"rows": rows, "d": d, "error": error(streamed), "naive_error": error(naive), "seconds": seconds}


def plot(results: list[dict[str, Any]], where: str) -> None:
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
    figure.savefig(where, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--quick", action="store_true", help="up to 10⁵ pairs, 10⁶ rows")
    options = parser.parse_args()
    sizes = [1000, 10_000, 100_000, *([] if options.quick else [300_000, 1_000_000])]
    results: list[dict[str, Any]] = []
    for name in STEPS:
        for m in sizes:
            result: dict[str, Any] = {"name": name, "m": m}
            for what in ("ms", "mib"):
                # For memory, freed blocks go back to the system at once, else the resident set shows malloc's habits.
                os.environ.update({"MALLOC_MMAP_THRESHOLD_": "65536"} if what == "mib" else {})
                limit = 14 * (options.device == "cpu")
                found = common.in_subprocess(measure_step, name, m, options.device, what, limit_gib=limit)
                os.environ.pop("MALLOC_MMAP_THRESHOLD_", None)
                result["failed" if isinstance(found, str) else what] = found
            results.append(result)
            print(result, flush=True)
            if "failed" in result:
                break
    exactness = {}
    for label, step in (("trace norm", "step_two_pass"), ("any loss", "step_two_pass_any_loss")):
        rows = 20_000 if options.quick else 100_000
        exactness[label] = common.in_subprocess(measure_exactness, step, rows, 256, options.device)
        print(label, exactness[label], flush=True)
    covariance = common.in_subprocess(measure_covariance, 10**6 if options.quick else 10**7, options.device)
    print(covariance, flush=True)

    machine = common.machine(options.device)
    text = ["# Large batches", "", ", ".join(f"{key} {value}" for key, value in machine.items()), ""]
    text += ["## One training step, 128 → 256 → 64 twice, float32", ""]
    own = {r["m"]: r for r in results if r["name"] == OURS}
    rows = []
    for r in results:
        us = own.get(r["m"], {})
        if "failed" in r or "failed" in us or not us:
            rows.append([r["name"], r["m"], r.get("failed", ""), "", "", ""])
            continue
        rows.append([r["name"], r["m"], r["ms"], r["mib"], r["ms"] / us["ms"], max(r["mib"], 1) / max(us["mib"], 1)])
    text += [common.markdown(["", "pairs", "ms", "MiB", "time / two passes", "memory / two passes"], rows), ""]
    text += [f"## Two passes against one, chunks of {CHUNK}, 256 → 512 → 256 twice, float32", ""]
    text += ["Relative errors of all gradients; memory of live tensors, without the batch itself.", ""]
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
    rows = [[label, *(found[key] for key in columns)] for label, found in exactness.items()]
    text += [common.markdown(["loss", *columns.values()], rows), ""]
    text += ["## Covariance of rows with means of 1e3, float32, against two passes in float64", ""]
    row = [covariance[key] for key in ("rows", "d", "error", "naive_error", "seconds")]
    text += [common.markdown(["rows", "columns", "streamed error", "naive error", "streaming s"], [row]), ""]
    found = {"machine": machine, "steps": results, "exactness": exactness, "covariance": covariance}
    where = common.write("large_batch", options.device, found, "\n".join(text))
    plot(results, f"{where}.png")
    print("\n".join(text))


if __name__ == "__main__":
    main()
