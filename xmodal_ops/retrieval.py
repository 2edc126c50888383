"""Retrieval metrics. The name of every metric identifies its protocol."""

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

_AT = 50  # the cut of map_50 and map_50_hits
_HELD = 1 << 20  # similarities in memory at a time, few enough to stay in the cache
_TILE = 1 << 15  # gallery rows converted to float64 at a time
_ROW = 0xFFFFFFFF  # the lower half of a key, which holds the row


class Evaluation(TypedDict):
    """The result of `evaluate`."""

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
    """Evaluates retrieval of texts by images and of images by texts in a common space.

    The gallery of a query is all n rows of the other modality, including its own partner.

    These metrics depend on the rank r of the partner in the gallery (1 is best):

    * `recall@1`, `recall@5`, `recall@10`: fraction of queries with r <= 1, 5, 10.
    * `median_rank`: median of r.
    * `mrr`: mean of 1 / r.

    These depend on the relevant items, which share a class or any label with the query; without labels, only the
    partner is relevant. They are means over queries of AP: the sum of (relevant among the first p) / p over the
    positions p of relevant items, divided by a count:

    * `map_all`: the number of relevant items in the gallery.
    * `map_50`: min(50, that number); the sum runs over p <= 50 only.
    * `map_50_hits`: the number of relevant items at p <= 50, and AP is 0 if there are none. This metric of ACMR's
      released demo is inflated, and it ranks methods differently from `map_all`.

    Queries without a relevant item (possible with bool labels) are left out of the last three means.

    Similarities are computed in float64 and compared in float32; among equal ones the lower row comes first. Results
    therefore do not depend on `chunk_size` or the number of threads. Time is O(q n d), with labels
    O(q n (d + log n)); memory is O(n d + chunk_size n).

    Args:
        image, text: (n, d); row i of one is the partner of row i of the other.
        labels: int64 (n,) or bool (n, C).
        similarity: "cosine" (0 for a zero vector), "dot", or "euclidean" (nearest first).
        queries: int64 (q,), the rows used as queries in both directions; all by default.
        chunk_size: number of queries at a time; by default one that keeps the similarities in the cache.
        progress: show a progress bar (needs rich).

    Returns:
        A dict: the eight metrics in `image_to_text` and `text_to_image`, their `mean`, and in `chance` their exact
        expectations for a random order; `gallery` (n), the number of `queries` in each direction and of
        `queries_without_relevant` among them, and `similarity`.

    Raises:
        TypeError, ValueError: shapes or dtypes do not match, a row holds NaN or infinity (the message gives its
            number), or labels leave every query without a relevant item.
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
        return _metrics(torch.cat(ranks), precision)

    directions = direction("image to text", image, text), direction("text to image", text, image)
    return _result(directions, similarity, n, relevant)


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
    """Evaluates sampled queries against all pairs of files larger than memory, as `evaluate` does without labels.

    The result equals `evaluate(image, text, queries=rows)`. All n queries would need n² similarities, some 10¹⁵
    operations for 10⁶ pairs with 512 columns. A sample of q queries estimates a recall with a standard error of at
    most 0.5 / sqrt(q).

    The files are read once. Time is O(q n d), memory O(q d + chunk_size (d + q)).

    Args:
        pairs: the files.
        queries: the number of rows to draw without repetition, or the rows themselves, int64 (q,).
        transform: maps a chunk (image, text) into the common space, such as `LinearCCA.transform`.
        similarity: as in `evaluate`.
        seed: draws the rows.
        chunk_size: number of pairs in memory at a time.
        workers: number of processes that read ahead.
        progress: show a progress bar (needs rich).

    Raises:
        TypeError, ValueError: as `evaluate`.
        DataError: a file cannot be read.
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
        # "dot" leaves the rows as they are: chunks must not be centred separately, and float64 distances do without.
        return _embeddings(image, text, "image", "text", "dot" if similarity == "euclidean" else similarity)

    with torch.no_grad():
        image, text = embed(pairs.image[own.numpy()], pairs.text[own.numpy()])
        own = own.to(image.device)
        # Scores of the partners, one by one: a single product would hold all q² similarities.
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
    there, back = (_metrics(count + 1) for count in before)
    return _result((there, back), similarity, n, torch.ones_like(own))


def _result(
    directions: tuple[dict[str, float], dict[str, float]],
    similarity: str,
    gallery: int,
    relevant: Tensor,  # int64 (q,), the number of relevant items of each query
) -> Evaluation:
    there, back = directions
    return {
        "image_to_text": there,
        "text_to_image": back,
        "mean": {name: (there[name] + back[name]) / 2 for name in there},
        "chance": chance(gallery, relevant[relevant > 0]),
        "similarity": similarity,
        "gallery": gallery,
        "queries": len(relevant),
        "queries_without_relevant": int((relevant == 0).sum()),
    }


def nearest(
    query: Array, gallery: Array, k: int = 5, *, similarity: str = "cosine", chunk_size: int | None = None
) -> Tensor:
    """Finds the k most similar rows of a gallery for every query; similarities and ties are those of `evaluate`.

    Args:
        query: (q, d).
        gallery: (n, d).
        k: number of rows to return, 1..n.
        similarity, chunk_size: as in `evaluate`.

    Returns:
        int64 (q, k), rows of the gallery, best first.

    Raises:
        TypeError, ValueError: as `evaluate`, or `k` is out of range.
    """
    query, gallery = _embeddings(query, gallery, "query", "gallery", similarity)
    if not 1 <= k <= len(gallery):
        raise ValueError(f"k must lie in 1..{len(gallery)} (the rows of gallery), got {k}")
    chunks = torch.split(query, _chunk(chunk_size, len(gallery)))
    keys = [_keys(_similarities(q, gallery, similarity)).topk(k, dim=1, largest=False).values for q in chunks]
    return torch.cat(keys) & _ROW


def chance(gallery: int, relevant: Tensor | None = None) -> dict[str, float]:
    """The expected metrics of `evaluate` if the gallery is in random order; exact, not sampled.

    Position p is relevant with probability R/n, and is then preceded by (p - 1)(R - 1)/(n - 1) relevant items on
    average. With harmonic numbers H, the expected sum of AP over p <= K is thus R/n (H_K + (K - H_K)(R - 1)/(n - 1)).
    Given h hits at p <= K, the same holds for these K positions with h instead of R, and h is hypergeometric.

    Args:
        gallery: number of items, n.
        relevant: int64 (q,), the number R >= 1 of relevant items of each query; 1 by default.
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
    none = ((n - r[:, None] - before).clamp(min=0) / (n - before)).prod(1)  # probability of no hit at p <= top
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


def _metrics(
    rank: Tensor,  # float64 (q,), ranks of the partners
    precision: Tensor | None = None,  # float64 (3, queries with relevant items), from _precisions
) -> dict[str, float]:
    """The metrics of one direction."""
    if precision is None:  # the partner is the only relevant item
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
    """float32 (q, n). Rounding from float64 makes equal items tie, however the product is blocked."""
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
    """float64 (q,): 1 + the number of gallery rows before the partner in the ranking."""
    mine = scores.gather(1, own[:, None])
    before = torch.arange(scores.shape[1], device=own.device) < own[:, None]
    return ((scores > mine) | ((scores == mine) & before)).sum(1).double() + 1


def _keys(scores: Tensor) -> Tensor:
    """Integers int64 (q, n) whose ascending order is the ranking: falling similarity, and rising row among equals.

    The upper half of a key holds the similarity, the lower half the row, so that no two keys are equal and any sorting
    algorithm gives the same ranking. The bits of a float consist of a sign and a magnitude that grows with them. Read
    as an integer, non-negative floats therefore already compare correctly; for negative ones the magnitude bits must be
    inverted. Inverting all bits afterwards reverses the order.
    """
    bits = (scores + 0.0).view(torch.int32)  # + 0.0 turns -0.0 into 0.0, so that they tie
    rising = bits ^ ((bits >> 31) & 0x7FFFFFFF)  # bits >> 31 is all ones for negative floats, else 0
    return (~rising).long().mul_(1 << 32).add_(torch.arange(scores.shape[1], device=scores.device))


def _precisions(scores: Tensor, relevant: Tensor) -> Tensor:
    """AP over the whole gallery, AP@50, and AP@50 over hits: float64 (3, q), undefined if a query has no relevant item.

    The hits of all queries form one list, ordered by query, then position. The precision at a hit is its number among
    the query's hits divided by its position, and index_add_ sums the precisions by query.
    """
    keys = _keys(scores)
    if keys.device.type == "cpu":
        keys.numpy().sort(axis=1)  # vectorised, several times faster than torch's sort
    else:
        keys = keys.sort(dim=1).values
    hit = relevant.gather(1, keys & _ROW)  # bool (q, n), in ranked order
    count = hit.sum(1)
    row, position = hit.nonzero(as_tuple=True)
    earlier = count.cumsum(0) - count  # (q,), hits of all earlier queries
    number = torch.arange(1, len(row) + 1, device=row.device) - earlier[row]
    precision = number.double() / (position + 1)
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
    """Both matrices, checked and prepared for a product: unit rows for cosines, centred for distances."""
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
