"""What every benchmark needs: options, the machine in words, timing, memory, processes, and results as files.

`side_by_side` times candidates in interleaved rounds on the clock of the host, `event_us` and `graph_us` a call on the
clock of a CUDA device. A benchmark runs from the root of the repository as `python -m bench.NAME`; `write` leaves its
results in bench/results/<device>/NAME.json and .md.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform
import resource
import statistics
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

import xmodal_ops
from tests.helpers import captured

ROOT = Path(__file__).parent
RESULTS = ROOT / "results"


def parser(description: str | None, quick: str | None = None, device: bool = False) -> argparse.ArgumentParser:
    """The options that benchmarks share: --quick, with its help, and --device."""
    made = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    if device:
        made.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    if quick:
        made.add_argument("--quick", action="store_true", help=quick)
    return made


def machine(device: str) -> dict[str, Any]:
    """The commit, device and versions that a result belongs to."""

    def git(*args: str) -> str:
        done = subprocess.run(["git", *args], cwd=ROOT, capture_output=True, text=True, check=False)
        return done.stdout.strip()

    facts = {
        "commit": git("rev-parse", "--short=12", "HEAD") + ("+changes" if git("status", "--porcelain", "-uno") else ""),
        "date": time.strftime("%Y-%m-%d"),
        "xmodal_ops": xmodal_ops.__version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
    }
    if device == "cuda":
        major, minor = torch.cuda.get_device_capability()
        name = torch.cuda.get_device_name()
        return {**facts, "device": name, "arch": f"sm_{major}{minor}", "cuda": torch.version.cuda}
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = (line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    return {
        **facts,
        "device": next(names, platform.processor()),
        "threads": torch.get_num_threads(),
        "instruction_set": xmodal_ops.build_info()["cpu"],
    }


# Time


def side_by_side(
    runs: Mapping[str, Callable[[], Any]], device: str = "cpu", repeat: int = 20, seconds: float = 20.0
) -> dict[str, float]:
    """The median time in ms of each call, in interleaved rounds, so that all candidates see the same machine.

    Every call runs once to warm up; one that takes longer than `seconds` by itself is not repeated.
    """
    wait = torch.cuda.synchronize if device == "cuda" else lambda: None

    def timed(run: Callable[[], Any]) -> float:
        wait()
        start = time.perf_counter()
        run()
        wait()
        return 1e3 * (time.perf_counter() - start)

    times: dict[str, list[float]] = {name: [timed(run)] for name, run in runs.items()}
    again = [name for name in runs if times[name][0] < 1e3 * seconds]
    for name in again:
        times[name].clear()
    end = time.perf_counter() + seconds * len(again)
    for turn in range(repeat):
        if turn >= 3 and time.perf_counter() > end:
            break
        for name in again:
            times[name].append(timed(runs[name]))
    return {name: statistics.median(values) for name, values in times.items()}


def event_us(run: Callable[[], Any], repeat: int = 30, seconds: float = 3.0) -> float:
    """The median device time of a call in µs, launch gaps included, with a cold L2 cache: 3 to `repeat` calls.

    If the second call takes longer than `seconds`, it is the last.
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
    """The median device time in µs of a call replayed as a CUDA graph: its cost without launches from the host."""
    _, graph = captured(run)
    return event_us(graph.replay, repeat)


def ceilings() -> dict[str, float]:
    """Measured on this card: copy bandwidth in GB/s (bytes read and written), and products of 4096³ in TFLOP/s.

    `accurate` is the fastest product with the accuracy of fp32: fp32 itself, a third of TF32, or fp64.
    """
    source, target = torch.randn(2, 1 << 28, device="cuda").unbind()
    found = {"copy_gbs": 2 * source.nbytes / event_us(lambda: target.copy_(source), 10) / 1e3}
    allow = torch.backends.cuda.matmul.allow_tf32
    for name, dtype in (("fp32", torch.float32), ("tf32", torch.float32), ("fp64", torch.float64)):
        torch.backends.cuda.matmul.allow_tf32 = name == "tf32"
        c, d = torch.randn(2, 4096, 4096, device="cuda", dtype=dtype).unbind()
        found[name] = 2 * 4096**3 / event_us(lambda c=c, d=d: c @ d, 10) / 1e6
    torch.backends.cuda.matmul.allow_tf32 = allow
    found["accurate"] = max(found["fp32"], found["tf32"] / 3, found["fp64"])
    return found


def floor_us(flops: float, moved: float, found: Mapping[str, float]) -> float:
    """The larger of the times that the arithmetic and the bytes to be moved need at these ceilings."""
    return max(flops / found["accurate"] / 1e6, moved / found["copy_gbs"] / 1e3)


# Memory and processes


def memory_growth(run: Callable[[], Any], device: str = "cpu") -> float:
    """The MiB by which a call raises the peak of allocated memory (CUDA) or of the resident set (CPU).

    The resident set does not shrink reliably, so on the CPU only the first large call of a process is measured well.
    """
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        torch.cuda.synchronize()
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    before_kib = _peak_kib(reset=True)
    run()
    return (_peak_kib() - before_kib) / 2**10


def _peak_kib(reset: bool = False) -> int:
    try:
        if reset:
            Path("/proc/self/clear_refs").write_text("5")  # sets the peak to the present size
        status = Path("/proc/self/status").read_text()
        return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM"))
    except (OSError, StopIteration):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def guarded(function: Callable[..., Any], *args: Any) -> Any:
    """function(*args), or a string that says why there is no result."""
    try:
        return function(*args)
    except MemoryError:
        return "out of memory"
    except Exception as error:
        out_of_memory = "allocate memory" in str(error) or "out of memory" in str(error)
        return "out of memory" if out_of_memory else f"{type(error).__name__}: {str(error).splitlines()[0][:120]}"


def in_subprocess(function: Callable[..., Any], *args: Any, limit_gib: float = 0, timeout: float = 600) -> Any:
    """`guarded` in a fresh process with a limit of memory and of time."""
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_child, args=(sender, limit_gib, function, args))
    process.start()
    sender.close()
    try:
        return receiver.recv() if receiver.poll(timeout) else f"more than {timeout:.0f} s"
    except EOFError:
        return "killed"
    finally:
        process.kill()
        process.join()


def _child(sender: Any, limit_gib: float, function: Callable[..., Any], args: tuple[Any, ...]) -> None:
    if limit_gib:
        resource.setrlimit(resource.RLIMIT_AS, (int(limit_gib * 2**30),) * 2)
    try:
        sender.send(guarded(function, *args))
    finally:
        sender.close()
        os._exit(0)


# Results


def markdown(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """A table; numbers to three digits."""

    def cell(value: Any) -> str:
        if not isinstance(value, float):
            return str(value)
        return f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"

    lines = [columns, ["---"] * len(columns), *([cell(value) for value in row] for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def write(name: str, device: str, results: Mapping[str, Any], title: str, *parts: str) -> Path:
    """Writes results/<device or card>/<name>.json, and .md with title, machine and parts; returns the latter's path.

    Args:
        name: of the benchmark.
        device: "cpu", or "cuda" for a folder with the name of the card, such as "h200".
        results: what the JSON file holds, with "machine" among it.
        title: of the Markdown file.
        *parts: its paragraphs, headings and tables.
    """
    if device == "cuda":
        device = torch.cuda.get_device_name().removeprefix("NVIDIA ").lower().replace(" ", "-")
    folder = RESULTS / device
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.json").write_text(json.dumps(results, indent=1) + "\n")
    facts = ", ".join(f"{key} {value}" for key, value in results["machine"].items())
    text = folder / f"{name}.md"
    text.write_text("\n\n".join([f"# {title}", facts, *parts]) + "\n")
    return text
