"""Moments accumulated chunk by chunk equal those of all rows at once."""

import io

import numpy as np
import pytest
import torch

from xmodal_ops import MomentAccumulator

GENERATOR_SEED = 5


def views(rows=1000, dx=7, dy=4, mean=0.0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(GENERATOR_SEED)
    x = torch.randn(rows, dx, generator=generator, dtype=torch.float64)
    y = torch.randn(rows, dy, generator=generator, dtype=torch.float64) + 0.7 * x[:, :dy]
    return (x + mean).to(dtype), (y - mean).to(dtype)


def accumulate(x, y, sizes, **options):
    moments = MomentAccumulator(**options)
    for a, b in zip(x.split(sizes), y.split(sizes)):
        moments.update(a, b)
    return moments


def oracle(x, y):
    """numpy's covariance of the joint matrix."""
    return torch.from_numpy(np.cov(torch.cat([x, y], 1).double().numpy(), rowvar=False))


def joint(s):
    return torch.cat([torch.cat([s.xx, s.xy], 1), torch.cat([s.xy.mT, s.yy], 1)])


@pytest.mark.parametrize("sizes", [1000, 1, 7, [1, 500, 2, 497]])
def test_equals_numpy_for_any_chunks(sizes):
    x, y = views(mean=3.0)
    s = accumulate(x, y, sizes).covariance()
    torch.testing.assert_close(joint(s), oracle(x, y), rtol=1e-11, atol=1e-12)
    torch.testing.assert_close(s.mean_x, x.mean(0), rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(s.mean_y, y.mean(0), rtol=1e-13, atol=1e-13)


def test_large_means_cost_no_accuracy_although_naive_sums_lose_all():
    x, y = views(40_000, mean=1e3, dtype=torch.float32)
    truth = oracle(x, y)
    error = (joint(accumulate(x, y, 3000).covariance()) - truth).norm() / truth.norm()
    assert error < 1e-6
    z, m = torch.cat([x, y], 1), len(x)
    naive = (z.mT @ z - z.sum(0).outer(z.sum(0)) / m) / (m - 1)
    assert (naive - truth).norm() / truth.norm() > 1e-2


def test_means_that_drift_from_chunk_to_chunk():
    x, y = views(6000, dtype=torch.float32)
    x = x + torch.linspace(-500, 500, 6000)[:, None]
    truth = oracle(x, y)
    assert (joint(accumulate(x, y, 100).covariance()) - truth).norm() / truth.norm() < 1e-6


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_rows_are_summed_in_fp32(dtype):
    x, y = views(5000, dtype=dtype)
    truth = oracle(x, y)
    assert (joint(accumulate(x, y, 512).covariance()) - truth).norm() / truth.norm() < 1e-6


def test_fp64_products_of_fp32_rows():
    x, y = views(5000, mean=50.0, dtype=torch.float32)
    s = accumulate(x, y, 512, dtype=torch.float64).covariance()
    torch.testing.assert_close(joint(s), oracle(x, y), rtol=1e-11, atol=1e-12)


def test_merge_in_any_order_and_with_empty_ones():
    x, y = views(mean=10.0)
    parts = [accumulate(a, b, 50) for a, b in zip(x.split([1, 600, 399]), y.split([1, 600, 399]))]
    total = MomentAccumulator()
    for part in (parts[2], MomentAccumulator(), parts[0], parts[1]):
        total.merge(part)
    assert total.count == 1000
    torch.testing.assert_close(joint(total.covariance()), oracle(x, y), rtol=1e-11, atol=1e-12)
    assert parts[1].count == 600, "merging leaves the other accumulator unchanged"


def test_the_ridge_is_added_to_the_diagonals_but_not_to_the_totals():
    x, y = views()
    moments = accumulate(x, y, 100)
    plain, ridged = moments.covariance(), moments.covariance(ridge=(0.5, 2.0))
    torch.testing.assert_close(ridged.xx - plain.xx, 0.5 * torch.eye(7, dtype=torch.float64))
    torch.testing.assert_close(ridged.yy - plain.yy, 2.0 * torch.eye(4, dtype=torch.float64))
    assert torch.equal(moments.covariance().xx, plain.xx)


def test_saving_and_resuming_gives_the_same_bits():
    x, y = views(dtype=torch.float32)
    whole = accumulate(x, y, 100)
    file = io.BytesIO()
    torch.save(accumulate(x[:500], y[:500], 100).state_dict(), file)
    file.seek(0)
    resumed = MomentAccumulator()
    resumed.load_state_dict(torch.load(file, weights_only=True))
    for a, b in zip(x[500:].split(100), y[500:].split(100)):
        resumed.update(a, b)
    assert torch.equal(joint(resumed.covariance()), joint(whole.covariance()))
    empty = MomentAccumulator()
    empty.load_state_dict(MomentAccumulator().state_dict())
    assert empty.count == 0


def test_no_graph_is_kept():
    x, y = views()
    x.requires_grad_()
    moments = MomentAccumulator()
    moments.update(x, y)
    assert not moments.xx.requires_grad


def test_unsuitable_arguments_are_refused_and_change_nothing():
    x, y = views(100, dtype=torch.float32)
    moments = accumulate(x, y, 100)
    before = moments.xy.clone()
    other = accumulate(x[:, :5], y, 100)
    with pytest.raises(ValueError, match="x and y must have 7 and 4 columns as before, got 6 and 4"):
        moments.update(x[:, :6], y)
    with pytest.raises(TypeError, match="x must be float32 like earlier chunks, got float64"):
        moments.update(x.double(), y.double())
    with pytest.raises(ValueError, match="x must have at least 1 rows, got 0"):
        moments.update(x[:0], y[:0])
    with pytest.raises(ValueError, match="y must have as many rows as x, 100, got 99"):
        moments.update(x, y[1:])
    with pytest.raises(ValueError, match="other must have 7 and 4 columns as before, got 5 and 4"):
        moments.merge(other)
    with pytest.raises(ValueError, match="state must have 7 and 4 columns"):
        moments.load_state_dict(other.state_dict())
    with pytest.raises(
        ValueError, match="state is missing keys count, dtype, input_dtype; pass the result of MomentAccumulator"
    ):
        moments.load_state_dict({})
    with pytest.raises(ValueError, match="at least 2 rows, got 0"):
        MomentAccumulator().covariance()
    with pytest.raises(ValueError, match="ridge must be >= 0, got -1"):
        moments.covariance(ridge=-1)
    with pytest.raises(TypeError, match="dtype must be float32, float64 or None"):
        MomentAccumulator(torch.int32)
    assert torch.equal(moments.xy, before) and moments.count == 100
