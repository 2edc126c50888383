"""Linear canonical correlation analysis with ridges (Hotelling 1936; Vinod 1976), exact, in float64.

With Sxx = cov(x) + rx·I = Lx Lxᵀ and so on, and the singular triples Lx⁻¹ Sxy Ly⁻ᵀ = U Σ Vᵀ, the canonical
directions are Wx = Lx⁻ᵀ U and Wy = Ly⁻ᵀ V: Wxᵀ Sxx Wx = I, Wyᵀ Syy Wy = I, Wxᵀ Sxy Wy = Σ.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from os import PathLike
from typing import Any, NamedTuple, TypeVar, cast, overload

import numpy as np
import torch
from torch import Tensor

from .. import _checks
from ..scale.moments import MomentAccumulator

Array = Any  # a tensor, an array-like that np.asarray reads, or a SciPy sparse matrix
A = TypeVar("A")


class Solution(NamedTuple):
    """The result of a fit: means (d,), directions (d, k), correlations (k,) in descending order, number of rows."""

    x_mean: Tensor
    y_mean: Tensor
    x_weights: Tensor
    y_weights: Tensor
    correlations: Tensor
    n_samples: int


class LinearCCA:
    """Linear CCA of two views, with the interface of scikit-learn.

    Data are tensors or NumPy arrays of shape (m, d), and results are of the same kind. `fit` also takes an iterable of
    chunks `(x, y)` and reads each once, so memory does not depend on their number. All algebra is in float64, on the
    device of the data.

    A view with fewer rows than columns is first rotated into an orthonormal basis of its rows (the dual form), which is
    exact and takes O(m² d) instead of O(d³). The complexity is otherwise O(m (dx + dy)² + dx³ + dy³).

    Args:
        n_components: number of canonical pairs to keep, min(dx, dy) by default.
        ridge: added to the diagonals of the covariances, a number or a pair (rx, ry). It is absolute, in the units of
            the features squared.
        relative: multiply `ridge` by the mean variance of each view, so that it does not depend on units.
        power: every canonical variate is multiplied by its correlation to this power. 0 is plain CCA with unit
            variances; weighting by the correlations (1) or more improves retrieval (Gong et al., IJCV 2014).

    Attributes:
        correlations_: (k,) of the ridged covariances; with ridge > 0 they are smaller than those of the sample.
        x_weights_, y_weights_: (dx, k) and (dy, k).
        x_mean_, y_mean_: (dx,) and (dy,).
        n_samples_: number of rows.

        The tensors are float64, on the device of the data.

    Raises:
        ValueError, TypeError: shapes do not match, a row holds NaN or infinity (the message gives its number),
            `n_components` is out of range, or a covariance is singular without a ridge.
    """

    def __init__(
        self,
        n_components: int | None = None,
        *,
        ridge: float | Sequence[float] = 1e-3,
        relative: bool = False,
        power: float = 0.0,
    ) -> None:
        self.n_components = n_components
        self.ridge = ridge
        self.relative = relative
        self.power = power
        self._moments: MomentAccumulator | None = None
        self._solution: Solution | None = None

    # -- fitting ------------------------------------------------------------------------------------------------

    def fit(self, x: Array | Iterable[tuple[Array, Array]], y: Array | None = None) -> LinearCCA:
        """Fits the model to x (m, dx) and y (m, dy), or to an iterable of such chunks. Every call starts over."""
        self._moments, self._solution = None, None
        if y is None:
            for chunk in cast("Iterable[tuple[Array, Array]]", x):
                if not isinstance(chunk, (tuple, list)) or len(chunk) != 2:
                    raise TypeError("x must be an iterable of pairs (x, y) if y is not given")
                self.partial_fit(*chunk)
            if self._moments is None:
                raise ValueError("x must yield at least one chunk (x, y), got none")
            self._solve()
            self._moments = None
            return self
        x, y = _pair(x, y)
        x, x_basis = _rows_basis("x", x)
        y, y_basis = _rows_basis("y", y)
        self._accumulate(x, y)
        self._solve(x_basis, y_basis)
        self._moments = None
        return self

    def partial_fit(self, x: Array, y: Array) -> LinearCCA:
        """Adds the rows of one chunk to those of earlier calls; the model is solved at its next use."""
        x, y = _pair(x, y, min_rows=1)
        self._accumulate(x, y)
        self._solution = None
        return self

    def _accumulate(self, x: Tensor, y: Tensor) -> None:
        moments = self._moments or MomentAccumulator(torch.float64)
        dtype = torch.promote_types(x.dtype, y.dtype)
        moments.update(_finite("x", x, moments.count).to(dtype), _finite("y", y, moments.count).to(dtype))
        self._moments = moments

    def _solve(self, x_basis: Tensor | None = None, y_basis: Tensor | None = None) -> Solution:
        s = self._moments
        if s is None:
            raise ValueError("LinearCCA must be fitted before it is used: call fit(x, y) first")
        if s.count < 2:
            raise ValueError(f"x must have at least 2 rows, got {s.count}")
        ridges = _checks.ridges(self.ridge)
        degrees = s.count - 1
        factors = []
        for name, moment, ridge, basis in (("x", s.xx, ridges[0], x_basis), ("y", s.yy, ridges[1], y_basis)):
            columns = len(moment) if basis is None else len(basis)
            if self.relative:
                ridge *= float(moment.trace()) / degrees / columns
            covariance = moment / degrees
            covariance.diagonal().add_(ridge)
            factor, failed = torch.linalg.cholesky_ex(covariance)
            if failed or (ridge == 0 and columns >= s.count):
                raise ValueError(f"ridge must be greater than {ridge:g} here: the covariance of {name} is singular")
            factors.append(factor)
        lx, ly = factors
        t = torch.linalg.solve_triangular(lx, s.xy / degrees, upper=False)
        t = torch.linalg.solve_triangular(ly.mT, t, upper=True, left=False)
        k = self._components(*s.xy.shape)
        u, sigma, vh = torch.linalg.svd(t, full_matrices=False)
        x_weights = torch.linalg.solve_triangular(lx.mT, u[:, :k], upper=True)
        y_weights = torch.linalg.solve_triangular(ly.mT, vh[:k].mT, upper=True)
        x_mean, y_mean = s.mean_x, s.mean_y
        if x_basis is not None:
            x_mean, x_weights = x_basis @ x_mean, x_basis @ x_weights
        if y_basis is not None:
            y_mean, y_weights = y_basis @ y_mean, y_basis @ y_weights
        # An SVD leaves signs undetermined. Making the largest weight of x positive gives equal models for equal data.
        sign = x_weights.gather(0, x_weights.abs().argmax(0, keepdim=True)).sign()
        self._solution = Solution(x_mean, y_mean, x_weights * sign, y_weights * sign, sigma[:k], s.count)
        return self._solution

    def _components(self, dx: int, dy: int) -> int:
        k = min(dx, dy) if self.n_components is None else self.n_components
        if isinstance(k, bool) or not isinstance(k, (int, np.integer)):
            raise TypeError(f"n_components must be an int or None, got {type(k).__name__}")
        if not 1 <= k <= min(dx, dy):
            raise ValueError(f"n_components must lie in 1..{min(dx, dy)} for these data, got {k}")
        return int(k)

    # -- the fitted model ---------------------------------------------------------------------------------------

    @property
    def solution(self) -> Solution:
        """All fitted quantities in one tuple."""
        return self._solution if self._solution is not None else self._solve()

    @property
    def correlations_(self) -> Tensor:
        return self.solution.correlations

    @property
    def x_weights_(self) -> Tensor:
        return self.solution.x_weights

    @property
    def y_weights_(self) -> Tensor:
        return self.solution.y_weights

    @property
    def x_mean_(self) -> Tensor:
        return self.solution.x_mean

    @property
    def y_mean_(self) -> Tensor:
        return self.solution.y_mean

    @property
    def n_samples_(self) -> int:
        return self.solution.n_samples

    def transform_x(self, x: A) -> A:
        """Canonical variates of x: (m, dx) -> (m, k), weighted by correlations_ ** power."""
        s = self.solution
        return _project("x", x, s.x_mean, s.x_weights * s.correlations**self.power)

    def transform_y(self, y: A) -> A:
        """Canonical variates of y: (m, dy) -> (m, k), weighted by correlations_ ** power."""
        s = self.solution
        return _project("y", y, s.y_mean, s.y_weights * s.correlations**self.power)

    @overload
    def transform(self, x: A, y: None = None) -> A: ...
    @overload
    def transform(self, x: A, y: A) -> tuple[A, A]: ...
    def transform(self, x: A, y: A | None = None) -> A | tuple[A, A]:
        """The canonical variates of x, or of both views."""
        return self.transform_x(x) if y is None else (self.transform_x(x), self.transform_y(y))

    def fit_transform(self, x: A, y: A) -> tuple[A, A]:
        """Fits to x and y and returns their variates."""
        self.fit(x, y)
        return self.transform_x(x), self.transform_y(y)

    def score(self, x: Array, y: Array) -> float:
        """Total correlation of the given pairs: the sum over components of the correlations of their variates."""
        s = self.solution
        x, y = _pair(x, y)
        u = _project("x", x.double(), s.x_mean, s.x_weights)
        v = _project("y", y.double(), s.y_mean, s.y_weights)
        u, v = u - u.mean(0), v - v.mean(0)
        scale = (u.square().sum(0) * v.square().sum(0)).sqrt()
        return float(((u * v).sum(0) / scale).nan_to_num().sum())  # a constant variate has correlation 0

    # -- parameters and files -----------------------------------------------------------------------------------

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """The constructor's arguments."""
        return {name: getattr(self, name) for name in ("n_components", "ridge", "relative", "power")}

    def set_params(self, **params: Any) -> LinearCCA:
        """Sets constructor arguments. After `partial_fit` they take effect at once; after `fit`, only `power` does."""
        for name, value in params.items():
            if name not in self.get_params():
                raise ValueError(f"LinearCCA has no parameter {name!r}; it has {', '.join(self.get_params())}")
            setattr(self, name, value)
        if self._moments is not None and params.keys() - {"power"}:
            self._solution = None
        return self

    def __sklearn_tags__(self) -> Any:
        from sklearn.utils import InputTags, Tags, TargetTags

        targets = TargetTags(required=True, multi_output=True, single_output=False)
        return Tags(estimator_type=None, target_tags=targets, input_tags=InputTags())

    def __repr__(self) -> str:
        return f"LinearCCA({', '.join(f'{name}={value!r}' for name, value in self.get_params().items())})"

    def state_dict(self) -> dict[str, Any]:
        """Parameters and fitted tensors, in types that `torch.load(weights_only=True)` accepts."""
        return {"params": self.get_params(), "fitted": self.solution._asdict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> LinearCCA:
        """Restores the result of `state_dict()`."""
        if not {"params", "fitted"} <= state.keys():
            raise ValueError(f"state must be the result of LinearCCA.state_dict(), got the keys {sorted(state)}")
        self.set_params(**state["params"])
        self._moments, self._solution = None, Solution(**state["fitted"])
        return self

    def save(self, path: str | PathLike[str]) -> None:
        """Writes the fitted model to a file."""
        torch.save(self.state_dict(), path)

    @classmethod
    def load(cls, path: str | PathLike[str]) -> LinearCCA:
        """Reads a model from a file that `save` wrote."""
        return cls().load_state_dict(torch.load(path, map_location="cpu", weights_only=True))


def _matrix(name: str, x: Array, min_rows: int = 1) -> Tensor:
    """x as a floating (m, d) tensor."""
    if not isinstance(x, Tensor):
        x = torch.as_tensor(np.asarray(x.toarray() if hasattr(x, "toarray") else x))
    if not x.is_floating_point():
        x = x.double()
    _checks.matrix(name, x, min_rows)
    return cast(Tensor, x.detach())


def _pair(x: Array, y: Array, min_rows: int = 2) -> tuple[Tensor, Tensor]:
    x, y = _matrix("x", x, min_rows), _matrix("y", y, min_rows)
    if x.shape[0] != y.shape[0]:
        raise ValueError(f"y must have as many rows as x, {x.shape[0]}, got {y.shape[0]}")
    if x.device != y.device:
        raise ValueError(f"y must be on the device of x, {x.device}, got {y.device}")
    return x, y


def _finite(name: str, x: Tensor, first: int = 0) -> Tensor:
    good = x.isfinite().all(1)
    if not bool(good.all()):
        row = first + int(good.logical_not().nonzero()[0])
        raise ValueError(f"{name} must be finite, got NaN or infinity in row {row}")
    return x


def _rows_basis(name: str, x: Tensor) -> tuple[Tensor, Tensor | None]:
    """If m < d, x (m, d) in an orthonormal basis (d, m) of its rows, which leaves the correlations unchanged."""
    if x.shape[0] >= x.shape[1]:
        return x, None
    basis, r = torch.linalg.qr(_finite(name, x).double().mT)
    return r.mT, basis


def _project(name: str, x: A, mean: Tensor, weights: Tensor) -> A:
    rows = _matrix(name, x)
    if rows.shape[1] != len(mean):
        raise ValueError(f"{name} must have {len(mean)} columns as in fit, got {rows.shape[1]}")
    mean, weights = mean.to(rows.device), weights.to(rows.device)
    # Subtract the mean in two parts, since rounding a large mean to float32 loses digits.
    coarse = mean.to(rows.dtype)
    out = ((rows - coarse) - (mean - coarse).to(rows.dtype)) @ weights.to(rows.dtype)
    return cast(A, out if isinstance(x, Tensor) else out.numpy())
