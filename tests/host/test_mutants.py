"""The tests of the kernels can fail: they do so for kernels with one bug each."""

from __future__ import annotations

import subprocess
import sys

import pytest

from . import emulation

TRACE_NORM = """
import sys
import torch
from tests.conftest import relative, views
from tests.host import emulation
from xmodal_ops.ops.cuda import driver
from xmodal_ops.ops.cuda import trace_norm as cuda_trace_norm
from xmodal_ops.ops.portable.trace_norm import trace_norm

host = emulation.module(emulation.mutant(*sys.argv[1:]) if sys.argv[1:] else None)
driver.native = host.cuda
worst = 0.0
for seed in range(4):
    torch.manual_seed(seed)
    host.seed(seed)
    for limit, top_k in ((8, 17), (128, 17), (8, 5)):
        host.cuda.SMALL_COLUMNS = limit
        x, y = views(100, 21, 17)
        expected = trace_norm(x, y, 1e-2, 1e-2, top_k, True, True)
        actual = cuda_trace_norm.trace_norm(x, y, 1e-2, 1e-2, top_k, True, True)
        errors = [relative(a, e) for a, e in zip(actual, expected)]
        worst = max(worst, *(1.0 if e != e else e for e in errors))
print(worst)
sys.exit(worst > 1e-9)
"""

TRIPLETS = """
import sys
import torch
from tests.conftest import relative
from tests.host import emulation
from tests.ops.triplet_data import batch
from xmodal_ops.ops.cuda import driver
from xmodal_ops.ops.cuda import mining as cuda_mining
from xmodal_ops.ops.cuda import triplets as cuda_triplets
from xmodal_ops.ops._library import flattened
from xmodal_ops.ops.portable import mining, structure_preserving, triplet_margin

host = emulation.module(emulation.mutant(*sys.argv[1:]) if sys.argv[1:] else None)
driver.native = host.cuda
worst = 0.0
for seed in range(3):
    torch.manual_seed(seed)
    host.seed(seed)
    data = batch(70, 90, 33, 2)
    loss = *data, None, 0.7, "semihard", False, True, True
    results = [flattened(f.triplet_margin)(*loss) for f in (cuda_triplets, triplet_margin)]
    loss = *data, 9.0, 0.3, "mean", True, True
    results += [flattened(f.structure_preserving)(*loss) for f in (cuda_triplets, structure_preserving)]
    rule = *data, "hard", "random", "chosen_positive", 0.0, False, torch.tensor(1)
    results += [flattened(f.mine_triplets)(*rule) for f in (cuda_mining, mining)]
    errors = [relative(a, e) for pair in zip(results[::2], results[1::2]) for a, e in zip(*pair)]
    worst = max(worst, *(1.0 if e != e else e for e in errors))
print(worst)
sys.exit(worst > 1e-9)
"""

SLICES = ("if (s + 1 < end) put(s + 1);\n    __syncthreads();", "if (s + 1 < end) put(s + 1);")
MUTANTS = {
    "whole kernels of the trace norm": (TRACE_NORM,),
    "the slices' barrier missing": (TRACE_NORM, "products", *SLICES),
    "a group's barrier missing": (
        TRACE_NORM,
        "rotations",
        "[i % task.length];\n  __syncthreads();",
        "[i % task.length];",
    ),
    "one column too few eliminated": (TRACE_NORM, "trace_norm", "c <= row; c += 32", "c < row; c += 32"),
    "whole kernels of triplets": (TRIPLETS,),
    "the slices' barrier missing in mining": (TRIPLETS, "mining", *SLICES),
    "a key's place off by one": (TRIPLETS, "triplets", "length = count - 1", "length = count - 2"),
    "the sort's barrier missing": (
        TRIPLETS,
        "triplets",
        "x[i] = high, x[i + step] = low;\n      }\n      __syncthreads();",
        "x[i] = high, x[i + step] = low;\n      }",
    ),
}


@pytest.mark.parametrize("name", MUTANTS)
def test_only_the_whole_kernels_pass(name):
    check, *change = MUTANTS[name]
    arguments = [name.replace(" ", "_").replace("'", ""), *change] if change else []
    done = subprocess.run([sys.executable, "-c", check, *arguments], capture_output=True, text=True, cwd=emulation.ROOT)
    assert "AssertionError" not in done.stderr, done.stderr
    assert (done.returncode == 0) == name.startswith("whole"), done.stdout + done.stderr
