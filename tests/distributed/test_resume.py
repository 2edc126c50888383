"""If a process is killed, the others stop with a message; a resumed run gives the same result as an unbroken one."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import torch

ROOT = Path(__file__).parents[2]
EPOCHS, TIMEOUT = 10, 20
EXAMPLE = str(ROOT / "examples" / "distributed_dcca.py")


def environments(world):
    """The environments that torchrun would give to the processes of a new group on this machine."""
    with socket.socket() as s:
        s.bind(("localhost", 0))
        port = s.getsockname()[1]
    common = {"PYTHONPATH": str(ROOT), "MASTER_ADDR": "localhost", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
    ranks = ({"WORLD_SIZE": str(world), "RANK": str(rank), "LOCAL_RANK": "0"} for rank in range(world))
    return [{**os.environ, **common, **own} for own in ranks]


def start(output, *more):
    """Starts two processes of the example as torchrun would."""
    arguments = ["--output", str(output), "--epochs", str(EPOCHS), "--timeout", str(TIMEOUT), *more]
    return [
        subprocess.Popen(
            [sys.executable, EXAMPLE, *arguments],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for environment in environments(2)
    ]


def finish(processes):
    for process in processes:
        _, errors = process.communicate(timeout=60)
        assert process.returncode == 0, errors


def test_a_killed_process_and_resume(tmp_path):
    whole, broken = start(tmp_path / "whole"), start(tmp_path / "broken")
    try:
        assert any(line.startswith("epoch 3/") for line in broken[0].stdout)
        broken[1].send_signal(signal.SIGKILL)
        killed = time.monotonic()
        _, errors = broken[0].communicate(timeout=TIMEOUT + 10)
        assert time.monotonic() - killed < TIMEOUT
        assert broken[0].returncode == 1
        assert "rank 0 stopped: another process of the group died or did not answer in time" in errors
        assert "continue with --resume" in errors and "Traceback" not in errors
        saved = torch.load(tmp_path / "broken" / "last.pt", weights_only=True)
        assert 3 <= saved["epochs"] < EPOCHS
        resumed = start(tmp_path / "broken", "--resume")
        finish(resumed)
        finish(whole)
    finally:
        for process in [*whole, *broken]:
            process.kill()
            process.wait()
    ends = [torch.load(tmp_path / name / "last.pt", weights_only=True) for name in ("whole", "broken")]
    assert [end["epochs"] for end in ends] == [EPOCHS, EPOCHS]
    for name, parameter in ends[0]["network"].items():
        assert torch.equal(parameter, ends[1]["network"][name]), name


def test_no_thread_of_the_group_outlives_it(tmp_path):
    """A thread that frees a tensor while the interpreter exits aborts the process (pytorch/pytorch#190489)."""
    end = """
import runpy, sys
from pathlib import Path
runpy.run_path(sys.argv.pop(1), run_name="__main__")
threads = [task.read_text().strip() for task in Path("/proc/self/task").glob("*/comm")]
assert threads and not [name for name in threads if "gloo" in name], threads
"""
    (environment,) = environments(1)
    ended = subprocess.run(
        [sys.executable, "-c", end, EXAMPLE, "--output", str(tmp_path), "--epochs", "1"],
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert ended.returncode == 0, ended.stderr
