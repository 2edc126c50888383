"""Time of an epoch of ACMR on 20,000 pairs at batch 1024: the triplet loss against the projectors.

    python -m bench.acmr_epoch [--device cpu|cuda]

The paper's projectors, tanh to 200 dimensions, on shallow features (128 and 10) and on deep ones (4096 and 3000); ten
classes. Both parts are timed forward and backward, in turns, on one batch; an epoch has 19 full batches.
"""

from __future__ import annotations

import torch

from bench.harness import machine, markdown, parser, side_by_side, write
from xmodal_ops import structure_preserving_loss
from xmodal_ops.models import Projector

PAIRS, BATCH, DIM, CLASSES = 20_000, 1024, 200, 10
WIDTHS = {"shallow": (128, 10), "deep": (4096, 3000)}


def measure(widths: tuple[int, int], device: str) -> dict[str, float]:
    torch.manual_seed(0)
    projectors = [Projector(width, DIM, hidden=(h,)).to(device) for width, h in zip(widths, (2000, 500))]
    inputs = [torch.randn(BATCH, width, device=device) for width in widths]
    labels = torch.randint(0, CLASSES, (BATCH,), device=device)
    gradient = torch.randn(BATCH, DIM, device=device)
    parameters = [p for projector in projectors for p in projector.parameters()]

    def project() -> None:
        outputs = [projector(x) for projector, x in zip(projectors, inputs)]
        torch.autograd.grad(outputs, parameters, [gradient, gradient])

    with torch.no_grad():
        spaces = [projector(x) for projector, x in zip(projectors, inputs)]
    for space in spaces:
        space.requires_grad_()

    def loss() -> None:
        torch.autograd.grad(structure_preserving_loss(*spaces, labels), spaces)

    batches = PAIRS // BATCH
    times = side_by_side({"projectors": project, "triplet loss": loss}, device)
    epoch = {name: batches * ms / 1e3 for name, ms in times.items()}
    return {**{f"{name}, s an epoch": s for name, s in epoch.items()},
            "loss / projectors": epoch["triplet loss"] / epoch["projectors"]}  # fmt: skip


def main() -> None:
    device = parser(__doc__, device=True).parse_args().device
    results = {name: measure(widths, device) for name, widths in WIDTHS.items()}
    columns = ["features", *next(iter(results.values()))]
    table = markdown(columns, [[name, *(f"{v:.3f}" for v in row.values())] for name, row in results.items()])
    setting = {"pairs": PAIRS, "batch": BATCH, "dim": DIM, "classes": CLASSES}
    content = {"machine": machine(device), "setting": setting, "results": results}
    print(write("acmr_epoch", device, content, "An epoch of ACMR on 20,000 pairs, s", table).read_text())


if __name__ == "__main__":
    main()
