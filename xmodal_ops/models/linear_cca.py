"""Linear canonical correlation analysis with ridges (Hotelling 1936; Vinod 1976), exact, in float64.

With Sxx = cov(x) + rx·I = Lx Lxᵀ and so on, and the singular triples Lx⁻¹ Sxy Ly⁻ᵀ = U Σ Vᵀ, the canonical
directions are Wx = Lx⁻ᵀ U and Wy = Ly⁻ᵀ V: Wxᵀ Sxx Wx = I, Wyᵀ Syy Wy = I, Wxᵀ Sxy Wy = Σ.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterable, Mapping, Sequence
from os import PathLike
from typing import Any, NamedTuple, TypeVar, cast, overload

import numpy as np
import torch
from torch import Tensor

from .. import _checks
from .._arrays import Array, as_floating, as_tensor, columns, concatenate, is_array
from .._dtypes import accumulation_dtype, widest, with_fp64
from .._images import unit_range
from ..scale.moments import MomentAccumulator

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
    """Linear CCA of two views, an estimator of scikit-learn's kind (which it does not import).

    Data have shape (m, d). They are tensors or whatever `np.asarray` reads: arrays, data frames, lists, also SciPy
    sparse matrices, of any real type. Variates are tensors for tensors, else NumPy arrays (or as `set_output` says),
    with the floating type of the data. `fit` also takes an iterable of chunks `(x, y)` and reads each once, so memory
    does not depend on their number. All algebra is in float64, on the device of the data, or on the CPU if that device
    has no float64.

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
        n_features_in_: dx.
        feature_names_in_: the column names of x, if it was a data frame; other frames must then have the same.

        The tensors are float64, on the device of the algebra.

    Raises:
        ValueError, TypeError: shapes do not match, a view is not (m, d), a row holds NaN or infinity (the message gives
            its number), complex or masked data, `n_components` is out of range, or a covariance is singular without a
            ridge. Every method refuses what `fit` refuses.

    Two views depart from scikit-learn's checks in a few places: `y` is a matrix, and `fit_transform(x, y)` returns the
    variates of both views, as scikit-learn's own CCA does.
    """

    _moments: MomentAccumulator | None = None
    _solution: Solution | None = None
    _names: tuple[list[str] | None, list[str] | None] = (None, None)  # of the columns of both views in fit
    _sklearn_auto_wrap_output_keys = frozenset({"transform"})  # which methods `set_output` concerns
    n_features_in_: int
    feature_names_in_: np.ndarray[Any, Any]

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

    # -- fitting ------------------------------------------------------------------------------------------------

    def fit(self, x: Array | Iterable[tuple[Array, Array]], y: Array | None = None) -> LinearCCA:
        """Fits the model to x (m, dx) and y (m, dy), or to an iterable of such chunks. Every call starts over."""
        self._forget()
        try:
            if y is None:
                self._fit_chunks(x)
            else:
                a, b = self._pair(x, y, min_rows=2)
                a, x_basis = _rows_basis(a)
                b, y_basis = _rows_basis(b)
                self._accumulate(a, b)
                self._solve(x_basis, y_basis)
        except BaseException:
            self._forget()
            raise
        self._moments = None
        return self

    def _fit_chunks(self, chunks: Any) -> None:
        if is_array(chunks):
            raise ValueError("y must be given: LinearCCA requires y to be passed, but the target y is None")
        if not hasattr(chunks, "__iter__"):
            raise TypeError(f"x must be an array, or an iterable of pairs (x, y), got {type(chunks).__name__}")
        for chunk in chunks:
            if not isinstance(chunk, (tuple, list)) or len(chunk) != 2:
                raise TypeError("x must be an iterable of pairs (x, y) if y is not given")
            self.partial_fit(*chunk)
        if self._moments is None:
            raise ValueError("x must yield at least one chunk (x, y), got none")
        self._solve()

    def partial_fit(self, x: Array, y: Array) -> LinearCCA:
        """Adds the rows of one chunk to those of earlier calls; the model is solved at its next use."""
        if self._moments is None:
            self._forget()
        self._accumulate(*self._pair(x, y))
        self._solution = None
        return self

    def _forget(self) -> None:
        for name in ("_moments", "_solution", "_names", "n_features_in_", "feature_names_in_"):
            vars(self).pop(name, None)

    def _pair(self, x: Array, y: Array, min_rows: int = 1) -> tuple[Tensor, Tensor]:
        """Both views of a chunk to fit, checked, in a common floating type, on a device with float64."""
        first = self._moments.count if self._moments else 0
        new = not first
        a, b = self._read(0, x, min_rows, first, new), self._read(1, y, min_rows, first, new)
        _same_rows(a, b)
        if new:
            self.n_features_in_ = a.shape[1]
            self._names = columns(x), columns(y)
            if self._names[0] is not None:
                self.feature_names_in_ = np.array(self._names[0], object)
        return _common(with_fp64(a), with_fp64(b))

    def _accumulate(self, x: Tensor, y: Tensor) -> None:
        moments = self._moments or MomentAccumulator(torch.float64)
        moments.update(x, y)
        self._moments = moments

    def _read(
        self, side: int, x: Array, min_rows: int = 1, first: int = 0, new: bool = False, name: str = ""
    ) -> Tensor:
        """One view of a caller, (m, d) floating, checked: the only entrance of data.

        Args:
            side: 0 for x, 1 for y.
            x: the view.
            min_rows: the least number of rows.
            first: the number of rows before this chunk, for messages.
            new: the first rows of a fit; others must have their columns.
            name: of the argument, "x" or "y" by default.
        """
        name = name or "xy"[side]
        _check_names(name, self._names[side], columns(x), type(self).__name__, new)
        rows = as_floating(name, x)
        if rows.ndim != 2:
            raise ValueError(f"{name} must have shape (m, d), got {tuple(rows.shape)}: Reshape your data")
        if rows.shape[0] < min_rows:
            one = " sample" if rows.shape[0] == 1 else ""
            raise ValueError(f"{name} must have at least {min_rows} rows, got {rows.shape[0]}{one}")
        width = rows.shape[1]
        if width < 1:
            got = f"0 feature(s) (shape={tuple(rows.shape)}) while a minimum of 1 is required."
            raise ValueError(f"{name} must have at least one column, got {got}")
        if not new and width != (want := self._widths()[side]):
            # The end of the line is what scikit-learn's checks look for.
            sklearn = f"{name.upper()} has {width} features, but {type(self).__name__} is expecting {want} features"
            raise ValueError(f"{name} must have {want} columns as in fit, got {width}: {sklearn} as input")
        if (row := _checks.nonfinite_row(rows)) is not None:
            sklearn = f"Input {name} contains NaN or infinity"
            raise ValueError(f"{name} must be finite, got NaN or infinity in row {first + row} ({sklearn})")
        return rows

    def _widths(self) -> tuple[int, int]:
        if self._moments is not None:
            dx, dy = self._moments.xy.shape
            return dx, dy
        return len(self.solution.x_mean), len(self.solution.y_mean)

    def _solve(self, x_basis: Tensor | None = None, y_basis: Tensor | None = None) -> Solution:
        s = self._moments
        if s is None:
            raise _not_fitted()
        if s.count < 2:
            raise ValueError(f"x must have at least 2 rows, got {s.count}")
        ridges = _checks.ridges(self.ridge)
        degrees = s.count - 1
        factors = []
        for name, moment, ridge, basis in (("x", s.xx, ridges[0], x_basis), ("y", s.yy, ridges[1], y_basis)):
            width = len(moment) if basis is None else len(basis)
            if self.relative:
                ridge *= float(moment.trace()) / degrees / width
            covariance = moment / degrees
            if not covariance.isfinite().all():
                raise ValueError(f"{name} must be small enough to square, got a covariance beyond float64")
            covariance.diagonal().add_(ridge)
            factor, failed = torch.linalg.cholesky_ex(covariance)
            if failed or (ridge == 0 and width >= s.count):
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
        return self._out(x, self._project(0, x))

    def transform_y(self, y: A) -> A:
        """Canonical variates of y: (m, dy) -> (m, k), weighted by correlations_ ** power."""
        return self._out(y, self._project(1, y))

    def _project(self, side: int, x: Array) -> Tensor:
        s = self.solution  # refuses an unfitted model before it looks at the data
        rows = self._read(side, x)
        return _project(rows, *self._map(side, s)).to(rows.dtype)

    def _map(self, side: int, s: Solution, weighted: bool = True) -> tuple[Tensor, Tensor]:
        """Mean (d,) and directions (d, k) of a view, float64."""
        mean, weights = (s.x_mean, s.x_weights) if side == 0 else (s.y_mean, s.y_weights)
        return mean, weights * s.correlations ** _number("power", self.power) if weighted else weights

    @overload
    def transform(self, x: A, y: None = None) -> A: ...
    @overload
    def transform(self, x: A, y: A) -> tuple[A, A]: ...
    def transform(self, x: A, y: A | None = None) -> A | tuple[A, A]:
        """The canonical variates of x, or of both views: then both in the wider of their floating types."""
        if y is None:
            return self.transform_x(x)
        u, v = _common(self._project(0, x), self._project(1, y))
        return self._out(x, u), self._out(y, v)

    def fit_transform(self, x: A, y: A) -> tuple[A, A]:
        """Fits to x and y and returns their variates."""
        return self.fit(x, y).transform(x, y)

    def embed_image(self, image: Array, *, batch_size: int = 65536) -> Tensor:
        """Images in the retrieval space, as the other models give them.

        Args:
            image: x of `transform`, or images (m, channels, height, width) whose pixels are its columns; bytes in them
                count as their 255th part.
            batch_size: the number of items at a time.

        Returns:
            (m, k) on the device of the model, in the floating type of the images; float32 for half types.
        """
        return self._embed(0, image, batch_size)

    def embed_text(self, text: Array, *, batch_size: int = 65536) -> Tensor:
        """Texts in the retrieval space, as `embed_image` gives images."""
        return self._embed(1, text, batch_size)

    def embed(self, image: Array, text: Array, *, batch_size: int = 65536) -> tuple[Tensor, Tensor]:
        """Both views in the retrieval space, in the wider of their floating types."""
        return _common(self.embed_image(image, batch_size=batch_size), self.embed_text(text, batch_size=batch_size))

    def _embed(self, side: int, x: Array, batch_size: int) -> Tensor:
        s, name = self.solution, ("image", "text")[side]
        if columns(x) is None:
            x = as_tensor(name, x)
            x = unit_range(x).flatten(1) if x.ndim > 2 else x
        rows, maps = self._read(side, x, name=name), self._map(side, s)
        chunks = rows.split(_checks.positive("batch_size", batch_size))
        return concatenate((_project(chunk.to(s.correlations.device), *maps) for chunk in chunks), len(rows))

    def score(self, x: Array, y: Array) -> float:
        """Total correlation of the given pairs: the sum over components of the correlations of their variates."""
        s = self.solution
        views = self._read(0, x, 2), self._read(1, y, 2)
        _same_rows(*views)
        u, v = (_project(widest(rows), *self._map(side, s, False)) for side, rows in enumerate(views))
        u, v = (_unit_columns(z - z.mean(0)) for z in (u, v))
        return float((u * v).sum())  # a constant variate has correlation 0

    # -- scikit-learn ---------------------------------------------------------------------------------------------

    def get_feature_names_out(self, input_features: Any = None) -> np.ndarray[Any, Any]:
        """The names of the variates: linearcca0, linearcca1, ..."""
        k = len(self.correlations_)
        if input_features is not None:
            given = np.asarray(input_features, dtype=object)
            if hasattr(self, "feature_names_in_") and not np.array_equal(given, self.feature_names_in_):
                raise ValueError("input_features is not equal to feature_names_in_")
            if len(given) != self.n_features_in_:
                want = f"number of features ({self.n_features_in_}), got {len(given)}"
                raise ValueError(f"input_features should have length equal to {want}")
        return np.array([f"{type(self).__name__.lower()}{i}" for i in range(k)], object)

    def set_output(self, *, transform: str | None = None) -> LinearCCA:
        """Chooses the container of variates: "default" (arrays), "pandas" or "polars"; None changes nothing.

        Tensors stay tensors. As in scikit-learn, which must be installed for the other two.
        """
        if transform is not None:
            _checks.choice("transform", transform, ("default", "pandas", "polars"))
            self._sklearn_output_config = {"transform": transform}
        return self

    def _out(self, original: A, variates: Tensor) -> A:
        """The variates in the container that `set_output`, or the data themselves, call for."""
        if isinstance(original, Tensor):
            return cast(A, variates)
        out: Any = variates.numpy(force=True)
        if "sklearn" in sys.modules or hasattr(self, "_sklearn_output_config"):
            from sklearn.utils._set_output import _wrap_data_with_container

            out = _wrap_data_with_container("transform", out, original, self)
        return cast(A, out)

    def __sklearn_is_fitted__(self) -> bool:
        return self._solution is not None or (self._moments is not None and self._moments.count > 1)

    def __sklearn_tags__(self) -> Any:
        from sklearn.utils import InputTags, Tags, TargetTags, TransformerTags

        return Tags(
            estimator_type=None,
            target_tags=TargetTags(required=True, multi_output=True, single_output=False),
            transformer_tags=TransformerTags(preserves_dtype=["float64", "float32"]),
            input_tags=InputTags(sparse=True),
        )

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
        self._forget()
        self._solution = Solution(**state["fitted"])
        self.n_features_in_ = len(self._solution.x_mean)
        return self

    def save(self, path: str | PathLike[str]) -> None:
        """Writes the fitted model to a file."""
        torch.save(self.state_dict(), path)

    @classmethod
    def load(cls, path: str | PathLike[str]) -> LinearCCA:
        """Reads a model from a file that `save` wrote."""
        return cls().load_state_dict(torch.load(path, map_location="cpu", weights_only=True))


class _NotFittedError(ValueError, AttributeError):
    """Stands in for scikit-learn's error of that name where scikit-learn is not loaded."""


def _not_fitted() -> Exception:
    message = "LinearCCA must be fitted before it is used: call fit(x, y) first"
    if "sklearn" not in sys.modules:
        return _NotFittedError(message)
    from sklearn.exceptions import NotFittedError

    return cast(Exception, NotFittedError(message))


def _number(name: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float, np.number)) or not np.isfinite(value):
        raise ValueError(f"{name} must be a finite number, got {value!r}")
    return float(value)


def _same_rows(x: Tensor, y: Tensor) -> None:
    if x.shape[0] != y.shape[0]:
        raise ValueError(f"y must have as many rows as x, {x.shape[0]}, got {y.shape[0]}")
    if x.device != y.device:
        raise ValueError(f"y must be on the device of x, {x.device}, got {y.device}")


def _check_names(name: str, fitted: list[str] | None, given: list[str] | None, model: str, new: bool) -> None:
    """Compares the column names of data frames with those of `fit`, in the words of scikit-learn."""
    if new or fitted == given:
        return
    if fitted is None:
        warnings.warn(f"{name.upper()} has feature names, but {model} was fitted without feature names", stacklevel=4)
        return
    if given is None:
        warnings.warn(
            f"{name.upper()} does not have valid feature names, but {model} was fitted with feature names", stacklevel=4
        )
        return
    lines = ["The feature names should match those that were passed during fit."]
    unseen, missing = sorted(set(given) - set(fitted)), sorted(set(fitted) - set(given))
    for title, names in (
        ("Feature names unseen at fit time:", unseen),
        ("Feature names seen at fit time, yet now missing:", missing),
    ):
        if names:
            lines += [title, *(f"- {n}" for n in names[:5]), *(["- ..."] if len(names) > 5 else [])]
    if not unseen and not missing:
        lines.append("Feature names must be in the same order as they were in fit.")
    raise ValueError("\n".join(lines) + "\n")


def _common(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Both in the wider of their floating types."""
    dtype = torch.promote_types(x.dtype, y.dtype)
    return x.to(dtype), y.to(dtype)


def _unit_columns(z: Tensor) -> Tensor:
    """Columns divided by their norms, whatever their scale; columns of zeros stay."""
    z = z / z.abs().amax(0).clamp(min=torch.finfo(z.dtype).tiny)
    return z / z.norm(dim=0).clamp(min=torch.finfo(z.dtype).tiny)


def _rows_basis(x: Tensor) -> tuple[Tensor, Tensor | None]:
    """If m < d, x (m, d) in an orthonormal basis (d, m) of its rows, which leaves the correlations unchanged."""
    if x.shape[0] >= x.shape[1]:
        return x, None
    basis, r = torch.linalg.qr(widest(x).mT)
    return r.mT, basis


def _project(
    rows: Tensor,  # (m, d)
    mean: Tensor,  # (d,)
    weights: Tensor,  # (d, k)
) -> Tensor:
    """The product of the centred rows and the weights, on the device of the rows; float32 for half rows."""
    dtype = accumulation_dtype(rows.dtype)
    # The mean is subtracted in two parts, since rounding a large mean to float32 loses digits.
    coarse = mean.to(dtype)
    rest = (mean - coarse).to(dtype)
    coarse, rest, weights = (t.to(dtype).to(rows.device) for t in (coarse, rest, weights))
    return ((rows.to(dtype) - coarse) - rest) @ weights
