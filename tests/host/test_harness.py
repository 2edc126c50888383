"""The emulation catches a missing barrier, a divergent barrier and an index that is off by one."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from . import emulation

SOURCE = Path(__file__).parent / "harness.cpp"
SEEDS = range(8)


def answers(case: str, *defines: str, seeds: range = SEEDS) -> list[tuple[int, str]]:
    program = emulation.executable(SOURCE, *defines)
    done = [subprocess.run([program, case, str(s)], capture_output=True, text=True) for s in seeds]
    return [(run.returncode, run.stderr) for run in done]


@pytest.mark.parametrize("case", ["block_sum", "reverse", "reverse_static", "ballots"])
def test_whole_kernels_are_right(case: str) -> None:
    assert answers(case) == [(0, "")] * len(SEEDS)


@pytest.mark.parametrize("case", ["block_sum", "reverse", "reverse_static"])
def test_missing_barrier_is_caught_by_random_schedules(case: str) -> None:
    caught = [code != 0 for code, _ in answers(case, "-DMISSING_BARRIER")]
    assert sum(caught[1:]) >= len(SEEDS) // 2


def test_divergent_barrier_is_caught_by_every_schedule() -> None:
    for code, message in answers("block_sum", "-DDIVERGENT_BARRIER"):
        assert code == 1
        assert "divergent barrier" in message


@pytest.mark.parametrize(
    ("case", "message"), [("reverse", "past the end of dynamic shared"), ("reverse_static", "out of bounds")]
)
def test_index_off_by_one_is_caught_by_every_schedule(case: str, message: str) -> None:
    for code, said in answers(case, "-DOFF_BY_ONE"):
        assert code != 0
        assert message in said
