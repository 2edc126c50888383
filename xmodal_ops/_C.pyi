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

# A submodule, present if with_cuda is true; as a class, so that a variable can have its type. The headers in
# csrc/include/xmodal/cuda document the fields. Optional structs are set as attributes. Streams are raw handles.
class cuda:  # noqa: N801
    MEANS_COLUMNS: int
    SLICE: int
    POLAR_EXPRESS_STEPS: int
    SMALL_COLUMNS: int

    @staticmethod
    def set_device(index: int) -> None: ...

    class DType:
        f32: cuda.DType
        f16: cuda.DType
        bf16: cuda.DType
        f64: cuda.DType

    class Matrix:
        def __init__(
            self,
            *,
            data: int,
            stride: int,
            rows: int,
            columns: int,
            dtype: cuda.DType,
            shift: int = 0,
            batch: int = 0,
        ) -> None: ...

    class ColumnMeans:
        y: cuda.Matrix
        y_shift: int

        def __init__(
            self,
            *,
            x: cuda.Matrix,
            x_shift: int,
            problems: int,
            wide: bool,
            splits: int,
            partials: int,
        ) -> None: ...

    @staticmethod
    def column_means(means: cuda.ColumnMeans, stream: int, /) -> None: ...

    class ProductLayout:
        nn: cuda.ProductLayout
        tn: cuda.ProductLayout
        nt: cuda.ProductLayout

    class Term:
        def __init__(self, *, a: cuda.Matrix, b: cuda.Matrix) -> None: ...

    class Product:
        second: cuda.Term

        def __init__(
            self,
            *,
            first: cuda.Term,
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
            out_dtype: cuda.DType,
        ) -> None: ...

    class Iteration:
        def __init__(self, *, active: int, previous: int = 0, change: int = 0) -> None: ...

    class Plan:
        iteration: cuda.Iteration

        def __init__(
            self,
            *,
            problems: int,
            wide: bool,
            layout: cuda.ProductLayout,
            tile: int,
            splits: int,
            partials: int,
        ) -> None: ...

    @staticmethod
    def product_tiles(rows: int, columns: int, symmetric: bool, tile: int) -> int: ...
    @staticmethod
    def products(list: list[cuda.Product], plan: cuda.Plan, stream: int, /) -> None: ...
    @staticmethod
    def test_convergence(iteration: cuda.Iteration, tiles: int, tolerance: float, stream: int, /) -> None: ...
    @staticmethod
    def polar_steps(wide: bool) -> list[tuple[float, float, float]]: ...

    class SmallTraceNorm:
        def __init__(
            self,
            *,
            x: cuda.Matrix,
            y: cuda.Matrix,
            xx: int = 0,
            xy: int = 0,
            yy: int = 0,
            rx: float,
            ry: float,
            top_k: int,
            sigma: int = 0,
            value: int = 0,
            gxx: int = 0,
            gxy: int = 0,
            gyx: int = 0,
            gyy: int = 0,
            workspace: int,
            problems: int,
            blocks: int,
            wide: bool,
        ) -> None: ...

    @staticmethod
    def small_workspace(dx: int, dy: int, wide: bool) -> int: ...
    @staticmethod
    def small_trace_norm(task: cuda.SmallTraceNorm, stream: int, /) -> None: ...

    class RowRotations:
        def __init__(self, *, rows: int, count: int, length: int, width: int, sweeps: int, rotated: int) -> None: ...

    @staticmethod
    def rotation_width(length: int) -> int: ...
    @staticmethod
    def orthogonalise_rows(task: cuda.RowRotations, stream: int, /) -> None: ...

    class LabelledPairs:
        def __init__(
            self,
            *,
            anchor: cuda.Matrix,
            ref: cuda.Matrix,
            anchor_norms: int,
            ref_norms: int,
            anchor_labels: int,
            ref_labels: int,
            words: int,
            exclude_diagonal: bool,
            wide: bool,
            tile: int,
        ) -> None: ...

    class Choice:
        def __init__(self, *, positive: bool, farthest: bool, floor: int, bound: int, key: int) -> None: ...

    class Mined:
        def __init__(self, *, index: int, distance: int, square: int = 0) -> None: ...

    @staticmethod
    def squared_norms(rows: cuda.Matrix, wide: bool, norms: int, stream: int, /) -> None: ...
    @staticmethod
    def mine(pairs: cuda.LabelledPairs, choices: list[cuda.Choice], counts: int, stream: int, /) -> None: ...
    @staticmethod
    def read_mined(pairs: cuda.LabelledPairs, choice: cuda.Choice, mined: cuda.Mined, stream: int, /) -> None: ...
    @staticmethod
    def draw_negatives(pairs: cuda.LabelledPairs, seed: int, mined: cuda.Mined, stream: int, /) -> None: ...

    class Triplets:
        __members__: dict[str, cuda.Triplets]

    class Chunk:
        def __init__(self, *, first: int, rows: int, pairs: int, stride: int, sums: int, weights: int) -> None: ...

    class StructureLoss:
        def __init__(
            self, *, anchor_pull: int, anchor_push: int, ref_pull: int, ref_push: int, margin: float
        ) -> None: ...

    class MarginLoss:
        def __init__(
            self,
            *,
            triplets: cuda.Triplets,
            margin: float,
            weight: int,
            in_shared: int,
            capacity: int,
            ranked: int,
            counts: int,
        ) -> None: ...

    @staticmethod
    def measure_pairs(pairs: cuda.LabelledPairs, chunk: cuda.Chunk, stream: int, /) -> None: ...
    @staticmethod
    def structure_loss(
        pairs: cuda.LabelledPairs, chunk: cuda.Chunk, loss: cuda.StructureLoss, stream: int, /
    ) -> None: ...
    @staticmethod
    def margin_loss(pairs: cuda.LabelledPairs, chunk: cuda.Chunk, loss: cuda.MarginLoss, stream: int, /) -> None: ...
