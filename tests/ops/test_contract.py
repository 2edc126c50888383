"""What every public function promises: one table of calls, and each promise tested on all of them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Replicate, distribute_tensor

import xmodal_ops as xo
from tests.no_fp64 import DEVICE, DeviceTensor, Emulation, to_device

L = torch.arange(24) % 4


def on(x: Tensor) -> Tensor:
    """The labels on the device of x."""
    return to_device(L) if x.device == DEVICE else L.to(x.device)


# A scalar of two views (24, 5) each; the losses of one set take the first.
TWO_VIEWS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "trace_norm_loss": xo.trace_norm_loss,
    "top_k": lambda x, y: xo.trace_norm_loss(x, y, top_k=2),
    "canonical_correlations": lambda x, y: xo.canonical_correlations(x, y).square().sum(),
    "covariance": lambda x, y: xo.covariance(x, y).xy.square().sum(),
    "structure_preserving_loss": lambda x, y: xo.structure_preserving_loss(x, y, on(x)),
    "triplet_margin_loss": lambda x, y: xo.triplet_margin_loss(x, on(x), y, margin=1.0),
    "per anchor": lambda x, y: xo.triplet_margin_loss(x, on(x), y, on(x), margin=1.0, reduction="none").sum(),
    "batch_hard": lambda x, y: xo.triplet_margin_loss(x, on(x), y, on(x), margin=1.0, triplets="batch_hard"),
    "mine_triplets": lambda x, y: xo.mine_triplets(x, on(x), y).d_an.square().sum(),
    "max_violation_loss": xo.max_violation_loss,
}
ONE_VIEW: dict[str, Callable[[Tensor], Tensor]] = {
    "whiten": lambda x: xo.whiten(x).pow(3).sum(),
    "zca": lambda x: xo.whiten(x, method="zca").pow(3).sum(),
    "covariance of one view": lambda x: xo.covariance(x).xx.square().sum(),
    "triplets of one set": lambda x: xo.triplet_margin_loss(x, on(x), margin=1.0),
    "mining in one set": lambda x: xo.mine_triplets(x, on(x)).d_ap.sum(),
    **{f"{name} of one view twice": lambda x, f=f: f(x, x) for name, f in TWO_VIEWS.items()},
}
two_views = pytest.mark.parametrize("call", TWO_VIEWS.values(), ids=TWO_VIEWS)
one_view = pytest.mark.parametrize("call", ONE_VIEW.values(), ids=ONE_VIEW)


def views(dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    x = torch.randn(24, 5, dtype=torch.float64)
    return x.to(dtype), (x + torch.randn(24, 5, dtype=torch.float64)).to(dtype)


def gradients(call: Callable[..., Tensor], *inputs: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
    leaves = [x.detach().clone().requires_grad_() for x in inputs]
    value = call(*leaves)
    return value.detach(), torch.autograd.grad(value, leaves)


@one_view
def test_a_tensor_given_twice_compiles_in_one_graph(call: Callable[[Tensor], Tensor]) -> None:
    torch._dynamo.reset()
    x = views()[0]
    compiled = torch.compile(lambda z: call(z * 2), fullgraph=True, backend="aot_eager")
    for found, expected in zip(gradients(compiled, x), gradients(lambda z: call(z * 2), x)):
        torch.testing.assert_close(found, expected)


@two_views
def test_a_second_derivative_is_right_or_refused(call: Callable[[Tensor, Tensor], Tensor]) -> None:
    """A gradient penalty counts, as numerical differences do, or the call raises; it never counts as zero."""
    x, y = (v.requires_grad_() for v in views(torch.float64))
    value = call(x, y)
    gx, gy = torch.autograd.grad(value, (x, y), create_graph=True)
    assert [g.tolist() for g in gradients(call, x, y)[1]] == [gx.tolist(), gy.tolist()]
    penalty = value + gx.square().sum() + gy.square().sum()
    if call is xo.max_violation_loss:
        assert torch.autograd.gradgradcheck(call, (x, y))
    else:
        with pytest.raises(RuntimeError, match=r"^\w+ is differentiable once: .*\(create_graph=True\)$"):
            torch.autograd.grad(penalty, x)


@one_view
def test_a_second_derivative_of_one_view_is_refused(call: Callable[[Tensor], Tensor]) -> None:
    if call is ONE_VIEW["max_violation_loss of one view twice"]:
        pytest.skip("twice differentiable")
    weight = torch.eye(5, requires_grad=True)
    x = views()[0] @ weight
    (g,) = torch.autograd.grad(call(x), x, create_graph=True)
    with pytest.raises(RuntimeError, match="is differentiable once"):
        torch.autograd.grad((g * torch.randn_like(g)).sum(), weight)


def test_a_second_derivative_of_a_large_batch_is_refused() -> None:
    networks = nn.Linear(5, 3), nn.Linear(5, 3)
    for loss in (xo.nn.TraceNormLoss(), lambda a, b: (a * b).sum()):
        value = xo.large_batch_loss(networks, views(), loss, chunk_size=12)
        (g,) = torch.autograd.grad(value, networks[0].weight, create_graph=True)
        with pytest.raises(RuntimeError, match="large_batch_loss is differentiable once"):
            g.square().sum().backward()


DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]


@two_views
@pytest.mark.parametrize("dtypes", [(a, b) for a in DTYPES for b in DTYPES if a != b], ids=str)
def test_unequal_dtypes_are_promoted(
    call: Callable[[Tensor, Tensor], Tensor], dtypes: tuple[torch.dtype, torch.dtype]
) -> None:
    """The value is that of the wider dtype, each gradient has the dtype of its view; autocast changes neither."""
    x, y = (v.to(dtype) for v, dtype in zip(views(torch.float64), dtypes))
    wide = torch.promote_types(*dtypes)
    expected, (gx, gy) = gradients(call, x.to(wide), y.to(wide))
    for autocast in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            value, found = gradients(call, x, y)
        assert torch.equal(value, expected)
        assert torch.equal(found[0], gx.to(x.dtype)) and torch.equal(found[1], gy.to(y.dtype))


class Float(nn.Module):
    """What layers that autocast keeps in float32 return."""

    def forward(self, x: Tensor) -> Tensor:
        return x.float()


def test_streamed_losses_take_unequal_dtypes() -> None:
    x, y = views()
    with torch.autocast("cpu", torch.bfloat16):
        for loss in (xo.nn.TraceNormLoss(), xo.nn.MaxViolationLoss()):
            networks = nn.Linear(5, 3), nn.Sequential(nn.Linear(5, 3), nn.Softmax(1), Float())
            xo.large_batch_loss(networks, (x, y), loss, chunk_size=12).backward()
            assert all(p.grad is not None for n in networks for p in n.parameters())


@one_view
def test_backward_under_autocast_has_full_precision(call: Callable[[Tensor], Tensor]) -> None:
    """Also on the portable path, whose products autocast would round to bfloat16."""
    x = views()[0] * torch.logspace(0, 2, 5)
    _, (expected,) = gradients(call, x)
    with torch.autocast("cpu", torch.bfloat16):
        _, (found,) = gradients(call, x)
    assert torch.equal(found, expected)


@two_views
def test_meta_tensors_give_meta_results(call: Callable[[Tensor, Tensor], Tensor]) -> None:
    x, y = (v.to("meta") for v in views())
    value, grads = gradients(call, x, y)
    assert value.is_meta and all(g.is_meta and g.shape == x.shape for g in grads)


@one_view
def test_meta_tensors_of_one_view_give_meta_results(call: Callable[[Tensor], Tensor]) -> None:
    value, (grad,) = gradients(call, views()[0].to("meta"))
    assert value.is_meta and grad.is_meta


@pytest.mark.parametrize("name", [*TWO_VIEWS, *ONE_VIEW])
def test_a_device_without_fp64_gets_no_fp64(name: str) -> None:
    call = {**TWO_VIEWS, **ONE_VIEW}[name]
    inputs = views()[: 2 if name in TWO_VIEWS else 1]
    expected, expected_gradients = gradients(call, *inputs)
    with Emulation():  # raises if a tensor on the device has fp64
        leaves = [to_device(x).requires_grad_() for x in inputs]
        value = call(*leaves)
        found = torch.autograd.grad(value, leaves)
    for a, b in zip((value, *found), (expected, *expected_gradients)):
        assert isinstance(a, DeviceTensor)
        torch.testing.assert_close(a.host, b, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("triplets", ["all", "batch_hard"])
def test_statistics_on_a_device_without_fp64_are_the_same(triplets: str) -> None:
    x, y = views()
    expected = xo.triplet_margin_loss(x, L, y, triplets=triplets, return_stats=True)[1]
    structure = xo.structure_preserving_loss(x, y, L, return_stats=True)[1]
    violation = xo.max_violation_loss(x, y, return_stats=True)[1]
    with Emulation():
        a, b, labels = to_device(x), to_device(y), to_device(L)
        found = xo.triplet_margin_loss(a, labels, b, triplets=triplets, return_stats=True)[1]
        for stats, others in (
            (found, expected),
            (xo.structure_preserving_loss(a, b, labels, return_stats=True)[1], structure),
            (xo.max_violation_loss(a, b, return_stats=True)[1], violation),
        ):
            for t, other in zip(stats, others):
                assert float(t.host) == pytest.approx(float(other), rel=1e-5)
        xo.mine_triplets(a, labels, b, negative="random")
        assert torch.equal(xo.pack_labels(to_device(L[:, None] == L)).host, xo.pack_labels(L[:, None] == L))


SPECIAL: dict[str, tuple[Callable[[Tensor], Tensor], str]] = {
    "sparse": (Tensor.to_sparse, "x must be a dense tensor, got a sparse_coo one"),
    "csr": (Tensor.to_sparse_csr, "x must be a dense tensor, got a sparse_csr one"),
    "nested": (lambda x: torch.nested.nested_tensor([x, x]), "x must be a dense tensor, got a nested one"),
    "jagged": (lambda x: torch.nested.nested_tensor([x, x], layout=torch.jagged), "x must be a dense tensor, got a n"),
    "quantized": (lambda x: torch.quantize_per_tensor(x, 0.1, 0, torch.qint8), "x must not be quantized, got qint8"),
    "masked": (lambda x: torch.masked.masked_tensor(x, x > 0), "x must be a plain tensor, got a MaskedTensor"),
    "complex": (lambda x: torch.complex(x, x), "x must be float64, float32, bfloat16 or float16, got complex64"),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("make", "message"), SPECIAL.values(), ids=SPECIAL)
@pytest.mark.parametrize("position", [0, 1])
def test_tensors_of_other_kinds_are_refused_in_one_line(
    make: Callable[[Tensor], Tensor], message: str, position: int
) -> None:
    calls = [xo.trace_norm_loss, xo.canonical_correlations, xo.covariance, xo.max_violation_loss]
    calls.append(lambda x, y: xo.structure_preserving_loss(x, y, L))
    calls.append(lambda x, y: xo.triplet_margin_loss(x, L, y))
    calls.append(lambda x, y: xo.mine_triplets(x, L, y))
    for call in calls:
        arguments = list(views())
        arguments[position] = make(arguments[position])
        with pytest.raises(TypeError) as raised:
            call(*arguments)
        assert str(raised.value).split(" ", 1)[1].startswith(message.split(" ", 1)[1])
        assert "\n" not in str(raised.value)


def test_distributed_tensors_are_refused_in_one_line(tmp_path: Path) -> None:
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        x = distribute_tensor(views()[0], init_device_mesh("cpu", (1,)), [Replicate()])
        for call in (xo.whiten, lambda x: xo.mine_triplets(x, L)):
            with pytest.raises(TypeError, match=r"^\w+ must be a plain tensor, got a DTensor$"):
                call(x)
    finally:
        dist.destroy_process_group()


@two_views
def test_forward_mode_derivatives_are_refused_in_one_line(call: Callable[[Tensor, Tensor], Tensor]) -> None:
    x, y = views()
    for function in (lambda v: call(v, y), lambda v: call(y, v), lambda v: xo.gradient_reversal(v).sum()):
        with pytest.raises(TypeError, match=r"^\w+ must have no tangent, got one: forward-mode"):
            torch.func.jvp(function, (x,), (x,))


INTEGERS = [torch.uint8, torch.int8, torch.int16, torch.int32, torch.uint16, torch.uint32, torch.uint64]


@pytest.mark.parametrize("dtype", INTEGERS, ids=str)
def test_integers_of_any_width_are_labels(dtype: torch.dtype) -> None:
    x, y = views()
    hot = nn.functional.one_hot(L, 4)
    for call in (
        lambda labels: xo.structure_preserving_loss(x, y, labels),
        lambda labels: xo.triplet_margin_loss(x, labels, y, labels.clone()),
        lambda labels: xo.triplet_margin_loss(x, labels, triplets="batch_hard"),
        lambda labels: xo.mine_triplets(x, labels).d_ap,
    ):
        assert torch.equal(call(L.to(dtype)), call(L))
        assert torch.equal(call(hot.to(dtype)), call(hot.bool()))
    assert torch.equal(xo.mine_triplets(x, (L > 1)).d_ap, xo.mine_triplets(x, (L > 1).long()).d_ap)
    with pytest.raises(ValueError, match=r"^labels must be 0 or 1 in multi-hot labels, got 2$"):
        xo.mine_triplets(x, (2 * hot).to(dtype))
    with pytest.raises(ValueError, match=r"^ref_labels must be of the kind of labels, int64 \(24,\), got bool"):
        xo.mine_triplets(x, L, y, hot.to(dtype))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x: xo.trace_norm_loss(x, x, ridge="a"), "ridge must be a number, got str"),
        (lambda x: xo.trace_norm_loss(x, x, ridge=None), "ridge must be a number, got NoneType"),
        (lambda x: xo.whiten(x, ridge=(1, 2)), "ridge must be a number, got a sequence"),
        (lambda x: xo.mine_triplets(x, L, negative="random", seed=1.5), "seed must be an int, got float"),
        (lambda x: xo.gradient_reversal(x, "a"), "scale must be a number, got str"),
        (lambda x: xo.max_violation_loss(x, x, torch.ones(24, 2).bool()), r"ids must have shape \(m,\), got \(24, 2\)"),
        (lambda x: xo.max_violation_loss(x, x, L[1:]), "ids must have one entry per row of image, 24, got 23"),
        (lambda x: xo.triplet_margin_loss(x, L.tolist()), "labels must be a torch.Tensor, got list"),
    ],
)
def test_unsuitable_options_are_refused_in_one_line(call: Callable[[Tensor], object], message: str) -> None:
    with pytest.raises((ValueError, TypeError), match=f"^{message}$"):
        call(views()[0])
