"""Pairs in files larger than the memory allowed: linear CCA, and retrieval.

    python bench/out_of_core.py [--quick] [--folder DIR]

Writes pairs (m, 512 + 512), float32, two views of 32 common factors, to npy files in a temporary folder (4 GiB for
10⁶ pairs), fits LinearCCA to them, and retrieves sampled queries from all of them. Memory is the proportional set size
of the process and its reading workers, sampled every 50 ms; the limit is 2 GiB.
Results: bench/results/cpu/out_of_core.{json,md}.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import common
import numpy as np
import torch

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
    """Of this process and its children."""
    children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
    total = 0
    for process in ("self", *children):
        try:
            lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
        except OSError:  # it has just ended
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
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="10⁵ pairs")
    parser.add_argument("--folder", help="where the files go for the time of the run")
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        write_pairs(Path(folder), 10**5 if options.quick else 10**6)
        found = common.in_subprocess(measure, folder, options.workers, timeout=1200)
    if not isinstance(found, dict):
        raise SystemExit(found)
    machine = {**common.machine("cpu"), "threads": torch.get_num_threads()}
    text = [f"# {found['pairs']} pairs of {COLUMNS} + {COLUMNS} columns in files of {found['file_mib']:.0f} MiB", ""]
    text += [", ".join(f"{key} {value}" for key, value in machine.items()), ""]
    fit, retrieval = found["fit"], found["retrieval"]
    total = f"leading {FACTORS} correlations {sum(fit['correlations'][:FACTORS]):.2f}"
    rows = [
        ["LinearCCA, all components", fit["s"], fit["mib"], total],
        [f"retrieval, {QUERIES} queries", retrieval["s"], retrieval["mib"], f"recall@10 {retrieval['recall@10']:.3f}"],
    ]
    text += [common.markdown(["", "s", "peak MiB", "result"], rows), ""]
    text += [f"{found['start_mib']:.0f} MiB of each are the interpreter and libraries."]
    common.write("out_of_core", "cpu", {"machine": machine, **found}, "\n".join(text))
    print("\n".join(text))


if __name__ == "__main__":
    main()
