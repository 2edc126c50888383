"""Canonical correlations: against the definition and scikit-learn, and as a torch op."""

from __future__ import annotations

import pytest
import scipy.linalg
import torch

from tests.conftest import relative, views
from xmodal_ops import canonical_correlations, trace_norm_loss


@pytest.mark.parametrize("shape", [(50, 6, 9), (50, 9, 6), (10, 20, 30), (20, 30, 5), (300, 150, 140)])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-9), (torch.float32, 2e-6)])
def test_definition(shape, dtype, tolerance):
    x, y = views(*shape, dtype=dtype)
    sigma = canonical_correlations(x, y, ridge=0.1)
    assert sigma.shape == (min(shape[1:]),)
    assert (sigma[:-1] >= sigma[1:]).all()
    xc, yc = (v.double() - v.double().mean(0) for v in (x, y))
    sxx, sxy, syy = (a.T @ b / (shape[0] - 1) for a, b in ((xc, xc), (xc, yc), (yc, yc)))
    roots = [
        scipy.linalg.fractional_matrix_power((s + 0.1 * torch.eye(len(s), dtype=s.dtype)).numpy(), -0.5)
        for s in (sxx, syy)
    ]
    expected = torch.from_numpy(scipy.linalg.svdvals(roots[0] @ sxy.numpy() @ roots[1]))
    assert relative(sigma, expected) < tolerance
    assert torch.allclose(canonical_correlations(x, y, ridge=0.1, top_k=3), sigma[:3])
    assert relative(-trace_norm_loss(x, y, ridge=0.1), sigma.sum()) < tolerance


def test_principal_angles():
    x, y = views(100, 4, 7)
    angles = scipy.linalg.subspace_angles((x - x.mean(0)).numpy(), (y - y.mean(0)).numpy())
    assert relative(canonical_correlations(x, y, ridge=0), torch.from_numpy(angles).cos().flip(0)) < 1e-10


@pytest.mark.parametrize("shape", [(12, 4, 3), (5, 6, 7), (5, 6, 3)])
def test_gradcheck(shape):
    x, y = (v.requires_grad_() for v in views(*shape))
    k = min(*shape[1:], shape[0] - 1)  # the others are 0 for every input, with no gradient
    assert torch.autograd.gradcheck(lambda a, b: canonical_correlations(a, b, ridge=0.1, top_k=k), (x, y))


def test_gradient_of_equal_correlations_is_finite():
    x = torch.randn(30, 4)
    y = x.clone().requires_grad_()
    canonical_correlations(x, y).square().sum().backward()
    assert torch.isfinite(y.grad).all()


def test_opcheck_half_compile():
    x, y = views(20, 4, 3)
    torch.library.opcheck(torch.ops.xmodal.canonical_correlations.default, (x, y, 0.1, 0.1, 2))
    torch.library.opcheck(torch.ops.xmodal.canonical_correlations_backward.default, (x[0, :2], x, y, 0.1, 0.1))
    assert canonical_correlations(x.bfloat16(), y.bfloat16()).dtype == torch.float32
    x.requires_grad_()
    loss = torch.compile(lambda a, b: canonical_correlations(a, b).square().sum(), fullgraph=True)
    expected = torch.autograd.grad(canonical_correlations(x, y).square().sum(), x)[0]
    assert relative(torch.autograd.grad(loss(x, y), x)[0], expected) < 1e-9


def test_errors():
    with pytest.raises(ValueError, match=r"top_k must lie in 1\.\.3"):
        canonical_correlations(torch.randn(9, 4), torch.randn(9, 3), top_k=4)
