"""Exact gradients of losses over batches whose activations do not fit: two passes over chunks of the batch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.parallel import DistributedDataParallel

from .._dtypes import accumulation_dtype
from ..nn import TraceNormLoss
from . import collective
from .streamed_trace_norm import StreamedTraceNorm
from .trace_norm import TraceNormLoss as GlobalTraceNormLoss


def large_batch_loss(
    networks: nn.Module | Sequence[nn.Module],
    batch: Sequence[Any],
    loss: Callable[..., Tensor],
    *,
    chunk_size: int,
) -> Tensor:
    """The loss of a whole batch, of which the networks hold the activations of one chunk only.

    The first pass runs the networks chunk by chunk without keeping activations; `loss` sees the outputs of the whole
    batch, and its exact gradient by them is kept. ``backward`` is the second pass: every chunk is run again, and that
    gradient goes through it. Value and gradients are those of ``loss(*networks(*batch))``, for a third more
    computation ("gradient caching": Gao et al., RepL4NLP 2021).

    Args:
        networks: one module that maps the chunks of all views to a tensor or a tuple of tensors, (rows, d) each; or one
            module for each view.
        batch: the views, m rows each: tensors on any device, or whatever has a length and slices, such as a NumPy
            memory map or an HDF5 data set. Chunks are moved to the device of the networks. The batch itself gets no
            gradient. It must not change before ``backward``.
        loss: a function of the outputs of the whole batch that gives a scalar. Its own parameters get their gradients
            if it is a module. A `TraceNormLoss` is computed by streaming moments instead.
        chunk_size: rows for which activations are held, at most; chunks are of equal size.

    Returns:
        A scalar: call ``backward`` on it, scale it (GradScaler, gradient accumulation), return it from a Lightning
        ``training_step``. All that follows gradients sees them once: hooks, DistributedDataParallel's reduction, which
        works with ``networks`` so wrapped or with a wrapper around the call.

    Raises:
        ValueError, TypeError: views of unequal length, chunk_size < 1, a view or an output that does not fit.
        RuntimeError: in ``backward``, where a chunk's second run gives other outputs than the first: the networks or
            the batch were changed in between, or a module draws from a random generator of its own.

    The random state of the first run is put back for the second, so dropout drops the same units; so are the buffers,
    so batch norm updates its running figures once. In training mode batch norm normalises each chunk by itself: a
    chunk is its batch. Autocast is as it was at the call.

    Memory beside the networks': the activations of one chunk, one more set of parameter gradients, and 2·m·d floats
    for outputs and their gradient; O(d²) instead for a `TraceNormLoss`, at any m.

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
    stream = _Moments(loss) if isinstance(loss, TraceNormLoss) else _Kept(loss, of_loss, len(batch[0]))
    passes = _TwoPasses(module, batch, chunk_size, own, stream)
    value: Tensor = _LargeBatch.apply(passes, torch.is_grad_enabled() and bool(own or of_loss), *own, *of_loss)
    return value


def _check(module: nn.Module, batch: Sequence[Any], chunk_size: int) -> dict[str, Any]:
    """Refuses what does not fit; what the processes of a group must agree on."""
    if not batch:
        raise ValueError("batch must hold at least one view, got none")
    rows = [len(view) for view in batch]
    if len(set(rows)) > 1:
        raise ValueError(f"batch must hold views of equal length, got {' and '.join(map(str, rows))} rows")
    if rows[0] < 1:
        raise ValueError("batch must hold at least one row, got none")
    if isinstance(chunk_size, bool) or not isinstance(chunk_size, int):
        raise TypeError(f"chunk_size must be an int, got {type(chunk_size).__name__}")
    if chunk_size < 1:
        raise ValueError(f"chunk_size must be at least 1, got {chunk_size}")
    if isinstance(module, _PerView) and len(module.views) != len(batch):
        raise ValueError(f"networks must hold one module per view, {len(batch)}, got {len(module.views)}")
    if any(isinstance(view, Tensor) and view.requires_grad for view in batch):
        raise ValueError("batch must not require gradients: only the parameters of networks and loss get them")
    return {"function": "large_batch_loss", "number of views": len(batch), "rows": rows[0]}


class _Stream(Protocol):
    """A loss that takes outputs chunk by chunk, and then gives the gradients of the same chunks in the same order."""

    def update(self, *outputs: Tensor) -> None: ...

    def finish(self, gradient: bool) -> Tensor: ...

    def gradients(self, start: int, *outputs: Tensor) -> Sequence[Tensor | None]: ...

    def of_loss(self) -> Sequence[Tensor | None]: ...


class _Kept:
    """Any loss: outputs are kept, then replaced by their gradients."""

    def __init__(self, loss: Callable[..., Tensor], parameters: Sequence[Tensor], rows: int) -> None:
        self.loss, self.parameters, self.rows = loss, parameters, rows
        self.filled = 0
        self.outputs: list[Tensor] = []
        self.kept: Sequence[Tensor | None] = ()

    def update(self, *outputs: Tensor) -> None:
        if not self.filled:
            # Half outputs go on in fp32: gradients of means over many rows would vanish in fp16.
            self.outputs = [x.new_empty(self.rows, *x.shape[1:], dtype=accumulation_dtype(x.dtype)) for x in outputs]
        stop = self.filled + len(outputs[0])
        for whole, x in zip(self.outputs, outputs):
            whole[self.filled : stop] = x
        self.filled = stop

    def finish(self, gradient: bool) -> Tensor:
        outputs, self.outputs = self.outputs, []
        self.views = len(outputs)
        with torch.set_grad_enabled(gradient):
            value = self.loss(*(x.requires_grad_(gradient) for x in outputs))
            if value.numel() != 1:
                raise ValueError(f"loss must give a scalar, got shape {tuple(value.shape)}")
            if gradient:
                self.kept = torch.autograd.grad(value, [*outputs, *self.parameters], allow_unused=True)
        return value.detach()

    def gradients(self, start: int, *outputs: Tensor) -> Sequence[Tensor | None]:
        stop = start + len(outputs[0])
        return [None if g is None else g[start:stop] for g in self.kept[: self.views]]

    def of_loss(self) -> Sequence[Tensor | None]:
        return self.kept[self.views :]


class _Moments:
    """The trace norm: nothing is kept but moments."""

    def __init__(self, loss: TraceNormLoss) -> None:
        self.norm = StreamedTraceNorm(loss.ridge, loss.top_k)
        if isinstance(loss, GlobalTraceNormLoss):
            self.norm = loss.stream()

    def update(self, *outputs: Tensor) -> None:
        if len(outputs) != 2:
            raise ValueError(f"networks must give two outputs for a TraceNormLoss, got {len(outputs)}")
        self.norm.update(*outputs)

    def finish(self, gradient: bool) -> Tensor:
        return self.norm.finish()

    def gradients(self, start: int, *outputs: Tensor) -> Sequence[Tensor | None]:
        return self.norm.gradients(*outputs)

    def of_loss(self) -> Sequence[Tensor | None]:
        return ()


class _PerView(nn.Module):
    """One network for each view."""

    def __init__(self, views: Sequence[nn.Module]) -> None:
        super().__init__()
        self.views = nn.ModuleList(views)

    def forward(self, *chunk: Tensor) -> tuple[Tensor, ...]:
        return tuple(network(rows) for network, rows in zip(self.views, chunk))


class _TwoPasses:
    """One batch on its way through the networks, twice."""

    def __init__(
        self, module: nn.Module, batch: Sequence[Any], chunk_size: int, parameters: Sequence[Tensor], stream: _Stream
    ) -> None:
        self.module, self.batch = module, batch
        rows = len(batch[0])
        chunks = -(-rows // chunk_size)
        # Of equal size, to a row: batch norm fails on a last chunk of one row.
        self.bounds = [(i * rows // chunks, (i + 1) * rows // chunks) for i in range(chunks)]
        self.parameters, self.stream = parameters, stream
        self.device = next((p.device for p in module.parameters()), torch.device("cpu"))
        self.autocast = {
            kind: (torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind))
            for kind in {"cpu", self.device.type}
        }
        self.random: list[list[Tensor]] = []
        self.first_rows: list[list[Tensor]] = []

    def first(self, gradient: bool) -> Tensor:
        """The value, without activations."""
        self.buffers = [b.clone() for b in self.module.buffers()]
        with self._numerics(), torch.no_grad():
            for _, chunk in self._chunks():
                self.random.append(self._random_state())
                outputs = self._run(chunk)
                self.first_rows.append([x[0].clone() for x in outputs])
                self.stream.update(*outputs)
        return self.stream.finish(gradient)

    def second(self, grad: Tensor) -> list[Tensor | None]:
        """The parameters' gradients, times the given one."""
        totals: list[Tensor | None] = [None] * len(self.parameters)
        self.changed = torch.zeros((), dtype=torch.bool, device=self.device)
        with self._numerics(), torch.enable_grad(), self._replayed():
            for index, (start, chunk) in enumerate(self._chunks()):
                parts = self._chunk_gradients(index, start, chunk, grad)
                # Not in place: autograd may hand out one tensor for two parameters.
                totals = [p if t is None else t if p is None else t + p for t, p in zip(totals, parts)]
        if self.changed:
            raise RuntimeError(
                "the second run of the networks gave other outputs than the first: between the call and backward() "
                "neither they nor the batch may change, and they may not draw from random generators of their own"
            )
        return totals

    def _chunk_gradients(
        self, index: int, start: int, chunk: Sequence[Tensor], grad: Tensor
    ) -> Sequence[Tensor | None]:
        self._set_random_state(self.random[index])
        with ExitStack() as stack:
            if index < len(self.bounds) - 1:  # DistributedDataParallel expects one backward
                for m in self.module.modules():
                    if isinstance(m, DistributedDataParallel):
                        stack.enter_context(m.no_sync())
            outputs = self._run(chunk)
        for x, row in zip(outputs, self.first_rows[index]):
            self.changed |= _differ(x[0].detach(), row)
        upstream = self.stream.gradients(start, *(x.detach() for x in outputs))
        used = [(x, g) for x, g in zip(outputs, upstream) if g is not None and x.requires_grad]
        if not used:
            return [None] * len(self.parameters)
        # Scaled before it is rounded to half: gradients of means over many rows would vanish there.
        scaled = [(g * grad).to(x.dtype) for x, g in used]
        return torch.autograd.grad([x for x, _ in used], self.parameters, scaled, allow_unused=True)

    def _chunks(self) -> Iterator[tuple[int, list[Tensor]]]:
        for start, stop in self.bounds:
            rows = (torch.as_tensor(view[start:stop]) for view in self.batch)
            yield start, [x.to(self.device, non_blocking=True) for x in rows]

    def _run(self, chunk: Sequence[Tensor]) -> tuple[Tensor, ...]:
        outputs = self.module(*chunk)
        outputs = (outputs,) if isinstance(outputs, Tensor) else tuple(outputs)
        for x in outputs:
            if not isinstance(x, Tensor) or x.ndim < 1 or len(x) != len(chunk[0]):
                got = tuple(x.shape) if isinstance(x, Tensor) else type(x).__name__
                raise ValueError(f"networks must give tensors of {len(chunk[0])} rows for as many, got {got}")
        return outputs

    @contextmanager
    def _numerics(self) -> Iterator[None]:
        """Autocast as at the call. Without its cache, which would pass on casts made in the pass without gradients."""
        with ExitStack() as stack:
            for kind, (enabled, dtype) in self.autocast.items():
                stack.enter_context(torch.autocast(kind, dtype=dtype, enabled=enabled, cache_enabled=False))
            yield

    @contextmanager
    def _replayed(self) -> Iterator[None]:
        """The buffers as before the first pass; afterwards, they and the random state are again as they were."""
        devices = [self.device] if self.device.type != "cpu" else []
        with torch.random.fork_rng(devices, device_type=self.device.type if devices else "cuda"):
            now = [b.clone() for b in self.module.buffers()]
            self._set_buffers(self.buffers)
            try:
                yield
            finally:
                self._set_buffers(now)

    def _set_buffers(self, values: Sequence[Tensor]) -> None:
        with torch.no_grad():
            for b, v in zip(self.module.buffers(), values):
                b.copy_(v)

    def _random_state(self) -> list[Tensor]:
        states = [torch.get_rng_state()]
        if self.device.type != "cpu":
            states.append(torch.get_device_module(self.device).get_rng_state(self.device))
        return states

    def _set_random_state(self, states: Sequence[Tensor]) -> None:
        torch.set_rng_state(states[0])
        if len(states) > 1:
            torch.get_device_module(self.device).set_rng_state(states[1], self.device)


def _differ(x: Tensor, row: Tensor) -> Tensor:
    """Whether two runs differ by more than the order of sums can make them; without a synchronisation."""
    x, row = x.double(), row.double()
    return (x - row).square().sum() > 1e-4 * row.square().sum()


class _LargeBatch(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, passes: _TwoPasses, gradient: bool, *parameters: Tensor) -> Tensor:
        ctx.passes = passes
        return passes.first(gradient)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        of_loss = [None if g is None else g * grad for g in ctx.passes.stream.of_loss()]
        return None, None, *ctx.passes.second(grad), *of_loss
