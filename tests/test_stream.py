"""Pairs read from files in chunks equal the pairs that were written."""

import h5py
import numpy as np
import pytest
import torch
from torch import nn

from xmodal_ops import large_batch_loss
from xmodal_ops.data import DataError
from xmodal_ops.data.stream import PairStream
from xmodal_ops.models import LinearCCA
from xmodal_ops.nn import TraceNormLoss
from xmodal_ops.retrieval import evaluate, evaluate_stream


@pytest.fixture(scope="module")
def views():
    generator = np.random.default_rng(0)
    image = generator.standard_normal((500, 6), dtype=np.float32) + 20
    return image, (image[:, :4] + 0.5 * generator.standard_normal((500, 4), dtype=np.float32)).astype(np.float32)


@pytest.fixture(params=["hdf5", "npy", "big-endian npy"])
def stream(request, views, tmp_path):
    image, text = views
    if request.param == "hdf5":
        with h5py.File(tmp_path / "pairs.h5", "w") as file:
            file["image"], file["text"] = image, text
        return PairStream(tmp_path / "pairs.h5")
    kind = ">f4" if request.param.startswith("big") else "<f4"
    for name, view in (("image", image), ("text", text)):
        np.save(tmp_path / f"{name}.npy", view.astype(kind))
    return PairStream(tmp_path / "image.npy", str(tmp_path / "text.npy"))


@pytest.mark.parametrize("workers", [0, 2])
def test_chunks_are_all_rows_in_their_order(stream, views, workers):
    chunks = list(stream.chunks(120, workers=workers))
    assert [len(x) for x, _ in chunks] == [120, 120, 120, 120, 20]
    for view, parts in zip(views, zip(*chunks)):
        assert torch.equal(torch.cat(parts), torch.from_numpy(view))


def test_rows_by_index_in_any_order_and_repeated(stream, views):
    rows = np.array([400, 3, 3, 499, 0])
    assert torch.equal(stream.text[rows], torch.from_numpy(views[1][rows]))


def test_linear_cca_of_the_stream_is_that_of_the_arrays(stream, views):
    streamed = LinearCCA(3).fit(stream.chunks(64, workers=0, progress=True))
    whole = LinearCCA(3).fit(*views)
    torch.testing.assert_close(streamed.correlations_, whole.correlations_)
    torch.testing.assert_close(streamed.x_weights_, whole.x_weights_)


def test_a_large_batch_step_reads_the_file_itself(stream, views):
    torch.manual_seed(0)
    nets = [nn.Linear(6, 3), nn.Linear(4, 3)]
    expected = large_batch_loss(nets, [torch.from_numpy(v) for v in views], TraceNormLoss(), chunk_size=100)
    value = large_batch_loss(nets, (stream.image, stream.text), TraceNormLoss(), chunk_size=100)
    assert torch.equal(value, expected)
    value.backward()


def test_bad_files(tmp_path, views):
    image, text = views
    (tmp_path / "noise.h5").write_bytes(b"not a file of pairs")
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["image"], file["words"] = image, text
    with h5py.File(tmp_path / "short.h5", "w") as file:
        file["image"], file["text"] = image, text[:-1]
    np.save(tmp_path / "integers.npy", np.zeros((5, 2), dtype=np.int64))
    np.save(tmp_path / "vector.npy", np.zeros(5))
    np.save(tmp_path / "good.npy", np.zeros((5, 2)))
    (tmp_path / "empty.npy").write_bytes(b"")
    np.savez(tmp_path / "archive.npz", np.zeros((5, 2)))
    with h5py.File(tmp_path / "group.h5", "w") as file:
        file["image/a"], file["text"] = image, text
    (tmp_path / "cut.npy").write_bytes((tmp_path / "good.npy").read_bytes()[:-8])
    for arguments, message in (
        (["missing.h5"], "image must be an existing file, got .*missing.h5"),
        (["noise.h5"], "cannot read image from .*noise.h5: "),
        (["other.h5"], "cannot read text from .*other.h5: .*it holds image, words, not text"),
        (["short.h5"], "text must have as many rows as image, 500, got 499"),
        (["good.npy", "missing.npy"], "text must be an existing file"),
        (["good.npy", "integers.npy"], r"text in .* must be a floating \(n, d\) matrix, got int64 \(5, 2\)"),
        (["vector.npy", "good.npy"], r"image in .* must be a floating \(n, d\) matrix, got float64 \(5,\)"),
        (["empty.npy", "good.npy"], "cannot read image from .*empty.npy: "),
        (["archive.npz", "good.npy"], "cannot read image from .*archive.npz: "),
        (["group.h5"], "cannot read image from .*group.h5: "),
        (["cut.npy", "good.npy"], "cannot read image from .*cut.npy: "),
    ):
        with pytest.raises(DataError, match=message) as caught:
            PairStream(*(tmp_path / name for name in arguments))
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("options", "message"), [({"rows": 2.5}, "rows"), ({"workers": -1}, "workers")])
def test_options_of_chunks(stream, options, message):
    with pytest.raises(ValueError, match=f"^{message} must be an integer >= ., got"):
        next(stream.chunks(**options))


@pytest.mark.parametrize("similarity", ["cosine", "dot", "euclidean"])
def test_retrieval_from_files_is_retrieval_from_memory(stream, views, similarity):
    cca = LinearCCA(3, power=1).fit(*views)
    x, y = (torch.from_numpy(v) for v in cca.transform(*views))
    rows = torch.tensor([7, 499, 0, 123, 300])
    options = {"queries": rows, "similarity": similarity}
    streamed = evaluate_stream(stream, transform=cca.transform, chunk_size=130, workers=0, progress=True, **options)
    whole = evaluate(x, y, **options)
    for direction in ("image_to_text", "text_to_image", "mean", "chance"):
        assert streamed[direction] == pytest.approx(whole[direction], rel=1e-12), direction
    assert (streamed["gallery"], streamed["queries"]) == (500, 5)


def test_ties_count_by_their_expectation_as_in_memory(tmp_path):
    """Every row occurs three times."""
    distinct = np.random.default_rng(1).standard_normal((40, 5)).astype(np.float32)
    both = np.concatenate([distinct, distinct, distinct])
    for name in ("image", "text"):
        np.save(tmp_path / f"{name}.npy", both)
    stream = PairStream(tmp_path / "image.npy", tmp_path / "text.npy")
    streamed = evaluate_stream(stream, queries=120, chunk_size=50, workers=0)
    whole = evaluate(both, both)
    assert streamed["mean"] == pytest.approx(whole["mean"], rel=1e-12)
    assert whole["mean"]["median_rank"] == 2
    assert evaluate_stream(stream, queries=30, seed=1, workers=0)["queries"] == 30
    for queries in (0, 121, torch.tensor([120]), torch.tensor([0.5])):
        with pytest.raises(ValueError, match="queries must"):
            evaluate_stream(stream, queries=queries)
