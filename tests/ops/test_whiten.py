"""Whitening: the identity it promises, its gradients, degenerate inputs."""

from __future__ import annotations

import pytest
import torch

from tests.conftest import relative, views
from xmodal_ops import covariance, whiten

METHODS = ["cholesky", "zca"]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-4)])
def test_unit_covariance(method, dtype, tolerance):
    x = (torch.randn(300, 12, dtype=torch.float64) @ torch.randn(12, 12, dtype=torch.float64) + 50).to(dtype)
    w = whiten(x, ridge=0.0, method=method)
    assert relative(covariance(w).xx, torch.eye(12)) < tolerance
    assert w.double().mean(0).abs().max() < 10 * tolerance


def test_ridge_and_definition():
    x, _ = views(40, 6, 6)
    s = covariance(x, ridge=0.3).xx
    lower = torch.linalg.cholesky(s)
    values, q = torch.linalg.eigh(s)
    xc = x - x.mean(0)
    assert relative(whiten(x, ridge=0.3), xc @ torch.linalg.inv(lower).T) < 1e-12
    assert relative(whiten(x, ridge=0.3, method="zca"), xc @ (q / values.sqrt()) @ q.T) < 1e-12


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("m", "d"), [(9, 4), (4, 6), (5, 1)])
def test_gradcheck(method, m, d):
    x, _ = views(m, d, d)
    assert torch.autograd.gradcheck(lambda a: whiten(a, ridge=0.1, method=method), (x.requires_grad_(),))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("case", ["dead", "repeated columns", "repeated eigenvalues", "constant", "scale 1e3", "m < d"])
def test_degenerate(method, dtype, case):
    x = {
        "dead": lambda: torch.randn(50, 6) * torch.tensor([1.0, 0, 1, 1, 0, 1]),
        "repeated columns": lambda: torch.randn(50, 3).repeat(1, 2) * 1e3,
        "repeated eigenvalues": lambda: torch.linalg.qr(torch.randn(50, 6) - 0.0)[0],
        "constant": lambda: torch.ones(50, 6),
        "scale 1e3": lambda: torch.randn(50, 6) * 1e3,
        "m < d": lambda: torch.randn(5, 20),
    }[case]()
    a, b = (x.to(t, copy=True).requires_grad_() for t in (dtype, torch.float64))
    cotangent = torch.randn(x.shape)
    w, exact = whiten(a, method=method), whiten(b, method=method)
    w.backward(cotangent.to(dtype))
    exact.backward(cotangent.double())
    assert torch.isfinite(a.grad).all()
    if case != "constant":
        assert relative(w, exact) < 1e-3
        assert relative(a.grad, b.grad) < 5e-3


@pytest.mark.parametrize("method", METHODS)
def test_non_finite_in_non_finite_out(method):
    x = torch.randn(20, 4)
    x[3, 2] = torch.nan
    x.requires_grad_()
    w = whiten(x, method=method)
    w.sum().backward()
    assert torch.isnan(w).all()
    assert not torch.isfinite(x.grad).any()


@pytest.mark.parametrize("zca", [False, True])
def test_opcheck(zca):
    x, g = views(9, 4, 4)
    torch.library.opcheck(torch.ops.xmodal.whiten.default, (x, 0.1, zca))
    torch.library.opcheck(torch.ops.xmodal.whiten_backward.default, (g, x, 0.1, zca))
    torch.library.opcheck(torch.ops.xmodal.whiten.default, (x.bfloat16(), 0.1, zca))


@pytest.mark.parametrize("method", METHODS)
def test_half_autocast_compile(method):
    x = torch.randn(40, 5).bfloat16().requires_grad_()
    with torch.autocast("cpu"):
        w = whiten(x, method=method)
    assert w.dtype == torch.bfloat16
    assert relative(w, whiten(x.float(), method=method)) < 5e-3
    w.sum().backward()
    assert x.grad.dtype == torch.bfloat16
    y = torch.randn(40, 5, requires_grad=True)
    compiled = torch.compile(lambda a: whiten(a * 2, method=method).pow(3).sum(), fullgraph=True)
    eager = whiten(y * 2, method=method).pow(3).sum()
    assert relative(*(torch.autograd.grad(loss, y)[0] for loss in (compiled(y), eager))) < 1e-5


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"method": "pca"}, ValueError, 'method must be "cholesky" or "zca", got \'pca\''),
        ({"ridge": -1.0}, ValueError, "ridge must be >= 0"),
        ({"ridge": (1.0, 1.0)}, TypeError, "ridge must be a number, got a sequence"),
    ],
)
def test_errors(options, error, message):
    with pytest.raises(error, match=message):
        whiten(torch.randn(4, 3), **options)
