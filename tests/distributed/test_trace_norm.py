"""The moments, loss and gradients of several processes equal those of one process with all the rows."""

import pytest
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from xmodal_ops import MomentAccumulator, covariance, distributed, large_batch_loss, trace_norm_loss
from xmodal_ops.nn import TraceNormLoss

SHARDS = {"even": (40, 40, 40, 40), "uneven": (64, 3, 1, 40)}


def views(rows, dtype=torch.float64, mean=0.0):
    generator = torch.Generator().manual_seed(7)
    x = torch.randn(rows, 9, generator=generator, dtype=torch.float64)
    y = x[:, :6] + 0.5 * torch.randn(rows, 6, generator=generator, dtype=torch.float64)
    return (x + mean).to(dtype), y.to(dtype)


def shard(rank, n, shards, **options):
    x, y = views(sum(shards[:n]), **options)
    return x.split(shards[:n])[rank], y.split(shards[:n])[rank]


class TwoViews(nn.Module):
    def __init__(self, batch_norm=False):
        super().__init__()
        torch.manual_seed(1)
        middle = [nn.BatchNorm1d(16)] if batch_norm else []
        self.x = nn.Sequential(nn.Linear(9, 16), *middle, nn.Tanh(), nn.Linear(16, 5)).double()
        self.y = nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 4)).double()

    def forward(self, x, y):
        return self.x(x), self.y(y)


def gradients(module):
    return torch.cat([p.grad.flatten() for p in module.parameters()])


def reduced_moments(rank, n, group, shards):
    x, y = shard(rank, n, shards, dtype=torch.float32, mean=1e3)
    moments = MomentAccumulator()
    for a, b in zip(x.split(10), y.split(10)):
        moments.update(a, b)
    moments.all_reduce(group)
    return moments.count, moments.covariance(ridge=0.1)


@pytest.mark.parametrize("n", [2, 4])
@pytest.mark.parametrize("shards", SHARDS.values(), ids=SHARDS.keys())
def test_moments(workers, n, shards):
    results = workers(n, reduced_moments, shards)
    x, y = views(sum(shards[:n]), torch.float32, mean=1e3)
    expected = covariance(x.double(), y.double(), ridge=0.1)
    for count, s in results:
        assert count == sum(shards[:n])
        for value, truth in zip(s, expected):
            assert (value - truth).norm() <= 1e-6 * truth.norm()
        assert all(torch.equal(a, b) for a, b in zip(s, results[0][1])), "every rank has the same bits"


def data_parallel(rank, n, group, shards, options, chunk_size):
    model = TwoViews()
    parallel = DistributedDataParallel(model, process_group=group)
    x, y = shard(rank, n, shards)
    if chunk_size:
        loss_function = distributed.TraceNormLoss(**options, group=group)
        loss = large_batch_loss(parallel, (x, y), loss_function, chunk_size=chunk_size)
    else:
        loss = distributed.trace_norm_loss(*parallel(x, y), **options, group=group)
    loss.backward()
    return loss.detach(), gradients(model)


@pytest.mark.parametrize("n", [2, 4])
@pytest.mark.parametrize("chunk_size", [0, 7])
@pytest.mark.parametrize("options", [{}, {"ridge": (1e-2, 1e-4), "top_k": 2}], ids=["all", "top-k"])
@pytest.mark.parametrize("shards", SHARDS.values(), ids=SHARDS.keys())
def test_loss_and_every_parameters_gradient(workers, n, shards, options, chunk_size):
    model, (x, y) = TwoViews(), views(sum(shards[:n]))
    expected = trace_norm_loss(*model(x, y), **options)
    expected.backward()
    truth = gradients(model)
    for loss, gradient in workers(n, data_parallel, shards, options, chunk_size):
        torch.testing.assert_close(loss, expected.detach(), rtol=1e-10, atol=0)
        assert (gradient - truth).norm() <= 1e-9 * truth.norm()


def summed(rank, n, group, shards):
    x, y = (v.requires_grad_() for v in shard(rank, n, shards, dtype=torch.float32))
    (3 * distributed.trace_norm_loss(x, y, group=group, averaged=False)).backward()
    return x.grad, y.grad


def test_summed_gradients_in_fp32(workers):
    shards = SHARDS["uneven"]
    x, y = (v.requires_grad_() for v in views(sum(shards)))
    (3 * trace_norm_loss(x, y)).backward()
    results = workers(4, summed, shards)
    for index, truth in enumerate((x.grad, y.grad)):
        gradient = torch.cat([r[index] for r in results])
        assert gradient.dtype == torch.float32
        assert (gradient - truth).norm() <= 1e-5 * truth.norm()


def several_steps(rank, n, group):
    """More chunks on one rank than on the other, with batch norm, whose buffers DistributedDataParallel broadcasts."""
    parallel = DistributedDataParallel(TwoViews(batch_norm=True), process_group=group)
    x, y = shard(rank, n, SHARDS["even"])
    optimizer = torch.optim.SGD(parallel.parameters(), lr=0.5)
    losses = []
    for _ in range(3):
        optimizer.zero_grad()
        loss = large_batch_loss(parallel, (x, y), distributed.TraceNormLoss(group=group), chunk_size=10 + 10 * rank)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses, torch.cat([p.detach().flatten() for p in parallel.parameters()])


def test_training_keeps_the_processes_equal(workers):
    results = workers(2, several_steps)
    losses, parameters = results[0]
    assert losses[2] < losses[0]
    assert results[1][0] == losses and torch.equal(results[1][1], parameters)


def disagree(rank, n, group, case):
    x, y = shard(rank, n, SHARDS["even"])
    odd = rank == n - 1
    if case == "columns":
        return distributed.trace_norm_loss(x[:, : 9 - odd], y, group=group)
    if case == "no rows":
        return distributed.trace_norm_loss(x[: 0 if odd else None], y[: 0 if odd else None], group=group)
    if case == "dtype":
        return distributed.trace_norm_loss(x.float() if odd else x, y.float() if odd else y, group=group)
    if case == "ridge":
        return distributed.trace_norm_loss(x, y, ridge=0.1 if odd else 0.2, group=group)
    if case == "bad ridge":
        return distributed.trace_norm_loss(x, y, ridge=-1 if odd else 0.2, group=group)
    if case == "top_k":
        return distributed.trace_norm_loss(x, y, top_k=3 if odd else None, group=group)
    if case == "not a tensor":
        return distributed.trace_norm_loss(None if odd else x, y, group=group)
    if case == "function" and odd:
        return distributed.structure_preserving_loss(x, x, torch.arange(len(x)), group=group)
    if case == "function":
        return distributed.trace_norm_loss(x, y, group=group)
    if case == "rows":
        return distributed.trace_norm_loss(x[1:] if odd else x, y, group=group)
    if case == "chunks without rows":
        batch = (x[:0], y[:0]) if odd else (x, y)
        return large_batch_loss(TwoViews(), batch, distributed.TraceNormLoss(group=group), chunk_size=8)
    moments = MomentAccumulator()
    if not odd:
        moments.update(x, y)
    elif case == "accumulator of another shape":
        moments.update(x, y[:, :2])
    return moments.all_reduce(group)


CASES = {
    "columns": ("columns of x must be the same on every rank, got 9 on rank 0, 8 on rank {odd}", ""),
    "no rows": (
        "rank {odd} cannot take part: x must have at least 1 rows, got 0",
        "x must have at least 1 rows, got 0",
    ),
    "dtype": ("dtype must be the same on every rank, got float64 on rank 0, float32 on rank {odd}", ""),
    "ridge": (r"ridge must be the same on every rank, got \(0.2, 0.2\) on rank 0, \(0.1, 0.1\) on rank {odd}", ""),
    "bad ridge": ("rank {odd} cannot take part: ridge must be >= 0, got -1", "ridge must be >= 0, got -1"),
    "top_k": ("top_k must be the same on every rank, got None on rank 0, 3 on rank {odd}", ""),
    "not a tensor": ("rank {odd} cannot take part: x must be a torch.Tensor, got NoneType", "x must be a torch.Tensor"),
    "function": (
        "function must be the same on every rank, got trace_norm_loss on rank 0, structure_preserving_loss on rank",
        "",
    ),
    "rows": ("rank {odd} cannot take part: y must have as many rows as x, 39, got 40", "y must have as many rows"),
    "chunks without rows": (
        "rank {odd} cannot take part: batch must hold at least one row",
        "batch must hold at least",
    ),
    "empty accumulator": (
        "rank {odd} cannot take part: moments must hold at least one row",
        "moments must hold at least",
    ),
    "accumulator of another shape": (
        "columns of y must be the same on every rank, got 6 on rank 0, 2 on rank {odd}",
        "",
    ),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("n", [2, 4])
def test_unsuitable_arguments_are_an_error_on_every_rank(workers, n, case):
    common, own = (message.format(odd=n - 1) for message in CASES[case])
    outcomes = workers.outcomes(n, disagree, case)
    for rank, (_, error) in enumerate(outcomes):
        assert isinstance(error, (ValueError, TypeError)), (rank, error)
        with pytest.raises(type(error), match=own if own and rank == n - 1 else common):
            raise error


def test_without_a_process_group():
    x, y = views(20)
    with pytest.raises(RuntimeError, match=r"call torch\.distributed\.init_process_group first"):
        distributed.trace_norm_loss(x, y)
    with pytest.raises(RuntimeError, match="init_process_group"):
        large_batch_loss(TwoViews(), (x, y), distributed.TraceNormLoss(TraceNormLoss().ridge), chunk_size=8)
