"""The native module (csrc/bindings): its parameter structs and functions; the headers explain the fields.

Every field of a struct is a keyword of the constructor and an attribute. Addresses are integers, 0 for null; sizes and
strides count elements.
"""

with_cuda: bool
TRACE_NORM_MAX_DIM: int

def instruction_set() -> str: ...
def cuda_archs() -> list[str]: ...
def cuda_unavailable() -> str: ...

# CPU: csrc/include/xmodal/cpu.

class Views:
    workspace: int
    def __init__(
        self, *, x: int, y: int, m: int, dx: int, dy: int, x_stride: int, y_stride: int, wide: bool, threads: int
    ) -> None: ...
    def workspace_size(self, backward: bool) -> int: ...

class CovarianceForward:
    def __init__(self, *, rx: float, ry: float, xx: int, xy: int, yy: int, mean_x: int, mean_y: int) -> None: ...

class CovarianceBackward:
    def __init__(self, *, weights: int, offset: int, grad_x: int, grad_y: int) -> None: ...

def covariance(views: Views, results: CovarianceForward, /) -> None: ...
def covariance_backward(views: Views, gradient: CovarianceBackward, /) -> None: ...

class TraceNorm:
    workspace: int
    def __init__(
        self,
        *,
        x: int,
        y: int,
        wide: bool,
        problems: int,
        m: int,
        dx: int,
        dy: int,
        x_stride: int,
        y_stride: int,
        x_problem_stride: int,
        y_problem_stride: int,
        rx: float,
        ry: float,
        value: int,
        grad_x: int,
        grad_y: int,
        threads: int,
    ) -> None: ...
    def workspace_size(self) -> int: ...

def trace_norm(batch: TraceNorm, /) -> bool: ...

class Pairs:
    workspace: int
    def __init__(
        self,
        *,
        anchor: int,
        ref: int,
        anchor_labels: int,
        ref_labels: int,
        m: int,
        n: int,
        d: int,
        words: int,
        exclude_diagonal: bool,
        wide: bool,
        threads: int,
    ) -> None: ...
    def workspace_size(self, weights: bool) -> int: ...

class PairSum:
    __members__: dict[str, PairSum]

class PairSums:
    def __init__(self, *, sums: int, anchor_grad: int, ref_grad: int) -> None: ...

class Positive:
    __members__: dict[str, Positive]

class Negative:
    __members__: dict[str, Negative]

class Mining:
    def __init__(
        self,
        *,
        positive: Positive,
        negative: Negative,
        beyond_hardest: bool,
        margin: float,
        seed: int,
        positive_idx: int,
        negative_idx: int,
        d_ap: int,
        d_an: int,
        n_pos: int,
        n_neg: int,
    ) -> None: ...

def mine_triplets(pairs: Pairs, mining: Mining, /) -> None: ...

class StructurePreserving:
    def __init__(self, *, anchor_pull: int, anchor_push: int, ref_pull: int, ref_push: int, margin: float) -> None: ...

def structure_preserving(pairs: Pairs, loss: StructurePreserving, results: PairSums, /) -> None: ...

class Triplets:
    __members__: dict[str, Triplets]

class TripletMargin:
    def __init__(self, *, triplets: Triplets, margin: float, weight: int = 0) -> None: ...

def triplet_margin(pairs: Pairs, loss: TripletMargin, results: PairSums, /) -> None: ...

# Below: present where with_cuda is true; see csrc/include/xmodal/cuda.h. Tensors are addresses, streams handles.

class Matrix:
    def __init__(
        self, data: int, stride: int, rows: int, columns: int, kind: int, shift: int = 0, batch: int = 0
    ) -> None: ...

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
    problems: int,
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
def cuda_set_device(index: int) -> None: ...
def cuda_settle(change: int, tiles: int, tolerance: float, active: int, stream: int) -> None: ...
def cuda_column_means(
    views: list[Matrix], problems: int, wide: bool, splits: int, partials: int, shifts: list[int], stream: int
) -> None: ...
def polar_steps(wide: bool) -> list[tuple[float, float, float]]: ...
def cuda_rotation_width(length: int) -> int: ...
def cuda_orthogonalise_rows(
    rows: int, count: int, length: int, width: int, sweeps: int, rotated: int, stream: int
) -> None: ...
def cuda_small_workspace(dx: int, dy: int, wide: bool) -> int: ...
def cuda_small_trace_norm(
    x: Matrix,
    y: Matrix,
    xx: int,
    xy: int,
    yy: int,
    rx: float,
    ry: float,
    top_k: int,
    sigma: int,
    value: int,
    gxx: int,
    gxy: int,
    gyx: int,
    gyy: int,
    workspace: int,
    problems: int,
    blocks: int,
    wide: bool,
    stream: int,
) -> None: ...

class LabelledPairs:
    def __init__(
        self,
        anchor: Matrix,
        ref: Matrix,
        anchor_norms: int,
        ref_norms: int,
        anchor_labels: int,
        ref_labels: int,
        words: int,
        exclude_diagonal: bool,
    ) -> None: ...

class Choice:
    def __init__(self, positive: bool, farthest: bool, floor: int, bound: int, key: int) -> None: ...

class Chunk:
    def __init__(self, first: int, rows: int, pairs: int, stride: int) -> None: ...

class AnchorSums:
    def __init__(self, sums: int, weights: int) -> None: ...

def cuda_squared_norms(rows: Matrix, wide: bool, norms: int, stream: int) -> None: ...
def cuda_mine(pairs: LabelledPairs, choices: list[Choice], counts: int, wide: bool, tile: int, stream: int) -> None: ...
def cuda_mined(
    pairs: LabelledPairs, choice: Choice, index: int, distance: int, square: int, wide: bool, stream: int
) -> None: ...
def cuda_draw_negatives(
    pairs: LabelledPairs, seed: int, index: int, distance: int, wide: bool, stream: int
) -> None: ...
def cuda_measure(pairs: LabelledPairs, chunk: Chunk, wide: bool, tile: int, stream: int) -> None: ...
def cuda_structure_preserving(
    pairs: LabelledPairs,
    chunk: Chunk,
    anchor_pull: int,
    anchor_push: int,
    ref_pull: int,
    ref_push: int,
    margin: float,
    out: AnchorSums,
    wide: bool,
    stream: int,
) -> None: ...
def cuda_triplet_margin(
    pairs: LabelledPairs,
    chunk: Chunk,
    triplets: int,
    margin: float,
    weight: int,
    in_shared: int,
    ranked: int,
    counts: int,
    out: AnchorSums,
    wide: bool,
    stream: int,
) -> None: ...
