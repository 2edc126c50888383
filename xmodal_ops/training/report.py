"""What a run shows: a table of figures, a loss curve, and a picture of what is retrieved."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor
from torch.nn.functional import normalize

from ..data import PairSet

if TYPE_CHECKING:
    from matplotlib.axes import Axes
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

RIGHT, WRONG = "#1a7f37", "#8c959f"


def rows(results: Mapping[str, Mapping[str, Any]]) -> list[list[str]]:
    """The figures of some models, and of chance, as rows of text: model, direction, then :data:`COLUMNS`.

    Means over several seeds are followed by their deviation.
    """

    def cells(figures: Mapping[str, float], deviation: Mapping[str, float]) -> list[str]:
        digits = {name: 1 if name == "median_rank" else 3 for name in COLUMNS}
        texts = {name: f"{figures[name]:.{digits[name]}f}" for name in COLUMNS}
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


def game_curves(history: Sequence[Mapping[str, float]], monitor: str, path: Path) -> None:
    """Draws the losses of both players of ACMR and the validation figure against the epochs."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(13, 3.5), layout="constrained")
    left, middle, right = figure.subplots(1, 3)
    epochs = [row["epoch"] for row in history]
    left.plot(epochs, [row["loss"] for row in history], label="all, L_emb")
    for name, title in (("invariance", "L_imi"), ("discrimination", "L_imd"), ("pair", "L_pair")):
        if any(row[name] for row in history):
            left.plot(epochs, [row[name] for row in history], label=title)
    left.set(title="projectors and label predictor", xlabel="epoch", yscale="log")
    left.legend()
    middle.plot(epochs, [row["adversary"] for row in history], color="#bc4c00", label="L_adv")
    middle.axhline(2 * math.log(2), color=WRONG, linestyle="--", label="modalities not to be told apart")
    middle.set(title="modality classifier", xlabel="epoch")
    middle.legend()
    right.plot(epochs, [row[f"validation {monitor}"] for row in history], color=RIGHT)
    right.set(title=f"validation {monitor}, mean of both directions", xlabel="epoch")
    for axes in (left, middle, right):
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
    """Draws both modalities in the common space before and after training, by t-SNE, as in the paper's figure.

    At most ``items`` pairs, drawn at random. The upper pictures are coloured by modality, the lower ones by class
    (single labels only).
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
    image: Tensor, text: Tensor, pairs: PairSet, path: Path, *, classes: Sequence[str] | None = None,
    queries: int = 7, nearest: int = 5, seed: int = 0,
) -> None:  # fmt: skip
    """Draws the items nearest to some randomly chosen texts, and to some images, by the cosine of their embeddings.

    A query's own pair has a green frame. Pairs of bare features show by name.
    """
    from matplotlib.figure import Figure

    order = torch.randperm(len(pairs), generator=torch.Generator().manual_seed(seed))
    chosen = order[:queries].tolist()
    image, text = normalize(image.cpu().double(), dim=1), normalize(text.cpu().double(), dim=1)
    nearest = min(nearest, len(pairs))
    drawn = pairs.image.ndim == 4
    height = (1.1 if drawn else 0.8) * 2 * len(chosen) + 0.8
    figure = Figure(figsize=(3.2 + 2.1 * nearest, height), layout="constrained")
    halves = cast("Sequence[SubFigure]", figure.subfigures(2, 1))
    for half, title, a, b, query_drawn, hits_drawn in (
        (halves[0], "text → image", text, image, False, drawn),
        (halves[1], "image → text", image, text, drawn, False),
    ):
        half.suptitle(f"{title}: the {nearest} nearest of {len(pairs)}", fontsize=11, fontweight="bold")
        grid = half.subplots(len(chosen), nearest + 1, squeeze=False, width_ratios=[1.4] + [1] * nearest)
        hits = (a[chosen] @ b.T).topk(nearest, dim=1).indices.tolist()
        for axes, query, found in zip(grid, chosen, hits):
            _cell(axes[0], pairs, query, query_drawn, classes, "black")
            for place, item in zip(axes[1:], found):
                _cell(place, pairs, item, hits_drawn, classes, RIGHT if item == query else WRONG, item == query)
    figure.savefig(path, dpi=100)


def _cell(
    axes: Axes, pairs: PairSet, item: int, drawn: bool, classes: Sequence[str] | None, color: str, right: bool = False
) -> None:
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set(color=color, linewidth=3 if right else 0.5)
    if drawn:
        picture = pairs.image[item]
        if picture.shape[0] == 3:
            axes.imshow(picture.permute(1, 2, 0).numpy())
        else:
            axes.imshow(picture[0].numpy(), cmap="gray_r", interpolation="nearest")
    else:
        words = textwrap.fill(_name(pairs, item, classes), 22, max_lines=4)
        axes.text(0.5, 0.5, words, ha="center", va="center", fontsize=7, color="black" if not right else RIGHT)


def _name(pairs: PairSet, item: int, classes: Sequence[str] | None) -> str:
    name = pairs.names[item] if pairs.names is not None else f"row {item}"
    if pairs.names is None and pairs.labels is not None and pairs.labels.ndim == 1 and classes is not None:
        name += f" ({classes[int(pairs.labels[item])]})"
    return name
