import math

import pytest
import torch

from xmodal_ops import gradient_reversal
from xmodal_ops.nn import GradientReversal, reversal_schedule


def test_identity_forward_and_reversed_gradient():
    x = torch.randn(5, 3, dtype=torch.float64, requires_grad=True)
    y = gradient_reversal(x, 0.3)
    assert torch.equal(y, x)
    weight = torch.randn(5, 3, dtype=torch.float64)
    (y * weight).sum().backward()
    assert torch.equal(x.grad, -0.3 * weight)


def test_scale_zero_stops_and_two_reversals_cancel():
    x = torch.randn(4, requires_grad=True)
    gradient_reversal(x, 0).square().sum().backward()
    assert torch.equal(x.grad, torch.zeros(4))
    x.grad = None
    gradient_reversal(gradient_reversal(x)).square().sum().backward()
    assert torch.equal(x.grad, 2 * x)


def test_the_gradient_of_a_gradient_penalty_is_reversed_as_well():
    x = torch.randn(3, dtype=torch.float64, requires_grad=True)
    (first,) = torch.autograd.grad(gradient_reversal(x, 2.0).pow(3).sum(), x, create_graph=True)
    torch.testing.assert_close(first, -6 * x**2)
    (second,) = torch.autograd.grad(first.sum(), x)
    # The gradient of a penalty is reversed as well: −λ d/dy (−λ · 3y²).
    torch.testing.assert_close(second, 24 * x)


def test_compiles_without_a_graph_break():
    def run(x):
        return gradient_reversal(x.sin(), 0.5).sum()

    x = torch.randn(7, requires_grad=True)
    torch.compile(run, fullgraph=True, backend="aot_eager")(x).backward()
    torch.testing.assert_close(x.grad, -0.5 * x.cos())


def test_the_module_takes_a_new_scale():
    layer, x = GradientReversal(), torch.ones(2, requires_grad=True)
    layer.scale = 4.0
    layer(x).sum().backward()
    assert torch.equal(x.grad, torch.full((2,), -4.0))
    assert repr(layer) == "GradientReversal(scale=4.0)"


def test_schedule():
    assert reversal_schedule(0) == 0
    assert reversal_schedule(1) == pytest.approx(math.tanh(5))
    assert reversal_schedule(0.5) > reversal_schedule(0.1) > 0


@pytest.mark.parametrize(
    ("x", "scale", "message"),
    [
        ([1.0], 1.0, "x must be a torch.Tensor, got list"),
        (torch.ones(2, dtype=torch.int64), 1.0, "x must be floating, got int64"),
        (torch.ones(2), -1.0, "scale must be finite and >= 0, got -1.0"),
        (torch.ones(2), math.nan, "scale must be finite and >= 0, got nan"),
    ],
)
def test_errors(x, scale, message):
    with pytest.raises((TypeError, ValueError)) as error:
        gradient_reversal(x, scale)
    assert str(error.value) == message
