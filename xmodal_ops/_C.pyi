"""The native module (csrc/bindings.cpp). Addresses are integers, sizes count elements."""

with_cuda: bool
TRACE_NORM_MAX_DIM: int

def instruction_set() -> str: ...
def cuda_archs() -> list[str]: ...
def cuda_unavailable() -> str: ...
def trace_norm_workspace_bytes(m: int, dx: int, dy: int, threads: int) -> int: ...
def trace_norm_cpu(
    x: int,
    y: int,
    wide: bool,
    m: int,
    dx: int,
    dy: int,
    x_stride: int,
    y_stride: int,
    rx: float,
    ry: float,
    grad_x: int,
    grad_y: int,
    workspace: int,
    threads: int,
) -> float | None: ...

class Pairs:
    def __init__(
        self,
        *,
        anchor: int,
        ref: int,
        shift: int,
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
    def set_workspace(self, address: int) -> None: ...

class Positive:
    __members__: dict[str, Positive]

class Negative:
    __members__: dict[str, Negative]

class Triplets:
    __members__: dict[str, Triplets]

def mine_triplets(
    pairs: Pairs,
    positive: Positive,
    negative: Negative,
    beyond_hardest: bool,
    margin: float,
    seed: int,
    positive_idx: int,
    negative_idx: int,
    positive_d: int,
    negative_d: int,
    positives: int,
    negatives: int,
    /,
) -> None: ...
def structure_preserving(
    pairs: Pairs,
    anchor_positive: int,
    anchor_negative: int,
    ref_positive: int,
    ref_negative: int,
    margin: float,
    sums: int,
    anchor_grad: int,
    ref_grad: int,
    /,
) -> None: ...
def triplet_margin(
    pairs: Pairs, triplets: Triplets, margin: float, weight: int, sums: int, anchor_grad: int, ref_grad: int, /
) -> None: ...
