"""Covariance: against numpy and scikit-learn, and as a torch op."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.conftest import relative, views
from xmodal_ops import Covariance, covariance
from xmodal_ops.ops.portable import covariance as reference
from xmodal_ops.ops.portable.covariance import gram


@pytest.mark.parametrize(("m", "dx", "dy"), [(20, 5, 3), (2, 1, 4), (9, 30, 20), (300, 520, 7)])
def test_numpy_agrees(m, dx, dy):
    x, y = views(m, dx, dy)
    s = covariance(x, y, ridge=(0.5, 0.25))
    joint = torch.from_numpy(np.cov(np.concatenate([x.numpy(), y.numpy()], 1), rowvar=False))
    assert relative(s.xx, joint[:dx, :dx] + 0.5 * torch.eye(dx, dtype=x.dtype)) < 1e-13
    assert relative(s.xy, joint[:dx, dx:]) < 1e-12
    assert relative(s.yy, joint[dx:, dx:] + 0.25 * torch.eye(dy, dtype=x.dtype)) < 1e-13
    assert relative(s.mean_x, x.mean(0)) < 1e-13
    assert relative(s.mean_y, y.mean(0)) < 1e-13
    assert relative(s.xx, s.xx.T) < 1e-15


def test_one_view():
    x, y = views(30, 4, 6)
    alone, joint = covariance(x, ridge=0.1), covariance(x, y, ridge=0.1)
    assert torch.equal(alone.xx, joint.xx)
    assert alone.xy is alone.yy is alone.mean_y is None


@pytest.mark.parametrize("offset", [0.0, 1e3, 1e4])
def test_large_means_cost_no_digits(offset):
    x, y = views(2000, 20, 10, torch.float32)
    x, y = x + offset, y - offset
    exact, single = covariance(x.double(), y.double()), covariance(x, y)
    for a, b in zip(single, exact):
        assert relative(a, b) < 3e-6


# One thread and several; rows shared out, and for the widest the blocks of products; odd widths, long sums.
NATIVE = [(2, 1, 1), (257, 33, 17), (700, 96, 5), (3000, 130, 131), (60000, 20, 3), (300, 700, 400)]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize(("m", "dx", "dy"), NATIVE)
def test_native_and_portable_agree(m, dx, dy, dtype):
    wide = views(m, dx, dy)
    x, y = (torch.cat([v + 3, v], 1).to(dtype)[:, : v.shape[1]] for v in wide)  # rows apart
    tolerance = 1e-12 if dtype == torch.float64 else 2e-6
    for second in (y, None):
        single = torch.ops.xmodal.covariance(x, second, 0.5, 0.25)
        exact = reference.covariance(x.double(), None if second is None else y.double(), 0.5, 0.25)
        for a, b in zip(single, exact):
            assert a.dtype == dtype and (b is None or relative(a, b) < tolerance)
        grads = [torch.randn_like(t) for t in single]
        gx, gy = torch.ops.xmodal.covariance_backward(x, second, *grads)
        wider = (None if second is None and t.numel() == 0 else t.double() for t in grads)
        bx, by = reference.covariance_backward(x.double(), None if second is None else y.double(), Covariance(*wider))
        assert relative(gx, bx) < tolerance
        assert gy.numel() == 0 if by is None else relative(gy, by) < tolerance


def test_nan_stays_in_its_columns():
    x, y = views(50, 4, 3)
    x[7, 2] = torch.nan
    s = covariance(x, y)
    assert s.xx.isnan()[2].all() and s.xx.isnan()[:, 2].all() and s.xy.isnan()[2].all()
    assert s.xx.isnan().sum() == 7 and s.xy.isnan().sum() == 3 and not s.yy.isnan().any()


def test_gram_leaves_nothing_out():
    x = torch.randn(40, 700, dtype=torch.float64)
    assert relative(gram(x), x.T @ x) < 1e-14


def test_gradcheck():
    x, y = (v.requires_grad_() for v in views(9, 4, 3))
    assert torch.autograd.gradcheck(lambda a, b: tuple(covariance(a, b, ridge=0.1)), (x, y))
    assert torch.autograd.gradcheck(lambda a: covariance(a)[0], (x,))
    assert torch.autograd.gradcheck(lambda a: covariance(a, y.detach()).xy, (x,))


def test_opcheck():
    x, y = views(9, 4, 3)
    grads = [torch.randn_like(t) for t in covariance(x, y)]
    torch.library.opcheck(torch.ops.xmodal.covariance.default, (x, y, 0.1, 0.2))
    torch.library.opcheck(torch.ops.xmodal.covariance.default, (x.half(), None, 0.1, 0.2))
    torch.library.opcheck(torch.ops.xmodal.covariance_backward.default, (x, y, *grads))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_inputs(dtype):
    x, y = (v.to(dtype).requires_grad_() for v in views(100, 8, 6))
    s = covariance(x, y)
    exact = covariance(x.double(), y.double())
    assert s.xx.dtype == torch.float32
    assert relative(s.xy, exact.xy) < 1e-5
    s.xy.square().sum().backward()
    assert x.grad.dtype == dtype


def test_strides_autocast_compile():
    x, y = views(30, 5, 6, torch.float32)
    expected = covariance(x, y)
    with torch.autocast("cpu"):
        assert torch.equal(covariance(x, y).xy, expected.xy)
    assert relative(covariance(x.T.contiguous().T, torch.cat([y, y], 1)[:, 6:]).xy, expected.xy) < 1e-6
    compiled = torch.compile(lambda a, b: covariance(a * 2, b).xy, fullgraph=True)(x, y)
    assert relative(compiled, 2 * expected.xy) < 1e-6


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: covariance(torch.randn(1, 3)), ValueError, "x must have at least 2 rows, got 1"),
        (lambda: covariance(torch.randn(4, 3), torch.randn(3, 3)), ValueError, "y must have as many rows as x"),
        (lambda: covariance(torch.randn(4, 3), ridge=-1), ValueError, "ridge must be >= 0"),
        (lambda: covariance(torch.ones(4, 3, dtype=torch.int32)), TypeError, "x must be float64"),
    ],
)
def test_errors(call, error, message):
    with pytest.raises(error, match=message):
        call()
