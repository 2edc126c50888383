"""Agreement between the processes of a group before they exchange tensors, and errors when a process is gone."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch.distributed as dist

Header = dict[str, Any]


def agree(describe: Callable[[], Header], group: dist.ProcessGroup | None) -> list[Header]:
    """Exchanges headers and checks that they agree.

    A rank with unsuitable arguments still takes part, so that the others stop too instead of waiting for it.

    Args:
        describe: checks this rank's arguments and returns what must be the same on every rank; only "rows" may differ.
        group: the processes that take part; all by default.

    Returns:
        The headers of all ranks, in the order of ranks.

    Raises:
        ValueError, TypeError: on every rank, if `describe` raises on one or the headers differ.
        RuntimeError: there is no process group, or another process died or did not answer in time.
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
    """The number of processes of the group. RuntimeError if the program has none."""
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
    """Turns the backend's error about a process that died or hangs into a RuntimeError with a plain message.

    The losses of `xmodal_ops.distributed` do so themselves. Wrap `backward` in it when using DistributedDataParallel,
    which communicates too. Other errors pass through.
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
