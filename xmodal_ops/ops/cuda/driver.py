"""How the ops reach the CUDA kernels: devices, matrices, products and column means.

The other files in this folder compose the ops from these functions. Addresses, workspace and streams come from torch,
launch geometry is chosen here, and the native module only launches. Nothing in this folder waits for the device.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple, cast

import torch
from torch import Tensor

from ... import _C

# The kernels. tests/host replaces them by emulated ones, which take CPU tensors.
native: type[_C.cuda] = getattr(_C, "cuda", cast(Any, None))

DTYPES = {torch.float32: "f32", torch.float16: "f16", torch.bfloat16: "bf16", torch.float64: "f64"}
PARTIALS_LIMIT = 64 << 20  # bytes of workspace for the splits of products
OLDEST = (8, 0)  # compute capability

Layout = Literal["nn", "tn", "nt"]


@functools.lru_cache(maxsize=1)
def unavailable() -> str:
    """Why no kernel can run in this process, or "". Asks the driver, hence must not be called at import."""
    return str(_C.cuda_unavailable())


@functools.cache
def refusal(device: int) -> str:
    """Why this device cannot run the kernels, or "". Warns once."""
    reason = unavailable()
    capability = torch.cuda.get_device_capability(device)
    if not reason and capability < OLDEST:
        reason = f"{torch.cuda.get_device_name(device)} has compute capability {capability}, below {OLDEST}"
    if reason:
        warnings.warn(f"xmodal_ops runs on torch's own operations: {reason}", stacklevel=3)
    return reason


def with_fallback(kernels: Callable[..., Any], portable: Callable[..., Any]) -> Callable[..., Any]:
    """An op's CUDA implementation: its kernels, or the portable path on devices that cannot run them.

    The device is that of the first tensor.
    """

    @functools.wraps(kernels)
    def implementation(first: Tensor, *rest: Any) -> Any:
        if refusal(first.device.index):
            return portable(first, *rest)
        with torch.cuda.device(first.device):
            native.set_device(first.device.index)
            return kernels(first, *rest)

    return implementation


def stream(x: Tensor) -> int:
    """The raw handle of torch's current stream."""
    return int(torch._C._cuda_getCurrentRawStream(x.device.index)) if x.is_cuda else 0


@functools.cache
def _processors(device: int) -> int:
    return int(torch.cuda.get_device_properties(device).multi_processor_count)


def processors(x: Tensor) -> int:
    """Multiprocessors of the tensor's device; those of a small GPU for the emulation."""
    return _processors(x.device.index) if x.is_cuda else 4


@functools.cache
def _fast_double(device: int) -> bool:
    return torch.cuda.get_device_capability(device) in ((8, 0), (9, 0), (10, 0))


def fast_double(x: Tensor) -> bool:
    """Whether fp64 runs at about half the rate of fp32 (data centre GPUs) rather than at 1/32 or less."""
    return _fast_double(x.device.index) if x.is_cuda else True


def rows(
    x: Tensor,  # (..., m, d)
) -> Tensor:
    """x as the kernels read matrices: the elements of a row are adjacent, rows any distance apart."""
    return x if x.stride(-1) == 1 or x.shape[-1] == 1 else x.contiguous()


def problems_of(
    x: Tensor,  # (m, d) or (B, m, d)
) -> int:
    """The number of problems: B, or 1."""
    return x.shape[0] if x.ndim == 3 else 1


def address(x: Tensor | None) -> int:
    """The address of a tensor's data, 0 for None."""
    return 0 if x is None else x.data_ptr()


def native_dtype(dtype: torch.dtype) -> _C.cuda.DType:
    """The kernels' name of a dtype."""
    member: _C.cuda.DType = getattr(native.DType, DTYPES[dtype])
    return member


def matrix(
    x: Tensor,  # (m, d), or (B, m, d) for a batch
    shift: Tensor | None = None,  # (2, d) or (B, 2, d), from `column_means`
) -> _C.cuda.Matrix:
    """The kernels' description of a matrix, which they read as x - shift."""
    *_, rows, columns = x.shape
    *batch, stride, step = x.stride()
    assert step == 1 or columns == 1, "kernels read matrices stored by rows"
    return native.Matrix(
        data=x.data_ptr(),
        stride=stride,
        rows=rows,
        columns=columns,
        dtype=native_dtype(x.dtype),
        shift=address(shift),
        batch=batch[0] if batch else 0,
    )


class Term(NamedTuple):
    """One product a·b of a sum. Matrices are given as stored; their shifts are subtracted from their columns."""

    a: Tensor  # (rows, depth), or (depth, rows) in the layout tn
    b: Tensor  # (depth, columns), or (columns, depth) in the layout nt
    a_shift: Tensor | None = None  # (2, columns of a)
    b_shift: Tensor | None = None  # (2, columns of b)


class Product(NamedTuple):
    """out = alpha · Σ a·b + beta · add + gamma · I.

    In a batch every tensor except `add` has a first dimension B more, and `out` has no gaps.
    """

    terms: tuple[Term, ...]  # one or two
    out: Tensor  # (rows, columns)
    symmetric: bool = False  # compute one triangle only and mirror it
    alpha: float = 1.0
    beta: float = 0.0
    gamma: float = 0.0
    add: Tensor | None = None  # (rows, columns), or (columns,) for every row

    @property
    def shape(self) -> tuple[int, int]:
        return self.out.shape[-2], self.out.shape[-1]

    def to_native(self) -> _C.cuda.Product:
        terms = [native.Term(a=matrix(t.a, t.a_shift), b=matrix(t.b, t.b_shift)) for t in self.terms]
        rows, columns = self.shape
        product = native.Product(
            first=terms[0],
            rows=rows,
            columns=columns,
            symmetric=self.symmetric,
            alpha=self.alpha,
            beta=self.beta,
            gamma=self.gamma,
            add=address(self.add),
            add_stride=self.add.stride(0) if self.add is not None and self.add.ndim == 2 else 0,
            out=self.out.data_ptr(),
            out_stride=self.out.stride(-2),
            out_dtype=native_dtype(self.out.dtype),
        )
        if len(terms) > 1:
            product.second = terms[1]
        return product


class Iteration(NamedTuple):
    """The state of an iteration that ends on the device; see iterations.py."""

    active: Tensor  # (1,) int32
    previous: Tensor | None = None  # of the result's shape and strides
    change: Tensor | None = None  # (tiles, 2) fp64

    def to_native(self) -> _C.cuda.Iteration:
        return native.Iteration(
            active=self.active.data_ptr(), previous=address(self.previous), change=address(self.change)
        )


def count_tiles(shape: tuple[int, int], symmetric: bool, tile: int) -> int:
    """The number of tiles of a result; half of them, about, if it is symmetric."""
    return native.product_tiles(*shape, symmetric, tile)


def choose_tile(shapes: Sequence[tuple[tuple[int, int], bool]], wide: bool, processors: int) -> int:
    """The edge of the tiles: 128 if that many tiles keep every multiprocessor busy, otherwise 64.

    Args:
        shapes: of the results of a launch, (shape, symmetric).
        wide: fp64, which has tiles of 64 only.
        processors: the number of multiprocessors.
    """
    large = sum(count_tiles(shape, symmetric, 128) for shape, symmetric in shapes)
    return 64 if wide or large < processors else 128


def choose_splits(tiles: int, tile: int, depth: int, wide: bool, processors: int) -> int:
    """The number of blocks that share the depth of a tile: enough for two blocks per multiprocessor."""
    wanted = -(-2 * processors // tiles)
    useful = depth // (8 * native.SLICE)
    affordable = PARTIALS_LIMIT // (tiles * tile * tile * (8 if wide else 4))
    return max(1, min(wanted, useful, affordable))


def products(
    layout: Layout, *list_: Product, may_split: bool = True, iteration: Iteration | None = None, tile: int = 0
) -> None:
    """Runs up to three products in one launch, in fp64 if a matrix or shift of the first term is fp64, else in fp32.

    Args:
        layout: which factors are stored transposed: nn is a·b, tn is aᵀ·b, nt is a·bᵀ of the stored matrices.
        list_: the products.
        may_split: whether several blocks may share the depth of a tile, for another launch.
        iteration: the iteration that the product is a step of.
        tile: the edge of the tiles; 0 chooses one.
    """
    first = list_[0].terms[0]
    wide = any(f is not None and f.dtype == torch.float64 for f in (first.a, first.b, first.a_shift, first.b_shift))
    shapes = [(p.shape, p.symmetric) for p in list_]
    problems = problems_of(first.a)
    tile = tile or choose_tile(shapes, wide, -(-processors(first.a) // problems))
    tiles = problems * sum(count_tiles(shape, symmetric, tile) for shape, symmetric in shapes)
    depth = max(sum(t.a.shape[-2 if layout == "tn" else -1] for t in p.terms) for p in list_)
    splits = choose_splits(tiles, tile, depth, wide, processors(first.a)) if may_split and iteration is None else 1
    dtype = torch.float64 if wide else torch.float32
    partials = first.a.new_empty(splits * tiles * tile * tile if splits > 1 else 0, dtype=dtype)
    plan = native.Plan(
        problems=problems,
        wide=wide,
        layout=getattr(native.ProductLayout, layout),
        tile=tile,
        splits=splits,
        partials=partials.data_ptr(),
    )
    if iteration is not None:
        plan.iteration = iteration.to_native()
    native.products([p.to_native() for p in list_], plan, stream(first.a))


def product(
    layout: Layout,
    a: Tensor,  # as in `Term`
    b: Tensor,
    *,
    symmetric: bool = False,
    alpha: float = 1.0,
) -> Tensor:
    """`alpha * (a @ b)` for matrices that are already in the working precision."""
    shape = a.shape[1 if layout == "tn" else 0], b.shape[0 if layout == "nt" else 1]
    out = a.new_empty(shape)
    products(layout, Product((Term(a, b),), out, symmetric, alpha))
    return out


def column_means(
    *views: Tensor,  # one or two of (m, d), or of (B, m, d)
    dtype: torch.dtype,
) -> list[Tensor]:
    """The column means of each view as a shift: (2, d) or (B, 2, d), two numbers whose sum has twice the precision."""
    m, columns, problems = views[0].shape[-2], sum(v.shape[-1] for v in views), problems_of(views[0])
    blocks = problems * sum(-(-v.shape[-1] // native.MEANS_COLUMNS) for v in views)
    splits = max(1, min(4 * processors(views[0]) // blocks, m // 32))
    partials = views[0].new_empty(problems * splits * columns, dtype=torch.float64)
    shifts = [v.new_empty((*v.shape[:-2], 2, v.shape[-1]), dtype=dtype) for v in views]
    means = native.ColumnMeans(
        x=matrix(views[0]),
        x_shift=shifts[0].data_ptr(),
        problems=problems,
        wide=dtype == torch.float64,
        splits=splits,
        partials=partials.data_ptr(),
    )
    if len(views) > 1:
        means.y, means.y_shift = matrix(views[1]), shifts[1].data_ptr()
    native.column_means(means, stream(views[0]))
    return shifts
