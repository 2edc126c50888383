"""Retrieval metrics. The name of every metric identifies its protocol."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeAlias, TypedDict

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from . import _checks
from ._arrays import as_floating, as_tensor
from ._dtypes import dtype_name, with_fp64
from .data.labels import class_numbers
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

    Items with equal similarities are in random order, and every metric is its exact expectation over these orders
    (McSherry and Najork, "Computing information retrieval performance measures efficiently in the presence of tied
    scores", ECIR 2008). A model that maps all items to one point thus scores what `chance` states.

    These metrics depend on the rank r of the partner in the gallery (1 is best):

    * `recall@1`, `recall@5`, `recall@10`: fraction of queries with r <= 1, 5, 10.
    * `median_rank`: median over queries of the expected r.
    * `mrr`: mean of 1 / r.

    These depend on the relevant items, which share a class or any label with the query; without labels, only the
    partner is relevant. They are means over queries of AP: the sum of (relevant among the first p) / p over the
    positions p of relevant items, divided by a count:

    * `map_all`: the number of relevant items in the gallery.
    * `map_50`: min(50, that number); the sum runs over p <= 50 only.
    * `map_50_hits`: the number of relevant items at p <= 50, and AP is 0 if there are none. This metric of ACMR's
      released demo is inflated, and it ranks methods differently from `map_all`.

    Queries without a relevant item, such as those without a label, are left out of the last three means. If the labels
    give no query a relevant item, a warning says so, and all metrics are those without labels.

    Similarities are computed in float64 and compared in float32, so results do not depend on `chunk_size` or the number
    of threads. Rows may be of any finite size: they are scaled by powers of two first. Devices without float64 leave
    the work to the CPU. Time is O(q n d), with labels O(q n (d + log n)); memory is O(n d + chunk_size n).

    Args:
        image, text: (n, d), anything that `np.asarray` reads; row i of one is the partner of row i of the other.
        labels: (n,) classes, integers or strings, or (n, C) of 0 and 1, any number of classes per row. The class -1,
            an empty string and a row of zeros mark an item without a label.
        similarity: "cosine" (0 for a zero vector), "dot", or "euclidean" (nearest first).
        queries: integers (q,), the rows used as queries in both directions; all by default.
        chunk_size: number of queries at a time; by default one that keeps the similarities in the cache.
        progress: show a progress bar (needs rich).

    Returns:
        A dict: the eight metrics in `image_to_text` and `text_to_image`, their `mean`, and in `chance` their exact
        expectations for a random order; `gallery` (n), the number of `queries` in each direction and of
        `queries_without_relevant` among them (all if the metrics are those without labels), and `similarity`.

    Raises:
        TypeError, ValueError: shapes or dtypes do not match, or a row holds NaN or infinity (the message gives its
            number).
    """
    image, text = _embeddings(image, text, "image", "text", similarity)
    if len(image) != len(text):
        raise ValueError(f"text must have as many rows as image, {len(image)}, got {len(text)}")
    n = len(image)
    own = torch.arange(n, device=image.device) if queries is None else _rows(queries, image)
    size = _chunk(chunk_size, n)
    chunks = torch.split(own, size)
    parts = [slice(start, start + size) for start in range(0, len(own), size)]
    # Results have their place from the start. Small ones allocated between large temporaries, which come and go, would
    # keep the allocator from joining the freed blocks, and memory would grow with every chunk.
    labelled = None if labels is None else _labels(labels, image)
    relevant = torch.ones_like(own)
    if labelled is not None:
        for rows, part in zip(chunks, parts):
            relevant[part] = _relevant(labelled, rows).sum(1)
    lacking = int((relevant == 0).sum())
    if lacking == len(own):
        warnings.warn("labels give no query a relevant item: the metrics are those without labels", stacklevel=2)
        labelled, relevant = None, torch.ones_like(own)
    harmonic = _harmonic(n).to(own.device)
    scratch = torch.empty(min(size, len(own)), n, device=own.device)

    def direction(name: str, query: Tensor, gallery: Tensor) -> dict[str, float]:
        before, tied = torch.empty_like(own), torch.empty_like(own)
        precision = torch.empty(3, len(own), dtype=torch.float64, device=own.device)
        for rows, part in zip(_tracked(chunks, name, progress), parts):
            scores = _similarities(query[rows], gallery, similarity, scratch[: len(rows)])
            mine = scores.gather(1, rows[:, None])
            before[part], tied[part] = (scores > mine).sum(1), (scores == mine).sum(1)
            if labelled is not None:
                precision[:, part] = _precisions(scores, _relevant(labelled, rows), harmonic)
        return _metrics(before, tied, harmonic, None if labelled is None else precision[:, relevant > 0])

    directions = direction("image to text", image, text), direction("text to image", text, image)
    return _result(directions, similarity, n, relevant, lacking)


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
        own = _rows(queries, torch.empty(n, 0))

    scales: tuple[Tensor, Tensor] | None = None  # those of the queries: chunks must not be scaled separately

    def embed(image: Tensor, text: Tensor) -> tuple[Tensor, Tensor]:
        nonlocal scales
        if transform is not None:
            image, text = transform(image, text)
        image, text = _checked(image, text, "image", "text", similarity)
        if similarity == "cosine":
            return _unit_rows(image), _unit_rows(text)
        scales = scales or _scales(image, text, similarity)
        return image / scales[0], text / scales[1]  # not centred: distances in float64 do without

    with torch.no_grad():
        image, text = embed(pairs.image[own.numpy()], pairs.text[own.numpy()])
        own = own.to(image.device)
        # Scores of the partners, one by one: a single product would hold all q² similarities.
        mine = torch.empty(2, len(own), device=own.device)
        for scores, query, gallery in zip(mine, (image, text), (text, image)):
            for row in range(len(own)):
                _similarities(query[row, None], gallery[row, None], similarity, scores[row].view(1, 1))
        before, tied = torch.zeros_like(mine, dtype=torch.int64), torch.ones_like(mine, dtype=torch.int64)
        scratch = torch.empty(0, device=own.device)
        start = 0
        for chunk in pairs.chunks(chunk_size, workers=workers, progress=progress):
            galleries = reversed(embed(*chunk))
            stop = start + len(chunk[0])
            size = max(16, _HELD // (stop - start))
            if not start:
                scratch = torch.empty(min(size, len(own)) * (stop - start), device=own.device)
            column = torch.arange(start, stop, device=own.device)
            for ahead, equal, query, gallery, score in zip(before, tied, (image, text), galleries, mine):
                for part in (slice(first, first + size) for first in range(0, len(own), size)):
                    q = query[part]
                    out = scratch[: len(q) * len(gallery)].view(len(q), len(gallery))
                    scores = _similarities(q, gallery, similarity, out)
                    other = column != own[part, None]  # the partner has been compared: it ties with itself
                    ahead[part] += ((scores > score[part, None]) & other).sum(1)
                    equal[part] += ((scores == score[part, None]) & other).sum(1)
            start = stop
    harmonic = _harmonic(n).to(own.device)
    there, back = (_metrics(b, t, harmonic) for b, t in zip(before, tied))
    return _result((there, back), similarity, n, torch.ones_like(own))


def _result(
    directions: tuple[dict[str, float], dict[str, float]],
    similarity: str,
    gallery: int,
    relevant: Tensor,  # int64 (q,), the number of relevant items of each query
    lacking: int = 0,  # queries without a relevant item
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
        "queries_without_relevant": lacking,
    }


def nearest(
    query: Array, gallery: Array, k: int = 5, *, similarity: str = "cosine", chunk_size: int | None = None
) -> Tensor:
    """Finds the k most similar rows of a gallery for every query; similarities are those of `evaluate`.

    Among equal similarities, the lower row comes first.

    Args:
        query: (q, d), anything that `np.asarray` reads.
        gallery: (n, d), likewise.
        k: number of rows to return, 1..n.
        similarity, chunk_size: as in `evaluate`.

    Returns:
        int64 (q, k), rows of the gallery, best first.

    Raises:
        TypeError, ValueError: as `evaluate`, or `k` is out of range.
    """
    device = query.device if isinstance(query, Tensor) else torch.device("cpu")
    query, gallery = _embeddings(query, gallery, "query", "gallery", similarity)
    n, size = len(gallery), _chunk(chunk_size, len(gallery))
    if isinstance(k, bool) or not isinstance(k, int):
        raise TypeError(f"k must be an integer, got {type(k).__name__}")
    if not 1 <= k <= n:
        raise ValueError(f"k must lie in 1..{n} (the rows of gallery), got {k}")
    out = torch.empty(len(query), k, dtype=torch.int64, device=query.device)
    scratch = torch.empty(min(size, len(query)), n, device=query.device)
    for start in range(0, len(query), size):
        part = query[start : start + size]
        keys = _keys(_similarities(part, gallery, similarity, scratch[: len(part)]))
        keys = keys.mul_(1 << 32).add_(torch.arange(n, device=keys.device))  # no two are equal
        out[start : start + size] = keys.topk(k, dim=1, largest=False).values & _ROW
    return out.to(device)


def chance(gallery: int, relevant: Array | None = None) -> dict[str, float]:
    """The expected metrics of `evaluate` if the gallery is in random order; exact, not sampled.

    Position p is relevant with probability R/n, and is then preceded by (p - 1)(R - 1)/(n - 1) relevant items on
    average. With harmonic numbers H, the expected sum of AP over p <= K is thus R/n (H_K + (K - H_K)(R - 1)/(n - 1)).
    Given h hits at p <= K, the same holds for these K positions with h instead of R, and h is hypergeometric.

    Args:
        gallery: number of items, n.
        relevant: integers (q,), the number R of relevant items of each query, 1 <= R <= n; 1 by default.

    Raises:
        TypeError, ValueError: an argument is not of this kind or out of range.
    """
    if isinstance(gallery, bool) or not isinstance(gallery, (int, np.integer)):
        raise TypeError(f"gallery must be an integer, got {type(gallery).__name__}")
    if gallery < 1:
        raise ValueError(f"gallery must be at least 1, got {gallery}")
    n, top = int(gallery), min(_AT, int(gallery))
    counts = torch.ones(1) if relevant is None else as_floating("relevant", relevant)
    if counts.ndim != 1 or not len(counts) or counts.is_meta or not ((counts >= 1) & (counts <= n)).all():
        raise ValueError(
            f"relevant must hold numbers in 1..{n} (q,) with q >= 1, got others in shape {tuple(counts.shape)}"
        )
    counts = counts.cpu()
    r, times = counts.double().unique(return_counts=True)
    harmonic = _harmonic(n)

    def mean(ap: Tensor) -> float:
        return ((ap * times).sum() / times.sum()).item()

    def total(k: int) -> Tensor:
        h = harmonic[k]
        return r / n * (h + (k - h) * (r - 1) / max(n - 1, 1))

    before = torch.arange(top, dtype=torch.float64)
    none = ((n - r[:, None] - before).clamp(min=0) / (n - before)).prod(1)  # probability of no hit at p <= top
    found, hits, h = 1 - none, top * r / n, harmonic[top]
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


def _harmonic(n: int) -> Tensor:
    """float64 (n + 1,): H_k = 1 + 1/2 + ... + 1/k, from H_0 = 0."""
    out = torch.zeros(n + 1, dtype=torch.float64)
    torch.cumsum(1 / torch.arange(1, n + 1, dtype=torch.float64), 0, out=out[1:])
    return out


def _metrics(
    before: Tensor,  # int64 (q,), the number of items more similar than the partner
    tied: Tensor,  # int64 (q,), the number of items as similar as the partner, with the partner
    harmonic: Tensor,  # float64 (n + 1,)
    precision: Tensor | None = None,  # float64 (3, queries with relevant items), from _precisions
) -> dict[str, float]:
    """The metrics of one direction. The rank of the partner is uniform in before + 1 .. before + tied."""

    def inverse_rank(cut: int) -> Tensor:
        """The expectation of 1 / rank if rank <= cut, else of 0."""
        return _inverse_positions(before, (cut - before).clamp(min=0).minimum(tied), harmonic) / tied

    def recall(k: int) -> float:
        return ((k - before).clamp(min=0).minimum(tied) / tied.double()).mean().item()

    inverse = inverse_rank(len(harmonic) - 1)
    if precision is None:  # the partner is the only relevant item
        near = inverse_rank(_AT)
        precision = torch.stack([inverse, near, near])
    return dict(zip(("map_all", "map_50", "map_50_hits"), precision.mean(1).tolist())) | {
        "recall@1": recall(1),
        "recall@5": recall(5),
        "recall@10": recall(10),
        "median_rank": float(np.median((before + (tied + 1) / 2).cpu().numpy())),
        "mrr": inverse.mean().item(),
    }


def _similarities(
    query: Tensor,
    gallery: Tensor,
    similarity: str,
    out: Tensor,  # float32 (q, n), the result
) -> Tensor:
    """Similarities in float64, rounded to float32: equal items tie, however the product is blocked."""
    q = query.double()
    for start in range(0, len(gallery), _TILE):
        g = gallery[start : start + _TILE].double()
        s = q @ g.T
        if similarity == "euclidean":
            s = s.mul_(2).sub_(g.square().sum(1))  # |q|² - |q - g|²
        out[:, start : start + _TILE] = s
    return out


def _keys(scores: Tensor) -> Tensor:
    """int64 (q, n) in -2³¹ .. 2³¹ - 1, in the opposite order of the scores, equal if these are equal.

    The bits of a float consist of a sign and a magnitude that grows with them. Read as an integer, non-negative floats
    therefore already compare correctly; for negative ones the magnitude bits must be inverted. Inverting all bits
    afterwards reverses the order.
    """
    bits = (scores + 0.0).view(torch.int32)  # + 0.0 turns -0.0 into 0.0, so that they tie
    rising = bits ^ ((bits >> 31) & 0x7FFFFFFF)  # bits >> 31 is all ones for negative floats, else 0
    return (~rising).long()


def _precisions(
    scores: Tensor,  # float32 (q, n)
    relevant: Tensor,  # bool (q, n)
    harmonic: Tensor,  # float64 (n + 1,)
) -> Tensor:
    """AP over the whole gallery, AP@50, and AP@50 over hits: float64 (3, q), undefined if a query has no relevant item.

    Items form groups of equal scores, mostly of one item. Let t items, h of them relevant, follow b others, a of them
    relevant. Position b + j then holds a relevant item with probability h/t, after (j - 1)(h - 1)/(t - 1) relevant
    items of the group on average. With c = (h - 1)/(t - 1), the first u positions of the group add to the expected sum

        h/t Σ_j (a + 1 + (j - 1) c) / (b + j) = h/t ((a + 1 - (b + 1) c) (H_{b+u} - H_b) + u c)
    """
    q, n = scores.shape
    keys = _keys(scores).mul_(2).add_(relevant)  # relevance in the lowest bit: it need not be looked up afterwards
    if keys.device.type == "cpu":
        keys.numpy().sort(axis=1)  # vectorised, several times faster than torch's sort
    else:
        keys = keys.sort(dim=1).values
    place = (keys & 1).flatten().nonzero().squeeze(1)  # the hits of all queries in one list
    keys >>= 1
    same = torch.zeros(q, n + 1, dtype=torch.bool, device=keys.device)  # as the item before it
    torch.eq(keys[:, 1:], keys[:, :-1], out=same[:, 1:n])
    row, b = place // n, place % n
    count = torch.bincount(row, minlength=q)
    earlier = count.cumsum(0) - count  # (q,), hits of all earlier queries
    # Groups of one item: the hits that tie with neither neighbour.
    alone = ~(same[row, b] | same[row, b + 1])
    row, b = row[alone], b[alone]
    a = alone.nonzero().squeeze(1) - earlier[row]
    # Larger groups: runs of places that tie with the one before.
    tied = same[:, :n].nonzero()
    tied = tied[:, 0] * n + tied[:, 1]
    gap = tied.diff() != 1
    edge = gap.new_ones(min(1, len(tied)))
    first, last = tied[torch.cat([edge, gap])] - 1, tied[torch.cat([gap, edge])]
    start = torch.searchsorted(place, first)
    h = torch.searchsorted(place, last, right=True) - start
    first, last, start, h = (x[h > 0] for x in (first, last, start, h))
    ones = torch.ones_like(a)
    row = torch.cat([row, first // n])
    a, b = torch.cat([a, start - earlier[first // n]]), torch.cat([b, first % n])
    t, h = torch.cat([ones, last - first + 1]), torch.cat([ones, h])

    whole, top = torch.zeros(2, q, dtype=torch.float64, device=row.device)
    whole.index_add_(0, row, _expected_sum(a, b, t, h, t, harmonic))
    row, a, b, t, h = (x[b < _AT] for x in (row, a, b, t, h))
    inside = b + t <= _AT
    top.index_add_(0, row, _expected_sum(a, b, t, h, t, harmonic) * inside)
    found = torch.zeros_like(count).index_add_(0, row, h * inside)
    over_hits = top / found.clamp(min=1)
    if not inside.all():  # at most one group of a query extends beyond the cut
        row, a, b, t, h = (x[~inside] for x in (row, a, b, t, h))
        over_hits[row] = _over_hits(top[row], a, b, t, h, harmonic)
        top[row] += _expected_sum(a, b, t, h, _AT - b, harmonic)
    return torch.stack([whole / count, top / count.clamp(max=_AT), over_hits])


def _inverse_positions(b: Tensor, u: Tensor, harmonic: Tensor) -> Tensor:
    """float64: 1/(b + 1) + ... + 1/(b + u), exact for u = 1."""
    b = b.minimum(torch.full_like(b, len(harmonic) - 1))
    return torch.where(u == 1, 1 / (b + 1.0).double(), harmonic[b + u] - harmonic[b])


def _expected_sum(a: Tensor, b: Tensor, t: Tensor, h: Tensor, u: Tensor, harmonic: Tensor) -> Tensor:
    """The expected sum of precisions at the relevant items among the first u of a group (`_precisions`)."""
    c = (h - 1).double() / (t - 1).clamp(min=1)
    return h.double() / t * ((a + 1 - (b + 1) * c) * _inverse_positions(b, u, harmonic) + u * c)


def _over_hits(before: Tensor, a: Tensor, b: Tensor, t: Tensor, h: Tensor, harmonic: Tensor) -> Tensor:
    """AP@50 over hits if a group of equal scores extends beyond position 50: float64 (k,).

    The number x of hits among the first u = 50 - b items of the group is hypergeometric. Given x, the sum of precisions
    is `before` plus that of x relevant items in a group of u, and the divisor is a + x.
    """
    a, b, t, h, u = (v.double()[:, None] for v in (a, b, t, h, _AT - b))
    x = torch.arange(_AT + 1, dtype=torch.float64, device=a.device)
    chances = (x == 0).double().repeat(len(a), 1)  # of x hits among the items drawn so far
    for drawn in range(_AT):
        p = ((h - x) / (t - drawn).clamp(min=1)).clamp(0, 1) * (drawn < u)
        gained = chances * p
        chances -= gained
        chances[:, 1:] += gained[:, :-1]
    c = (x - 1) / (u - 1).clamp(min=1)
    inverse = harmonic[_AT] - harmonic[b.long()]
    total = before[:, None] + x / u * ((a + 1 - (b + 1) * c) * inverse + u * c)
    return (chances * total / (a + x).clamp(min=1)).sum(1)


def _relevant(labels: Tensor, rows: Tensor) -> Tensor:
    """bool (q, n): the gallery items that share a label with each query."""
    if labels.ndim == 1:
        return (labels[rows, None] == labels) & (labels[rows, None] >= 0)
    return labels[rows] @ labels.T > 0


def _checked(x: Any, y: Any, x_name: str, y_name: str, similarity: str) -> tuple[Tensor, Tensor]:
    """Both matrices in float32 or float64, on the CPU if their device has no float64."""
    if not isinstance(similarity, str):
        raise TypeError(f"similarity must be a string, got {type(similarity).__name__}")
    _checks.choice("similarity", similarity, SIMILARITIES)
    out = []
    for name, array in ((x_name, x), (y_name, y)):
        e = as_floating(name, array)
        if e.is_meta:
            raise ValueError(f"{name} must hold values, got a meta tensor")
        _checks.matrix(name, e, min_rows=1)
        if (row := _checks.nonfinite_row(e)) is not None:
            raise ValueError(f"{name} must be finite, got NaN or infinity in row {row}")
        out.append(with_fp64(e))
    x, y = out
    if x.device != y.device:
        raise ValueError(f"{y_name} must be on the device of {x_name}, {x.device}, got {y.device}")
    _checks.same_width(y_name, y, x_name, x)
    dtype = torch.float64 if torch.float64 in (x.dtype, y.dtype) else torch.float32
    return x.to(dtype), y.to(dtype)


def _embeddings(x: Any, y: Any, x_name: str, y_name: str, similarity: str) -> tuple[Tensor, Tensor]:
    """Both matrices, checked and prepared for a product: unit rows for cosines, centred for distances."""
    x, y = _checked(x, y, x_name, y_name, similarity)
    if similarity == "cosine":
        return _unit_rows(x), _unit_rows(y)
    a, b = _scales(x, y, similarity)
    x, y = x / a, y / b
    if similarity == "euclidean":
        centre = y.mean(0)
        return x - centre, y - centre
    return x, y


def _scales(x: Tensor, y: Tensor, similarity: str) -> tuple[Tensor, Tensor]:
    """Powers of two that bring the largest numbers near 1, one for both views if distances are compared."""
    a, b = (_power_of_two(e.abs().max()) for e in (x, y))
    return (torch.maximum(a, b),) * 2 if similarity == "euclidean" else (a, b)


def _power_of_two(largest: Tensor) -> Tensor:
    """The power of two at or below each number; 1 for 0. Dividing by it changes no digit."""
    return torch.where(largest > 0, largest / (2 * torch.frexp(largest).mantissa), 1)


def _unit_rows(x: Tensor) -> Tensor:
    """Rows of length 1, and 0 for 0. Scaled rows have squares that neither overflow nor vanish."""
    return normalize(x / _power_of_two(x.abs().amax(1, keepdim=True)))


def _rows(queries: Array, image: Tensor) -> Tensor:
    rows = as_tensor("queries", queries)
    if rows.ndim != 1 or not len(rows) or rows.is_floating_point() or rows.is_complex() or rows.dtype == torch.bool:
        raise ValueError(f"queries must be integers (q,) with q >= 1, got {dtype_name(rows.dtype)} {tuple(rows.shape)}")
    rows = rows.to(image.device, torch.int64)
    outside = (rows < 0) | (rows >= len(image))
    if outside.any():
        raise ValueError(f"queries must lie in 0..{len(image) - 1}, got {int(rows[outside][0])}")
    return rows


def _labels(labels: Any, image: Tensor) -> Tensor:
    """int64 (n,), -1 without a label, or float32 (n, C)."""
    numbers = class_numbers([labels]).numbers[0].to(image.device)
    if len(numbers) != len(image):
        raise ValueError(f"labels must have as many rows as image, {len(image)}, got {len(numbers)}")
    return numbers if numbers.ndim == 1 else numbers.float()


def _chunk(chunk_size: int | None, n: int) -> int:
    if chunk_size is None:
        return max(16, _HELD // n)
    if isinstance(chunk_size, bool) or not isinstance(chunk_size, int):
        raise TypeError(f"chunk_size must be an integer or None, got {type(chunk_size).__name__}")
    if chunk_size < 1:
        raise ValueError(f"chunk_size must be at least 1, got {chunk_size}")
    return chunk_size


def _tracked(chunks: Sequence[Tensor], name: str, progress: bool) -> Iterable[Tensor]:
    if not progress:
        return chunks
    from rich.progress import track

    return track(chunks, description=name)
