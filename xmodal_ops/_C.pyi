"""The native module (csrc/bindings.cpp). Addresses are integers, sizes count elements."""

with_cuda: bool

def instruction_set() -> str: ...
def cuda_archs() -> list[str]: ...
def cuda_unavailable() -> str: ...

# Below: present where with_cuda is true; see csrc/include/xmodal/cuda.h. Tensors are addresses, streams handles.

class Matrix:
    def __init__(self, data: int, stride: int, rows: int, columns: int, kind: int, shift: int = 0) -> None: ...

class Product:
    def __init__(
        self,
        a: list[Matrix],
        b: list[Matrix],
        rows: int,
        columns: int,
        symmetric: bool,
        alpha: float,
        beta: float,
        gamma: float,
        add: int,
        add_stride: int,
        out: int,
        out_stride: int,
        out_kind: int,
    ) -> None: ...

def cuda_products(
    list: list[Product],
    wide: bool,
    layout: int,
    tile: int,
    splits: int,
    partials: int,
    active: int,
    previous: int,
    change: int,
    stream: int,
) -> None: ...
def cuda_settle(change: int, tiles: int, tolerance: float, active: int, stream: int) -> None: ...
def cuda_column_means(
    views: list[Matrix], wide: bool, splits: int, partials: int, shifts: list[int], stream: int
) -> None: ...
def polar_steps(wide: bool) -> list[tuple[float, float, float]]: ...
def cuda_small_workspace(dx: int, dy: int, wide: bool) -> int: ...
def cuda_small_trace_norm(
    x: Matrix,
    y: Matrix,
    xx: int,
    xy: int,
    yy: int,
    rx: float,
    ry: float,
    value: int,
    gxx: int,
    gxy: int,
    gyx: int,
    gyy: int,
    workspace: int,
    wide: bool,
    stream: int,
) -> None: ...
