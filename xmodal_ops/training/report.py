"""Reports of a run: tables of metrics, loss curves, and plots of the common space and of retrieved items."""

from __future__ import annotations

import math
import textwrap
import warnings
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .. import retrieval
from ..data import PairSet

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
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
NAMES = {
    "linear_cca": "linear CCA",
    "three_view_cca": "three-view CCA with labels",
    "semantic_logistic": "semantic matching, logistic",
    "semantic_forest": "semantic matching, random forest",
    "dcca": "DCCA",
    "acmr": "ACMR",
}

FALLBACKS = (
    "Noto Sans CJK SC", "Noto Sans CJK JP", "Source Han Sans SC", "WenQuanYi Micro Hei", "WenQuanYi Zen Hei",
    "Droid Sans Fallback", "PingFang SC", "Hiragino Sans", "Microsoft YaHei", "SimHei", "Malgun Gothic",
    "Arial Unicode MS", "Noto Sans Arabic", "Noto Sans Devanagari", "Noto Sans Thai", "Unifont",
)  # fmt: skip
RIGHT, OTHER = "#1a7f37", "#c4cad1"


def rows(results: Mapping[str, Mapping[str, Any]]) -> list[list[str]]:
    """The metrics of models, and of chance, as rows of text: model, direction, then COLUMNS.

    Means over several seeds are followed by the standard deviation.
    """

    def cells(metrics: Mapping[str, float], deviation: Mapping[str, float]) -> list[str]:
        digits = {name: 1 if name == "median_rank" else 3 for name in COLUMNS}
        texts = {name: f"{metrics[name]:.{digits[name]}f}" for name in COLUMNS}
        return [texts[n] + (f" ± {deviation[n]:.{digits[n]}f}" if n in deviation else "") for n in COLUMNS]

    table = [
        [
            NAMES.get(model, model) if direction == "image_to_text" else "",
            title,
            *cells(result[direction], result["deviation"][direction] if len(result.get("seeds", ())) > 1 else {}),
        ]
        for model, result in results.items()
        for direction, title in DIRECTIONS.items()
    ]
    chance = next(iter(results.values()))["chance"]
    return [*table, ["chance", "", *cells(chance, {})]]


def table(results: Mapping[str, Mapping[str, Any]], title: str = "") -> Table:
    """The comparison of models as a table for the terminal."""
    from rich.table import Table
    from rich.text import Text

    # As Text, since a name such as "[/blue]" would be read as markup.
    out = Table(title=Text(title) if title else None, title_justify="left")
    for name in ("model", "direction"):
        out.add_column(name, no_wrap=True)
    for name in COLUMNS.values():
        out.add_column(name, justify="right", no_wrap=True)
    for row in rows(results):
        last = row[1] in (DIRECTIONS["mean"], "")
        out.add_row(*map(Text, row), end_section=last, style="bold" if row[1] == DIRECTIONS["mean"] else "")
    return out


def markdown(results: Mapping[str, Mapping[str, Any]]) -> str:
    """The comparison of models as a Markdown table."""
    head = ["model", "direction", *COLUMNS.values()]
    lines = [head, ["---", "---", *["---:"] * len(COLUMNS)], *rows(results)]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def loss_curve(history: Sequence[Mapping[str, float]], monitor: str, path: Path) -> None:
    """Plots the training loss and the validation score against epochs."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.5), layout="constrained")
    left, right = figure.subplots(1, 2)
    epochs = [row["epoch"] for row in history]
    left.plot(epochs, [row["loss"] for row in history], marker=".")
    left.set(title="training loss (minus the total correlation)", xlabel="epoch")
    right.plot(epochs, [row[f"validation {monitor}"] for row in history], marker=".", color=RIGHT)
    right.set(title=f"validation {monitor}, mean of both directions", xlabel="epoch")
    _save_curves(figure, path)


def game_curves(history: Sequence[Mapping[str, float]], monitor: str, path: Path) -> None:
    """Plots the losses of both players of ACMR and the validation score against epochs."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 3.5), layout="constrained")
    left, middle, right = figure.subplots(1, 3)
    epochs = [row["epoch"] for row in history]
    left.plot(epochs, [row["loss"] for row in history], label="total, L_emb")
    for name, title in (("invariance", "L_imi"), ("discrimination", "L_imd"), ("pair", "L_pair")):
        if any(row[name] for row in history):
            left.plot(epochs, [row[name] for row in history], label=title)
    left.set(title="projectors and label predictor", xlabel="epoch", yscale="log")
    left.legend()
    middle.plot(epochs, [row["adversary"] for row in history], color="#bc4c00", label="L_adv")
    middle.axhline(2 * math.log(2), color=OTHER, linestyle="--", label="chance level")
    middle.set(title="modality classifier", xlabel="epoch")
    middle.legend()
    right.plot(epochs, [row[f"validation {monitor}"] for row in history], color=RIGHT)
    right.set(title=f"validation {monitor}, mean of both directions", xlabel="epoch")
    _save_curves(figure, path)


def _save_curves(figure: Figure, path: Path) -> None:
    from matplotlib.ticker import MaxNLocator

    for axes in figure.axes:
        axes.grid(alpha=0.3)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    figure.savefig(path, dpi=120)


def space_picture(
    before: tuple[Tensor, Tensor],
    after: tuple[Tensor, Tensor],
    labels: Tensor | None,
    path: Path,
    *,
    classes: Sequence[str] | None = None,
    items: int = 400,
    seed: int = 0,
) -> None:
    """Plots both modalities in the common space before and after training by t-SNE, as in the paper.

    The upper plots are coloured by modality, the lower ones by class (single labels only).

    Args:
        before, after: embeddings of images and texts, (n, d) each.
        labels: the classes of the pairs.
        path: the image file to write.
        classes: the class names.
        items: at most this number of pairs is drawn, chosen at random.
        seed: chooses the pairs and initialises t-SNE.
    """
    from matplotlib.figure import Figure
    from sklearn.manifold import TSNE

    rows = torch.randperm(len(before[0]), generator=torch.Generator().manual_seed(seed))[:items]
    coloured = labels is not None and labels.ndim == 1
    figure = Figure(figsize=(10, 10 if coloured else 5), layout="constrained")
    grid = figure.subplots(2 if coloured else 1, 2, squeeze=False)
    for column, (title, (image, text)) in enumerate((("before training", before), ("after training", after))):
        points = torch.cat([image[rows], text[rows]]).double().numpy()
        perplexity = min(30.0, (len(points) - 1) / 3)
        flat = TSNE(2, perplexity=perplexity, init="pca", random_state=seed).fit_transform(points)
        views = flat[: len(rows)], flat[len(rows) :]
        for name, view, marker, color in zip(("image", "text"), views, "ox", ("#0969da", "#bc4c00")):
            grid[0, column].scatter(*view.T, s=10, marker=marker, color=color, label=name, linewidths=0.8)
            if coloured and labels is not None:
                colors = labels.cpu()[rows].numpy()
                grid[1, column].scatter(*view.T, s=10, marker=marker, c=colors, cmap="tab20", linewidths=0.8)
        grid[0, column].set_title(f"{title}, by modality")
        grid[0, column].legend()
        if coloured:
            several = f"{len(classes)} classes" if classes is not None else "class"
            grid[1, column].set_title(f"{title}, by {several}")
    for axes in grid.flat:
        axes.set(xticks=[], yticks=[])
    figure.savefig(path, dpi=110)


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
    """Draws the items nearest to randomly chosen texts and images by cosine similarity.

    A green frame marks the query's partner. Items without an image are shown by name.

    Args:
        image, text: embeddings of the pairs, (n, d) each.
        pairs: the pairs themselves.
        path: the image file to write.
        classes: the class names, shown if the pairs have no names.
        queries: number of queries in each direction.
        nearest: number of items for each query.
        seed: chooses the queries.
    """
    from matplotlib.figure import Figure

    chosen = torch.randperm(len(pairs), generator=torch.Generator().manual_seed(seed))[:queries].tolist()
    nearest = min(nearest, len(pairs))
    drawn = pairs.image.ndim == 4
    wide, narrow, gap = 2.4, 1.0, 0.6  # widths of a name, an image and the gap, in units of a row's height
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
    with warnings.catch_warnings():  # characters that no installed font has are drawn as boxes
        warnings.filterwarnings("ignore", "Glyph .* missing from", UserWarning)
        figure.savefig(path, dpi=100)


@cache
def _families() -> list[str]:
    """Matplotlib's own font, then installed ones that have what it lacks, such as Chinese characters."""
    from matplotlib.font_manager import fontManager

    installed = {font.name for font in fontManager.ttflist}
    return ["DejaVu Sans", *(name for name in FALLBACKS if name in installed)]


def _cell(
    axes: Axes, pairs: PairSet, item: int, x: float, y: float, width: float, drawn: bool, classes: Sequence[str] | None
) -> None:
    """Draws one item, as an image or by name, in the box of height 1 whose upper left corner is (x, y)."""
    if not drawn:
        words = textwrap.fill(_name(pairs, item, classes), 22, max_lines=4)
        style: dict[str, Any] = {"fontsize": 8, "family": _families(), "parse_math": False}
        axes.text(x + width / 2, y + 0.5, words, ha="center", va="center", **style)
        return
    image = pairs.image[item].permute(1, 2, 0).float().numpy()
    extent = (x + 0.1, x + width - 0.1, y + 0.9, y + 0.1)
    # Images that are mostly 0, such as glyphs, are drawn dark on white.
    colors = "gray_r" if image.mean() < 0.5 else "gray"
    axes.imshow(image, extent=extent, cmap=colors, vmin=0, vmax=1, aspect="auto")


def _frame(x: float, y: float, width: float, color: str, line: float) -> Rectangle:
    from matplotlib.patches import Rectangle

    return Rectangle((x + 0.05, y + 0.05), width - 0.1, 0.9, fill=False, edgecolor=color, linewidth=line)


def _name(pairs: PairSet, item: int, classes: Sequence[str] | None) -> str:
    name = pairs.names[item] if pairs.names is not None else f"row {item}"
    if pairs.names is None and pairs.labels is not None and pairs.labels.ndim == 1 and classes is not None:
        name += f" ({classes[int(pairs.labels[item])]})"
    return name
