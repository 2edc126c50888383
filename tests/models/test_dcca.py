"""DCCA: its objective, its head, its branches, and its files."""

import pytest
import torch
from torch import nn

from xmodal_ops import trace_norm_loss
from xmodal_ops.models import DCCA, MLP, AlexNet, LinearCCA, SmallCNN, TextBranch


def pairs(m: int = 200, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Images (m, 1, 16, 16) and texts (m, 12) with three latent variables in common."""
    g = torch.Generator().manual_seed(seed)
    mix = torch.Generator().manual_seed(99)
    z = torch.randn(m, 3, generator=g)
    image = torch.sigmoid(z @ torch.randn(3, 256, generator=mix) + torch.randn(m, 256, generator=g))
    text = z @ torch.randn(3, 12, generator=mix) + torch.randn(m, 12, generator=g)
    return image.reshape(m, 1, 16, 16), text


def small_model(**options) -> DCCA:
    torch.manual_seed(0)
    return DCCA(SmallCNN(5, side=16, width=4), TextBranch(12, 5, hidden=(16,), dropout=0.2), **options)


def test_loss_is_the_trace_norm_of_the_outputs():
    model = small_model(ridge=(0.1, 0.2), top_k=3).eval()
    image, text = pairs()
    loss = model.loss(image, text)
    expected = trace_norm_loss(*model(image, text), ridge=(0.1, 0.2), top_k=3)
    assert loss.item() == expected.item()
    loss.backward()
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in model.parameters())


def test_training_finds_what_is_common():
    model = small_model()
    image, text = pairs()
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    for _ in range(60):
        optimizer.zero_grad()
        loss = model.loss(image, text)
        loss.backward()
        optimizer.step()
    model.fit_cca(image, text)
    new_image, new_text = pairs(seed=1)
    a, b = model.embed_image(new_image), model.embed_text(new_text)
    similarity = nn.functional.normalize(a, dim=1) @ nn.functional.normalize(b, dim=1).mT
    ranks = (similarity >= similarity.diagonal()[:, None]).sum(1)
    assert ranks.float().mean() < 30  # of 200; 100 would be chance
    assert model.head.correlations[2] > 0.5


def test_embeddings_are_the_weighted_linear_cca_of_the_outputs():
    model = small_model(ridge=0.01, power=2.0)
    image, text = pairs()
    model.fit_cca(image, text, batch_size=33)
    model.eval()
    u, v = model(image, text)
    cca = LinearCCA(ridge=0.01, power=2.0).fit(u, v)
    torch.testing.assert_close(model.embed_image(image, batch_size=64), cca.transform_x(u).detach(), rtol=0, atol=1e-4)
    torch.testing.assert_close(model.embed_text(text), cca.transform_y(v).detach(), rtol=0, atol=1e-4)


def test_embedding_keeps_the_mode_of_every_part_and_takes_no_gradient():
    model = small_model().train()
    model.image_branch.features[1].eval()  # a frozen norm
    image, text = pairs()
    mean = model.image_branch.features[5].running_mean.clone()
    model.fit_cca(image, text)
    first, second = model.embed_text(text), model.embed_text(text)
    assert torch.equal(first, second)  # no dropout
    assert not first.requires_grad
    assert torch.equal(mean, model.image_branch.features[5].running_mean)
    assert model.text_branch.training
    assert not model.image_branch.features[1].training


def test_any_module_is_a_branch():
    model = DCCA(nn.Sequential(nn.Flatten(), nn.Linear(256, 4)), nn.Linear(12, 6))
    image, text = pairs()
    model.fit_cca(image, text)
    assert model.embed_image(image).shape == model.embed_text(text).shape == (200, 4)


def test_pictures_may_be_bytes():
    model = small_model().eval()
    image, _ = pairs()
    raw = (image * 255).round().byte()
    torch.testing.assert_close(model.image_branch(raw), model.image_branch(raw / 255))


def test_state_dict_holds_the_head():
    model = small_model()
    image, text = pairs()
    model.fit_cca(image, text)
    other = small_model()
    with torch.no_grad():
        other.image_branch.output.weight.zero_()
    other.load_state_dict(model.state_dict())
    assert torch.equal(other.embed_image(image), model.embed_image(image))
    unfitted = small_model()
    other.load_state_dict(unfitted.state_dict())
    assert not other.head.fitted


@pytest.mark.parametrize("fitted", [True, False])
def test_save_and_load(tmp_path, fitted):
    model = small_model(ridge=(0.1, 0.2), top_k=3, power=0.5)
    image, text = pairs()
    if fitted:
        model.fit_cca(image, text)
    model.save(tmp_path / "model.pt")
    again = DCCA.load(tmp_path / "model.pt")
    model.eval(), again.eval()
    assert torch.equal(again(image, text)[1], model(image, text)[1])
    assert again.loss(image, text).item() == model.loss(image, text).item()
    if fitted:
        assert torch.equal(again.embed_image(image), model.embed_image(image))
        assert again.embed_image(image).shape == (200, 3)


def test_branches_of_ones_own_are_handed_in_again(tmp_path):
    model = DCCA(nn.Sequential(nn.Flatten(), nn.Linear(256, 4)), TextBranch(12, 4))
    image, text = pairs()
    model.fit_cca(image, text).save(tmp_path / "model.pt")
    with pytest.raises(ValueError, match="image_branch must be given"):
        DCCA.load(tmp_path / "model.pt")
    again = DCCA.load(tmp_path / "model.pt", image_branch=nn.Sequential(nn.Flatten(), nn.Linear(256, 4)))
    assert torch.equal(again.embed_image(image), model.embed_image(image))


def test_same_seed_same_model():
    def trained() -> DCCA:
        model = small_model()
        optimizer = torch.optim.Adam(model.parameters(), 1e-2)
        for _ in range(3):
            model.loss(*pairs()).backward()
            optimizer.step()
        return model.fit_cca(*pairs())

    a, b = trained().state_dict(), trained().state_dict()
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_alexnet_has_the_layers_of_the_paper():
    model = AlexNet(10, dropout=0.0).eval()
    shapes = [tuple(p.shape) for name, p in model.named_parameters() if name.endswith("weight")]
    assert shapes == [
        (96, 3, 11, 11), (256, 48, 5, 5), (384, 256, 3, 3), (384, 192, 3, 3), (256, 192, 3, 3),
        (4096, 9216), (4096, 4096), (10, 4096),
    ]  # fmt: skip
    with torch.no_grad():
        assert model(torch.rand(2, 3, 227, 227)).shape == (2, 10)
    with pytest.raises(ValueError, match=r"image must have shape \(m, 3, 227, 227\), got \(2, 3, 224, 224\)"):
        model(torch.rand(2, 3, 224, 224))


def test_text_branch_stacks_triples():
    branch = TextBranch(7, 3, hidden=(5, 4), dropout=0.1)
    kinds = [type(layer).__name__ for layer in branch.layers]
    assert kinds == ["Linear", "ReLU", "Dropout", "Linear", "ReLU", "Dropout", "Linear"]
    assert len(TextBranch(7, 3, hidden=()).layers) == 1


def test_mlp_does_not_mind_the_units_of_its_features():
    torch.manual_seed(0)
    branch = MLP(12, 4, hidden=(8,), dropout=0.0)
    _, text = pairs()
    torch.testing.assert_close(branch(text * 1000 + 5000), branch(text), rtol=0, atol=1e-2)


@pytest.mark.parametrize(
    ("act", "error", "message"),
    [
        (lambda m, i, t: m.embed_image(i), RuntimeError, r"CCA head must be fitted before embedding"),
        (lambda m, i, t: m.fit_cca(i, t[:9]), ValueError, r"text must have as many rows as image, 200, got 9"),
        (lambda m, i, t: m.fit_cca(i * float("nan"), t), ValueError, r"x must be finite"),
        (lambda m, i, t: m.image_branch(t), ValueError, r"image must have shape \(m, channels, height, width\)"),
        (lambda m, i, t: SmallCNN(4, side=20), ValueError, r"side must be a positive multiple of 16, got 20"),
        (lambda m, i, t: DCCA(m, m, ridge=-1.0), ValueError, r"ridge must be at least 0, got -1.0"),
    ],
)
def test_errors_name_the_argument(act, error, message):
    with pytest.raises(error, match=message):
        act(small_model(), *pairs())
