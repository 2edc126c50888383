"""The package loads nothing before it is needed, and has every name that it announces."""

import subprocess
import sys

import pytest

import xmodal_ops
import xmodal_ops.training


@pytest.mark.parametrize("package", [xmodal_ops, xmodal_ops.training])
def test_every_announced_name_exists(package):
    assert all(hasattr(package, name) for name in package.__all__)
    with pytest.raises(AttributeError, match=f"module '{package.__name__}' has no attribute 'foo'"):
        package.foo  # noqa: B018


@pytest.mark.parametrize("module", ["xmodal_ops", "xmodal_ops.training", "xmodal_ops.cli.commands"])
def test_importing_does_not_load_torch(module):
    code = f"import sys, {module}; print([m for m in ('torch', 'numpy', 'lightning') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
