"""Runs every CUDA kernel once, at small sizes, for compute-sanitizer:

compute-sanitizer --tool memcheck|racecheck|initcheck|synccheck --error-exitcode 1 python tests/gpu/sanitize.py
"""

from __future__ import annotations

import torch

from xmodal_ops import (
    canonical_correlations,
    covariance,
    mine_triplets,
    structure_preserving_loss,
    trace_norm_loss,
    triplet_margin_loss,
    whiten,
)
from xmodal_ops.ops.cuda import driver
from xmodal_ops.ops.cuda import triplets as cuda_triplets


def main() -> None:
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        # One launch, separate covariances, matrices outside shared memory, in device memory, dual, mixed.
        for m, dx, dy in ((70, 33, 17), (600, 17, 20), (150, 100, 90), (200, 140, 30), (30, 40, 50), (30, 40, 7)):
            x, y = (torch.randn(m, d, device="cuda").to(dtype).requires_grad_() for d in (dx, dy))
            trace_norm_loss(x, y).backward()
            trace_norm_loss(x, y, top_k=2).backward()
            canonical_correlations(x, y).square().sum().backward()
            sum(part.sum() for part in covariance(x, y)).backward()
            trace_norm_loss(x.expand(3, -1, -1), y.expand(3, -1, -1)).sum().backward()
            for method in ("cholesky", "zca"):
                whiten(x, ridge=0.1, method=method).sum().backward()
        for m, n, d in ((37, 53, 7), (300, 260, 40)):
            anchor, ref = (torch.randn(rows, d, device="cuda").to(dtype) for rows in (m, n))
            labels, ref_labels = (torch.randint(4, (rows,), device="cuda") for rows in (m, n))
            for negative in ("hard", "semihard", "random"):
                mine_triplets(anchor, labels, ref, ref_labels, negative=negative)
            anchor.requires_grad_(), ref.requires_grad_()
            structure_preserving_loss(anchor, ref, labels, ref_labels, margin=5.0).backward()
            for enough in (4096, 16):
                cuda_triplets.IN_SHARED = enough
                triplet_margin_loss(anchor, labels, ref, ref_labels, triplets="semihard").backward()
    t = 0.1 * torch.randn(300, 1500, device="cuda")  # large enough for tiles of 128
    driver.products("tn", driver.Product((driver.Term(t, t),), t.new_empty(1500, 1500), True), tile=128)
    torch.cuda.synchronize()
    print("done")


if __name__ == "__main__":
    main()
