"""Whatever np.asarray reads becomes the same tensor; what holds no real numbers is refused in one line."""

import warnings

import numpy as np
import pytest
import torch
from scipy.sparse import csr_matrix

from xmodal_ops._arrays import as_floating, as_tensor, columns

A = np.arange(12.0).reshape(3, 4)


class Frame:
    """What makes a data frame: columns and `__array__`."""

    columns = ("a", "b", "c", "d")

    def __array__(self, dtype=None, copy=None):
        return A


class Broken:
    def __array__(self, dtype=None, copy=None):
        raise RuntimeError("no")


def readonly(a):
    a = a.copy()
    a.flags.writeable = False
    return a


@pytest.mark.parametrize(
    "x",
    [
        A,
        A[::-1][::-1],
        A.astype(">f8"),
        A.astype(">f2"),
        A.astype(np.float16),
        A.astype(np.longdouble),
        A.astype(object),
        A.astype(np.uint8),
        A.astype(">u4"),
        A.astype(np.uint64),
        A.tolist(),
        list(A),
        list(torch.tensor(A)),
        [torch.tensor(row, requires_grad=True) for row in A],
        np.ma.masked_invalid(A),
        np.asfortranarray(A),
        readonly(A),
        np.array([(v, 1) for v in A.ravel()], "f8,i1")["f0"].reshape(3, 4),
        Frame(),
        csr_matrix(A),
        torch.tensor(A).to_sparse(),
        torch.tensor(A, requires_grad=True),
    ],
)
def test_what_numpy_reads_becomes_the_same_tensor(x):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        got = as_tensor("x", x)
    assert not got.requires_grad and got.layout == torch.strided
    assert torch.equal(got.double(), torch.tensor(A))


def test_views_with_negative_strides_are_read():
    assert torch.equal(as_tensor("x", A[::-1, ::-1]), torch.tensor(A).flip(0, 1))


def test_types_are_kept_and_memory_is_shared():
    for dtype in (np.float16, np.float32, np.float64, np.uint8, np.int64, np.bool_):
        a = A.astype(dtype)
        got = as_tensor("x", a)
        assert got.data_ptr() == a.ctypes.data
        assert str(got.dtype).endswith(np.dtype(dtype).name)
    assert as_floating("x", A.astype(int)).dtype == torch.float64
    assert as_floating("x", A.astype(np.float16)).dtype == torch.float16


def test_column_names_are_those_of_data_frames():
    assert columns(Frame()) == ["a", "b", "c", "d"]
    assert columns(A) is columns(csr_matrix(A)) is columns(A.tolist()) is None


@pytest.mark.parametrize(
    ("x", "error", "message"),
    [
        ("text", TypeError, "x must be an array of numbers, got str"),
        (None, TypeError, "x must be an array of numbers, got NoneType"),
        ({"a": 1}, TypeError, "x must be an array of numbers, got dict"),
        (["a", "b"], TypeError, "x must be an array of numbers, got strings"),
        (np.array(["a", 1.0], object), TypeError, "x must be an array of numbers, got strings"),
        (np.array([{}, 1.0], object), TypeError, r"x must be an array of numbers, got an object array \(float\(\) arg"),
        (np.array(["2020-01-01"], "M8[D]"), TypeError, r"x must be an array of numbers, got dtype datetime64\[D\]"),
        (np.zeros(2, "f8,i4"), TypeError, "x must be an array of numbers, got dtype"),
        ([[1, 2], [3]], ValueError, "x must be an array of numbers, got a nested list of unequal lengths"),
        (Broken(), ValueError, "x must be an array of numbers, got Broken, which NumPy cannot read"),
        (A + 1j, ValueError, "x must be real, got complex128"),
        (torch.tensor(A + 1j), ValueError, "x must be real, got complex128"),
        (np.array([1j, 2], object), ValueError, "x must be real, got complex"),
        (np.ma.masked_less(A, 3), ValueError, "x must have no masked entries, got 3"),
        (np.array([2**64 - 1], np.uint64), ValueError, r"x must hold integers below 2\*\*63, got 18446744073709551615"),
        ([torch.zeros(2), torch.zeros(3)], ValueError, r"x must have rows of one shape, got \(2,\) and \(3,\)"),
        (torch.nested.nested_tensor([torch.zeros(2)]), TypeError, "x must be a plain tensor, got a nested one"),
    ],
)
def test_what_holds_no_real_numbers_is_refused(x, error, message):
    with pytest.raises(error, match=message) as caught:
        as_tensor("x", x)
    assert "\n" not in str(caught.value)
