"""Exact gradients of losses over batches whose activations do not fit in memory.

`large_batch_loss` makes two passes over chunks of the batch (`_TwoPasses`). The first pass runs the networks without
keeping activations and hands the outputs of every chunk to the loss (`_trace_norm` or `_any_loss`), which returns its
value and its gradient with respect to those outputs. The second pass, in `backward`, runs every chunk again and
back-propagates that gradient to the parameters.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import get_device_states, set_device_states

from .. import _checks
from .._dtypes import accumulation_dtype
from ..nn import TraceNormLoss
from ..ops.autograd import differentiable_once
from . import collective
from .streamed_trace_norm import StreamedTraceNorm
from .trace_norm import TraceNormLoss as GlobalTraceNormLoss

Outputs = tuple[Tensor, ...]  # of the networks for one chunk: (rows, ...) each


def large_batch_loss(
    networks: nn.Module | Sequence[nn.Module],
    batch: Sequence[Any],
    loss: Callable[..., Tensor],
    *,
    chunk_size: int,
) -> Tensor:
    """The loss of a whole batch, with the activations of only one chunk in memory.

    The first pass runs the networks chunk by chunk without keeping activations; `loss` sees the outputs of the whole
    batch, and its exact gradient with respect to them is kept. `backward` is the second pass: it runs every chunk again
    and back-propagates that gradient. Value and gradients are those of `loss(*networks(*batch))`, for a third more
    computation ("gradient caching": Gao et al., RepL4NLP 2021).

    Args:
        networks: one module that maps the chunks of all views to a tensor or a tuple of tensors, (rows, d) each; or one
            module per view.
        batch: the views, m rows each: tensors on any device, or anything with a length and slices, such as a NumPy
            memory map or an HDF5 data set. Chunks are moved to the device of the networks. The batch itself gets no
            gradient. It must not change before `backward`.
        loss: a function that maps the outputs of the whole batch to a scalar. If it is a module, its own parameters get
            their gradients too. A `TraceNormLoss` is computed from streamed moments instead.
        chunk_size: the largest number of rows whose activations are held; chunks are of equal size, to a row.

    Returns:
        A scalar: call `backward` on it, scale it (GradScaler, gradient accumulation), or return it from a Lightning
        `training_step`. Everything that reads gradients sees them once: hooks, and the reduction of
        DistributedDataParallel, whether it wraps `networks` or a module that makes this call.

    Raises:
        ValueError: views of unequal length, chunk_size < 1, or an unsuitable view or output.
        TypeError: chunk_size is not an int, or an argument has an unsuitable type.
        RuntimeError: in `backward`, if the second run of a chunk gives other outputs than the first: the networks or
            the batch were changed in between, or a module draws from a random generator of its own.

    The random state of the first run is restored for the second, so dropout drops the same units; so are the buffers,
    so batch norm updates its running statistics once. In training mode, batch norm normalises each chunk by itself: a
    chunk is its batch. Autocast is as it was at the call.

    Memory in addition to the networks: the activations of one chunk, one more set of parameter gradients, and 2·m·d
    numbers for the outputs and their gradient; O(d²) instead for a `TraceNormLoss`, for any m.

    >>> loss = large_batch_loss((image_net, text_net), (images, texts), TraceNormLoss(), chunk_size=4096)
    >>> loss.backward()
    """
    module = networks if isinstance(networks, nn.Module) else _PerView(networks)
    if isinstance(loss, GlobalTraceNormLoss):
        collective.agree(lambda: _check(module, batch, chunk_size), loss.group)
    else:
        _check(module, batch, chunk_size)
    own = [p for p in module.parameters() if p.requires_grad]
    of_loss = [p for p in loss.parameters() if p.requires_grad] if isinstance(loss, nn.Module) else []
    needs_gradient = torch.is_grad_enabled() and bool(own or of_loss)
    if isinstance(loss, TraceNormLoss):
        norm = loss.stream() if isinstance(loss, GlobalTraceNormLoss) else StreamedTraceNorm(loss.ridge, loss.top_k)
        evaluate = partial(_trace_norm, norm)
    else:
        evaluate = partial(_any_loss, loss, of_loss, len(batch[0]), needs_gradient)
    value: Tensor = _LargeBatch.apply(_TwoPasses(module, batch, chunk_size, own, evaluate), *own, *of_loss)
    return value


def _check(module: nn.Module, batch: Sequence[Any], chunk_size: int) -> dict[str, Any]:
    """Refuses unsuitable arguments; returns what the processes of a group must agree on."""
    if not batch:
        raise ValueError("batch must hold at least one view, got none")
    rows = [len(view) for view in batch]
    if len(set(rows)) > 1:
        raise ValueError(f"batch must hold views of equal length, got {' and '.join(map(str, rows))} rows")
    if rows[0] < 1:
        raise ValueError("batch must hold at least one row, got none")
    _checks.positive("chunk_size", chunk_size)
    if isinstance(module, _PerView) and len(module.views) != len(batch):
        raise ValueError(f"networks must hold one module per view, {len(batch)}, got {len(module.views)}")
    if any(isinstance(view, Tensor) and view.requires_grad for view in batch):
        raise ValueError("batch must not require gradients: only the parameters of networks and loss get them")
    return {"function": "large_batch_loss", "number of views": len(batch), "rows": rows[0]}


class _PerView(nn.Module):
    """One network per view."""

    def __init__(self, views: Sequence[nn.Module]) -> None:
        super().__init__()
        self.views = nn.ModuleList(views)

    def forward(self, *chunk: Tensor) -> Outputs:
        return tuple(network(rows) for network, rows in zip(self.views, chunk))


class _Evaluated(NamedTuple):
    """The value and the gradients of a loss."""

    value: Tensor
    by_outputs: Callable[[slice, Outputs], Sequence[Tensor | None]]  # from the rows and the outputs of a chunk
    by_parameters: Sequence[Tensor | None] = ()  # of the loss itself


Evaluate = Callable[[Iterable[Outputs]], _Evaluated]


def _trace_norm(norm: StreamedTraceNorm, chunks: Iterable[Outputs]) -> _Evaluated:
    """The trace norm: only moments are kept."""
    for outputs in chunks:
        if len(outputs) != 2:
            raise ValueError(f"networks must return two outputs for a TraceNormLoss, got {len(outputs)}")
        norm.update(*outputs)
    return _Evaluated(norm.finish(), lambda _, outputs: norm.gradients(*outputs))


def _any_loss(
    loss: Callable[..., Tensor],
    parameters: Sequence[Tensor],
    rows: int,
    needs_gradient: bool,
    chunks: Iterable[Outputs],
) -> _Evaluated:
    """Any other loss: the outputs are kept, then replaced by their gradients."""
    whole: list[Tensor] = []
    start = 0
    for outputs in chunks:
        # Half outputs continue in fp32: gradients of means over many rows would vanish in fp16.
        whole = whole or [x.new_empty(rows, *x.shape[1:], dtype=accumulation_dtype(x.dtype)) for x in outputs]
        stop = start + len(outputs[0])
        for view, x in zip(whole, outputs):
            view[start:stop] = x
        start = stop
    gradients: Sequence[Tensor | None] = ()
    with torch.set_grad_enabled(needs_gradient):
        value = loss(*(x.requires_grad_(needs_gradient) for x in whole))
        if value.numel() != 1:
            raise ValueError(f"loss must return a scalar, got shape {tuple(value.shape)}")
        if needs_gradient:
            gradients = torch.autograd.grad(value, [*whole, *parameters], allow_unused=True)
    by_whole, by_parameters = gradients[: len(whole)], gradients[len(whole) :]
    return _Evaluated(value.detach(), lambda rows, _: [None if g is None else g[rows] for g in by_whole], by_parameters)


class _TwoPasses:
    """The two passes of one batch through the networks."""

    def __init__(
        self,
        module: nn.Module,
        batch: Sequence[Any],
        chunk_size: int,
        parameters: Sequence[Tensor],  # of the module, those that require gradients
        evaluate: Evaluate,
    ) -> None:
        self.module, self.batch, self.parameters, self.evaluate = module, batch, parameters, evaluate
        rows = len(batch[0])
        count = -(-rows // chunk_size)
        # Of equal size, to a row: batch norm fails on a last chunk of one row.
        self.chunks = [slice(i * rows // count, (i + 1) * rows // count) for i in range(count)]
        self.device = next((p.device for p in module.parameters()), torch.device("cpu"))
        self.autocast = {
            kind: (torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind))
            for kind in {"cpu", self.device.type}
        }
        self.random_states: list[tuple[Tensor, list[int], list[Tensor]]] = []  # per chunk: CPU, devices, theirs
        self.first_rows: list[list[Tensor]] = []

    def forward(self) -> Tensor:
        """The first pass: the value of the loss, without activations."""
        self.buffers = [b.clone() for b in self.module.buffers()]
        with self._numerics(), torch.no_grad():
            # The value is not kept: autograd makes it refer to this object, and a cycle would outlive the call.
            value, self.by_outputs, self.by_parameters = self.evaluate(self._outputs())
        return value

    def _outputs(self) -> Iterator[Outputs]:
        for rows in self.chunks:
            chunk = self._load(rows)
            self.random_states.append((torch.get_rng_state(), *get_device_states(chunk[0])))
            outputs = self._run(chunk)
            self.first_rows.append([x[0].clone() for x in outputs])
            yield outputs

    def backward(self, grad: Tensor) -> list[Tensor | None]:
        """The second pass: the gradients of the module's parameters, times `grad`."""
        totals: list[Tensor | None] = [None] * len(self.parameters)
        self.changed = torch.zeros((), dtype=torch.bool, device=self.device)
        with self._numerics(), torch.enable_grad(), self._replay():
            for index in range(len(self.chunks)):
                parts = self._chunk_gradients(index, grad)
                # Not in place: autograd may return one tensor for two parameters.
                totals = [p if t is None else t if p is None else t + p for t, p in zip(totals, parts)]
        if self.changed:
            raise RuntimeError(
                "the second run of the networks gave other outputs than the first: the networks and the batch must "
                "not change between the call and backward(), and modules must not use random generators of their own"
            )
        return totals

    def _chunk_gradients(self, index: int, grad: Tensor) -> Sequence[Tensor | None]:
        """The share of one chunk in the gradients of the parameters."""
        rows = self.chunks[index]
        chunk = self._load(rows)
        self._set_random_state(*self.random_states[index])
        with self._reduced(last=index == len(self.chunks) - 1):
            outputs = self._run(chunk)
        for x, row in zip(outputs, self.first_rows[index]):
            self.changed |= _differ(x[0].detach(), row)
        by_outputs = self.by_outputs(rows, tuple(x.detach() for x in outputs))
        used = [(x, g) for x, g in zip(outputs, by_outputs) if g is not None and x.requires_grad]
        if not used:
            return [None] * len(self.parameters)
        # Scaled before it is rounded to half: gradients of means over many rows would vanish there.
        scaled = [(g * grad).to(x.dtype) for x, g in used]
        return torch.autograd.grad([x for x, _ in used], self.parameters, scaled, allow_unused=True)

    def _load(self, rows: slice) -> list[Tensor]:
        """These rows of all views, on the device of the networks."""
        return [torch.as_tensor(view[rows]).to(self.device, non_blocking=True) for view in self.batch]

    def _run(self, chunk: Sequence[Tensor]) -> Outputs:
        outputs = self.module(*chunk)
        outputs = (outputs,) if isinstance(outputs, Tensor) else tuple(outputs)
        for x in outputs:
            if not isinstance(x, Tensor) or x.ndim < 1 or len(x) != len(chunk[0]):
                got = f"shape {tuple(x.shape)}" if isinstance(x, Tensor) else type(x).__name__
                raise ValueError(f"networks must return one row per input row ({len(chunk[0])}), got {got}")
        return outputs

    @contextmanager
    def _numerics(self) -> Iterator[None]:
        """Autocast as at the call, but without its cache, which would reuse casts made without gradients."""
        with ExitStack() as stack:
            for kind, (enabled, dtype) in self.autocast.items():
                stack.enter_context(torch.autocast(kind, dtype=dtype, enabled=enabled, cache_enabled=False))
            yield

    @contextmanager
    def _reduced(self, last: bool) -> Iterator[None]:
        """DistributedDataParallel reduces gradients in the backward pass of the last chunk only."""
        with ExitStack() as stack:
            for m in self.module.modules():
                if isinstance(m, DistributedDataParallel) and not last:
                    stack.enter_context(m.no_sync())
            yield

    @contextmanager
    def _replay(self) -> Iterator[None]:
        """Restores the buffers of the first pass; on exit, buffers and random states are as they were on entry."""
        devices = [self.device] if self.device.type != "cpu" else []
        with torch.random.fork_rng(devices, device_type=self.device.type if devices else "cuda"):
            now = [b.clone() for b in self.module.buffers()]
            self._set_buffers(self.buffers)
            try:
                yield
            finally:
                self._set_buffers(now)

    def _set_random_state(self, cpu: Tensor, devices: list[int], states: list[Tensor]) -> None:
        torch.set_rng_state(cpu)
        set_device_states(devices, states, device_type=self.device.type)

    def _set_buffers(self, values: Sequence[Tensor]) -> None:
        with torch.no_grad():
            for b, v in zip(self.module.buffers(), values):
                b.copy_(v)


def _differ(x: Tensor, row: Tensor) -> Tensor:
    """Whether two runs differ by more than the order of summation explains; without a synchronisation."""
    x, row = x.double(), row.double()
    return (x - row).square().sum() > 1e-4 * row.square().sum()


class _LargeBatch(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, passes: _TwoPasses, *parameters: Tensor) -> Tensor:
        ctx.passes = passes
        ctx.save_for_backward(*parameters)
        return passes.forward()

    @staticmethod
    @differentiable_once("large_batch_loss")
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        by_parameters = [None if g is None else g * grad for g in ctx.passes.by_parameters]
        return None, *ctx.passes.backward(grad), *by_parameters
