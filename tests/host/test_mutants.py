"""The tests of the kernels can fail: the same checks, run on kernels with one mistake each, say so."""

from __future__ import annotations

import subprocess
import sys

import pytest

from . import emulation

CHECK = """
import sys
import torch
from tests.conftest import relative, views
from tests.host import emulation
from xmodal_ops.ops import _cuda, _cuda_trace_norm
from xmodal_ops.reference.trace_norm import trace_norm

_cuda.native = host = emulation.module(emulation.mutant(*sys.argv[1:]) if sys.argv[1:] else None)
worst = 0.0
for seed in range(4):
    torch.manual_seed(seed)
    host.seed(seed)
    for limit, top_k in ((8, 17), (128, 17), (8, 5)):
        _cuda_trace_norm.SMALL = limit
        x, y = views(100, 21, 17)
        expected = trace_norm(x, y, 1e-2, 1e-2, top_k, True, True)
        actual = _cuda_trace_norm.trace_norm(x, y, 1e-2, 1e-2, top_k, True, True)
        errors = [relative(a, e) for a, e in zip(actual, expected)]
        worst = max(worst, *(1.0 if e != e else e for e in errors))
print(worst)
sys.exit(worst > 1e-9)
"""

MUTANTS = {
    "the slices' barrier missing": ("products", "put(s + 1);\n    __syncthreads();", "put(s + 1);"),
    "a group's barrier missing": ("rotations", "[i % task.length];\n  __syncthreads();", "[i % task.length];"),
    "one column too few eliminated": ("trace_norm", "c <= row; c += 32", "c < row; c += 32"),
}


@pytest.mark.parametrize("name", [None, *MUTANTS])
def test_only_the_whole_kernels_pass(name):
    arguments = [name.replace(" ", "_").replace("'", ""), *MUTANTS[name]] if name else []
    done = subprocess.run([sys.executable, "-c", CHECK, *arguments], capture_output=True, text=True, cwd=emulation.ROOT)
    assert "AssertionError" not in done.stderr, done.stderr
    assert (done.returncode == 0) == (name is None), done.stdout + done.stderr
