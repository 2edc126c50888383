"""Retrieval metrics by name: which protocol a figure belongs to is never left open."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeAlias, TypedDict

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from . import _checks
from ._dtypes import dtype_name, widest_dtype
from .data.stream import PairStream

SIMILARITIES = ("cosine", "dot", "euclidean")
Array: TypeAlias = "Tensor | np.ndarray[Any, Any]"

_AT = 50  # of map_50 and map_50_hits
_HELD = 1 << 20  # similarities held at a time, small enough to stay in the cache
_TILE = 1 << 15  # gallery rows that are widened to float64 at a time


class Evaluation(TypedDict):
    """What `evaluate` returns."""

    image_to_text: dict[str, float]
    text_to_image: dict[str, float]
    mean: dict[str, float]
    chance: dict[str, float]
    similarity: str
    gallery: int
    queries: int
    queries_without_relevant: int


def evaluate(
    image: Array,
    text: Array,
    labels: Array | None = None,
    *,
    similarity: str = "cosine",
    queries: Array | None = None,
    chunk_size: int | None = None,
    progress: bool = False,
) -> Evaluation:
    """Retrieves texts by every image and images by every text, in one common space.

    Shapes: image, text (n, d), row i of one belongs to row i of the other; labels int64 (n,) or bool (n, C).
    All n rows of the other modality are a query's gallery, its own pair among them.

    About the own pair, of rank r (1 is best) in the gallery:
        recall@1, recall@5, recall@10   share of the queries with r <= 1, 5, 10
        median_rank                     median of r
        mrr                             mean of 1 / r
    About the relevant items, those of the same class or with any label in common (without labels: the own
    pair): the mean over queries of AP, which sums (relevant among the first p) / p over the positions p of
    relevant items and divides by
        map_all       the number of relevant items in the gallery
        map_50        min(50, that number), the sum going over p <= 50 only
        map_50_hits   the number of relevant items at p <= 50; AP is 0 where there are none. This metric,
                      of ACMR's released demo, inflates, and orders methods otherwise than map_all does
    Queries without a relevant item (possible with bool labels) are left out of these three means.

    Returns a dict: `image_to_text` and `text_to_image` with these eight figures, their `mean`, and in
    `chance` what a random order is expected to give (exact, not sampled); `gallery` = n, the number of
    `queries` in each direction, of `queries_without_relevant` among them, and `similarity`.

    similarity   "cosine" (0 for a zero vector), "dot", or "euclidean" (nearest first)
    queries      int64 (q,), the rows that are queries, in both directions; all by default
    chunk_size   queries at a time; by default as many as keep the memory for similarities small
    progress     shows a progress bar (needs rich)

    Similarities are computed in float64 and compared in float32, the lower row first where they are equal: so
    the figures do not hang on chunk_size or the number of threads. Without labels nothing is sorted. Time
    O(q n d), with labels O(q n (d + log n)); memory O(n d + chunk_size n).
    Raises TypeError or ValueError for shapes and dtypes that do not fit, NaN or infinity (naming the row),
    and labels that leave every query without a relevant item.
    """
    image, text = _embeddings(image, text, "image", "text", similarity)
    if len(image) != len(text):
        raise ValueError(f"text must have as many rows as image, {len(image)}, got {len(text)}")
    n = len(image)
    own = torch.arange(n, device=image.device) if queries is None else _rows(queries, image)
    labels = None if labels is None else _labels(labels, image)
    chunks = torch.split(own, _chunk(chunk_size, n))

    relevant = (
        torch.cat([_relevant(labels, rows).sum(1) for rows in chunks]) if labels is not None else torch.ones_like(own)
    )
    if not relevant.any():
        raise ValueError("labels must give at least one query a relevant item, got none")

    def direction(name: str, query: Tensor, gallery: Tensor) -> dict[str, float]:
        ranks, precisions = [], []
        for rows in _tracked(chunks, name, progress):
            scores = _similarities(query[rows], gallery, similarity)
            ranks.append(_own_rank(scores, rows))
            if labels is not None:
                precisions.append(_precisions(scores, _relevant(labels, rows)))
        precision = torch.cat(precisions, 1)[:, relevant > 0] if labels is not None else None
        return _of_ranks(torch.cat(ranks), precision)

    there = direction("image to text", image, text)
    back = direction("text to image", text, image)
    return {
        "image_to_text": there,
        "text_to_image": back,
        "mean": {name: (there[name] + back[name]) / 2 for name in there},
        "chance": chance(n, relevant[relevant > 0]),
        "similarity": similarity,
        "gallery": n,
        "queries": len(own),
        "queries_without_relevant": int((relevant == 0).sum()),
    }


def evaluate_stream(
    pairs: PairStream,
    *,
    queries: int | Array = 1000,
    transform: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]] | None = None,
    similarity: str = "cosine",
    seed: int = 0,
    chunk_size: int = 16384,
    workers: int = 2,
    progress: bool = False,
) -> Evaluation:
    """`evaluate` without labels, of pairs in files larger than memory: sampled queries against every pair.

    The figures are those of ``evaluate(image, text, queries=rows)``. n queries of n pairs are n² similarities: at
    10⁶ pairs with 512 columns 10¹⁵ operations, so a sample is taken; q queries estimate a recall to ± 0.5 / √q.

    queries      how many rows are drawn, without repetition, or the rows themselves, int64 (q,)
    transform    what maps a chunk (image, text) into the common space, such as ``LinearCCA.transform``
    seed         of the rows that are drawn
    chunk_size   pairs in memory at a time
    workers      processes that read ahead
    progress     shows a progress bar (needs rich)

    Time O(q n d) after one pass over the files, memory O(q d + chunk_size (d + q)). Raises as `evaluate`, and
    DataError for files that cannot be read.
    """
    n = len(pairs)
    if isinstance(queries, int):
        if not 1 <= queries <= n:
            raise ValueError(f"queries must lie in 1..{n} (the number of pairs), got {queries}")
        own = torch.randperm(n, generator=torch.Generator().manual_seed(seed))[:queries]
    else:
        own = torch.as_tensor(queries)
        own = _rows(own, torch.empty(n, 0, device=own.device)).cpu()

    def embed(image: Tensor, text: Tensor) -> tuple[Tensor, Tensor]:
        if transform is not None:
            image, text = transform(image, text)
        # A chunk's own centre is not the gallery's: in float64, distances do without.
        return _embeddings(image, text, "image", "text", "dot" if similarity == "euclidean" else similarity)

    with torch.no_grad():
        image, text = embed(pairs.image[own.numpy()], pairs.text[own.numpy()])
        own = own.to(image.device)
        # Partner by partner, as one product would take memory for all of them.
        mine = [
            torch.cat([_similarities(q[None], g[None], similarity)[0] for q, g in zip(a, b)])
            for a, b in ((image, text), (text, image))
        ]
        before = [torch.zeros(len(own), device=image.device, dtype=torch.float64) for _ in mine]
        start = 0
        for chunk in pairs.chunks(chunk_size, workers=workers, progress=progress):
            galleries = reversed(embed(*chunk))
            stop = start + len(chunk[0])
            for count, query, gallery, score in zip(before, (image, text), galleries, mine):
                for rows in torch.split(torch.arange(len(own), device=own.device), max(16, _HELD // (stop - start))):
                    scores = _similarities(query[rows], gallery, similarity)
                    column = torch.arange(start, stop, device=own.device)
                    ahead = scores > score[rows, None]
                    ahead |= (scores == score[rows, None]) & (column < own[rows, None])
                    ahead &= column != own[rows, None]
                    count[rows] += ahead.sum(1)
            start = stop
    there, back = (_of_ranks(count + 1) for count in before)
    return {
        "image_to_text": there,
        "text_to_image": back,
        "mean": {name: (there[name] + back[name]) / 2 for name in there},
        "chance": chance(n),
        "similarity": similarity,
        "gallery": n,
        "queries": len(own),
        "queries_without_relevant": 0,
    }


def nearest(
    query: Array, gallery: Array, k: int = 5, *, similarity: str = "cosine", chunk_size: int | None = None
) -> Tensor:
    """The k most similar rows of gallery (n, d) for every row of query (q, d): int64 (q, k), best first.

    Similarities, ties and errors are those of `evaluate`.
    """
    query, gallery = _embeddings(query, gallery, "query", "gallery", similarity)
    if not 1 <= k <= len(gallery):
        raise ValueError(f"k must lie in 1..{len(gallery)} (the rows of gallery), got {k}")
    chunks = torch.split(query, _chunk(chunk_size, len(gallery)))
    keys = [_keys(_similarities(q, gallery, similarity)).topk(k, dim=1, largest=False).values for q in chunks]
    return torch.cat(keys) & 0xFFFFFFFF


def chance(gallery: int, relevant: Tensor | None = None) -> dict[str, float]:
    """What the figures of `evaluate` are expected to be where a gallery of n items is in random order.

    `relevant`, int64 (q,), holds the number R >= 1 of relevant items per query, 1 each by default. Position p
    is relevant with probability R/n, and then expects (p-1)(R-1)/(n-1) relevant ones before it: so, with
    harmonic numbers H, AP's sum over p <= K is R/n (H_K + (K - H_K)(R-1)/(n-1)). Given h hits at p <= K, the
    same holds among these K positions with h for R, and h is hypergeometric.
    """
    n, top = gallery, min(_AT, gallery)
    counts = torch.ones(1) if relevant is None else relevant.cpu()
    r, times = counts.double().unique(return_counts=True)
    harmonic = (1 / torch.arange(1, n + 1, dtype=torch.float64)).cumsum(0)

    def mean(ap: Tensor) -> float:
        return ((ap * times).sum() / times.sum()).item()

    def total(k: int) -> Tensor:
        h = harmonic[k - 1]
        return r / n * (h + (k - h) * (r - 1) / max(n - 1, 1))

    before = torch.arange(top, dtype=torch.float64)
    none = ((n - r[:, None] - before).clamp(min=0) / (n - before)).prod(1)  # no hit among the first `top`
    found, hits, h = 1 - none, top * r / n, harmonic[top - 1]
    by_hits = (found * h + (hits - found) * (top - h) / max(top - 1, 1)) / top
    return {
        "map_all": mean(total(n) / r),
        "map_50": mean(total(top) / r.clamp(max=_AT)),
        "map_50_hits": mean(by_hits),
        "recall@1": 1 / n,
        "recall@5": min(5 / n, 1.0),
        "recall@10": min(10 / n, 1.0),
        "median_rank": (n + 1) / 2,
        "mrr": harmonic[-1].item() / n,
    }


def _of_ranks(rank: Tensor, precision: Tensor | None = None) -> dict[str, float]:
    """The figures of a direction from the ranks of own pairs (q,), and the precisions (3, ·) of `_precisions`."""
    if precision is None:  # the own pair is the only relevant item, at position r
        near = torch.where(rank <= _AT, 1 / rank, 0)
        precision = torch.stack([1 / rank, near, near])
    return dict(zip(("map_all", "map_50", "map_50_hits"), precision.mean(1).tolist())) | {
        "recall@1": (rank <= 1).double().mean().item(),
        "recall@5": (rank <= 5).double().mean().item(),
        "recall@10": (rank <= 10).double().mean().item(),
        "median_rank": rank.quantile(0.5).item(),
        "mrr": (1 / rank).mean().item(),
    }


def _similarities(query: Tensor, gallery: Tensor, similarity: str) -> Tensor:
    """float32 (q, n). Rounded from float64, so that equal items tie whatever the blocking of the product."""
    wide = widest_dtype(query.device)
    q = query.to(wide)
    out = torch.empty(len(query), len(gallery), dtype=torch.float32, device=query.device)
    for start in range(0, len(gallery), _TILE):
        g = gallery[start : start + _TILE].to(wide)
        s = q @ g.T
        if similarity == "euclidean":
            s = s.mul_(2).sub_(g.square().sum(1))  # |q|² - |q - g|²
        out[:, start : start + _TILE] = s
    return out


def _own_rank(scores: Tensor, own: Tensor) -> Tensor:
    """1 + the number of gallery rows before the own one, float64 (q,)."""
    mine = scores.gather(1, own[:, None])
    before = torch.arange(scores.shape[1], device=own.device) < own[:, None]
    return ((scores > mine) | ((scores == mine) & before)).sum(1).double() + 1


def _keys(scores: Tensor) -> Tensor:
    """int64 (q, n): ascending as similarities fall and, where they are equal, as rows rise.

    The row is in the lower half. No two keys are equal, so any sort of them is stable.
    """
    bits = (scores + 0.0).view(torch.int32)  # + 0.0 makes -0.0 equal to 0.0
    falling = ~(bits ^ ((bits >> 31) & 0x7FFFFFFF))  # as floats compare, so do these, the other way round
    return falling.long().mul_(1 << 32).add_(torch.arange(scores.shape[1], device=scores.device))


def _precisions(scores: Tensor, relevant: Tensor) -> Tensor:
    """AP over the whole gallery, AP@50, AP@50 by hits: float64 (3, q), void where nothing is relevant."""
    keys = _keys(scores)
    if keys.device.type == "cpu":
        keys.numpy().sort(axis=1)  # vectorised, several times faster than torch's
    else:
        keys = keys.sort(dim=1).values
    hit = relevant.gather(1, keys & 0xFFFFFFFF)
    count = hit.sum(1)
    row, position = hit.nonzero(as_tuple=True)
    th = torch.arange(1, len(row) + 1, device=row.device) - (count.cumsum(0) - count)[row]
    precision = th.double() / (position + 1)
    whole, top = (precision.new_zeros(len(scores)) for _ in range(2))
    whole.index_add_(0, row, precision)
    top.index_add_(0, row, precision.masked_fill_(position >= _AT, 0))
    found = hit[:, :_AT].sum(1)
    return torch.stack([whole / count, top / count.clamp(max=_AT), top / found.clamp(min=1)])


def _relevant(labels: Tensor, rows: Tensor) -> Tensor:
    """bool (q, n): the gallery items that share a label with each query."""
    if labels.ndim == 1:
        return labels[rows, None] == labels
    return labels[rows] @ labels.T > 0


def _embeddings(x: Array, y: Array, x_name: str, y_name: str, similarity: str) -> tuple[Tensor, Tensor]:
    """Both checked, and made ready for products: of length 1 for cosines, centred for distances."""
    if similarity not in SIMILARITIES:
        raise ValueError(f"similarity must be one of {', '.join(SIMILARITIES)}, got {similarity!r}")
    x, y = torch.as_tensor(x).detach(), torch.as_tensor(y).detach()
    for name, e in ((x_name, x), (y_name, y)):
        _checks.matrix(name, e, min_rows=1)
        if (row := _checks.nonfinite_row(e)) is not None:
            raise ValueError(f"{name} must be finite, got NaN or infinity in row {row}")
    _checks.same_kind(y_name, y, x_name, x)
    if x.shape[1] != y.shape[1]:
        raise ValueError(f"{y_name} must have as many columns as {x_name}, {x.shape[1]}, got {y.shape[1]}")
    if x.dtype != torch.float64:
        x, y = x.float(), y.float()
    if similarity == "cosine":
        return normalize(x, eps=1e-30), normalize(y, eps=1e-30)
    if similarity == "euclidean":
        centre = y.mean(0)
        return x - centre, y - centre
    return x, y


def _rows(queries: Array, image: Tensor) -> Tensor:
    rows = torch.as_tensor(queries, device=image.device)
    if rows.ndim != 1 or not len(rows) or rows.dtype != torch.int64:
        raise ValueError(f"queries must be int64 (q,) with q >= 1, got {dtype_name(rows.dtype)} {tuple(rows.shape)}")
    outside = (rows < 0) | (rows >= len(image))
    if outside.any():
        raise ValueError(f"queries must lie in 0..{len(image) - 1}, got {int(rows[outside][0])}")
    return rows


def _labels(labels: Array, image: Tensor) -> Tensor:
    labels = torch.as_tensor(labels, device=image.device)
    if (labels.ndim, labels.dtype) not in ((1, torch.int64), (2, torch.bool)):
        got = f"{dtype_name(labels.dtype)} {tuple(labels.shape)}"
        raise ValueError(f"labels must be int64 (n,) or bool (n, C), got {got}")
    if len(labels) != len(image):
        raise ValueError(f"labels must have as many rows as image, {len(image)}, got {len(labels)}")
    return labels if labels.ndim == 1 else labels.float()


def _chunk(chunk_size: int | None, n: int) -> int:
    if chunk_size is None:
        return max(16, _HELD // n)
    if chunk_size < 1:
        raise ValueError(f"chunk_size must be at least 1, got {chunk_size}")
    return chunk_size


def _tracked(chunks: Sequence[Tensor], name: str, progress: bool) -> Iterable[Tensor]:
    if not progress:
        return chunks
    from rich.progress import track

    return track(chunks, description=name)
