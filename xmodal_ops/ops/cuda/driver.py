"""How the ops reach the CUDA kernels: addresses and workspace come from torch, nothing here waits for the device."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from ... import _C

# The module whose kernels are called; tests/host puts the emulated one here, and calls with CPU tensors.
native: Any = _C

KINDS = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2, torch.float64: 3}
LAYOUTS = {"nn": 0, "tn": 1, "nt": 2}
SLICE = 16  # depth of what a product holds in shared memory
PARTIALS_LIMIT = 64 << 20  # bytes of workspace that a product may take
OLDEST = (8, 0)  # compute capability

Layout = Literal["nn", "tn", "nt"]


@functools.lru_cache(maxsize=1)
def unavailable() -> str:
    """Why no kernel can run in this process, or "". Asks the driver, so never at import."""
    return str(_C.cuda_unavailable())


@functools.cache
def refusal(device: int) -> str:
    """Why this device cannot run the kernels, or ""; said once, as a warning."""
    reason = unavailable()
    capability = torch.cuda.get_device_capability(device)
    if not reason and capability < OLDEST:
        reason = f"{torch.cuda.get_device_name(device)} has compute capability {capability}, below {OLDEST}"
    if reason:
        warnings.warn(f"xmodal_ops runs on torch's own operations: {reason}", stacklevel=3)
    return reason


def with_fallback(kernels: Callable[..., Any], portable: Callable[..., Any]) -> Callable[..., Any]:
    """An op's CUDA implementation: its kernels on the first tensor's device, or the portable path where none run."""

    @functools.wraps(kernels)
    def implementation(first: Tensor, *rest: Any) -> Any:
        if refusal(first.device.index):
            return portable(first, *rest)
        with torch.cuda.device(first.device):
            native.cuda_set_device(first.device.index)
            return kernels(first, *rest)

    return implementation


def stream(x: Tensor) -> int:
    """The raw handle of torch's current stream."""
    return int(torch._C._cuda_getCurrentRawStream(x.device.index)) if x.is_cuda else 0


@functools.cache
def _processors(device: int) -> int:
    return int(torch.cuda.get_device_properties(device).multi_processor_count)


def processors(x: Tensor) -> int:
    """Multiprocessors of the tensor's device; a small GPU's worth for the emulation."""
    return _processors(x.device.index) if x.is_cuda else 4


@functools.cache
def _fast_double(device: int) -> bool:
    return torch.cuda.get_device_capability(device) in ((8, 0), (9, 0), (10, 0))


def fast_double(x: Tensor) -> bool:
    """Whether fp64 runs at about half of fp32's rate (data centre chips), and not at 1/32 or less."""
    return _fast_double(x.device.index) if x.is_cuda else True


def rows(x: Tensor) -> Tensor:
    """x with the numbers of a row next to each other, rows any distance apart: as the kernels read matrices."""
    return x if x.stride(-1) == 1 or x.shape[-1] == 1 else x.contiguous()


def problems_of(x: Tensor) -> int:
    """How many problems a tensor (m, d) or (B, m, d) belongs to."""
    return x.shape[0] if x.ndim == 3 else 1


def matrix(x: Tensor, shift: Tensor | None = None) -> Any:
    """What the kernels call a Matrix; shift (2, d) holds the column means, as `column_means` gives them.

    Of a batch (B, m, d), shift (B, 2, d), it is the first problem's.
    """
    at = shift.data_ptr() if shift is not None else 0
    assert x.stride(-1) == 1 or x.shape[-1] == 1, "a matrix of the kernels is stored by rows"
    batch = x.stride(0) if x.ndim == 3 else 0
    return native.Matrix(x.data_ptr(), x.stride(-2), x.shape[-2], x.shape[-1], KINDS[x.dtype], at, batch)


@dataclass(frozen=True)
class Term:
    """One product a·b of a sum, and the shifts that are taken from the columns of the stored matrices."""

    a: Tensor
    b: Tensor
    a_shift: Tensor | None = None
    b_shift: Tensor | None = None


@dataclass(frozen=True)
class Product:
    """out = alpha · Σ a·b + beta · add + gamma · I; of a symmetric result only one triangle is computed.

    Of a batch, all but `add` have a first dimension more, and out has no gaps.
    """

    terms: tuple[Term, ...]
    out: Tensor
    symmetric: bool = False
    alpha: float = 1.0
    beta: float = 0.0
    gamma: float = 0.0
    add: Tensor | None = None


@dataclass(frozen=True)
class Iteration:
    """The state of an iteration that ends on the device: see `Plan` in csrc/include/xmodal/cuda.h."""

    active: Tensor  # int32 (1,)
    previous: Tensor | None = None
    change: Tensor | None = None  # float64 (2 · tiles,)


def count_tiles(shape: tuple[int, int], symmetric: bool, tile: int) -> int:
    down, across = -(-shape[0] // tile), -(-shape[1] // tile)
    return down * (down + 1) // 2 if symmetric else down * across


def choose_tile(shapes: Sequence[tuple[tuple[int, int], bool]], wide: bool, processors: int) -> int:
    """Tiles of 128 where they keep every multiprocessor busy, else of 64."""
    large = sum(count_tiles(shape, symmetric, 128) for shape, symmetric in shapes)
    return 64 if wide or large < processors else 128


def choose_splits(tiles: int, tile: int, depth: int, wide: bool, processors: int) -> int:
    """How many blocks share the depth of a tile, so that there are two for every multiprocessor."""
    wanted = -(-2 * processors // tiles)
    useful = depth // (8 * SLICE)
    affordable = PARTIALS_LIMIT // (tiles * tile * tile * (8 if wide else 4))
    return max(1, min(wanted, useful, affordable))


# A product computes in fp64 where one of its matrices or shifts is fp64, in fp32 otherwise.
def products(
    layout: Layout, *list_: Product, may_split: bool = True, iteration: Iteration | None = None, tile: int = 0
) -> None:
    """Runs up to three products of one layout in one launch: nn is a·b, tn is aᵀ·b, nt is a·bᵀ of stored matrices."""
    first = list_[0].terms[0]
    wide = any(f is not None and f.dtype == torch.float64 for f in (first.a, first.b, first.a_shift, first.b_shift))
    shapes = [(_shape(p), p.symmetric) for p in list_]
    problems = problems_of(first.a)
    tile = tile or choose_tile(shapes, wide, -(-processors(first.a) // problems))
    tiles = problems * sum(count_tiles(shape, symmetric, tile) for shape, symmetric in shapes)
    depth = max(sum(t.a.shape[-2 if layout == "tn" else -1] for t in p.terms) for p in list_)
    splits = choose_splits(tiles, tile, depth, wide, processors(first.a)) if may_split and iteration is None else 1
    dtype = torch.float64 if wide else torch.float32
    partials = first.a.new_empty(splits * tiles * tile * tile if splits > 1 else 0, dtype=dtype)
    previous = iteration.previous if iteration else None
    change = iteration.change if iteration else None
    native.cuda_products(
        [_native(p) for p in list_],
        problems,
        wide,
        LAYOUTS[layout],
        tile,
        splits,
        address(partials),
        address(iteration.active if iteration else None),
        address(previous),
        address(change),
        stream(first.a),
    )


def _shape(p: Product) -> tuple[int, int]:
    return p.out.shape[-2], p.out.shape[-1]


def address(x: Tensor | None) -> int:
    return 0 if x is None else x.data_ptr()


def _native(p: Product) -> Any:
    add_stride = p.add.stride(0) if p.add is not None and p.add.ndim == 2 else 0  # a vector is added to every row
    return native.Product(
        [matrix(t.a, t.a_shift) for t in p.terms],
        [matrix(t.b, t.b_shift) for t in p.terms],
        *_shape(p),
        p.symmetric,
        p.alpha,
        p.beta,
        p.gamma,
        address(p.add),
        add_stride,
        p.out.data_ptr(),
        p.out.stride(-2),
        KINDS[p.out.dtype],
    )


def product(layout: Layout, a: Tensor, b: Tensor, *, symmetric: bool = False, alpha: float = 1.0) -> Tensor:
    """alpha · a·b of matrices computed with."""
    shape = a.shape[1 if layout == "tn" else 0], b.shape[0 if layout == "nt" else 1]
    out = a.new_empty(shape)
    products(layout, Product((Term(a, b),), out, symmetric, alpha))
    return out


def column_means(*views: Tensor, dtype: torch.dtype) -> list[Tensor]:
    """Of each view (m, d) its column means as two rows (2, d) of dtype, whose sum has twice the precision.

    Of views (B, m, d), (B, 2, d).
    """
    m, columns, problems = views[0].shape[-2], sum(v.shape[-1] for v in views), problems_of(views[0])
    blocks = problems * sum(-(-v.shape[-1] // 128) for v in views)
    splits = max(1, min(4 * processors(views[0]) // blocks, m // 32))
    partials = views[0].new_empty(problems * splits * columns, dtype=torch.float64)
    shifts = [v.new_empty((*v.shape[:-2], 2, v.shape[-1]), dtype=dtype) for v in views]
    native.cuda_column_means(
        [matrix(v) for v in views],
        problems,
        dtype == torch.float64,
        splits,
        partials.data_ptr(),
        [s.data_ptr() for s in shifts],
        stream(views[0]),
    )
    return shifts
