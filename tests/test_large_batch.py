"""The two-pass step equals one pass over the whole batch in value, gradients, buffers and random state."""

import copy
import gc
import weakref

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from tests.helpers import LiveBytes
from xmodal_ops import large_batch_loss, structure_preserving_loss, trace_norm_loss, triplet_margin_loss
from xmodal_ops.nn import TraceNormLoss


def branch(inputs, outputs, *middle, hidden=24):
    return nn.Sequential(nn.Linear(inputs, hidden), *middle, nn.ReLU(), nn.Linear(hidden, outputs))


def networks(*middle, dtype=torch.float64):
    torch.manual_seed(1)
    return nn.ModuleList([branch(9, 5, *middle), branch(6, 4, *middle)]).to(dtype)


def pairs(rows=203, dtype=torch.float64):
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(rows, 9, generator=generator, dtype=torch.float64)
    return x.to(dtype), (x[:, :6] + 0.3 * torch.randn(rows, 6, generator=generator, dtype=torch.float64)).to(dtype)


def gradients(module):
    return torch.cat([p.grad.flatten().double() for p in module.parameters()])


def correlation(x, y):
    """A loss that cannot be computed chunk by chunk."""
    return (x.mT @ y[:, :1]).square().sum() / len(x) + (x.std(0).sum() * y.mean()).tanh()


def contrastive(x, y):
    return nn.functional.cross_entropy(x[:, :4] @ y.mT, torch.arange(len(x)))


def labels(x):
    return torch.arange(len(x)) % 7


LOSSES = {
    "structure preserving": lambda x, y: structure_preserving_loss(x[:, :4], y, labels(x)),
    "all triplets": lambda x, y: triplet_margin_loss(x[:, :4], labels(x), y),
    "batch hard": lambda x, y: triplet_margin_loss(x[:, :4], labels(x), y, triplets="batch_hard"),
    "trace norm": TraceNormLoss(1e-2),
    "top-k": TraceNormLoss((1e-2, 1e-3), top_k=2),
    "trace norm, kept": lambda x, y: trace_norm_loss(x, y, ridge=1e-2),
    "correlation": correlation,
    "contrastive": contrastive,
}


@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES.keys())
@pytest.mark.parametrize("chunk_size", [1, 50, 203, 1000])
def test_equals_one_pass(loss, chunk_size):
    whole, chunked, (x, y) = networks(), networks(), pairs()
    expected = loss(whole[0](x), whole[1](y))
    expected.backward()
    value = large_batch_loss(list(chunked), (x, y), loss, chunk_size=chunk_size)
    value.backward()
    torch.testing.assert_close(value, expected, rtol=1e-11, atol=1e-12)
    torch.testing.assert_close(gradients(chunked), gradients(whole), rtol=1e-9, atol=1e-12)


def test_fewer_rows_than_outputs_in_single_precision():
    torch.manual_seed(0)
    x, y = torch.randn(40, 30), torch.randn(40, 30)
    make = lambda: nn.ModuleList([nn.Linear(30, 64), nn.Linear(30, 64)])  # noqa: E731
    torch.manual_seed(0)
    whole = make()
    chunked, exact = copy.deepcopy(whole), copy.deepcopy(whole).double()
    trace_norm_loss(exact[0](x.double()), exact[1](y.double())).backward()
    large_batch_loss(list(chunked), (x, y), TraceNormLoss(), chunk_size=16).backward()
    truth = gradients(exact)
    assert (gradients(chunked) - truth).norm() < 1e-4 * truth.norm()


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_dropout_drops_the_same_units_in_both_passes(device):
    """Both passes draw the same masks, and `backward` leaves the random state as it found it."""

    class Recorded(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear, self.dropout, self.outputs = nn.Linear(9, 5).double(), nn.Dropout(0.5), []

        def forward(self, x):
            out = self.dropout(self.linear(x))
            self.outputs.append(out.detach())
            return out

    torch.manual_seed(3)
    generator = torch.default_generator if device == "cpu" else torch.cuda.default_generators[0]
    net, (x, _) = Recorded().to(device), pairs(100)
    value = large_batch_loss(net, (x,), lambda out: out.square().sum(), chunk_size=32)
    x = x.to(device)
    after = generator.get_state()
    drawn = torch.rand(3, device=device)  # what others draw between the passes
    value.backward()
    first, second = torch.cat(net.outputs[:4]), torch.cat(net.outputs[4:])
    assert torch.equal(first, second)
    assert 0.3 < (first == 0).double().mean() < 0.7
    # d/dW Σ out² = 2 Σ mask·out·x
    torch.testing.assert_close(net.linear.weight.grad, 2 * (first * 2).mT @ x)
    following = torch.rand(1, device=device)
    generator.set_state(after)
    assert torch.equal(drawn, torch.rand(3, device=device))
    assert torch.equal(following, torch.rand(1, device=device)), "backward leaves the random state as it found it"


def test_batch_norm_updates_its_statistics_once_and_normalises_by_chunk():
    norm = nn.BatchNorm1d(9, momentum=0.3)
    reference = copy.deepcopy(norm)
    x, _ = pairs(96, torch.float32)
    expected = sum(reference(chunk).pow(3).sum() for chunk in x.split(32))
    expected.backward()
    value = large_batch_loss(norm, (x,), lambda out: out.pow(3).sum(), chunk_size=32)
    value.backward()
    for name, buffer in reference.named_buffers():
        assert torch.equal(norm.get_buffer(name), buffer), name
    assert norm.num_batches_tracked == 3
    torch.testing.assert_close(norm.weight.grad, reference.weight.grad, rtol=1e-4, atol=1e-4)


def test_buffers_that_the_output_depends_on_are_replayed():
    """Spectral norm runs a step of its power iteration, and so changes its weight, in every training call."""
    torch.manual_seed(0)
    net = nn.utils.parametrizations.spectral_norm(nn.Linear(9, 5)).double()
    reference, (x, _) = copy.deepcopy(net), pairs(90)
    expected = sum(reference(chunk).square().sum() for chunk in x.split(30))
    expected.backward()
    large_batch_loss(net, (x,), lambda out: out.square().sum(), chunk_size=30).backward()
    torch.testing.assert_close(gradients(net), gradients(reference))
    for a, b in zip(net.buffers(), reference.buffers()):
        torch.testing.assert_close(a, b)


def test_gradients_accumulate_and_scale():
    whole, chunked, (x, y) = networks(), networks(), pairs()
    for rows in (slice(0, 100), slice(100, 203)):
        (contrastive(whole[0](x[rows]), whole[1](y[rows])) * 0.5).backward()
        (large_batch_loss(list(chunked), (x[rows], y[rows]), contrastive, chunk_size=30) * 0.5).backward()
    torch.testing.assert_close(gradients(chunked), gradients(whole), rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("loss", [TraceNormLoss(), contrastive], ids=["trace norm", "contrastive"])
def test_autocast_is_the_same_in_both_passes_even_if_backward_is_called_inside(loss):
    whole, chunked, (x, y) = networks(dtype=torch.float32), networks(dtype=torch.float32), pairs(dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        expected = loss(whole[0](x), whole[1](y))
        value = large_batch_loss(list(chunked), (x, y), loss, chunk_size=64)
        value.backward()
    expected.backward()
    torch.testing.assert_close(value, expected, rtol=1e-2, atol=1e-3)
    reference = gradients(whole)
    assert (gradients(chunked) - reference).norm() < 3e-2 * reference.norm()


def test_a_scaled_loss_does_not_vanish_in_half_outputs():
    """As with GradScaler: gradients of a mean over many rows are too small for fp16 before scaling."""
    net = nn.Linear(4, 3).half()
    x = torch.randn(64, 4).half()
    scale = 2.0**20
    (large_batch_loss(net, (x,), lambda out: out.mean() * 1e-6, chunk_size=20) * scale).backward()
    expected = scale * 1e-6 / 3  # ∂/∂bias of the mean of 3 outputs
    torch.testing.assert_close(net.bias.grad.float(), torch.full((3,), expected), rtol=1e-2, atol=0)


def test_a_step_with_a_gradient_scaler_is_the_step_without():
    plain, scaled, (x, y) = networks(dtype=torch.float32), networks(dtype=torch.float32), pairs(dtype=torch.float32)
    large_batch_loss(list(plain), (x, y), TraceNormLoss(), chunk_size=64).backward()
    torch.optim.SGD(plain.parameters(), lr=0.1).step()
    scaler, optimizer = torch.amp.GradScaler("cpu"), torch.optim.SGD(scaled.parameters(), lr=0.1)
    scaler.scale(large_batch_loss(list(scaled), (x, y), TraceNormLoss(), chunk_size=64)).backward()
    scaler.step(optimizer)
    for a, b in zip(plain.parameters(), scaled.parameters()):
        torch.testing.assert_close(a, b)


def test_parameters_of_the_loss_and_frozen_networks():
    class Weighted(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.tensor(1.5, dtype=torch.float64))

        def forward(self, x, y):
            return self.weight * contrastive(x, y)

    nets, loss, (x, y) = networks(), Weighted(), pairs()
    nets[1].requires_grad_(False)
    value = large_batch_loss(list(nets), (x, y), loss, chunk_size=64)
    (2 * value).backward()
    torch.testing.assert_close(loss.weight.grad, 2 * value.detach() / 1.5)
    assert nets[1][0].weight.grad is None and nets[0][0].weight.grad.abs().sum() > 0
    with torch.no_grad():
        silent = large_batch_loss(list(nets), (x, y), loss, chunk_size=64)
    assert not silent.requires_grad
    torch.testing.assert_close(silent, value.detach())


class Checkpointed(nn.Module):
    """A network with a checkpoint, behind a stem that may be frozen, as for LoRA."""

    def __init__(self, reentrant=True, frozen=True, tied=False, inputs=9):
        super().__init__()
        torch.manual_seed(4)
        self.stem, self.head = nn.Linear(inputs, 6).double(), nn.Linear(6, 5).double()
        self.block = nn.Sequential(nn.Linear(6, 6), nn.Tanh(), nn.Dropout(0.3), nn.BatchNorm1d(6)).double()
        self.stem.requires_grad_(not frozen)
        self.reentrant, self.tied = reentrant, tied

    def forward(self, x):
        x = self.stem(x)
        x = x if x.requires_grad else x.requires_grad_()
        x = checkpoint(self.block, x, use_reentrant=self.reentrant)
        return self.head(self.block[0](x) if self.tied else x)


@pytest.mark.parametrize(
    ("reentrant", "frozen", "tied"),
    [(True, True, False), (True, True, True), (True, False, False), (False, True, False)],
)
def test_checkpoints_hide_no_parameters(reentrant, frozen, tied):
    net, plain, x = Checkpointed(reentrant, frozen, tied), Checkpointed(False, frozen, tied), pairs(40)[0]
    loss = lambda u: u.pow(3).mean()  # noqa: E731
    torch.manual_seed(5)
    large_batch_loss(plain, (x,), loss, chunk_size=20).backward()
    seen = []
    net.block[0].weight.register_hook(seen.append)
    torch.manual_seed(5)
    large_batch_loss(net, (x,), loss, chunk_size=20).backward()
    for (name, p), q in zip(net.named_parameters(), plain.parameters()):
        assert (p.grad is None) == (q.grad is None) == name.startswith("stem") * frozen, name
        if p.grad is not None:
            torch.testing.assert_close(p.grad, q.grad)
    for a, b in zip(net.buffers(), plain.buffers()):
        torch.testing.assert_close(a, b)
    assert len(seen) == 1, "hooks see the gradient once"
    assert all(isinstance(p, nn.Parameter) and p.is_leaf for p in net.parameters())


def test_reentrant_checkpoints_inside_ddp_are_refused(tmp_path):
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        net = nn.parallel.DistributedDataParallel(Checkpointed())
        with pytest.raises(ValueError, match="networks must not use a reentrant checkpoint inside DistributedDataPar"):
            large_batch_loss(net, (pairs(20)[0],), lambda u: u.sum(), chunk_size=7).backward()
    finally:
        torch.distributed.destroy_process_group()


def test_a_hook_that_changes_a_gradient_runs_once():
    net, x = nn.Linear(9, 5).double(), pairs(30)[0]
    loss = lambda u: u.square().sum()  # noqa: E731
    expected = torch.autograd.grad(loss(net(x)), net.weight)[0].clamp(max=1.0) + 1
    net.weight.register_hook(lambda g: g.clamp(max=1.0) + 1)
    large_batch_loss(net, (x,), loss, chunk_size=7).backward()
    torch.testing.assert_close(net.weight.grad, expected)


def test_recurrent_networks_keep_their_flat_weights_behind_a_checkpoint():
    class Recurrent(nn.Module):
        def __init__(self, reentrant):
            super().__init__()
            torch.manual_seed(0)
            self.lstm, self.reentrant = nn.LSTM(9, 4, batch_first=True).double(), reentrant

        def forward(self, x):
            x = x[:, None].clone().requires_grad_()
            return checkpoint(lambda v: self.lstm(v)[0][:, 0], x, use_reentrant=self.reentrant)

    grads = []
    for reentrant in (False, True):
        net = Recurrent(reentrant)
        large_batch_loss(net, (pairs(30)[0],), lambda u: u.square().sum(), chunk_size=7).backward()
        grads.append(gradients(net))
    torch.testing.assert_close(*grads)


def test_a_function_that_runs_autograd_itself_hides_no_parameters():
    inner = nn.Linear(9, 5).double()

    class Reversible(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.save_for_backward(x)
            return inner(x)

        @staticmethod
        def backward(ctx, grad):
            with torch.enable_grad():
                x = ctx.saved_tensors[0].detach().requires_grad_()
                inner(x).backward(grad)
            return x.grad

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = inner

        def forward(self, x):
            return Reversible.apply(x.clone().requires_grad_())

    x, _ = pairs(30)
    loss = lambda u: u.square().sum()  # noqa: E731
    (expected,) = torch.autograd.grad(loss(inner(x)), inner.weight)
    (large_batch_loss(Net(), (x,), loss, chunk_size=7) * 2).backward()
    torch.testing.assert_close(inner.weight.grad, 2 * expected)


class Hiding(nn.Module):
    """A network that uses a parameter it does not hold."""

    def __init__(self, hidden, own=True):
        super().__init__()
        self.linear, self.hidden = nn.Linear(9, 5).double().requires_grad_(own), [hidden]

    def forward(self, x):
        hidden = self.hidden[0]
        return hidden(self.linear(x)) if isinstance(hidden, nn.Module) else self.linear(x) * hidden


@pytest.mark.parametrize("own", [True, False], ids=["with others", "all hidden"])
@pytest.mark.parametrize(
    "hidden",
    [
        lambda: nn.Linear(5, 5).double(),
        lambda: nn.Parameter(torch.ones(5, dtype=torch.float64)),
        lambda: torch.ones(5, dtype=torch.float64, requires_grad=True),
    ],
    ids=["module", "parameter", "tensor"],
)
def test_a_hidden_parameter_of_a_network_is_refused(hidden, own):
    with pytest.raises(ValueError, match=r"networks must hold all parameters .* of shape .* would get no"):
        large_batch_loss(Hiding(hidden(), own), (pairs(20)[0],), lambda u: u.sum(), chunk_size=7).backward()


@pytest.mark.parametrize("leaf", [nn.Parameter(torch.ones(())), torch.ones((), requires_grad=True)])
def test_a_hidden_parameter_of_the_loss_is_refused(leaf):
    with pytest.raises(ValueError, match=r"loss must hold all parameters .* of shape \(\), which would get no"):
        large_batch_loss(list(networks()), pairs(20), lambda u, v: contrastive(u * leaf, v), chunk_size=7)


def test_a_leaf_made_in_passing_is_harmless():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(9, 5).double()

        def forward(self, x):
            return self.linear(x.clone().requires_grad_()).relu() * torch.ones(5, requires_grad=True)

    net = Net()
    large_batch_loss(net, (pairs(20)[0],), lambda u: u.sum(), chunk_size=7).backward()
    assert net.linear.weight.grad is not None


def test_networks_that_are_no_modules_are_refused():
    with pytest.raises(TypeError, match="networks must be modules, got function: its parameters cannot be found"):
        large_batch_loss([lambda x: x], (pairs(20)[0],), lambda u: u.sum(), chunk_size=7)


@pytest.mark.parametrize(
    "loss", [TraceNormLoss(), lambda u, v: contrastive(u.double(), v.double())], ids=["trace norm", "contrastive"]
)
def test_outputs_may_have_different_floating_types(loss):
    net, (x, y) = networks(dtype=torch.float32), pairs(60, torch.float32)
    whole = copy.deepcopy(net)
    loss(whole[0](x), whole[1](y)).backward()
    large_batch_loss([net[0], nn.Sequential(net[1], Double())], (x, y), loss, chunk_size=16).backward()
    torch.testing.assert_close(gradients(net), gradients(whole), rtol=1e-3, atol=1e-5)


class Double(nn.Module):
    def forward(self, x):
        return x.double()


@pytest.mark.parametrize(
    "read",
    [lambda a: a[::-1], lambda a: a.astype(">f8")[::-1], lambda a: a[::-1].tolist()],
    ids=["strides", "bytes", "list"],
)
def test_views_are_whatever_numpy_reads(read):
    net, plain, (x, y) = networks(), networks(), pairs(30)
    large_batch_loss(list(plain), (x.flip(0), y.flip(0)), TraceNormLoss(), chunk_size=7).backward()
    large_batch_loss(list(net), (read(x.numpy()), read(y.numpy())), TraceNormLoss(), chunk_size=7).backward()
    assert torch.equal(gradients(net), gradients(plain))


def test_views_that_are_memory_maps(tmp_path):
    x, y = pairs()
    views = []
    for name, view in (("x", x), ("y", y)):
        np.save(tmp_path / f"{name}.npy", view.numpy())
        views.append(np.load(tmp_path / f"{name}.npy", mmap_mode="c"))
    whole, chunked = networks(), networks()
    large_batch_loss(list(whole), (x, y), LOSSES["trace norm"], chunk_size=50).backward()
    large_batch_loss(list(chunked), views, LOSSES["trace norm"], chunk_size=50).backward()
    assert torch.equal(gradients(whole), gradients(chunked))


def test_memory_is_that_of_one_chunk():
    """The peak for 64 chunks is that for one; a loss that needs all outputs adds those, not the hidden activations."""

    def peak(rows, loss):
        torch.manual_seed(0)
        nets = [branch(8, 4, hidden=256), branch(8, 4, hidden=256)]
        x, y = torch.randn(rows, 8), torch.randn(rows, 8)
        with LiveBytes(x, y, *nets[0].parameters(), *nets[1].parameters()) as live:
            large_batch_loss(nets, (x, y), loss, chunk_size=512).backward()
        return live.peak

    one, many = peak(512, TraceNormLoss()), peak(64 * 512, TraceNormLoss())
    assert one > 512 * 256 * 4, "activations are counted"
    assert many < 1.3 * one
    kept = peak(64 * 512, lambda x, y: (x * y).mean())
    outputs = 64 * 512 * (4 + 4) * 4
    assert kept < 1.3 * one + 4 * outputs < 64 * one / 4


@pytest.mark.parametrize("loss", [TraceNormLoss(), contrastive], ids=["trace norm", "contrastive"])
def test_nothing_outlives_the_loss(loss):
    """A reference cycle would keep the networks, and the process group of DistributedDataParallel, until collected."""
    nets = networks()
    alive = weakref.ref(nets[0])
    gc.disable()
    try:
        value = large_batch_loss(list(nets), pairs(), loss, chunk_size=64)
        value.backward()
        del value, nets
        assert alive() is None
    finally:
        gc.enable()


def test_a_second_run_that_differs_is_refused():
    class OwnRandom(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear, self.generator = nn.Linear(9, 5).double(), torch.Generator().manual_seed(0)

        def forward(self, x):
            return self.linear(x) * torch.bernoulli(torch.full((len(x), 5), 0.5), generator=self.generator)

    x, _ = pairs()
    value = large_batch_loss(OwnRandom(), (x,), lambda out: out.square().mean(), chunk_size=64)
    with pytest.raises(RuntimeError, match="the second run of the networks gave other outputs than the first"):
        value.backward()
    net = nn.Linear(9, 5).double()
    value = large_batch_loss(net, (x,), lambda out: out.square().mean(), chunk_size=64)
    with torch.no_grad():
        net.weight.mul_(2)
    with pytest.raises(RuntimeError, match="other outputs than the first"):
        value.backward()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"batch": ()}, "batch must hold at least one view, got none"),
        ({"batch": (torch.zeros(5, 9), torch.zeros(4, 6))}, "views of equal length, got 5 and 4 rows"),
        ({"batch": (torch.zeros(0, 9), torch.zeros(0, 6))}, "at least one row"),
        ({"batch": (torch.zeros(5, 9),)}, "one module per view, 1, got 2"),
        ({"batch": (torch.zeros(5, 9, requires_grad=True), torch.zeros(5, 6))}, "must not require gradients"),
        ({"chunk_size": 0}, "chunk_size must be at least 1, got 0"),
        ({"chunk_size": 2.5}, "chunk_size must be an int, got float"),
        ({"loss": lambda x, y: x}, "loss must return a scalar, got shape"),
        ({"networks": nn.Flatten(0)}, "networks must hold|forward|positional"),
        ({"networks": [nn.Flatten(0), nn.Flatten(0)]}, r"networks must return one row per input row \(4\), got shape"),
    ],
)
def test_bad_arguments(change, message):
    given = {"networks": list(networks()), "batch": pairs(8), "loss": contrastive, "chunk_size": 4}
    given |= change
    with pytest.raises((ValueError, TypeError), match=message):
        large_batch_loss(given["networks"], given["batch"], given["loss"], chunk_size=given["chunk_size"])


def test_lightning_training_with_a_chunk_size(tmp_path):
    """One chunk reproduces the run without chunks; two, with batch norm per chunk, train too, under autocast."""
    from xmodal_ops.data import PairData, PairSet
    from xmodal_ops.training import DCCAConfig, train_dcca

    generator = torch.Generator().manual_seed(0)
    shared = torch.randn(260, 4, generator=generator)
    mix = torch.randn(4, 30, generator=generator)
    image = (shared @ mix)[:, :16].reshape(260, 1, 4, 4).repeat_interleave(4, 2).repeat_interleave(4, 3).sigmoid()
    pairs = PairSet(image, (shared @ mix)[:, 16:])
    data = PairData(pairs.subset(range(180)), pairs.subset(range(180, 220)), pairs.subset(range(220, 260)), "shared")

    def losses(name, **options):
        config = DCCAConfig(batch_size=90, output_dim=3, hidden=(8,), dropout=0.0, augment=False, **options)
        return [row["loss"] for row in train_dcca(data, config, tmp_path / name, device="cpu").history]

    whole, one_chunk = losses("whole", epochs=1), losses("one chunk", epochs=1, chunk_size=90)
    assert one_chunk == pytest.approx(whole, rel=1e-3)
    first, last = losses("two chunks", epochs=2, chunk_size=45, precision="bf16-mixed")
    assert last < first < 0
