import pytest
import torch

from xmodal_ops import trace_norm_loss
from xmodal_ops.nn import TraceNormLoss


@pytest.mark.parametrize(("ridge", "top_k"), [(1e-3, None), ((0.1, 0.5), 2)])
def test_module_is_the_function(ridge, top_k):
    torch.manual_seed(0)
    x, y = torch.randn(50, 6, requires_grad=True), torch.randn(50, 4)
    module = TraceNormLoss(ridge, top_k)
    value = module(x, y)
    assert value.item() == trace_norm_loss(x, y, ridge=ridge, top_k=top_k).item()
    assert -4 <= value.item() <= 0
    (grad,) = torch.autograd.grad(value, x)
    assert bool(grad.isfinite().all())


def test_parameters_are_checked_and_shown():
    assert repr(TraceNormLoss(0.1, 3)) == "TraceNormLoss(ridge=(0.1, 0.1), top_k=3)"
    with pytest.raises(ValueError, match="ridge must be >= 0"):
        TraceNormLoss(-1.0)
