"""What the CUDA benchmarks share: device time by events and by graph replay, and the ceilings of the card at hand."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch


def event_us(run: Callable[[], Any], repeat: int = 30, seconds: float = 3.0) -> float:
    """Median device time of a call in µs, launch gaps included, with a cold L2: at least 3 calls, at most `repeat`.

    A second call that alone outlasts `seconds` is the last one.
    """
    run()
    torch.cuda.synchronize()
    start_s = time.perf_counter()
    run()
    torch.cuda.synchronize()
    if (once := time.perf_counter() - start_s) > seconds:
        return 1e6 * once
    flush = torch.empty(64 << 20, dtype=torch.int32, device="cuda")
    times: list[float] = []
    while len(times) < repeat and (len(times) < 3 or sum(times) < 1e6 * seconds):
        flush.zero_()
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        run()
        end.record()
        end.synchronize()
        times.append(1e3 * start.elapsed_time(end))
    return statistics.median(times)


def graph_us(run: Callable[[], Any], repeat: int = 30) -> float:
    """Median device time of a replayed graph of a call in µs: what it costs once launches are out of the way."""
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        for _ in range(2):
            run()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    return event_us(graph.replay, repeat)


def ceilings() -> dict[str, float]:
    """Measured on this card: copy bandwidth in GB/s (bytes read and written), and products 4096³ in TFLOP/s.

    `accurate` is the best of the ways to multiply to fp32's accuracy: fp32, a third of TF32, fp64.
    """
    found = {"copy_gbs": _copy_gbs(1 << 28)}
    allow = torch.backends.cuda.matmul.allow_tf32
    for name, dtype, tf32 in (
        ("fp32", torch.float32, False),
        ("tf32", torch.float32, True),
        ("fp64", torch.float64, False),
    ):
        torch.backends.cuda.matmul.allow_tf32 = tf32
        c, d = torch.randn(2, 4096, 4096, device="cuda", dtype=dtype).unbind()
        found[name] = 2 * 4096**3 / event_us(lambda c=c, d=d: c @ d, 10) / 1e6
    torch.backends.cuda.matmul.allow_tf32 = allow
    found["accurate"] = max(found["fp32"], found["tf32"] / 3, found["fp64"])
    return found


def _copy_gbs(numbers: int) -> float:
    source, target = torch.randn(2, numbers, device="cuda").unbind()
    return 2 * 4 * numbers / event_us(lambda: target.copy_(source), 10) / 1e3


def folder() -> str:
    """The card's name as a folder of bench/results: "h200"."""
    return torch.cuda.get_device_name().removeprefix("NVIDIA ").lower().replace(" ", "-")


def floor_us(flops: float, moved: float, found: dict[str, float]) -> float:
    """The larger of the times that the arithmetic and the fewest bytes need."""
    return max(flops / found["accurate"] / 1e6, moved / found["copy_gbs"] / 1e3)
