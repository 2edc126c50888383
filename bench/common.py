"""What the benchmarks share: a quiet measurement of time and memory, the machine in words, results as files."""

from __future__ import annotations

import json
import multiprocessing
import os
import platform
import resource
import statistics
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

import xmodal_ops

ROOT = Path(__file__).parent


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
    model = next(names, platform.processor())
    return {
        **facts,
        "device": model,
        "threads": torch.get_num_threads(),
        "instruction_set": xmodal_ops._C.instruction_set(),
    }


def median_ms(run: Callable[[], Any], device: str = "cpu", repeat: int = 20, seconds: float = 10.0) -> float:
    """The median time of a call after a warm-up; of fewer than `repeat` calls if they outlast `seconds`."""
    wait = torch.cuda.synchronize if device == "cuda" else lambda: None
    for _ in range(2):
        run()
    times: list[float] = []
    end = time.perf_counter() + seconds
    while len(times) < repeat and (len(times) < 3 or time.perf_counter() < end):
        wait()
        start = time.perf_counter()
        run()
        wait()
        times.append(1e3 * (time.perf_counter() - start))
    return statistics.median(times)


def side_by_side(
    runs: dict[str, Callable[[], Any]], device: str = "cpu", repeat: int = 20, seconds: float = 20.0
) -> dict[str, float]:
    """The median time in ms of each of several calls, taken in turns, so that all meet the same machine.

    Every call runs once to warm up; one that alone outlasts `seconds` is not run again.
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


def memory_growth(run: Callable[[], Any], device: str = "cpu") -> float:
    """MiB by which a call raises the peak of allocated memory (CUDA) or of the resident set (CPU).

    The resident set never shrinks reliably, so on the CPU this is the process's first large call or nothing.
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
    if reset:
        try:
            Path("/proc/self/clear_refs").write_text("5")  # sets the peak back to the present size
        except OSError:
            return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    try:
        status = Path("/proc/self/status").read_text()
        return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM"))
    except (OSError, StopIteration):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def guarded(function: Callable[..., Any], *args: Any) -> Any:
    """function(*args); a string in place of its result says why there is none."""
    try:
        return function(*args)
    except MemoryError:
        return "out of memory"
    except Exception as error:
        out_of_memory = "allocate memory" in str(error) or "out of memory" in str(error)
        return "out of memory" if out_of_memory else f"{type(error).__name__}: {str(error).splitlines()[0][:120]}"


def in_subprocess(function: Callable[..., Any], *args: Any, limit_gib: float = 0, timeout: float = 600) -> Any:
    """The same in a fresh process that may take so much memory and time."""
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


def markdown(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """A table; numbers to three digits."""

    def cell(value: Any) -> str:
        if not isinstance(value, float):
            return str(value)
        return f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"

    lines = [columns, ["---"] * len(columns), *([cell(value) for value in row] for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def write(name: str, device: str, results: dict[str, Any], text: str) -> Path:
    """Leaves results/<device>/<name>.json and .md; gives the path without its ending."""
    folder = ROOT / "results" / device
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.json").write_text(json.dumps(results, indent=1) + "\n")
    (folder / f"{name}.md").write_text(text + "\n")
    return folder / name
