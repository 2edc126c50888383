"""One interface of the three models: any array of real numbers in any type, and models in any floating type."""

import copy
import io
import pickle

import numpy as np
import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

from xmodal_ops import retrieval
from xmodal_ops.models import ACMR, DCCA, MLP, LinearCCA, Projector, SmallCNN, TextBranch

RNG = np.random.default_rng(0)
LATENT = RNG.normal(size=(60, 3))
IMAGE = (LATENT @ RNG.normal(size=(3, 6)) + 0.3 * RNG.normal(size=(60, 6))).round(2)
TEXT = (LATENT @ RNG.normal(size=(3, 5)) + 0.3 * RNG.normal(size=(60, 5))).round(2)
HALVES = [torch.float16, torch.bfloat16]


def linear():
    return LinearCCA(2, ridge=0.1, power=1).fit(IMAGE, TEXT)


def dcca(fitted=True, own=False):
    torch.manual_seed(0)
    branches = (nn.Linear(6, 3), nn.Linear(5, 3)) if own else (MLP(6, 3, hidden=(8,)), TextBranch(5, 3, hidden=(8,)))
    model = DCCA(*branches, ridge=0.1)
    return model.fit_cca(IMAGE, TEXT) if fitted else model


def acmr(**options):
    torch.manual_seed(0)
    image = Projector(6, 4, hidden=(8,), features="standard")
    image.fit(IMAGE)
    return ACMR(image, TextBranch(5, 4, hidden=(8,)), 3, dim=4, **({"label_weight": 0.5} | options))


def plain():
    torch.manual_seed(0)
    return ACMR(nn.Linear(6, 4), nn.Linear(5, 4), 3, dim=4)


MODELS = {
    "linear": linear,
    "dcca": dcca,
    "dcca, own branches": lambda: dcca(own=True),
    "acmr": acmr,
    "acmr, own": plain,
}
READ = {
    "float64": lambda a: a,
    "float16": lambda a: a.astype(np.float16),
    "reversed": lambda a: a[::-1][::-1],
    "byte order": lambda a: a.astype(">f4"),
    "list": lambda a: a.tolist(),
    "tensor": torch.tensor,
    "bfloat16": lambda a: torch.tensor(a).bfloat16(),
}


@pytest.mark.parametrize("read", READ.values(), ids=READ)
@pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)
def test_embeddings_are_the_same_for_whatever_numpy_reads(make, read):
    model = make()
    rough = {"rtol": 0, "atol": 0.1} if read is READ["bfloat16"] else {"rtol": 1e-2, "atol": 1e-2}
    for got, want in zip(model.embed(read(IMAGE), read(TEXT)), model.embed(torch.tensor(IMAGE), torch.tensor(TEXT))):
        assert isinstance(got, torch.Tensor) and not got.requires_grad
        torch.testing.assert_close(got.double(), want.double(), **rough)


@pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)
def test_views_of_different_types_can_be_compared_and_batches_do_not_matter(make):
    model = make()
    image, text = model.embed(IMAGE, TEXT.astype(np.float32), batch_size=7)
    assert retrieval.evaluate(image, text)["gallery"] == 60
    torch.testing.assert_close(image, model.embed_image(IMAGE))
    bytes_ = np.abs(IMAGE * 10).astype(np.uint8)
    torch.testing.assert_close(
        model.embed_image(bytes_).double(), model.embed_image(bytes_.astype(np.float64)).double(), rtol=1e-4, atol=1e-4
    )


@pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)
@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ("text", "image must be an array of numbers, got str"),
        (IMAGE + 1j, "image must be real, got complex128"),
        (np.ma.masked_less(IMAGE, 0), "image must have no masked entries"),
        (IMAGE.astype(str), "image must be an array of numbers, got strings"),
        (1.0, "image must have"),
    ],
)
def test_what_is_no_array_of_numbers_is_refused(make, bad, message):
    with pytest.raises((TypeError, ValueError), match=message):
        make().embed_image(bad)


@pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)
def test_batch_sizes_are_checked(make):
    for bad, message in ((0, "batch_size must be at least 1, got 0"), (2.5, "batch_size must be an int, got float")):
        with pytest.raises((TypeError, ValueError), match=message):
            make().embed(IMAGE, TEXT, batch_size=bad)


@pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)
def test_embeddings_of_chunks_are_written_into_one_tensor(make, monkeypatch):
    """A list of small results between large freed blocks would fragment the heap."""
    model, sizes = make(), []
    new_empty = torch.Tensor.new_empty
    monkeypatch.setattr(torch.Tensor, "new_empty", lambda x, *s, **o: sizes.append(s[0]) or new_empty(x, *s, **o))
    assert model.embed_image(IMAGE, batch_size=7).shape[0] == 60
    assert sizes == [60]


@pytest.mark.parametrize("make", [dcca, acmr])
def test_features_of_another_width_are_refused(make):
    for x, got in ((IMAGE[:, :2], r"\(60, 2\)"), (IMAGE[0], r"\(6,\)")):
        with pytest.raises(ValueError, match=rf"features must have shape \(m, 6\), got {got}"):
            make().embed_image(x)


@pytest.mark.parametrize("wrap", [lambda cnn: cnn, lambda cnn: nn.Sequential(cnn)], ids=["branch", "own module"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_bytes_of_images_are_divided_by_255_in_any_type(dtype, wrap):
    torch.manual_seed(0)
    model = DCCA(wrap(SmallCNN(3, side=16, width=2)), TextBranch(5, 3)).to(dtype).eval()
    pixels = RNG.integers(0, 256, (8, 1, 16, 16), dtype=np.uint8)
    model.fit_cca(pixels, TEXT[:8])
    want = model.embed_image(pixels / 255)
    torch.testing.assert_close(model.embed_image(pixels), want, rtol=1e-2, atol=1e-2)
    assert model(torch.tensor(pixels), torch.tensor(TEXT[:8]))[0].dtype == dtype
    with pytest.raises(ValueError, match=r"image must have shape \(m, 1, 16, 16\), got \(8, 1, 4, 64\)"):
        model.embed_image(pixels.reshape(8, 1, 4, 64))


def test_integers_for_an_embedding_stay_integers():
    torch.manual_seed(0)
    model = DCCA(nn.Linear(6, 3), nn.Sequential(nn.EmbeddingBag(9, 4), nn.Linear(4, 3)))
    tokens = RNG.integers(0, 9, (60, 5))
    assert model.fit_cca(IMAGE, tokens).embed_text(tokens.tolist()).shape == (60, 3)


@pytest.mark.parametrize("dtype", [*HALVES, torch.float64])
@pytest.mark.parametrize("fitted_first", [True, False], ids=["fitted, then cast", "cast, then fitted"])
def test_dcca_works_in_every_floating_type_and_its_head_stays_accurate(dtype, fitted_first):
    model, want = dcca(fitted_first).to(dtype), dcca().embed_image(IMAGE)
    if not fitted_first:
        model.fit_cca(torch.tensor(IMAGE).to(dtype), torch.tensor(TEXT).to(dtype))
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    assert model.head.x_weights.dtype == model.image_branch.norm.running_var.dtype == wide
    got = model.embed_image(torch.tensor(IMAGE).to(dtype))
    assert got.dtype == wide
    cosine = torch.cosine_similarity(got.double(), want.double())
    assert (1 - cosine.abs() if fitted_first else torch.zeros(())).max() < 1e-2
    assert torch.equal(model.embed_image(IMAGE), model.embed_image(torch.tensor(IMAGE)))
    model.loss(torch.tensor(IMAGE).to(dtype), torch.tensor(TEXT)).backward()


@pytest.mark.parametrize("dtype", HALVES)
def test_a_head_comes_back_from_half_unchanged(dtype):
    model = dcca()
    before = {name: t.clone() for name, t in model.head.state_dict().items()}
    assert all(torch.equal(t, before[name]) for name, t in model.to(dtype).float().head.state_dict().items())


@pytest.mark.parametrize("dtype", [*HALVES, torch.float32, torch.float64])
@pytest.mark.parametrize("label_weight", [0.0, 0.5, 1.0])
def test_acmr_works_in_every_floating_type(dtype, label_weight):
    want = acmr(label_weight=label_weight).embed_image(IMAGE)
    model = acmr(label_weight=label_weight).to(dtype)
    got = model.embed_image(torch.tensor(IMAGE).to(dtype))
    torch.testing.assert_close(got.float(), want, rtol=0, atol=3e-2)
    losses = model.losses(torch.tensor(IMAGE), torch.tensor(TEXT).to(dtype), torch.arange(60) % 3)
    (losses.embedding + losses.adversary).backward()
    assert all(p.grad is None or bool(p.grad.isfinite().all()) for p in model.parameters())


@pytest.mark.parametrize("features", ["standard", "sqrt", "chi2", "kernel"])
@pytest.mark.parametrize("dtype", HALVES)
def test_the_statistics_of_a_projector_do_not_overflow_in_half(features, dtype):
    torch.manual_seed(0)
    x = np.abs(RNG.normal(size=(40, 6))) * 1e-4
    layer = Projector(6, 3, hidden=(), features=features, landmarks=20)
    layer.fit(x)
    want = layer(torch.tensor(x))
    torch.testing.assert_close(layer.to(dtype)(torch.tensor(x)).float(), want.float(), rtol=0.1, atol=0.1)


def test_models_train_and_embed_under_autocast_with_branches_that_end_in_other_types():
    x, y = torch.tensor(IMAGE).float(), torch.tensor(TEXT).float()
    model = DCCA(nn.Linear(6, 4), nn.Sequential(nn.Linear(5, 4), nn.LayerNorm(4)))
    adversarial = ACMR(nn.Linear(6, 4), nn.Sequential(nn.Linear(5, 4), nn.LayerNorm(4)), 3, dim=4, label_weight=0.5)
    with torch.autocast("cpu", torch.bfloat16):
        model.loss(x, y).backward()
        losses = adversarial.losses(x, y, torch.arange(60) % 3)
        (losses.embedding + losses.adversary).backward()
        assert model.fit_cca(x, y).embed_text(y).dtype == adversarial.embed_image(x).dtype == torch.float32


def test_an_averaged_copy_from_before_the_fit_goes_on_and_can_be_fitted():
    model = dcca(fitted=False)
    averaged = AveragedModel(model, use_buffers=True)
    averaged.update_parameters(model)
    model.fit_cca(IMAGE, TEXT)
    for _ in range(2):
        averaged.update_parameters(model)
    with pytest.raises(RuntimeError, match="the CCA head must be fitted"):
        averaged.module.embed_image(IMAGE)
    torch.testing.assert_close(averaged.module.fit_cca(IMAGE, TEXT).embed_text(TEXT), model.embed_text(TEXT))
    averaged.update_parameters(model.fit_cca(IMAGE, TEXT[:, ::-1]))


@pytest.mark.parametrize(
    "copied",
    [
        copy.deepcopy,
        lambda m: pickle.loads(pickle.dumps(m)),
        lambda m: loaded(dcca(False), m.state_dict()),
        lambda m: loaded(dcca(), m.state_dict()),
        lambda m: loaded(dcca(False).double(), m.state_dict()),
        lambda m: loaded(dcca(False), m.state_dict(), assign=True),
        lambda m: loaded(dcca(False), saved(m.half()).state_dict()).half(),
    ],
    ids=["deepcopy", "pickle", "into unfitted", "into fitted", "into double", "assigned", "from half"],
)
def test_copies_of_a_fitted_model_are_fitted(copied):
    model = dcca()
    other = copied(model)
    torch.testing.assert_close(other.embed_image(IMAGE).float(), model.embed_image(IMAGE).float())
    assert other.head.x_mean.data_ptr() != model.head.x_mean.data_ptr()


def loaded(model, state, **options):
    model.load_state_dict(state, **options)
    return model


def saved(model):
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


def test_an_unfitted_state_makes_a_model_unfitted_and_a_torn_one_is_refused():
    model = dcca()
    torn = {name: t for name, t in model.state_dict().items() if name != "head.y_mean"}
    with pytest.raises(RuntimeError, match=r'Missing key\(s\) in state_dict: "head.y_mean"'):
        dcca().load_state_dict(torn)
    with pytest.raises(RuntimeError, match=r'Unexpected key\(s\) in state_dict: "head.z_mean"'):
        dcca().load_state_dict(model.state_dict() | {"head.z_mean": torch.zeros(1)})
    model.load_state_dict({"text_branch.layers.0.bias": torch.zeros(8)}, strict=False)
    assert model.head.fitted
    model.load_state_dict(dcca(False).state_dict())
    assert not model.head.fitted
