"""Exact gradients of losses over batches whose activations do not fit in memory.

`large_batch_loss` makes two passes over chunks of the batch (`_TwoPasses`). The first pass runs the networks without
keeping activations and hands the outputs of every chunk to the loss (`_trace_norm` or `_any_loss`), which returns its
value and its gradient with respect to those outputs. The second pass, in `backward`, runs every chunk again and
back-propagates that gradient to the parameters. A parameter that this pass cannot see is an error, never a missing
gradient (`_Graph`).
"""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import BackwardCFunction
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import get_device_states, set_device_states

from .. import _checks
from .._arrays import as_tensor
from .._dtypes import accumulation_dtype, widest
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
        ValueError: networks or loss use a parameter that they do not hold as modules (in a closure or an unregistered
            module), which would get no gradient. Of networks, this is found in `backward`.
        RuntimeError: in `backward`, if the second run of a chunk gives other outputs than the first: the networks or
            the batch were changed in between, or a module draws from a random generator of its own.

    Networks may use activation checkpoints, reentrant ones too (except inside DistributedDataParallel), and other
    functions that run autograd in their own backward pass.

    The random state of the first run is restored for the second, so dropout drops the same units; so are the buffers,
    so batch norm updates its running statistics once. In training mode, batch norm normalises each chunk by itself: a
    chunk is its batch. Autocast is as it was at the call.

    Memory in addition to the networks: the activations of one chunk, one more set of parameter gradients, and 2·m·d
    numbers for the outputs and their gradient; O(d²) instead for a `TraceNormLoss`, for any m.

    >>> loss = large_batch_loss((image_net, text_net), (images, texts), TraceNormLoss(), chunk_size=4096)
    >>> loss.backward()
    """
    if not isinstance(networks, nn.Module):
        _modules(networks)
        networks = _PerView(networks)
    module = networks
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
        evaluate = partial(_any_loss, loss, of_loss, _rows(batch[0]), needs_gradient)
    value: Tensor = _LargeBatch.apply(_TwoPasses(module, batch, chunk_size, own, evaluate), *own, *of_loss)
    return value


def _modules(networks: Sequence[nn.Module]) -> None:
    for network in networks:
        if not isinstance(network, nn.Module):
            raise TypeError(f"networks must be modules, got {type(network).__name__}: its parameters cannot be found")


def _check(module: nn.Module, batch: Sequence[Any], chunk_size: int) -> dict[str, Any]:
    """Refuses unsuitable arguments; returns what the processes of a group must agree on."""
    if not batch:
        raise ValueError("batch must hold at least one view, got none")
    rows = [_rows(view) for view in batch]
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


def _rows(view: Any) -> int:
    return int(view.shape[0] if getattr(view, "shape", ()) else len(view))


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
            if (graph := _Graph([value])).checkpoints:
                raise ValueError("loss must not use a reentrant checkpoint: pass use_reentrant=False to checkpoint")
            passing = graph.refuse_others([*whole, *parameters], "loss")
            gradients = torch.autograd.grad(value, [*whole, *parameters], allow_unused=True)
            value = value.detach()
            del graph
            _refuse_survivors(passing, "loss")
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
        self.unsure = torch.is_grad_enabled() and not parameters  # there will be no second pass to find hidden ones
        rows = _rows(batch[0])
        count = -(-rows // chunk_size)
        # Of equal size, to a row: batch norm fails on a last chunk of one row.
        self.chunks = [slice(i * rows // count, (i + 1) * rows // count) for i in range(count)]
        self.device = next((p.device for p in module.parameters()), torch.device("cpu"))
        self.autocast = {
            kind: (torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind))
            for kind in {"cpu", self.device.type}
        }
        # Of each chunk; allocated once, since small tensors between the large blocks of activations fragment the heap.
        self.random_states = torch.empty(count, len(torch.get_rng_state()), dtype=torch.uint8)
        self.device_states: list[tuple[list[int], list[Tensor]]] = []
        self.first_rows: list[Tensor] = []  # of each output: (chunks, ...)

    def forward(self) -> Tensor:
        """The first pass: the value of the loss, without activations."""
        self.buffers = [b.clone() for b in self.module.buffers()]
        with self._numerics(), torch.no_grad():
            # The value is not kept: autograd makes it refer to this object, and a cycle would outlive the call.
            value, self.by_outputs, self.by_parameters = self.evaluate(self._outputs())
        return value

    def _outputs(self) -> Iterator[Outputs]:
        for index, rows in enumerate(self.chunks):
            chunk = self._load(rows)
            self.random_states[index] = torch.get_rng_state()
            self.device_states.append(get_device_states(chunk[0]))
            with torch.set_grad_enabled(self.unsure):
                outputs = self._run(chunk)
            if self.unsure:
                passing = _Graph(outputs).refuse_others([], "networks")
                outputs, self.unsure = tuple(x.detach() for x in outputs), False
                _refuse_survivors(passing, "networks")
            if not self.first_rows:
                self.first_rows = [x.new_empty(len(self.chunks), *x.shape[1:]) for x in outputs]
            for kept, x in zip(self.first_rows, outputs):
                kept[index] = x[0]
            yield outputs

    def backward(self, grad: Tensor) -> list[Tensor | None]:
        """The second pass: the gradients of the module's parameters, times `grad`."""
        self.changed = torch.zeros((), dtype=torch.bool, device=self.device)
        with self._numerics(), torch.enable_grad(), self._replay():
            try:
                totals = self._totals(grad)
            except _OpaqueError:
                self._set_buffers(self.buffers)
                totals = self._accumulated(grad)
        if self.changed:
            raise RuntimeError(
                "the second run of the networks gave other outputs than the first: the networks and the batch must "
                "not change between the call and backward(), and modules must not use random generators of their own"
            )
        return totals

    def _totals(self, grad: Tensor) -> list[Tensor | None]:
        totals: list[Tensor | None] = [None] * len(self.parameters)
        for index in range(len(self.chunks)):
            outputs, scaled = self._chunk(index, grad, self.parameters)
            if outputs:
                parts = torch.autograd.grad(outputs, self.parameters, scaled, allow_unused=True)
                # Not in place: autograd may return one tensor for two parameters.
                totals = [p if t is None else t if p is None else t + p for t, p in zip(totals, parts)]
            del outputs, scaled
            _refuse_survivors(self.passing, "networks")
        return totals

    def _accumulated(self, grad: Tensor) -> list[Tensor | None]:
        """The same for networks with functions that call autograd themselves, such as reentrant checkpoints.

        These add to the `grad` of the parameters they find in the modules. So the modules hold stand-ins meanwhile,
        which share memory with the parameters but have no hooks and no gradients yet.
        """
        stand_ins = {p: nn.Parameter(p.detach()) for p in self.parameters}
        places = [
            (m, name, p)
            for m in self.module.modules()
            for name, p in m.named_parameters(recurse=False, remove_duplicate=False)
            if p in stand_ins
        ]
        try:
            for m, name, p in places:
                setattr(m, name, stand_ins[p])
            for index in range(len(self.chunks)):
                outputs, scaled = self._chunk(index, grad, list(stand_ins.values()), opaque=True)
                if outputs:
                    torch.autograd.backward(outputs, scaled)
                del outputs, scaled
                _refuse_survivors(self.passing, "networks")
        finally:
            for m, name, p in places:
                setattr(m, name, p)
        return [stand_ins[p].grad for p in self.parameters]

    def _chunk(
        self, index: int, grad: Tensor, parameters: Sequence[Tensor], opaque: bool = False
    ) -> tuple[list[Tensor], list[Tensor]]:
        """The outputs of one chunk that need gradients, and these.

        Raises:
            _OpaqueError: a function may hide parameters, unless `opaque` allows that.
        """
        rows = self.chunks[index]
        chunk = self._load(rows)
        self._set_random_state(index)
        with self._reduced(last=index == len(self.chunks) - 1):
            outputs = self._run(chunk)
        for x, kept in zip(outputs, self.first_rows):
            self.changed |= _differ(x[0].detach(), kept[index])
        graph = _Graph(outputs)
        self.passing = graph.refuse_others(parameters, "networks")
        hooks = any(p._backward_hooks for p in parameters)  # autograd.grad would call them for every chunk
        if (graph.functions or hooks) and not opaque:
            if not any(isinstance(m, DistributedDataParallel) for m in self.module.modules()):
                raise _OpaqueError
            if graph.checkpoints:
                raise ValueError(
                    "networks must not use a reentrant checkpoint inside DistributedDataParallel: pass "
                    "use_reentrant=False to checkpoint"
                )
        by_outputs = self.by_outputs(rows, tuple(x.detach() for x in outputs))
        used = [(x, g) for x, g in zip(outputs, by_outputs) if g is not None and x.requires_grad]
        # Scaled before it is rounded to half: gradients of means over many rows would vanish there.
        return [x for x, _ in used], [(g * grad).to(x.dtype) for x, g in used]

    def _load(self, rows: slice) -> list[Tensor]:
        """These rows of all views, on the device of the networks."""
        return [as_tensor("batch", view[rows]).to(self.device, non_blocking=True) for view in self.batch]

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

    def _set_random_state(self, index: int) -> None:
        torch.set_rng_state(self.random_states[index].clone())  # torch reads its storage from the start
        devices, states = self.device_states[index]
        set_device_states(devices, states, device_type=self.device.type)

    def _set_buffers(self, values: Sequence[Tensor]) -> None:
        with torch.no_grad():
            for b, v in zip(self.module.buffers(), values):
                b.copy_(v)


class _OpaqueError(Exception):
    """`torch.autograd.grad` may miss parameters of these networks, or would call hooks of parameters too often."""


class _Graph:
    """What autograd recorded below some tensors: the leaves, and the functions that may hide more of them."""

    def __init__(self, outputs: Iterable[Tensor]) -> None:
        self.leaves: list[Tensor] = []
        self.functions = self.checkpoints = False
        stack: list[Any] = [x.grad_fn for x in outputs if x.grad_fn is not None]
        seen = set(stack)
        while stack:
            node = stack.pop()
            name = type(node).__name__
            if name == "AccumulateGrad":
                self.leaves.append(node.variable)
            if isinstance(node, BackwardCFunction) and name != "CompiledFunctionBackward":  # of torch.compile
                self.functions = True
                self.checkpoints |= "Checkpoint" in name
            following = {n for n, _ in node.next_functions if n is not None} - seen
            seen |= following
            stack += following

    def refuse_others(self, known: Iterable[Tensor], argument: str) -> list[weakref.ref[Tensor]]:
        """Raises ValueError if there are parameters besides the known ones; returns the leaves that are no parameters.

        Harmless are those made in passing, by `requires_grad_()` on an intermediate result: see `_refuse_survivors`.
        """
        own = set(map(id, known))
        others = [leaf for leaf in self.leaves if id(leaf) not in own]
        for leaf in others:
            if isinstance(leaf, nn.Parameter):
                raise _hidden(leaf, argument)
        return [weakref.ref(leaf) for leaf in others]


def _refuse_survivors(leaves: Sequence[weakref.ref[Tensor]], argument: str) -> None:
    """Raises ValueError if leaves that require gradients are held by something other than the graph, now freed."""
    if any(leaf() is not None for leaf in leaves):
        gc.collect()
        for leaf in leaves:
            if (tensor := leaf()) is not None:
                raise _hidden(tensor, argument)


def _hidden(leaf: Tensor, argument: str) -> ValueError:
    return ValueError(
        f"{argument} must hold all parameters that they use as modules do, got another one of shape "
        f"{tuple(leaf.shape)}, which would get no gradient"
    )


def _differ(x: Tensor, row: Tensor) -> Tensor:
    """Whether two runs differ by more than the order of summation explains; without a synchronisation."""
    x, row = widest(x), widest(row)
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
