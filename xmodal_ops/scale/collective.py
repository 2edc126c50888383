"""What the processes of a group must agree on before they exchange tensors, and what happens when one is gone."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch.distributed as dist

Header = dict[str, Any]


def agree(describe: Callable[[], Header], group: dist.ProcessGroup | None) -> list[Header]:
    """The headers of all ranks, after every rank has found all of them to fit.

    `describe` checks this rank's arguments and returns what must be the same on every rank; "rows" alone may differ.
    A rank whose arguments do not fit still takes part, so the others learn of it and stop too, instead of waiting.
    """
    error: Exception | None = None
    try:
        header = describe()
    except Exception as caught:
        header, error = {"error": str(caught)}, caught
    headers: list[Header] = [{} for _ in range(size(group))]
    with answering():
        dist.all_gather_object(headers, header, group=group)
    if error is not None:
        raise error
    for rank, other in enumerate(headers):
        if "error" in other:
            raise ValueError(f"rank {rank} cannot take part: {other['error']}")
    for rank, other in enumerate(headers):
        for name in headers[0] | other:
            first, value = headers[0].get(name), other.get(name)
            if value != first and name != "rows":
                raise ValueError(
                    f"{name} must be the same on every rank, got {first} on rank 0, {value} on rank {rank}"
                )
    return headers


def size(group: dist.ProcessGroup | None) -> int:
    """The number of processes; refuses a program that has no process group."""
    if not (dist.is_available() and dist.is_initialized()):
        raise RuntimeError(
            "a process group is needed: call torch.distributed.init_process_group first, as torchrun does"
        )
    count = dist.get_world_size(group)
    if count < 1:
        raise RuntimeError("group must contain this process, got a group without it")
    return count


@contextmanager
def answering() -> Iterator[None]:
    """Turns the backend's error where another process died or hangs into a RuntimeError in plain words.

    The losses of `xmodal_ops.distributed` do so by themselves; put it around ``backward`` with
    DistributedDataParallel, which communicates too. Other errors pass through.
    """
    try:
        yield
    except RuntimeError as error:
        if not isinstance(error, dist.DistError) and "gloo" not in str(error):
            raise
        raise RuntimeError(
            "another process of the group died or did not answer in time; restart from the last checkpoint "
            f"({str(error).strip().splitlines()[0]})"
        ) from error
