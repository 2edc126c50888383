"""Deep CCA on several processes with one global batch: loss and gradients are those of a single process.

    torchrun --nproc-per-node 2 examples/distributed_dcca.py --output runs/job
    torchrun --nproc-per-node 2 examples/distributed_dcca.py --output runs/job --resume     # after a failure

Each process takes its share of every global batch and processes it in chunks of --chunk-size rows, so that it holds
the activations of one chunk only. Rank 0 saves a checkpoint after every epoch. All randomness depends on seed, epoch
and rank alone, so a resumed run gives the same bits as an uninterrupted one. With CUDA, one device per process, it runs
on NCCL, otherwise on gloo.
"""

from __future__ import annotations

import argparse
import os
import sys
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
import torch.distributed.nn  # DDP imports it; a later import would keep the group alive in default arguments
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from xmodal_ops import distributed, large_batch_loss
from xmodal_ops.data.stream import PairStream


class TwoBranches(nn.Module):
    def __init__(self, image_columns: int, text_columns: int, outputs: int) -> None:
        super().__init__()

        def branch(columns: int) -> nn.Module:
            return nn.Sequential(nn.Linear(columns, 256), nn.ReLU(), nn.Dropout(0.2), nn.Linear(256, outputs))

        self.image, self.text = branch(image_columns), branch(text_columns)

    def forward(self, image: Tensor, text: Tensor) -> tuple[Tensor, Tensor]:
        return self.image(image), self.text(text)


def synthetic(rows: int = 4000) -> tuple[Tensor, Tensor]:
    """Two noisy nonlinear views of the same ten factors."""
    generator = torch.Generator().manual_seed(0)
    shared = torch.randn(rows, 10, generator=generator)

    def view(columns: int) -> Tensor:
        x = (shared @ torch.randn(10, columns, generator=generator)).tanh()
        return x + 0.5 * torch.randn(rows, columns, generator=generator)

    return view(60), view(40)


def train(options: argparse.Namespace, device: torch.device) -> None:
    rank, world = dist.get_rank(), dist.get_world_size()
    pairs = PairStream(options.pairs) if options.pairs else None
    image, text = (pairs.image, pairs.text) if pairs else synthetic()
    torch.manual_seed(options.seed)
    network = TwoBranches(image.shape[1], text.shape[1], options.outputs).to(device)
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3)
    checkpoint, first = options.output / "last.pt", 0
    if options.resume:
        saved = torch.load(checkpoint, map_location=device, weights_only=True)
        network.load_state_dict(saved["network"])
        optimizer.load_state_dict(saved["optimizer"])
        first = saved["epochs"]
    parallel = DistributedDataParallel(network, device_ids=[device] if device.type == "cuda" else None)
    loss_function = distributed.TraceNormLoss(ridge=1e-3)
    for epoch in range(first, options.epochs):
        order = torch.randperm(len(image), generator=torch.Generator().manual_seed(options.seed * 1000 + epoch))
        torch.manual_seed((options.seed * 1000 + epoch) * world + rank)  # for dropout
        for batch in order.split(options.batch_size):
            rows = batch.tensor_split(world)[rank]  # uneven shares are allowed, as in a short last batch
            optimizer.zero_grad()
            loss = large_batch_loss(parallel, (image[rows], text[rows]), loss_function, chunk_size=options.chunk_size)
            loss.backward()
            optimizer.step()
        if rank == 0:
            state = {"network": network.state_dict(), "optimizer": optimizer.state_dict(), "epochs": epoch + 1}
            torch.save(state, checkpoint.with_suffix(".new"))
            os.replace(checkpoint.with_suffix(".new"), checkpoint)  # atomic: never half a checkpoint
            print(f"epoch {epoch + 1}/{options.epochs}  total correlation {-loss.item():.4f}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", help='an HDF5 file with "image" and "text" (default: synthetic pairs)')
    parser.add_argument("--output", type=Path, required=True, help="directory for the checkpoint")
    parser.add_argument("--resume", action="store_true", help="continue from the last checkpoint")
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--batch-size", type=int, default=1000, help="rows of the global batch")
    parser.add_argument("--chunk-size", type=int, default=256, help="most rows whose activations a process holds")
    parser.add_argument("--outputs", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--timeout", type=float, default=300, help="seconds to wait for another process")
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    cuda = torch.cuda.is_available()
    device = torch.device("cuda", int(os.environ["LOCAL_RANK"])) if cuda else torch.device("cpu")
    if cuda:
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if cuda else "gloo", timeout=timedelta(seconds=options.timeout))
    try:
        with distributed.answering():
            train(options, device)
    except RuntimeError as error:
        print(f"rank {dist.get_rank()} stopped: {error}\ncontinue with --resume", file=sys.stderr, flush=True)
        os._exit(1)  # skips the destructors of a group that has lost a process
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
