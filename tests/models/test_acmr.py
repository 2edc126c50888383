"""ACMR: each loss against its formula, the gradients of both players, the retrieval space."""

import math
import re

import numpy as np
import pytest
import torch
from sklearn.kernel_approximation import AdditiveChi2Sampler
from sklearn.metrics.pairwise import chi2_kernel
from torch import nn
from torch.nn import functional as F

from xmodal_ops import retrieval, structure_preserving_loss
from xmodal_ops.models import ACMR, Projector, SmallCNN
from xmodal_ops.models.projector import additive_chi2


def make(classes: int = 4, **options) -> ACMR:
    torch.manual_seed(0)
    image = Projector(10, 6, hidden=(16,), features="standard")
    text = Projector(7, 6, hidden=(12,))
    return ACMR(image, text, classes, dim=6, **options)


def batch(m: int = 40, classes: int = 4, several: bool = False):
    g = torch.Generator().manual_seed(1)
    labels = torch.randint(0, classes, (m,), generator=g)
    centres = torch.randn(classes, 17, generator=g)
    both = centres[labels] + 0.3 * torch.randn(m, 17, generator=g)
    if several:
        labels = F.one_hot(labels, classes).bool() | (torch.rand(m, classes, generator=g) < 0.2)
    return both[:, :10], both[:, 10:], labels


def gradients(loss: torch.Tensor, module: nn.Module) -> torch.Tensor:
    grads = torch.autograd.grad(loss, list(module.parameters()), retain_graph=True, allow_unused=True)
    return torch.cat([torch.zeros_like(p).flatten() if g is None else g.flatten()
                      for g, p in zip(grads, module.parameters())])  # fmt: skip


@pytest.mark.parametrize("several", [False, True])
def test_losses_are_those_of_the_paper(several):
    model = make(
        multi_label=several, alpha=0.3, beta=0.7, penalty=0.01, margin=0.8, gamma=0.1, reduction="sum"
    ).double()
    image, text, labels = batch(several=several)
    image, text = image.double(), text.double()
    got = model.losses(image, text, labels)
    v, t = model(image, text)
    # L_adv: −1/n Σ log D(v) + log(1 − D(t)), D being the probability of an image
    d_v, d_t = (model.modality_classifier(s).softmax(1)[:, 0] for s in (v, t))
    torch.testing.assert_close(got.adversary, -(d_v.log() + (1 - d_t).log()).mean())
    p_v, p_t = model.probabilities(v), model.probabilities(t)
    y = labels.double() if several else F.one_hot(labels, 4).double()
    log = y * (p_v.log() + p_t.log())
    if several:
        log = log + (1 - y) * ((1 - p_v).log() + (1 - p_t).log())
    torch.testing.assert_close(got.discrimination, -log.sum() / len(y))
    same = y @ y.T > 0
    d = torch.cdist(v, t)
    far = 0.1 * (0.8 - d).clamp(min=0)
    imi = sum(
        (e[i, s[i]].sum() * (~s[i]).sum() + f[i, ~s[i]].sum() * s[i].sum())
        for e, f, s in ((d, far, same), (d.T, far.T, same.T))
        for i in range(len(d))
    )
    torch.testing.assert_close(got.invariance, imi)
    projectors = [*model.image_projector.parameters(), *model.text_projector.parameters()]
    norms = sum(p.square().sum().sqrt() for p in projectors if p.ndim == 2)
    torch.testing.assert_close(got.embedding, 0.3 * imi + 0.7 * got.discrimination + 0.01 * norms)


def test_members_are_networks_of_their_own_with_averaged_probabilities():
    torch.manual_seed(0)
    image, text, labels = batch()
    projectors = [Projector(width, 6, hidden=(5,), members=3) for width in (10, 7)]
    model = ACMR(*projectors, 4, dim=6, members=3, alpha=0.0, beta=1.0)
    v, t = model(image, text)
    for i, network in enumerate(model.image_projector.networks):
        torch.testing.assert_close(network(image), v[:, 2 * i : 2 * i + 2])
    parts = [
        (head(v[:, 2 * i : 2 * i + 2]), head(t[:, 2 * i : 2 * i + 2])) for i, head in enumerate(model.label_predictor)
    ]
    torch.testing.assert_close(model.probabilities(v), sum(a.softmax(1) for a, _ in parts) / 3)
    want = sum(F.cross_entropy(a, labels) + F.cross_entropy(b, labels) for a, b in parts) / 3
    torch.testing.assert_close(model.losses(image, text, labels).discrimination, want)
    with pytest.raises(ValueError, match="members must divide out_features, 6, got 4"):
        Projector(10, 6, members=4)


def test_pair_loss():
    model = make(pair_weight=0.5, temperature=0.2, alpha=0.0, beta=0.0)
    image, text, labels = batch()
    got = model.losses(image, text, labels)
    s = F.cosine_similarity(*(z[i] for z, i in zip(model(image, text), np.ix_(range(40), range(40)))), dim=-1) / 0.2
    want = -(s.log_softmax(1).diagonal().mean() + s.log_softmax(0).diagonal().mean()) / 2
    torch.testing.assert_close(got.pair, want)
    torch.testing.assert_close(got.embedding, 0.5 * want)
    assert got.invariance == 0


@pytest.mark.parametrize("side", ["image_projector", "text_projector"])
def test_the_adversary_s_gradient_reaches_both_projectors_reversed(side):
    model = make()
    image, text, labels = batch()
    projector = getattr(model, side)
    plain = gradients(model.modality_loss(*model(image, text)), projector)
    reversed_ = gradients(model.losses(image, text, labels, reversal=0.25).adversary, projector)
    assert plain.norm() > 1e-3
    torch.testing.assert_close(reversed_, -0.25 * plain)
    assert gradients(model.losses(image, text, labels, reversal=0).adversary, projector).norm() == 0


def test_each_player_is_led_by_its_own_loss():
    model = make()
    image, text, labels = batch()
    losses = model.losses(image, text, labels)
    assert gradients(losses.embedding, model.modality_classifier).norm() == 0
    assert gradients(losses.adversary, model.label_predictor).norm() == 0
    want = gradients(model.modality_loss(*model(image, text)), model.modality_classifier)
    torch.testing.assert_close(gradients(losses.adversary, model.modality_classifier), want)
    first, second = model.players()
    assert {id(p) for p in [*first, *second]} == {id(p) for p in model.parameters()}
    assert {id(p) for p in second} == {id(p) for p in model.modality_classifier.parameters()}


def play(model: ACMR, steps: int = 150, reversal: float = 1.0, learning_rate: float = 1e-2) -> list[float]:
    image, text, labels = batch(200)
    optimizers = [torch.optim.Adam(player, lr=learning_rate) for player in model.players()]
    adversary = []
    for _ in range(steps):
        losses = model.losses(image, text, labels, reversal=reversal)
        model.zero_grad()
        (losses.embedding + losses.adversary).backward()
        for optimizer in optimizers:
            optimizer.step()
        adversary.append(losses.adversary.item())
    return adversary


def test_the_label_head_learns():
    model = make(beta=1.0)
    image, text, labels = batch(200)
    before = model.losses(image, text, labels)
    play(model, reversal=0.1)
    after = model.losses(image, text, labels)
    assert after.discrimination < 0.2 * before.discrimination
    for side, items in enumerate((image, text)):
        assert (model.probabilities(model.project(side, items)).argmax(1) == labels).float().mean() > 0.95


def apart(**options) -> ACMR:
    """A model whose projections of texts are shifted against those of images."""
    model = make(**options)
    nn.init.constant_(model.text_projector.networks[0][-2].bias, 1.0)
    return model


def test_the_classifier_s_loss_moves():
    """Without an opponent it learns to tell the modalities apart; chance level is 2 log 2 = 1.39."""
    adversary = play(apart(alpha=0.0, beta=0.0), reversal=0.0)
    assert adversary[0] > 1.2
    assert adversary[-1] < 0.3


def test_the_adversary_hides_the_modality():
    """A new classifier of the finished projections does worse after training against the adversary."""
    found = {}
    for reversal in (0.0, 1.0):
        model = apart(alpha=0.0, beta=0.0)
        play(model, 300, reversal)
        image, text, _ = batch(200)
        both = torch.cat([model.project(0, image), model.project(1, text)])
        torch.manual_seed(1)
        judge, modality = nn.Linear(6, 2), torch.arange(2).repeat_interleave(200)
        optimizer = torch.optim.Adam(judge.parameters(), lr=0.05)
        for _ in range(200):
            loss = F.cross_entropy(judge(both), modality)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        found[reversal] = loss.item()
    assert found[0.0] < 0.35
    assert found[1.0] > found[0.0] + 0.15


def test_released_code_s_loss_and_frozen_predictor():
    model = make(invariance="batch_hinge", alpha=2.0, beta=0.0, train_label_predictor=False)
    image, text, labels = batch(12)
    v, t = model(image, text)
    own = sum((v[i] - t[i]).square().sum() / 2 for i in range(12))
    want = 0.0
    for anchor, other, raw in ((v, t, image), (t, v, text)):
        negatives = 0.0
        for i in range(12):
            others = [j for j in range(12) if labels[j] != labels[i]]
            j = max(others, key=lambda j: F.cosine_similarity(raw[i], raw[j], dim=0).item())
            negatives = negatives + (anchor[i] - other[j]).square().sum() / 2
        want = want + max(0.1 + 5 * own - negatives, 0)
    torch.testing.assert_close(model.losses(image, text, labels).invariance, want)
    first, _ = model.players()
    assert not {id(p) for p in model.label_predictor.parameters()} & {id(p) for p in first}


@pytest.mark.parametrize("likeness", ["probability", "bhattacharyya"])
@pytest.mark.parametrize("several", [False, True])
def test_the_retrieval_space_compares_as_documented(several, likeness):
    image, text, _ = batch(30)
    for w in (0.0, 0.4, 1.0):
        model = make(multi_label=several, label_weight=w, label_similarity=likeness)
        a, b = model.embed_image(image), model.embed_text(text)
        torch.testing.assert_close(a.norm(dim=1), torch.ones(30))
        v, t = model.project(0, image), model.project(1, text)
        p, q = model.probabilities(v), model.probabilities(t)
        each = p[:, None] * q
        shared = (each if likeness == "probability" else each.sqrt()).sum(2) / (4 if several else 1)
        want = (1 - w) * F.normalize(v) @ F.normalize(t).T + w * shared
        torch.testing.assert_close(a @ b.T, want, rtol=1e-4, atol=1e-5)


def test_ranking_by_the_probability_of_a_shared_label_beats_cosine():
    """On simulated labels, drawn from the same probabilities. No other order has a larger expected precision."""
    g = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    p = torch.distributions.Dirichlet(torch.full((6,), 0.6)).sample((600,))
    labels = torch.multinomial(p, 1, generator=g)[:, 0]
    noisy = torch.distributions.Dirichlet(torch.full((6,), 0.6)).sample((600,))
    texts = torch.multinomial(noisy, 1, generator=g)[:, 0]
    relevant = labels[:, None] == texts

    def precision(scores: torch.Tensor) -> float:
        hit = relevant.gather(1, scores.argsort(1, descending=True)).double()
        at = hit.cumsum(1) / torch.arange(1, 601)
        return float(((at * hit).sum(1) / hit.sum(1)).mean())

    assert precision(p @ noisy.T) > precision(F.normalize(p) @ F.normalize(noisy).T) + 0.005


def test_evaluation_mode_and_batches_do_not_matter():
    torch.manual_seed(0)
    model = ACMR(Projector(10, 6, dropout=0.5, input_dropout=0.5), Projector(7, 6, dropout=0.5), 4, dim=6)
    image, text, _ = batch(30)
    assert torch.equal(model.embed_image(image), model.embed_image(image))
    torch.testing.assert_close(model.embed_text(text, batch_size=7), model.embed_text(text))
    assert model.image_projector.training


def test_saved_and_loaded(tmp_path):
    model = make(label_weight=0.5, label_hidden=(5,), modality_hidden=(8, 8))
    image, _, _ = batch(30)
    model.image_projector.fit(image)
    model.save(tmp_path / "acmr.pt")
    again = ACMR.load(tmp_path / "acmr.pt")
    assert torch.equal(again.embed_image(image), model.embed_image(image))
    assert again.options == model.options
    own = ACMR(nn.Linear(10, 6), Projector(7, 6), 4, dim=6)
    own.save(tmp_path / "own.pt")
    with pytest.raises(ValueError, match="image_projector must be given: the file holds a model with a projector of"):
        ACMR.load(tmp_path / "own.pt")
    loaded = ACMR.load(tmp_path / "own.pt", image_projector=nn.Linear(10, 6))
    assert torch.equal(loaded.embed_image(image), own.embed_image(image))


def test_pictures():
    torch.manual_seed(0)
    model = ACMR(SmallCNN(6, side=16, width=2), Projector(7, 6), 3, dim=6)
    pictures, text = torch.randint(0, 256, (9, 1, 16, 16), dtype=torch.uint8), torch.randn(9, 7)
    losses = model.losses(pictures, text, torch.arange(9) % 3)
    assert losses.embedding.isfinite()
    assert retrieval.evaluate(model.embed_image(pictures), model.embed_text(text))["gallery"] == 9


def test_chi2_map_is_scikit_learn_s():
    x = torch.rand(20, 5, dtype=torch.float64)
    x[0, 0] = 0
    got = additive_chi2(x)
    want = AdditiveChi2Sampler(sample_steps=3, sample_interval=0.5).fit_transform(x.numpy())
    np.testing.assert_allclose(got.numpy(), want, atol=1e-12)


def test_kernel_features_have_the_kernel_as_inner_products():
    torch.manual_seed(0)
    x = torch.distributions.Dirichlet(torch.full((6,), 0.7)).sample((50,))
    layer = Projector(6, 3, features="kernel", hidden=(), landmarks=50).double()
    layer.fit(x.double())
    seen = []
    layer.networks[0].register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    layer(x.double())
    got, maps = seen[0] @ seen[0].T / 100, additive_chi2(x.double())
    torch.testing.assert_close(got, torch.exp(-2 * torch.cdist(maps, maps).square()), atol=1e-4, rtol=0)
    np.testing.assert_allclose(got, chi2_kernel(x.double().numpy(), gamma=2), atol=0.05)
    with pytest.raises(ValueError, match="landmarks must be at least 1 with kernel features, got 0"):
        Projector(6, 3, features="kernel")
    with pytest.raises(ValueError, match="x must have at least as many rows as landmarks, 50, got 9"):
        layer.fit(x[:9])


@pytest.mark.parametrize("features", ["standard", "sqrt", "chi2"])
def test_fitted_features_have_mean_zero_and_variance_one(features):
    x = torch.rand(200, 5) ** 3
    x[:, 2] = 0.25  # a constant stays finite
    layer = Projector(5, 3, features=features, hidden=())
    layer.fit(x)
    seen = []
    layer.networks[0].register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    layer(x)
    live = seen[0][:, [i for i in range(seen[0].shape[1]) if i % 5 != 2]]
    torch.testing.assert_close(live.mean(0), torch.zeros(live.shape[1]), atol=1e-4, rtol=0)
    torch.testing.assert_close(live.std(0), torch.ones(live.shape[1]), atol=1e-3, rtol=0)
    assert seen[0][:, 2].abs().max() < 1e-4


def test_a_step_uses_the_package_s_loss(monkeypatch):
    calls = []
    monkeypatch.setattr(
        "xmodal_ops.models.acmr.structure_preserving_loss",
        lambda *args, **options: calls.append(options) or structure_preserving_loss(*args, **options),
    )
    make(margin=0.7, gamma=0.2).losses(*batch())
    assert calls == [{"margin": 0.7, "gamma": 0.2, "reduction": "mean"}]


def test_modality_loss_at_chance():
    model = make()
    for p in model.modality_classifier.parameters():
        nn.init.zeros_(p)
    image, text, labels = batch()
    assert model.losses(image, text, labels).adversary.item() == pytest.approx(2 * math.log(2))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"classes": 1}, "classes must be at least 2, got 1"),
        ({"members": 4}, "members must divide dim, 6, got 4"),
        ({"alpha": -1.0}, "alpha must be at least 0, got -1.0"),
        ({"label_weight": 1.5}, "label_weight must lie in 0..1, got 1.5"),
        ({"temperature": 0.0}, "temperature must be positive, got 0.0"),
        ({"reduction": "all"}, "reduction must be one of 'mean', 'sum', got 'all'"),
        (
            {"label_similarity": "cosine"},
            "label_similarity must be one of 'probability', 'bhattacharyya', got 'cosine'",
        ),
        ({"invariance": "none"}, "invariance must be one of 'structure', 'batch_hinge', got 'none'"),
    ],
)
def test_constructor_errors(options, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        make(**options)


def test_label_errors():
    image, text, labels = batch()
    for model, wrong, message in (
        (make(), None, "labels must be int64 (40,): ACMR learns from labels, got none"),
        (make(), labels[:-1], "labels must be int64 (40,), got int64 (39,)"),
        (make(), F.one_hot(labels, 4).bool(), "labels must be int64 (40,), got bool (40, 4)"),
        (make(multi_label=True), labels, "labels must be bool (40, 4), got int64 (40,)"),
    ):
        with pytest.raises(ValueError, match=re.escape(message)):
            model.losses(image, text, wrong)
    model = ACMR(Projector(10, 5), Projector(7, 6), 4, dim=6)
    with pytest.raises(ValueError, match=r"the projectors must give \(40, 6\), got \(40, 5\) and \(40, 6\)"):
        model.losses(image, text, labels)
