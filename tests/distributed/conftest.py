"""Four gloo processes, started once for all tests, that run functions of the test modules."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
import torch
import torch.distributed as dist

SECONDS = 60  # longer than any test takes on a busy machine; a hang is a failure


def serve(rank: int, world: int, store: str, pipe: Any) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{store}", rank=rank, world_size=world, timeout=timedelta(seconds=SECONDS)
    )
    groups = {world: None, 2: dist.new_group([0, 1])}
    pipe.send("ready")
    while (task := pipe.recv()) is not None:
        function, size, arguments = task
        try:
            pipe.send((function(rank, size, groups[size], *arguments), None))
        except Exception as error:
            pipe.send((None, error))
    dist.destroy_process_group()


class Workers:
    """`workers(n, function, *arguments)` returns function(rank, n, group, *arguments) of n processes as a list."""

    def __init__(self, store: str, world: int = 4) -> None:
        context = multiprocessing.get_context("spawn")
        self.pipes, self.processes = [], []
        for rank in range(world):
            here, there = context.Pipe()
            process = context.Process(target=serve, args=(rank, world, store, there), daemon=True)
            process.start()
            self.pipes.append(here)
            self.processes.append(process)
        for pipe in self.pipes:
            self._receive(pipe)

    def outcomes(self, n: int, function: Callable[..., Any], *arguments: Any) -> list[tuple[Any, Exception | None]]:
        for pipe in self.pipes[:n]:
            pipe.send((function, n, arguments))
        return [self._receive(pipe) for pipe in self.pipes[:n]]

    def __call__(self, n: int, function: Callable[..., Any], *arguments: Any) -> list[Any]:
        outcomes = self.outcomes(n, function, *arguments)
        for _, error in outcomes:
            if error is not None:
                raise error
        return [result for result, _ in outcomes]

    def _receive(self, pipe: Any) -> Any:
        if not pipe.poll(SECONDS):
            self.close()
            pytest.fail(f"a process did not answer within {SECONDS} s")
        return pipe.recv()

    def close(self) -> None:
        for process in self.processes:
            process.kill()
            process.join()


@pytest.fixture(scope="session")
def workers(tmp_path_factory):
    workers = Workers(str(tmp_path_factory.mktemp("gloo") / "store"))
    yield workers
    workers.close()
