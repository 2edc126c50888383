"""On devices without float64, float64 work is done on the CPU, and results come back to the device.

Two emulations: a device that refuses float64 (`tests/emulated.py`), and a CPU that is said to have none, on which then
nothing at all may be float64.
"""

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from tests.emulated import DEVICE, DeviceWithoutFloat64, emulated
from xmodal_ops import MomentAccumulator, _dtypes, trace_norm_loss
from xmodal_ops.models import ACMR, DCCA, MLP, LinearCCA, Projector, TextBranch
from xmodal_ops.scale.streamed_trace_norm import StreamedTraceNorm

torch.manual_seed(0)
X = torch.randn(40, 6)
Y = X[:, :4] + 0.5 * torch.randn(40, 4)


class NoFloat64(TorchDispatchMode):
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for x in out if isinstance(out, (tuple, list)) else (out,):
            if isinstance(x, torch.Tensor) and x.dtype == torch.float64 and x.ndim:
                raise TypeError(f"Cannot convert a MPS Tensor to float64 dtype ({func})")
        return out


def moments(place):
    total = MomentAccumulator()
    for a, b in zip(place(X).split(15), place(Y).split(15)):
        total.update(a, b)
    total.update(place(X)[:1], place(Y)[:1])
    total.merge(total)
    return total.to(place(X).device).covariance(1e-3).xy


def dcca():
    torch.manual_seed(0)
    return DCCA(MLP(6, 3, hidden=(5,)), TextBranch(4, 3, hidden=(5,)), ridge=0.1)


def projector(place, features="standard"):
    layer = Projector(6, 3, hidden=(), features=features, landmarks=9)
    layer.fit(place(X.abs()))
    return layer.root if features == "kernel" else layer.scale


FUNCTIONS = {
    "LinearCCA.fit": lambda place: LinearCCA(2).fit(place(X), place(Y)).correlations_,
    "LinearCCA.fit, dual": lambda place: LinearCCA(2, ridge=0.1).fit(place(X)[:5], place(Y)[:5]).correlations_,
    "LinearCCA.partial_fit": lambda place: LinearCCA(2).partial_fit(place(X), place(Y)).correlations_,
    "LinearCCA.transform": lambda place: LinearCCA(2).fit(place(X), place(Y)).transform(place(X)),
    "LinearCCA.score": lambda place: torch.tensor(LinearCCA(2).fit(place(X), place(Y)).score(place(X), place(Y))),
    "LinearCCA.embed": lambda place: LinearCCA(2).fit(X, Y).embed(place(X), place(Y))[1],
    "DCCA.fit_cca": lambda place: dcca().fit_cca(place(X), place(Y)).embed_image(place(X)),
    "ACMR.embed_image": lambda place: (
        ACMR(nn.Linear(6, 3), nn.Linear(4, 3), 2, dim=3, label_weight=0.5)
        .requires_grad_(False)
        .embed_image(place(X))
        .norm(dim=1)
    ),
    "Projector.fit": projector,
    "Projector.fit, kernel": lambda place: projector(place, "kernel"),
    "MomentAccumulator": moments,
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_cpu_without_fp64_gives_the_same_in_fp32(name, monkeypatch):
    want = FUNCTIONS[name](lambda x: x)
    monkeypatch.setattr(_dtypes, "WITHOUT_FP64", ("cpu",))
    with NoFloat64():
        got = FUNCTIONS[name](lambda x: x)
    torch.testing.assert_close(got.double(), want.double(), rtol=1e-2, atol=1e-3)


ON_DEVICE = [n for n in FUNCTIONS if n not in ("DCCA.fit_cca", "ACMR.embed_image") and not n.startswith("Projector")]


@pytest.mark.parametrize("name", ON_DEVICE)
def test_a_device_without_fp64_gives_the_same_by_way_of_the_cpu(name, monkeypatch):
    monkeypatch.setattr(_dtypes, "WITHOUT_FP64", (DEVICE.type,))
    want = FUNCTIONS[name](lambda x: x)
    with DeviceWithoutFloat64():
        got = FUNCTIONS[name](emulated).cpu()
    torch.testing.assert_close(got.double(), want.double(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("rows", [40, 3])
def test_the_streamed_trace_norm_works_on_the_cpu_for_such_a_device(rows, monkeypatch):
    monkeypatch.setattr(_dtypes, "WITHOUT_FP64", (DEVICE.type,))
    x, y = X[:rows], Y[:rows]
    with DeviceWithoutFloat64():
        norm = StreamedTraceNorm(1e-3, None)
        for a, b in zip(x.split(2), y.split(2)):
            norm.update(emulated(a), emulated(b))
        value, got = norm.finish(), norm.gradients(emulated(x), emulated(y))
        assert value.device == got[0].device == got[1].device == DEVICE
        value, got = value.cpu(), [g.cpu() for g in got]
    torch.testing.assert_close(value, trace_norm_loss(x, y))
    a, b = x.clone().requires_grad_(), y.clone().requires_grad_()
    for g, want in zip(got, torch.autograd.grad(trace_norm_loss(a, b), (a, b))):
        torch.testing.assert_close(g, want, rtol=1e-3, atol=1e-5)
