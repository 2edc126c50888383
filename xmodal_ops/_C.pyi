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
