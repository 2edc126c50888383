"""Triplet mining and losses: time and peak memory against pytorch-metric-learning, torch and KeOps.

    python -m bench.triplets [--device cpu|cuda] [--sizes M …]

Batch-hard mining, and forward and backward of the losses, between two sets of m embeddings, d = 200, 10 classes,
float32. On the CPU each case runs in a process of its own, so that its memory can be measured. Results:
bench/results/<device>/triplets.{json,md,png}.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import xmodal_ops
from bench.harness import guarded, in_subprocess, machine, markdown, memory_growth, parser, side_by_side, write

D, CLASSES, MARGIN = 200, 10, 0.2
Loss = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


def scattered(m: int, device: str, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Two sets of unit vectors about common class centres, with their labels."""
    generator = torch.Generator().manual_seed(m)
    centres = torch.randn(CLASSES, D, generator=generator)
    labels = torch.randint(CLASSES, (2, m), generator=generator)
    x = torch.nn.functional.normalize(centres[labels] + 2 * torch.randn(2, m, D, generator=generator), dim=-1)
    image, text = (side.to(device, dtype).requires_grad_() for side in x.unbind())
    return image, labels[0].to(device), text, labels[1].to(device)


# The candidates. All map (anchor, labels, ref, ref_labels) to a scalar; those of mining, to indices.


def masks(a: Tensor, la: Tensor, r: Tensor, lr: Tensor) -> tuple[Tensor, Tensor]:
    return torch.cdist(a, r), la[:, None] == lr


def batch_hard_masks(a: Tensor, la: Tensor, r: Tensor, lr: Tensor) -> Tensor:
    d, same = masks(a, la, r, lr)
    hardest, nearest = d.where(same, -1.0).amax(1), d.where(~same, torch.inf).amin(1)
    return (MARGIN + hardest - nearest).relu().mean()


def batch_hard_chunks(a: Tensor, la: Tensor, r: Tensor, lr: Tensor) -> Tensor:
    """The strongest plain torch: mines without gradient in chunks, then measures the mined distances."""
    positive, negative = [], []
    with torch.no_grad():
        for x, lx in zip(a.split(512), la.split(512)):
            d, same = masks(x, lx, r, lr)
            positive.append(d.where(same, -1.0).argmax(1))
            negative.append(d.where(~same, torch.inf).argmin(1))
    hardest, nearest = ((a - r[torch.cat(index)]).norm(dim=1) for index in (positive, negative))
    return (MARGIN + hardest - nearest).relu().mean()


def batch_hard_pml(a: Tensor, la: Tensor, r: Tensor, lr: Tensor) -> Tensor:
    from pytorch_metric_learning import distances, losses, miners, reducers

    distance = distances.LpDistance(normalize_embeddings=False)
    triplets = miners.BatchHardMiner(distance=distance)(a, la, r, lr)
    loss = losses.TripletMarginLoss(margin=MARGIN, distance=distance, reducer=reducers.MeanReducer())
    return loss(a, la, triplets, r, lr)  # type: ignore[no-any-return]


def batch_hard_keops(a: Tensor, la: Tensor, r: Tensor, lr: Tensor) -> Tensor:
    from pykeops.torch import LazyTensor

    with torch.no_grad():
        d = ((LazyTensor(a[:, None]) - LazyTensor(r[None])) ** 2).sum(-1)
        li, lj = LazyTensor(la[:, None, None].float()), LazyTensor(lr[None, :, None].float())
        other = ((li - lj) ** 2).step() * ((li - lj) ** 2).sign()  # 0 for equal labels
        far = 1e6
        positive = (d - far * other).argmax(1).view(-1)
        negative = (d + far * (1 - other)).argmin(1).view(-1)
    hardest, nearest = ((a - r[index]).norm(dim=1) for index in (positive, negative))
    return (MARGIN + hardest - nearest).relu().mean()


def batch_hard_ours(a: Tensor, la: Tensor, r: Tensor, lr: Tensor) -> Tensor:
    return xmodal_ops.triplet_margin_loss(a, la, r, lr, margin=MARGIN, triplets="batch_hard", reduction="mean")


def mining_masks(a: Tensor, la: Tensor, r: Tensor, lr: Tensor) -> Tensor:
    d, same = masks(a, la, r, lr)
    return torch.stack((d.where(same, -1.0).argmax(1), d.where(~same, torch.inf).argmin(1)))


def mining_chunks(a: Tensor, la: Tensor, r: Tensor, lr: Tensor) -> Tensor:
    parts = zip(a.split(512), la.split(512))
    return torch.cat([mining_masks(x, lx, r, lr) for x, lx in parts], 1)


def mining_pml(a: Tensor, la: Tensor, r: Tensor, lr: Tensor) -> Tensor:
    from pytorch_metric_learning import distances, miners

    found = miners.BatchHardMiner(distance=distances.LpDistance(normalize_embeddings=False))(a, la, r, lr)
    return torch.stack(found[1:])


def mining_ours(a: Tensor, la: Tensor, r: Tensor, lr: Tensor) -> Tensor:
    found = xmodal_ops.mine_triplets(a, la, r, lr)
    return torch.stack((found.positive_idx, found.negative_idx))


def structure_masks(a: Tensor, la: Tensor, r: Tensor, lr: Tensor) -> Tensor:
    d, same = masks(a, la, r, lr)
    pull, push = d * same, (1 - d).relu() * ~same
    loss = torch.zeros((), device=a.device)
    for dim in (1, 0):
        positives, negatives = same.sum(dim).float(), (~same).sum(dim).float()
        terms = negatives * pull.sum(dim) + 0.05 * positives * push.sum(dim)
        loss = loss + terms.sum() / (positives * negatives).sum()
    return loss


class _StructureChunks(torch.autograd.Function):
    """The strongest plain torch: the gradient in closed form in the forward sweep, 512 anchors at a time."""

    @staticmethod
    def forward(ctx: Any, a: Tensor, la: Tensor, r: Tensor, lr: Tensor) -> Tensor:
        count = torch.bincount(la, minlength=CLASSES), torch.bincount(lr, minlength=CLASSES)
        m = a.shape[0]
        pos_a, pos_r = count[1][la].float(), count[0][lr].float()
        scale_a, scale_r = 1 / (pos_a * (m - pos_a)).sum(), 1 / (pos_r * (m - pos_r)).sum()
        value, grad_a, grad_r = a.new_zeros(()), torch.empty_like(a), torch.zeros_like(r)
        for start in range(0, m, 512):
            rows = slice(start, start + 512)
            d, same = masks(a[rows], la[rows], r, lr)
            pull = ((m - pos_a[rows]) * scale_a)[:, None] + (m - pos_r) * scale_r
            push = 0.05 * ((pos_a[rows] * scale_a)[:, None] + pos_r * scale_r)
            near = ~same & (d < 1)
            value += (pull * d * same).sum() + (push * (1 - d) * near).sum()
            w = ((pull * same - push * near) / d).where(d > 0, 0.0)
            grad_a[rows] = w.sum(1, keepdim=True) * a[rows] - w @ r
            grad_r += w.sum(0)[:, None] * r - w.mT @ a[rows]
        ctx.save_for_backward(grad_a, grad_r)
        return value

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        grad_a, grad_r = ctx.saved_tensors
        return grad_a * grad, None, grad_r * grad, None


def structure_chunks(a: Tensor, la: Tensor, r: Tensor, lr: Tensor) -> Tensor:
    return _StructureChunks.apply(a, la, r, lr)  # type: ignore[no-any-return]


def structure_ours(a: Tensor, la: Tensor, r: Tensor, lr: Tensor) -> Tensor:
    return xmodal_ops.structure_preserving_loss(a, r, la, lr)


def all_pml(a: Tensor, la: Tensor, r: Tensor, lr: Tensor) -> Tensor:
    from pytorch_metric_learning import distances, losses

    distance = distances.LpDistance(normalize_embeddings=False)
    return losses.TripletMarginLoss(margin=MARGIN, distance=distance)(a, la, None, r, lr)  # type: ignore[no-any-return]


class _AllSorted(torch.autograd.Function):
    """The strongest plain torch: positives sorted, negatives by binary search, 512 anchors at a time."""

    @staticmethod
    def forward(ctx: Any, a: Tensor, la: Tensor, r: Tensor, lr: Tensor) -> Tensor:
        m = a.shape[0]
        value, active = a.new_zeros((), dtype=torch.float64), a.new_zeros((), dtype=torch.float64)
        grad_a, grad_r = torch.empty_like(a), torch.zeros_like(r)
        for start in range(0, m, 512):
            rows = slice(start, start + 512)
            d, same = masks(a[rows], la[rows], r, lr)
            most = int(same.sum(1).max())
            keys = (d + MARGIN).where(same, torch.inf).topk(most, 1, largest=False).values
            key = (d + MARGIN).where(same, d)
            place = torch.searchsorted(keys, key, right=True)
            count = torch.zeros(d.shape[0], most + 1, dtype=torch.int64, device=d.device)
            count.scatter_add_(1, place, (~same).long())
            before = count.cumsum(1).gather(1, (place - 1).clamp(min=0))
            g = before.where(same, place - same.sum(1, keepdim=True)).to(d.dtype)
            value += (g * key).sum(dtype=torch.float64)
            active += (g * same).sum(dtype=torch.float64)
            w = (g / d).where(d > 0, 0.0)
            grad_a[rows] = w.sum(1, keepdim=True) * a[rows] - w @ r
            grad_r += w.sum(0)[:, None] * r - w.mT @ a[rows]
        scale = (1 / active.clamp(min=1)).to(a.dtype)
        ctx.save_for_backward(grad_a * scale, grad_r * scale)
        return (value / active.clamp(min=1)).to(a.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        grad_a, grad_r = ctx.saved_tensors
        return grad_a * grad, None, grad_r * grad, None


def all_sorted(a: Tensor, la: Tensor, r: Tensor, lr: Tensor) -> Tensor:
    return _AllSorted.apply(a, la, r, lr)  # type: ignore[no-any-return]


def all_ours(a: Tensor, la: Tensor, r: Tensor, lr: Tensor) -> Tensor:
    return xmodal_ops.triplet_margin_loss(a, la, r, lr, margin=MARGIN)


OURS = "xmodal_ops"
MINING = "batch-hard mining"  # without gradient, unlike the others
WORK: dict[str, dict[str, Loss]] = {
    MINING: {
        OURS: mining_ours,
        "pytorch-metric-learning": mining_pml,
        "cdist + masks": mining_masks,
        "cdist + masks, compiled": mining_masks,
        "cdist in chunks": mining_chunks,
    },
    "batch hard": {
        OURS: batch_hard_ours,
        "pytorch-metric-learning": batch_hard_pml,
        "cdist + masks": batch_hard_masks,
        "cdist + masks, compiled": batch_hard_masks,
        "cdist in chunks": batch_hard_chunks,
        "KeOps": batch_hard_keops,
    },
    "structure preserving": {
        OURS: structure_ours,
        "cdist + masks": structure_masks,
        "cdist + masks, compiled": structure_masks,
        "cdist in chunks": structure_chunks,
    },
    "all triplets": {
        OURS: all_ours,
        "pytorch-metric-learning": all_pml,
        "sorted, in chunks": all_sorted,
    },
}


def measure(work: str, name: str, m: int, device: str) -> dict[str, float]:
    """Time, memory growth and relative error of the gradient (mining: the share of wrong indices)."""
    loss = WORK[work][name]
    if name.endswith("compiled"):
        loss = torch.compile(loss, dynamic=False)

    def step(inputs: tuple[Tensor, Tensor, Tensor, Tensor]) -> None:
        if work == MINING:
            with torch.no_grad():
                loss(*inputs)
            return
        inputs[0].grad = inputs[2].grad = None
        loss(*inputs).backward()

    inputs = scattered(m, device)
    step(scattered(64, device))  # libraries load at the first call
    if name.endswith("compiled"):
        step(inputs)  # compilation needs memory too
    mib = memory_growth(lambda: step(inputs), device)
    ms = side_by_side({name: lambda: step(inputs)}, device, seconds=10)[name]
    result = {"ms": ms, "mib": mib}
    if m <= 8192:
        exact = scattered(m, device, torch.float64)
        if work == MINING:
            with torch.no_grad():
                return {**result, "error": float((loss(*inputs) != WORK[work][OURS](*exact)).double().mean())}
        WORK[work][OURS](*exact).backward()
        worst = max(float((x.grad - y.grad).abs().max() / y.grad.abs().max()) for x, y in zip(inputs[::2], exact[::2]))
        result["error"] = worst
    return result


def plot(results: list[dict[str, Any]], file: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.5 * len(WORK), 7), layout="constrained")
    axes = figure.subplots(2, len(WORK), sharex=True, squeeze=False)
    for column, (work, ways) in enumerate(WORK.items()):
        for name in ways:
            points = [r for r in results if r["work"] == work and r["name"] == name and "ms" in r]
            for row, key in enumerate(("ms", "mib")):
                style = {"linewidth": 2.5, "color": "black"} if name == OURS else {}
                x, y = [p["m"] for p in points], [max(p[key], 0.1) for p in points]
                axes[row][column].loglog(x, y, marker="o", markersize=3, label=name, **style)
        axes[0][column].set_title(work)
        axes[1][column].set_xlabel("m")
        axes[0][column].legend(fontsize=7)
    axes[0][0].set_ylabel("time, ms")
    axes[1][0].set_ylabel("peak memory growth, MiB")
    figure.savefig(file, dpi=120)


def main() -> None:
    arguments = parser(__doc__, device=True)
    sizes = [256, 1024, 2048, 4096, 8192, 32768, 65536]
    arguments.add_argument("--sizes", type=int, nargs="+", default=sizes, metavar="M", help="embeddings in either set")
    options = arguments.parse_args()
    run = partial(in_subprocess, limit_gib=20) if options.device == "cpu" else guarded
    results: list[dict[str, Any]] = []
    for work, ways in WORK.items():
        for name in ways:
            for m in sorted(options.sizes):
                if m > 8192 and name != OURS:
                    continue  # the others need memory quadratic in m, or minutes
                done = run(measure, work, name, m, options.device)
                found = done if isinstance(done, dict) else {"failed": done}
                results.append({"work": work, "name": name, "m": m, "d": D, "classes": CLASSES, **found})
                print(results[-1], flush=True)
                if "failed" in found:
                    break  # larger ones would fail too
    parts = []
    for work, ways in WORK.items():
        own = {r["m"]: r for r in results if r["work"] == work and r["name"] == OURS}
        rows = []
        for r in (r for name in ways for r in results if r["work"] == work and r["name"] == name):
            us = own.get(r["m"], {})
            if "failed" in r or "failed" in us:
                rows.append([r["name"], r["m"], r.get("failed", ""), "", "", "", ""])
                continue
            r["time_ratio"], r["memory_ratio"] = r["ms"] / us["ms"], max(r["mib"], 0.1) / max(us["mib"], 0.1)
            error = f"{r['error']:.1e}" if "error" in r else ""
            rows.append([r["name"], r["m"], r["ms"], r["mib"], error, r["time_ratio"], r["memory_ratio"]])
        error = "wrong" if work == MINING else "gradient error"
        parts += [f"## {work}", markdown(["", "m", "ms", "MiB", error, "time / ours", "memory / ours"], rows)]
    title = f"Triplets, forward + backward, mining forward: d = {D}, {CLASSES} classes, float32"
    content = {"machine": machine(options.device), "results": results}
    written = write("triplets", options.device, content, title, *parts)
    plot(results, written.with_suffix(".png"))
    print(written.read_text())


if __name__ == "__main__":
    main()
