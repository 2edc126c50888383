"""Linear CCA and retrieval on files of pairs that are larger than the memory they may use.

    python -m bench.out_of_core [--quick] [--folder DIR] [--workers N]

Writes m pairs (512 + 512 columns, float32, 32 common factors) to npy files in a temporary folder (4 GiB for 10⁶ pairs),
fits LinearCCA to them, and retrieves sampled queries among all of them. Memory is the proportional set size of the
process and its reading workers, sampled every 50 ms; 2 GiB is the goal. Results:
bench/results/cpu/out_of_core.{json,md}.
"""

from __future__ import annotations

import os
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from bench.harness import in_subprocess, machine, markdown, parser, write
from xmodal_ops.data.stream import PairStream
from xmodal_ops.models import LinearCCA
from xmodal_ops.retrieval import evaluate_stream

COLUMNS, FACTORS, QUERIES = 512, 32, 200


def write_pairs(folder: Path, pairs: int) -> None:
    generator = np.random.default_rng(0)
    mixes = [generator.standard_normal((FACTORS, COLUMNS), dtype=np.float32) for _ in range(2)]
    views = [
        np.lib.format.open_memmap(folder / f"{name}.npy", "w+", np.float32, (pairs, COLUMNS))
        for name in ("image", "text")
    ]
    for start in range(0, pairs, 10_000):
        shared = generator.standard_normal((10_000, FACTORS), dtype=np.float32)
        for view, mix in zip(views, mixes):
            view[start : start + 10_000] = shared @ mix + 6 * generator.standard_normal((10_000, COLUMNS), np.float32)


def set_size_mib() -> float:
    """The proportional set size of this process and its children."""
    children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
    total = 0
    for process in ("self", *children):
        try:
            lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
        except OSError:  # the process has just ended
            continue
        total += sum(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
    return total / 2**10


def watched(run: Callable[[], Any]) -> tuple[Any, float, float]:
    """The result, the seconds, and the largest set size in MiB."""
    peak, done = set_size_mib(), threading.Event()

    def watch() -> None:
        nonlocal peak
        while not done.wait(0.05):
            peak = max(peak, set_size_mib())

    watcher = threading.Thread(target=watch)
    watcher.start()
    start = time.perf_counter()
    try:
        result = run()
    finally:
        done.set()
        watcher.join()
    return result, time.perf_counter() - start, peak


def measure(folder: str, workers: int) -> dict[str, Any]:
    pairs = PairStream(f"{folder}/image.npy", f"{folder}/text.npy")
    before = set_size_mib()
    cca, fit_seconds, fit_mib = watched(lambda: LinearCCA(power=1).fit(pairs.chunks(workers=workers)))
    result, seconds, mib = watched(
        lambda: evaluate_stream(pairs, queries=QUERIES, workers=workers, transform=cca.transform)
    )
    return {
        "pairs": len(pairs),
        "file_mib": 2 * len(pairs) * COLUMNS * 4 / 2**20,
        "start_mib": before,
        "fit": {"s": fit_seconds, "mib": fit_mib, "correlations": cca.correlations_[:40].tolist()},
        "retrieval": {"s": seconds, "mib": mib, **result["mean"]},
    }


def main() -> None:
    arguments = parser(__doc__, quick="10⁵ pairs")
    arguments.add_argument("--folder", help="folder for the files of pairs, which are deleted at the end")
    arguments.add_argument("--workers", type=int, default=2, help="processes that read (default 2)")
    options = arguments.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        write_pairs(Path(folder), 10**5 if options.quick else 10**6)
        found = in_subprocess(measure, folder, options.workers, timeout=3600)
    if not isinstance(found, dict):
        raise SystemExit(found)
    fit, retrieval = found["fit"], found["retrieval"]
    total = f"leading {FACTORS} correlations {sum(fit['correlations'][:FACTORS]):.2f}"
    rows = [
        ["LinearCCA, all components", fit["s"], fit["mib"], total],
        [f"retrieval, {QUERIES} queries", retrieval["s"], retrieval["mib"], f"recall@10 {retrieval['recall@10']:.3f}"],
    ]
    written = write(
        "out_of_core",
        "cpu",
        {"machine": machine("cpu"), **found},
        f"{found['pairs']} pairs of {COLUMNS} + {COLUMNS} columns in files of {found['file_mib']:.0f} MiB",
        markdown(["", "s", "peak MiB", "result"], rows),
        f"{found['start_mib']:.0f} MiB of each are the interpreter and libraries.",
    )
    print(written.read_text())


if __name__ == "__main__":
    main()
