"""Retrieval metrics against brute force, scikit-learn and sampled chance, and ties by enumeration."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score
from torch.utils._pytree import tree_map

from xmodal_ops import retrieval
from xmodal_ops.retrieval import chance, evaluate, nearest

METRICS = ["map_all", "map_50", "map_50_hits", "recall@1", "recall@5", "recall@10", "median_rank", "mrr"]


def brute_force(query, gallery, relevant, similarity, rows):
    """The definitions, one query and one position at a time; `relevant` bool (n, n)."""
    ranks, aps = [], {"map_all": [], "map_50": [], "map_50_hits": []}
    for i in rows:
        if similarity == "euclidean":
            scores = [-float(((query[i] - g) ** 2).sum()) for g in gallery]
        else:
            scores = [float(query[i] @ g) for g in gallery]
            if similarity == "cosine":
                scores = [s / np.linalg.norm(query[i]) / np.linalg.norm(g) for s, g in zip(scores, gallery)]
        order = sorted(range(len(gallery)), key=lambda j: (-scores[j], j))
        ranks.append(order.index(i) + 1)
        found, whole, top = 0, 0.0, 0.0
        for p, j in enumerate(order, 1):
            if relevant[i, j]:
                found += 1
                whole += found / p
                if p <= 50:
                    top += found / p
        if found:
            hits = sum(relevant[i, j] for j in order[:50])
            aps["map_all"].append(whole / found)
            aps["map_50"].append(top / min(50, found))
            aps["map_50_hits"].append(top / hits if hits else 0.0)
    ranks = np.array(ranks)
    return {name: np.mean(values) for name, values in aps.items()} | {
        "recall@1": np.mean(ranks <= 1),
        "recall@5": np.mean(ranks <= 5),
        "recall@10": np.mean(ranks <= 10),
        "median_rank": np.median(ranks),
        "mrr": np.mean(1 / ranks),
    }


def embeddings(n=130, d=7, noise=1.0, seed=0):
    g = torch.Generator().manual_seed(seed)
    image = torch.randn(n, d, generator=g, dtype=torch.float64)
    return image, image + noise * torch.randn(n, d, generator=g, dtype=torch.float64), g


def make_labels(kind, n, g):
    if kind == "single":
        return torch.randint(0, 6, (n,), generator=g)
    return torch.rand(n, 9, generator=g) < 0.15 if kind == "multi" else None


def relevance(labels, n):
    if labels is None:
        return np.eye(n, dtype=bool)
    if labels.ndim == 1:
        return (labels[:, None] == labels).numpy()
    return (labels[:, None] & labels).any(2).numpy()


@pytest.mark.parametrize("similarity", ["cosine", "dot", "euclidean"])
@pytest.mark.parametrize("kind", [None, "single", "multi"])
def test_brute_force(kind, similarity):
    image, text, g = embeddings()
    labels = make_labels(kind, len(image), g)
    got = evaluate(image, text, labels, similarity=similarity)
    relevant = relevance(labels, len(image))
    rows = range(len(image))
    there = brute_force(image.numpy(), text.numpy(), relevant, similarity, rows)
    back = brute_force(text.numpy(), image.numpy(), relevant, similarity, rows)
    assert list(got["mean"]) == METRICS
    for name in METRICS:
        assert got["image_to_text"][name] == pytest.approx(there[name], abs=1e-12)
        assert got["text_to_image"][name] == pytest.approx(back[name], abs=1e-12)
        assert got["mean"][name] == pytest.approx((there[name] + back[name]) / 2, abs=1e-12)
    assert got["queries_without_relevant"] == (~relevant.any(1)).sum()
    if kind == "multi":
        assert got["queries_without_relevant"] > 0  # otherwise the exclusion is not tested
    assert (got["gallery"], got["queries"], got["similarity"]) == (130, 130, similarity)
    assert json.loads(json.dumps(got)) == got


@pytest.mark.parametrize("kind", ["single", "multi"])
def test_scikit_learn(kind):
    image, text, g = embeddings(n=200)
    labels = make_labels(kind, 200, g)
    relevant = relevance(labels, 200)
    scores = (image @ text.T).numpy()
    for name, s in (("image_to_text", scores), ("text_to_image", scores.T)):
        expected = np.mean([average_precision_score(r, row) for r, row in zip(relevant, s) if r.any()])
        assert evaluate(image, text, labels, similarity="dot")[name]["map_all"] == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("kind", [None, "single", "multi"])
@pytest.mark.parametrize("cut", [2, 3, 50])
def test_ties_count_by_their_expectation(kind, cut, monkeypatch):
    """All orders of six items; items with equal scores follow these orders."""
    monkeypatch.setattr(retrieval, "_AT", cut)
    n, g = 6, torch.Generator().manual_seed(cut)
    query, gallery = (torch.randint(0, 2, (n, 2), generator=g) * 1.0 for _ in range(2))
    labels = {None: None, "single": torch.tensor([0, 1, 0, 1, 1, 0]), "multi": torch.rand(n, 3, generator=g) < 0.4}[
        kind
    ]
    relevant = relevance(labels, n)
    scores = (query @ gallery.T).numpy()
    expected = {name: [] for name in METRICS}
    for i in range(n):
        values = {name: [] for name in METRICS}
        for permutation in itertools.permutations(range(n)):
            order = sorted(range(n), key=lambda j: (-scores[i, j], permutation[j]))
            hits = relevant[i, order]
            rank = order.index(i) + 1
            precision = hits * hits.cumsum() / np.arange(1, n + 1)
            values["map_all"].append(precision.sum() / max(hits.sum(), 1))
            values["map_50"].append(precision[:cut].sum() / max(min(cut, hits.sum()), 1))
            values["map_50_hits"].append(precision[:cut].sum() / max(hits[:cut].sum(), 1))
            for k in (1, 5, 10):
                values[f"recall@{k}"].append(rank <= k)
            values["median_rank"].append(rank)
            values["mrr"].append(1 / rank)
        for name in METRICS:
            if relevant[i].any() or not name.startswith("map"):
                expected[name].append(np.mean(values[name]))
    got = evaluate(query, gallery, labels, similarity="dot")["image_to_text"]
    for name in METRICS:
        mean = np.median if name == "median_rank" else np.mean
        assert got[name] == pytest.approx(mean(expected[name]), abs=1e-12), name


@pytest.mark.parametrize("kind", [None, "single", "multi"])
@pytest.mark.parametrize("n", [30, 49, 51, 120])
def test_a_collapsed_model_scores_chance(kind, n):
    labels = make_labels(kind, n, torch.Generator().manual_seed(n))
    if kind == "single":
        labels = labels.sort().values  # an order of the rows that would help
    got = evaluate(torch.ones(n, 2), torch.ones(n, 2), labels)
    assert got["mean"] == pytest.approx(got["chance"], abs=1e-12)


def test_nearest_breaks_ties_by_row():
    assert nearest(torch.ones(8, 3), torch.ones(8, 3), 3).tolist() == [[0, 1, 2]] * 8


@pytest.mark.parametrize("similarity", ["cosine", "dot", "euclidean"])
@pytest.mark.parametrize(
    ("dtype", "size"),
    [
        (torch.float32, 1e20),
        (torch.float32, 1e-30),
        (torch.float32, 3e37),
        (torch.float64, 1e200),
        (torch.float64, 1e-200),
        (torch.bfloat16, 1e20),
        (torch.float16, 1e-3),
    ],
)
def test_rows_of_any_size(similarity, dtype, size):
    image, text, _ = embeddings()
    image, text = (x.to(dtype).double() for x in (image, text))
    expected = evaluate(image, text, similarity=similarity)
    scale = 2.0 ** np.floor(np.log2(size))  # exact in every dtype
    got = evaluate((image * scale).to(dtype), (text * scale).to(dtype), similarity=similarity)
    for name in METRICS:
        assert got["mean"][name] == pytest.approx(expected["mean"][name], abs=1e-2 if dtype == torch.float16 else 1e-6)
    if similarity == "cosine":
        rows = torch.logspace(-0.4, 0.4, len(image), dtype=torch.float64)[:, None].log2().mul(20).round().exp2()
        if dtype != torch.float16:
            assert evaluate((image * rows).to(dtype), text.to(dtype))["mean"] == pytest.approx(
                expected["mean"], abs=1e-6
            )
    eye = torch.eye(4, dtype=dtype) * size
    assert evaluate(eye, eye, similarity=similarity)["mean"]["recall@1"] == 1


def test_labels_of_every_kind_agree():
    image, text, g = embeddings()
    labels = make_labels("single", 130, g)
    names = np.array(["ape", "bee", "cat", "dog", "eel", "fox"])
    expected = evaluate(image, text, labels)
    for same in (
        labels.to(torch.uint8),
        labels.to(torch.int32).numpy(),
        labels.double(),
        labels[:, None],
        labels * 10**9 + 2_000_000_000,
        labels.numpy().astype(np.uint64) + np.uint64(2**64 - 10),
        labels * -7 - 2,
        labels.tolist(),
        names[labels],
        names[labels].tolist(),
        names[labels].astype(object),
        np.char.encode(names[labels]),
        torch.nn.functional.one_hot(labels),
        torch.nn.functional.one_hot(labels).bool(),
        np.eye(6)[labels],
    ):
        assert evaluate(image, text, same) == expected


def test_items_without_a_label_are_relevant_to_none():
    image, text, g = embeddings()
    labels = make_labels("single", 130, g)
    columns = torch.nn.functional.one_hot(labels).bool()
    columns[::3] = False
    labels[::3] = -1
    expected = evaluate(image, text, columns)
    assert expected["queries_without_relevant"] == 44
    names = np.array(["ape", "bee", "cat", "dog", "eel", "fox", ""])[labels]
    assert evaluate(image, text, labels) == evaluate(image, text, names) == expected


@pytest.mark.parametrize("labels", [torch.full((130,), -1), torch.zeros(130, 4).bool(), [""] * 130])
def test_without_a_label_at_all_the_metrics_are_those_without_labels(labels):
    image, text, _ = embeddings()
    with pytest.warns(
        UserWarning, match="^labels give no query a relevant item: the metrics are those without labels$"
    ):
        got = evaluate(image, text, labels)
    assert got.pop("queries_without_relevant") == 130
    expected = evaluate(image, text)
    assert got == {name: value for name, value in expected.items() if name != "queries_without_relevant"}


class Frame:
    """What a data frame of columns of several types is to NumPy."""

    def __init__(self, rows):
        self.rows = rows

    def __array__(self, dtype=None, copy=None):
        return self.rows.astype(dtype or object)


def test_embeddings_are_what_numpy_reads():
    image, text, _ = embeddings()
    expected = evaluate(image, text)
    rows = image.numpy()
    for same in (
        rows[:, ::-1].copy()[:, ::-1],
        rows.astype(">f8"),
        np.asfortranarray(rows),
        rows.tolist(),
        rows.astype(object),
        [tuple(row) for row in rows],
        Frame(rows),
    ):
        assert evaluate(same, text) == expected
        assert nearest(same, text.numpy()[::-1][::-1], 3).equal(nearest(image, text, 3))
    assert evaluate(np.eye(4, dtype=np.uint8), np.eye(4, dtype=int).tolist())["mean"]["recall@1"] == 1
    assert evaluate(image.float(), text)["mean"] == pytest.approx(expected["mean"], abs=1e-6)


class Limited(torch.Tensor):
    """A tensor of a device without float64: ops run on the CPU but refuse to make one."""

    @staticmethod
    def __new__(cls, inner):
        return torch.Tensor._make_wrapper_subclass(cls, inner.shape, dtype=inner.dtype, device="mps")

    def __init__(self, inner):
        self.inner = inner

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        leaves = tree_map(lambda x: x.inner if isinstance(x, Limited) else x, (args, kwargs))
        if (device := kwargs.get("device")) is not None:
            leaves[1]["device"] = "cpu"
        out = func(*leaves[0], **leaves[1])
        if device is not None and torch.device(device).type == "cpu":
            return out

        def wrapped(x):
            if not isinstance(x, torch.Tensor):
                return x
            if x.dtype == torch.float64:
                raise TypeError("Cannot convert a MPS Tensor to float64")
            return Limited(x)

        return tree_map(wrapped, out)


@pytest.mark.parametrize("kind", [None, "single", "multi"])
def test_a_device_without_float64(kind):
    image, text, g = embeddings()
    image, text = image.float(), text.float()
    labels = make_labels(kind, 130, g)
    with pytest.raises(TypeError, match="MPS"):
        Limited(image).double()
    limited = None if labels is None else Limited(labels)
    assert evaluate(Limited(image), Limited(text), limited, queries=Limited(torch.arange(9))) == evaluate(
        image, text, labels, queries=torch.arange(9)
    )


@pytest.mark.parametrize("labelled", [False, True])
def test_memory_does_not_grow_with_the_number_of_queries(labelled):
    """700 queries against 40,000 items are 27 chunks in each direction; they once kept 20 to 30 MiB."""
    program = f"""
import resource, torch
from xmodal_ops.retrieval import evaluate
torch.set_num_threads(1)
n = 40_000
x, y, labels = torch.randn(n, 4), torch.randn(n, 4), torch.arange(n) % 50 if {labelled} else None
peaks = []
for queries in (100, 700):
    evaluate(x, y, labels, queries=torch.arange(queries))
    peaks.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)
print(*peaks)
"""
    out = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.split()
    assert int(out[1]) - int(out[0]) < 12, f"peaks in MiB after 100 and 700 queries: {out}"


@pytest.mark.parametrize("similarity", ["cosine", "dot", "euclidean"])
def test_duplicates_tie_wherever_they_stand(similarity):
    # 40 items, 25 copies of each, in random order: equal ones must tie in spite of the product's rounding.
    image, text, g = embeddings(n=40, d=33)
    of = torch.arange(40).repeat(25)[torch.randperm(1000, generator=g)]
    got = nearest(image.float(), text.float()[of], 1000, similarity=similarity)
    distinct = nearest(image, text, 40, similarity=similarity)
    for row, items in zip(got, distinct):
        expected = [j for item in items for j in (of == item).nonzero().flatten().tolist()]
        assert row.tolist() == expected


def test_negative_zero_ties_with_zero():
    gallery = torch.tensor([[0.0], [-1e-60], [0.0], [1.0]], dtype=torch.float64)  # the second is -0.0 in float32
    assert nearest(torch.ones(1, 1), gallery, 4, similarity="dot").tolist() == [[3, 0, 1, 2]]


def test_negative_similarities_order():
    gallery = torch.tensor([[-3.0], [2.0], [-1.0], [5.0], [0.0]])
    assert nearest(torch.tensor([[1.0], [-1.0]]), gallery, 5, similarity="dot").tolist() == [
        [3, 1, 4, 2, 0],
        [0, 2, 4, 1, 3],
    ]


@pytest.mark.parametrize("kind", [None, "single", "multi"])
@pytest.mark.parametrize("chunk_size", [1, 7, 130, 1000])
def test_chunks_change_nothing(kind, chunk_size, monkeypatch):
    image, text, g = embeddings()
    labels = make_labels(kind, 130, g)
    whole = evaluate(image, text, labels)
    monkeypatch.setattr("xmodal_ops.retrieval._TILE", 19)
    chunked = evaluate(image, text, labels, chunk_size=chunk_size)
    for name, direction in itertools.product(METRICS, ("image_to_text", "text_to_image")):
        assert chunked[direction][name] == pytest.approx(whole[direction][name], abs=1e-12)
    assert nearest(image, text, 9, chunk_size=chunk_size).equal(nearest(image, text, 9))


@pytest.mark.parametrize("kind", [None, "single", "multi"])
def test_some_rows_as_queries(kind):
    image, text, g = embeddings()
    labels = make_labels(kind, 130, g)
    rows = torch.tensor([5, 129, 17, 40, 41])
    got = evaluate(image, text, labels, queries=rows)
    expected = brute_force(text.numpy(), image.numpy(), relevance(labels, 130), "cosine", rows.tolist())
    assert (got["queries"], got["gallery"]) == (5, 130)
    assert got["text_to_image"] == pytest.approx(expected, abs=1e-12)


def test_perfect_and_reversed():
    image = torch.eye(60)
    assert set(evaluate(image, image)["mean"].values()) == {1.0}
    worst = evaluate(image, -image)["mean"]  # the own pair comes last
    assert worst["median_rank"] == 60
    assert worst["map_50"] == worst["map_50_hits"] == worst["recall@10"] == 0
    assert worst["map_all"] == worst["mrr"] == pytest.approx(1 / 60)


@pytest.mark.parametrize("n", [1, 2, 40, 90])
def test_chance_is_the_mean_over_random_orders(n):
    g = torch.Generator().manual_seed(n)
    labels = torch.randint(0, 1 + n // 12, (n,), generator=g)
    draws = []
    for _ in range(400):
        image, text = torch.randn(n, 5, generator=g), torch.randn(n, 5, generator=g)
        result = evaluate(image, text, labels)
        draws.append(list(result["mean"].values()))
    draws = np.array(draws)
    error = draws.std(0) / 20
    expected = np.array([result["chance"][name] for name in METRICS])
    assert np.all(np.abs(draws.mean(0) - expected) <= 4.5 * error + 1e-9)


def test_chance_by_enumeration():
    # All orders of 7 items of which 3 are relevant: map_50 and map_50_hits then equal map_all.
    orders = set(itertools.permutations([1, 1, 1, 0, 0, 0, 0]))
    ap = [sum(sum(o[:p]) / p for p in range(1, 8) if o[p - 1]) / 3 for o in orders]
    got = chance(7, torch.tensor([3]))
    for name in ("map_all", "map_50", "map_50_hits"):
        assert got[name] == pytest.approx(np.mean(ap), abs=1e-12)
    assert got["recall@5"] == 5 / 7
    assert got["recall@10"] == 1
    assert chance(1000)["map_all"] == pytest.approx(chance(1000)["mrr"], abs=1e-15)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_dtypes_and_arrays(dtype):
    image, text, g = embeddings()
    labels = make_labels("single", 130, g)
    image, text = image.to(dtype), text.to(dtype)
    got = evaluate(image, text, labels)
    assert got == evaluate(image.float().numpy(), text.float().numpy(), labels.numpy())
    assert got["mean"] == pytest.approx(evaluate(image.double(), text.double(), labels)["mean"], abs=1e-6)


def test_gradients_and_large_means_do_not_matter():
    image, text, _ = embeddings()
    far = evaluate((image + 1e6).requires_grad_(), text + 1e6, similarity="euclidean")
    assert far == evaluate(image, text, similarity="euclidean")
    scaled = evaluate(1e-3 * image, 1e3 * text)
    assert scaled == evaluate(image, text)


def test_zero_vectors_are_at_cosine_zero():
    gallery = torch.tensor([[0.0, 0.0], [-1.0, 0.0], [1.0, 0.0]])
    assert nearest(torch.tensor([[1.0, 0.0]]), gallery, 3).tolist() == [[2, 0, 1]]


def test_progress_bar_changes_nothing(capsys):
    image, text, _ = embeddings()
    assert evaluate(image, text, progress=True) == evaluate(image, text)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"text": torch.zeros(3, 4)}, ValueError, "text must have as many rows as image, 4, got 3"),
        ({"text": torch.zeros(4, 5)}, ValueError, "text must have as many columns as image, 4, got 5"),
        ({"image": torch.zeros(4)}, ValueError, "image must have shape (m, d), got (4,)"),
        ({"image": torch.zeros(4, 4).cfloat()}, ValueError, "image must be real, got complex64"),
        ({"image": [["a"] * 4] * 4}, TypeError, "image must be an array of numbers, got strings"),
        ({"image": np.ma.masked_less(np.eye(4), 1)}, ValueError, "image must have no masked entries, got 12"),
        (
            {"text": torch.eye(4).index_fill(0, torch.tensor([2]), torch.nan)},
            ValueError,
            "text must be finite, got NaN or infinity in row 2",
        ),
        ({"image": torch.empty(4, 4, device="meta")}, ValueError, "image must hold values, got a meta tensor"),
        ({"labels": torch.empty(4, device="meta")}, ValueError, "labels must hold values, got a meta tensor"),
        ({"similarity": None}, TypeError, "similarity must be a string, got NoneType"),
        ({"similarity": "l2"}, ValueError, "similarity must be one of 'cosine', 'dot', 'euclidean', got 'l2'"),
        ({"labels": torch.zeros(3).long()}, ValueError, "labels must have as many rows as image, 4, got 3"),
        ({"labels": torch.full((4,), 0.5)}, ValueError, "labels must be whole numbers, got others in row 0"),
        ({"labels": [[0, 1], [0, 2]]}, ValueError, "labels must be 0 or 1 in every column, got others in row 1"),
        (
            {"labels": [-1, 1, 1, -1]},
            ValueError,
            "labels must not be -1 and 1 only: -1 marks items without a label; number the classes 0 and 1",
        ),
        ({"queries": torch.tensor([0, 4])}, ValueError, "queries must lie in 0..3, got 4"),
        (
            {"queries": torch.zeros(4) > 0},
            ValueError,
            "queries must be integers (q,) with q >= 1, got bool (4,)",
        ),
        ({"chunk_size": 0}, ValueError, "chunk_size must be at least 1, got 0"),
    ],
)
def test_errors(change, error, message):
    arguments = {"image": torch.eye(4), "text": torch.eye(4)} | change
    with pytest.raises(error) as info:
        evaluate(**arguments)
    assert str(info.value).startswith(message)
    assert "\n" not in str(info.value)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (("3",), TypeError, "gallery must be an integer, got str"),
        ((0,), ValueError, "gallery must be at least 1, got 0"),
        ((3, [1, 4]), ValueError, "relevant must hold numbers in 1..3 (q,) with q >= 1, got others in shape (2,)"),
        ((3, "a"), TypeError, "relevant must be an array of numbers, got str"),
    ],
)
def test_chance_errors(arguments, error, message):
    with pytest.raises(error) as info:
        chance(*arguments)
    assert str(info.value) == message


def test_nearest_errors():
    with pytest.raises(ValueError, match=r"k must lie in 1..3 \(the rows of gallery\), got 4"):
        nearest(torch.eye(3), torch.eye(3), 4)
    with pytest.raises(ValueError, match=r"gallery must have as many columns as query, 3, got 2"):
        nearest(torch.eye(3), torch.eye(2), 1)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("kind", [None, "single", "multi"])
def test_cuda(kind):
    image, text, g = embeddings(n=700)
    labels = make_labels(kind, 700, g)
    got = evaluate(image.cuda(), text.cuda(), None if labels is None else labels.cuda())
    expected = evaluate(image, text, labels)
    for direction in ("image_to_text", "text_to_image", "mean", "chance"):
        assert got[direction] == pytest.approx(expected[direction], abs=1e-12)
    assert nearest(image.cuda(), text.cuda(), 5).cpu().equal(nearest(image, text, 5))
