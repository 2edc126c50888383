"""Losses over the batch of several processes: time of a step, and bytes that it sends and receives.

    python -m bench.distributed [--quick]

Each of 1, 2 and 4 gloo processes, one thread each, holds its share of a global batch of embeddings and computes the
loss and its gradients: with ours, and by gathering all embeddings first, the usual way, in which every process does all
of the work. The volume is the least that the collectives must send and receive in a process, including the header on
which the ranks agree. With fewer cores than processes, times say little about what several machines would gain.
Results: bench/results/cpu/distributed.{json,md}.
"""

from __future__ import annotations

import multiprocessing
import os
import pickle
import statistics
import tempfile
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

import xmodal_ops
from bench.harness import machine, markdown, parser, write
from xmodal_ops import distributed

Loss = Callable[[Tensor, Tensor, Tensor], Tensor]
volume = 0.0  # bytes that this process sends and receives


def counted(name: str) -> None:
    """Makes a collective add to `volume` the least that any implementation must send and receive here."""
    collective = getattr(dist, name)

    def call(*args: Any, **kwargs: Any) -> Any:
        global volume
        given = args[1] if name.startswith("all_gather") else args[0]
        size = given.nbytes if isinstance(given, Tensor) else len(pickle.dumps(given))
        others = dist.get_world_size() - 1
        # A ring all-reduce moves 2 (n − 1) / n of the data each way; broadcast and reduce move one block out or in.
        volume += {
            "all_gather": 2 * others,
            "all_gather_object": 2 * others,
            "all_reduce": 4 * others / (others + 1),
        }.get(name, min(others, 1)) * size
        return collective(*args, **kwargs)

    setattr(dist, name, call)


def gathered(*tensors: Tensor) -> list[Tensor]:
    """The rows of all ranks, this rank's with their graph; shares are equal here."""
    results = []
    for own in tensors:
        parts = [torch.empty_like(own) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, own.detach().contiguous())
        parts[dist.get_rank()] = own
        results.append(torch.cat(parts))
    return results


def gather_first(loss: Loss) -> Loss:
    """Loss and exact gradients of own rows if every process computes everything."""
    return lambda x, y, labels: loss(*gathered(x, y, labels))


WORK: dict[str, dict[str, Loss]] = {
    "trace norm": {
        "ours": lambda x, y, _: distributed.trace_norm_loss(x, y),
        "gather": gather_first(lambda x, y, _: xmodal_ops.trace_norm_loss(x, y)),
    },
    "structure preserving": {
        "ours": lambda x, y, labels: distributed.structure_preserving_loss(x, y, labels),
        "gather": gather_first(lambda x, y, labels: xmodal_ops.structure_preserving_loss(x, y, labels)),
    },
    **{
        f"triplet margin, {kind}": {
            "ours": lambda x, y, labels, kind=kind: distributed.triplet_margin_loss(x, labels, y, triplets=kind),
            "gather": gather_first(
                lambda x, y, labels, kind=kind: xmodal_ops.triplet_margin_loss(x, labels, y, triplets=kind)
            ),
        }
        for kind in ("all", "batch_hard")
    },
}
SIZES = {"trace norm": [(4096, 64), (65536, 64), (16384, 256)]}
TRIPLET_SIZES = [(1024, 200), (4096, 200)]


def work(rank: int, world: int, store: str, quick: bool, pipe: Any) -> None:
    global volume
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=world)
    for name in ("all_gather", "all_gather_object", "all_reduce", "broadcast", "reduce"):
        counted(name)
    results = []
    for loss_name, ways in WORK.items():
        for m, d in SIZES.get(loss_name, TRIPLET_SIZES)[: 1 if quick else None]:
            generator = torch.Generator().manual_seed(m)
            labels = torch.randint(10, (m,), generator=generator)
            x = torch.randn(m, d, generator=generator) + torch.randn(10, d, generator=generator)[labels]
            y = 0.6 * x + torch.randn(m, d, generator=generator)
            for way, loss in ways.items():
                views = [v.tensor_split(world)[rank].clone().requires_grad_() for v in (x, y)]
                share = labels.tensor_split(world)[rank]
                times, gradients = [], None
                for _ in range(3 if quick else 6):
                    dist.barrier()
                    volume, start = 0.0, time.perf_counter()
                    gradients = torch.autograd.grad(loss(*views, share), views)
                    times.append(1e3 * (time.perf_counter() - start))
                assert gradients is not None and all(g.isfinite().all() for g in gradients)
                results.append(
                    {
                        "loss": loss_name,
                        "way": way,
                        "m": m,
                        "d": d,
                        "processes": world,
                        "ms": statistics.median(times[1:]),
                        "kib": volume / 2**10,
                    }
                )
    if rank == 0:
        pipe.send(results)
    dist.barrier()
    dist.destroy_process_group()


def main() -> None:
    options = parser(__doc__, quick="the smallest size of each loss").parse_args()
    context = multiprocessing.get_context("spawn")
    results: list[dict[str, Any]] = []
    for world in (1, 2, 4):
        here, there = context.Pipe(duplex=False)
        with tempfile.TemporaryDirectory() as folder:
            arguments = (world, f"{folder}/store", options.quick, there)
            processes = [context.Process(target=work, args=(rank, *arguments)) for rank in range(world)]
            for process in processes:
                process.start()
            results += here.recv()
            for process in processes:
                process.join()
    key = ("loss", "m", "d", "processes")
    gather = {tuple(r[k] for k in key): r for r in results if r["way"] == "gather"}
    rows = []
    for r in (r for r in results if r["way"] == "ours"):
        other = gather[tuple(r[k] for k in key)]
        rows.append([*(r[k] for k in key), r["ms"], other["ms"], r["kib"], other["kib"]])
    columns = ["loss", "m", "d", "processes", "ms", "gathering ms", "KiB per process", "gathering KiB"]
    facts = {**machine("cpu"), "threads": "1 per process", "cores": os.cpu_count()}
    content = {"machine": facts, "results": results}
    title = "Global batches, forward + backward, float32"
    print(write("distributed", "cpu", content, title, markdown(columns, rows)).read_text())


if __name__ == "__main__":
    main()
