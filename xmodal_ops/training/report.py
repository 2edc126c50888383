"""What a run shows: a table of figures, a loss curve, and a picture of what is retrieved."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .. import retrieval
from ..data import PairSet

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.patches import Rectangle
    from rich.table import Table

COLUMNS = {
    "map_all": "mAP",
    "recall@1": "R@1",
    "recall@5": "R@5",
    "recall@10": "R@10",
    "median_rank": "median rank",
}
DIRECTIONS = {"image_to_text": "image → text", "text_to_image": "text → image", "mean": "mean"}
NAMES = {"linear_cca": "linear CCA", "dcca": "DCCA"}

RIGHT, OTHER = "#1a7f37", "#c4cad1"


def rows(results: Mapping[str, Mapping[str, Any]]) -> list[list[str]]:
    """The figures of some models, and of chance, as rows of text: model, direction, then :data:`COLUMNS`."""

    def cells(figures: Mapping[str, float]) -> list[str]:
        return [f"{figures[name]:.1f}" if name == "median_rank" else f"{figures[name]:.3f}" for name in COLUMNS]

    table = [
        [NAMES.get(model, model) if direction == "image_to_text" else "", title, *cells(result[direction])]
        for model, result in results.items()
        for direction, title in DIRECTIONS.items()
    ]
    chance = next(iter(results.values()))["chance"]
    return [*table, ["chance", "", *cells(chance)]]


def table(results: Mapping[str, Mapping[str, Any]], title: str = "") -> Table:
    """The comparison of some models for a terminal."""
    from rich.table import Table

    out = Table(title=title or None, title_justify="left")
    for name in ("model", "direction"):
        out.add_column(name, no_wrap=True)
    for name in COLUMNS.values():
        out.add_column(name, justify="right", no_wrap=True)
    for row in rows(results):
        last = row[1] in (DIRECTIONS["mean"], "")
        out.add_row(*row, end_section=last, style="bold" if row[1] == DIRECTIONS["mean"] else "")
    return out


def markdown(results: Mapping[str, Mapping[str, Any]]) -> str:
    """The comparison of some models as a Markdown table."""
    head = ["model", "direction", *COLUMNS.values()]
    lines = [head, ["---", "---", *["---:"] * len(COLUMNS)], *rows(results)]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def loss_curve(history: Sequence[Mapping[str, float]], monitor: str, path: Path) -> None:
    """Draws the total correlation of the training batches and the validation figure against the epochs."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(9, 3.5), layout="constrained")
    left, right = figure.subplots(1, 2)
    epochs = [row["epoch"] for row in history]
    left.plot(epochs, [row["loss"] for row in history], marker=".")
    left.set(title="training loss (minus the total correlation)", xlabel="epoch")
    right.plot(epochs, [row[f"validation {monitor}"] for row in history], marker=".", color=RIGHT)
    right.set(title=f"validation {monitor}, mean of both directions", xlabel="epoch")
    for axes in (left, right):
        axes.grid(alpha=0.3)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    figure.savefig(path, dpi=120)


def retrieval_picture(
    image: Tensor,
    text: Tensor,
    pairs: PairSet,
    path: Path,
    *,
    classes: Sequence[str] | None = None,
    queries: int = 8,
    nearest: int = 5,
    seed: int = 0,
) -> None:
    """Draws the items nearest to some randomly chosen texts, and to some images, by the cosine of their embeddings.

    A query's own partner has a green frame. Pairs of bare features show by name.
    """
    from matplotlib.figure import Figure

    chosen = torch.randperm(len(pairs), generator=torch.Generator().manual_seed(seed))[:queries].tolist()
    nearest = min(nearest, len(pairs))
    drawn = pairs.image.ndim == 4
    wide, narrow, gap = 2.4, 1.0, 0.6  # a name, a picture, in units of a row's height
    image_width = narrow if drawn else wide
    widths = wide + nearest * image_width, image_width + nearest * wide
    figure = Figure(figsize=(0.9 * (sum(widths) + gap), 0.9 * (len(chosen) + 0.6)))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, sum(widths) + gap), ylim=(len(chosen), -0.6))
    axes.axis("off")
    axes.autoscale(False)
    for left, title, (query_view, query_width), (hit_view, hit_width) in (
        (0.0, "text → image", (text, wide), (image, image_width)),
        (widths[0] + gap, "image → text", (image, image_width), (text, wide)),
    ):
        axes.text(left + 0.1, -0.2, f"{title}: the {nearest} nearest of {len(pairs):,}", fontsize=11, weight="bold")
        order = retrieval.nearest(query_view[chosen], hit_view, nearest).tolist()
        for row, (query, hits) in enumerate(zip(chosen, order)):
            _cell(axes, pairs, query, left, row, query_width, drawn and query_view is image, classes)
            for place, item in enumerate(hits):
                x = left + query_width + place * hit_width
                _cell(axes, pairs, item, x, row, hit_width, drawn and hit_view is image, classes)
                color, line = (RIGHT, 3.0) if item == query else (OTHER, 0.8)
                axes.add_patch(_frame(x, row, hit_width, color, line))
    figure.savefig(path, dpi=100)


def _cell(
    axes: Axes, pairs: PairSet, item: int, x: float, y: float, width: float, drawn: bool, classes: Sequence[str] | None
) -> None:
    """One item, as a picture or by name, in the box of height 1 whose upper left corner is (x, y)."""
    if not drawn:
        words = textwrap.fill(_name(pairs, item, classes), 22, max_lines=4)
        axes.text(x + width / 2, y + 0.5, words, ha="center", va="center", fontsize=8)
        return
    picture = pairs.image[item].permute(1, 2, 0).float().numpy()
    extent = (x + 0.1, x + width - 0.1, y + 0.9, y + 0.1)
    # Ink on an empty ground, such as a glyph, is drawn dark on white.
    colors = "gray_r" if picture.mean() < 0.5 else "gray"
    axes.imshow(picture, extent=extent, cmap=colors, vmin=0, vmax=1, aspect="auto")


def _frame(x: float, y: float, width: float, color: str, line: float) -> Rectangle:
    from matplotlib.patches import Rectangle

    return Rectangle((x + 0.05, y + 0.05), width - 0.1, 0.9, fill=False, edgecolor=color, linewidth=line)


def _name(pairs: PairSet, item: int, classes: Sequence[str] | None) -> str:
    name = pairs.names[item] if pairs.names is not None else f"row {item}"
    if pairs.names is None and pairs.labels is not None and pairs.labels.ndim == 1 and classes is not None:
        name += f" ({classes[int(pairs.labels[item])]})"
    return name
