"""Retrieval metrics against brute force, scikit-learn and sampled chance, and the documented order of ties."""

from __future__ import annotations

import itertools
import json

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score

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


def test_ties_go_to_the_lower_row():
    # Every item is the same, so the gallery stays in its order and the own pair i has rank i + 1.
    same = torch.ones(8, 3)
    scores = evaluate(same, same, torch.tensor([0, 1, 1, 0, 0, 0, 0, 0]))["image_to_text"]
    assert scores["median_rank"] == 4.5
    assert scores["recall@5"] == 5 / 8
    assert scores["mrr"] == pytest.approx(sum(1 / r for r in range(1, 9)) / 8, abs=1e-15)
    zeros, ones = (1 + 2 / 4 + 3 / 5 + 4 / 6 + 5 / 7 + 6 / 8) / 6, (1 / 2 + 2 / 3) / 2
    assert scores["map_all"] == pytest.approx((6 * zeros + 2 * ones) / 8, abs=1e-15)
    assert nearest(same, same, 3).tolist() == [[0, 1, 2]] * 8


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
    tiny = 1e-30 * torch.tensor([[0.0], [-1.0], [0.0]], dtype=torch.float64)  # its square is -0.0 in float32
    assert nearest(tiny[1:2].neg(), tiny, 3, similarity="dot").tolist() == [[0, 1, 2]]


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
        (
            {"image": torch.zeros(4, 4, dtype=torch.complex64)},
            TypeError,
            "image must be float64, float32, bfloat16 or float16, got complex64",
        ),
        ({"image": np.zeros((4, 4), complex)}, TypeError, "image must hold numbers, got complex128 of ndarray"),
        ({"image": [["a"] * 4] * 4}, TypeError, "image must hold numbers, got <U1 of list"),
        ({"image": [[1.0], [1.0, 2.0]]}, ValueError, "image must be an array, got list"),
        ({"image": np.ma.masked_less(np.eye(4), 1)}, ValueError, "image must not hold masked items"),
        (
            {"image": torch.eye(4).to_sparse()},
            TypeError,
            "image must be a dense tensor of numbers, got sparse_coo float32",
        ),
        (
            {"text": torch.eye(4).index_fill(0, torch.tensor([2]), torch.nan)},
            ValueError,
            "text must be finite, got NaN or infinity in row 2",
        ),
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
