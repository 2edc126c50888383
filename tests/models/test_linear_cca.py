"""Linear CCA against scikit-learn and the definition by SVD; arrays, chunks and the dual form agree."""

import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.cross_decomposition import CCA
from sklearn.model_selection import GridSearchCV

from xmodal_ops import retrieval
from xmodal_ops.models import LinearCCA


def two_views(m: int = 300, dx: int = 9, dy: int = 6, shared: int = 3, seed: int = 0):
    rng = np.random.default_rng(seed)
    z = rng.normal(size=(m, shared))
    x = z @ rng.normal(size=(shared, dx)) + rng.normal(size=(m, dx)) * rng.uniform(0.3, 3, dx)
    y = z @ rng.normal(size=(shared, dy)) + rng.normal(size=(m, dy)) * rng.uniform(0.3, 3, dy)
    return x, y


def definition(x, y, rx: float, ry: float):
    """Correlations by inverse square roots of the ridged covariances: Hotelling's own formula."""
    m = len(x)
    x, y = x - x.mean(0), y - y.mean(0)

    def inverse_root(v, r):
        w, q = np.linalg.eigh(v.T @ v / (m - 1) + r * np.eye(v.shape[1]))
        return q @ np.diag(w**-0.5) @ q.T

    t = inverse_root(x, rx) @ (x.T @ y / (m - 1)) @ inverse_root(y, ry)
    return np.linalg.svd(t)[1]


def test_agrees_with_scikit_learn():
    x, y = two_views()
    ours = LinearCCA(3, ridge=0).fit(x, y)
    theirs = CCA(3, scale=False, max_iter=10000, tol=1e-14).fit(x, y)
    u, v = ours.transform(x, y)
    a, b = theirs.transform(x, y)
    for i in range(3):
        assert abs(np.corrcoef(u[:, i], a[:, i])[0, 1]) == pytest.approx(1, abs=1e-8)
        assert abs(np.corrcoef(v[:, i], b[:, i])[0, 1]) == pytest.approx(1, abs=1e-8)
        assert float(ours.correlations_[i]) == pytest.approx(np.corrcoef(a[:, i], b[:, i])[0, 1], abs=1e-9)


@pytest.mark.parametrize("ridge", [0.0, 0.3, (0.2, 2.0)])
def test_agrees_with_the_definition(ridge):
    x, y = two_views()
    rx, ry = ridge if isinstance(ridge, tuple) else (ridge, ridge)
    model = LinearCCA(ridge=ridge).fit(x, y)
    np.testing.assert_allclose(model.correlations_, definition(x, y, rx, ry), atol=1e-12)


@pytest.mark.parametrize("ridge", [0.0, 0.5])
def test_variates_have_unit_ridged_variance_and_the_correlations(ridge):
    x, y = two_views()
    model = LinearCCA(ridge=ridge).fit(x, y)
    wx, wy, m = model.x_weights_.numpy(), model.y_weights_.numpy(), len(x)
    xc, yc = x - x.mean(0), y - y.mean(0)
    k = np.eye(wx.shape[1])
    np.testing.assert_allclose(wx.T @ (xc.T @ xc / (m - 1) + ridge * np.eye(9)) @ wx, k, atol=1e-10)
    np.testing.assert_allclose(wy.T @ (yc.T @ yc / (m - 1) + ridge * np.eye(6)) @ wy, k, atol=1e-10)
    np.testing.assert_allclose(wx.T @ (xc.T @ yc / (m - 1)) @ wy, np.diag(model.correlations_), atol=1e-10)


@pytest.mark.parametrize(("m", "dx", "dy"), [(5, 20, 3), (8, 3, 30), (7, 11, 19), (2, 4, 4), (20, 20, 20)])
def test_dual_form_is_the_primal_one(m, dx, dy):
    x, y = two_views(m, dx, dy)
    k = min(m - 1, dx, dy)  # beyond the rank the directions are arbitrary
    dual = LinearCCA(k, ridge=0.1, relative=True).fit(x, y)
    primal = LinearCCA(k, ridge=0.1, relative=True).partial_fit(x, y)
    for a, b in zip(dual.solution, primal.solution):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-9)


def test_chunks_give_the_same_as_the_whole():
    x, y = two_views(1000)
    x += 1e6  # squares of means would swallow the variances
    whole = LinearCCA(ridge=0.1).fit(x, y)
    chunks = LinearCCA(ridge=0.1).fit((x[i : i + 77], y[i : i + 77]) for i in range(0, 1000, 77))
    part = LinearCCA(ridge=0.1)
    for rows in np.split(np.arange(1000), [1, 2, 400]):
        part.partial_fit(x[rows], y[rows])
    for other in (chunks, part):
        assert other.n_samples_ == 1000
        torch.testing.assert_close(other.correlations_, whole.correlations_, rtol=0, atol=1e-9)
        np.testing.assert_allclose(other.transform_x(x), whole.transform_x(x), atol=1e-6)


def test_large_means_in_float32_lose_nothing():
    x, y = two_views()
    x = (np.round(x * 64) / 64).astype(np.float32)  # exact in float32 with the mean added
    near, far = LinearCCA(ridge=0.1).fit(x, y), LinearCCA(ridge=0.1).fit(x + np.float32(4096), y)
    np.testing.assert_allclose(far.correlations_, near.correlations_, atol=1e-10)
    np.testing.assert_allclose(far.transform_x(x + np.float32(4096)), near.transform_x(x), atol=1e-5)


def test_kind_of_data_in_is_kind_of_data_out():
    x, y = two_views()
    model = LinearCCA(2).fit(torch.tensor(x), torch.tensor(y))
    u, v = model.transform(torch.tensor(x).float(), torch.tensor(y).float())
    assert (u.dtype, v.dtype, u.shape) == (torch.float32, torch.float32, (300, 2))
    a = model.transform_x(x)
    assert isinstance(a, np.ndarray)
    assert a.dtype == np.float64
    np.testing.assert_allclose(u, a, atol=1e-5)
    assert model.fit_transform(x, y)[1].shape == (300, 2)
    assert LinearCCA(2).fit(x.tolist(), y.tolist()).n_samples_ == 300


def test_sparse_features_are_read():
    from scipy.sparse import csr_matrix

    x, y = two_views()
    x[x < 1] = 0
    torch.testing.assert_close(
        LinearCCA(3).fit(csr_matrix(x), y).correlations_, LinearCCA(3).fit(x, y).correlations_, rtol=0, atol=0
    )


def test_power_weighs_the_variates():
    x, y = two_views()
    model = LinearCCA(4, ridge=0.1).fit(x, y)
    plain = model.transform_x(x)
    weighted = model.set_params(power=2).transform_x(x)
    np.testing.assert_allclose(weighted, plain * model.correlations_.numpy() ** 2)


def test_relative_ridge_does_not_depend_on_units():
    x, y = two_views()
    a = LinearCCA(ridge=0.1, relative=True).fit(x, y)
    b = LinearCCA(ridge=0.1, relative=True).fit(x * 1000, y / 1000)
    torch.testing.assert_close(a.correlations_, b.correlations_, rtol=0, atol=1e-12)
    absolute = LinearCCA(ridge=(0.1 * x.var(0, ddof=1).mean(), 0.1 * y.var(0, ddof=1).mean())).fit(x, y)
    torch.testing.assert_close(a.correlations_, absolute.correlations_, rtol=0, atol=1e-12)


def test_score_is_the_total_correlation():
    x, y = two_views()
    model = LinearCCA(3, ridge=0).fit(x, y)
    assert model.score(x, y) == pytest.approx(float(model.correlations_.sum()), abs=1e-10)
    new_x, new_y = two_views(100, seed=1)
    u, v = model.transform(new_x, new_y)
    expected = sum(np.corrcoef(u[:, i], v[:, i])[0, 1] for i in range(3))
    assert model.score(new_x, new_y) == pytest.approx(expected, abs=1e-10)


def test_constant_column_and_constant_view_are_harmless():
    x, y = two_views()
    x[:, 2] = 5.0
    assert bool(LinearCCA(ridge=1e-3).fit(x, y).x_weights_.isfinite().all())
    constant = LinearCCA(2, ridge=1e-3).fit(np.ones((300, 4)), y)
    assert constant.correlations_.tolist() == [0, 0]
    assert constant.score(np.ones((300, 4)), y) == 0


def test_scikit_learn_can_clone_and_search():
    x, y = two_views()
    model = LinearCCA(2, ridge=(0.1, 0.2), power=1.0)
    assert clone(model).get_params() == model.get_params()
    search = GridSearchCV(LinearCCA(2), {"ridge": [0.1, 1e4], "n_components": [1, 3]}, cv=3).fit(x, y)
    assert search.best_params_ == {"ridge": 0.1, "n_components": 3}


def test_parameters_of_accumulated_moments_act_at_once():
    x, y = two_views()
    model = LinearCCA(ridge=0.1).partial_fit(x, y)
    assert model.correlations_.shape == (6,)
    model.set_params(ridge=1.0, n_components=2)
    torch.testing.assert_close(model.correlations_, LinearCCA(2, ridge=1.0).fit(x, y).correlations_)


def test_save_and_load(tmp_path):
    x, y = two_views()
    model = LinearCCA(2, ridge=(0.1, 0.2), power=1.0).fit(x, y)
    model.save(tmp_path / "cca.pt")
    again = LinearCCA.load(tmp_path / "cca.pt")
    assert again.get_params() == model.get_params()
    assert again.n_samples_ == 300
    np.testing.assert_array_equal(again.transform_y(y), model.transform_y(y))


X, Y = two_views(20)
HOLE = X.copy()
HOLE[13, 4] = np.nan


@pytest.mark.parametrize(
    ("act", "error", "message"),
    [
        (lambda: LinearCCA().fit(HOLE, Y), ValueError, r"x must be finite, got NaN or infinity in row 13"),
        (lambda: LinearCCA().fit(HOLE[:, :6], HOLE), ValueError, r"x must be finite, .* row 13"),
        (lambda: LinearCCA().fit(Y, HOLE), ValueError, r"y must be finite, .* row 13"),
        (lambda: LinearCCA().fit([(X[:10], Y[:10]), (HOLE[10:], Y[10:])]), ValueError, r"x must be finite, .* row 13"),
        (lambda: LinearCCA().fit(Y[10:15], HOLE[10:15]), ValueError, r"y must be finite, .* row 3"),
        (lambda: LinearCCA().fit(X, Y[:19]), ValueError, r"y must have as many rows as x, 20, got 19"),
        (lambda: LinearCCA().fit(X[:1], Y[:1]), ValueError, r"x must have at least 2 rows, got 1"),
        (lambda: LinearCCA().fit(X[0], Y[0]), ValueError, r"x must have shape \(m, d\), got \(9,\)"),
        (lambda: LinearCCA().fit([]), ValueError, r"x must yield at least one chunk"),
        (lambda: LinearCCA().fit([(X[:1], Y[:1])]), ValueError, r"x must have at least 2 rows, got 1"),
        (lambda: LinearCCA().fit([X, Y]), TypeError, r"iterable of pairs"),
        (lambda: LinearCCA(7).fit(X, Y), ValueError, r"n_components must lie in 1..6 for these data, got 7"),
        (lambda: LinearCCA(0).fit(X, Y), ValueError, r"n_components must lie in 1..6"),
        (lambda: LinearCCA("all").fit(X, Y), TypeError, r"n_components must be an int or None, got str"),
        (lambda: LinearCCA(ridge=-1).fit(X, Y), ValueError, r"ridge must be >= 0, got -1"),
        (lambda: LinearCCA(ridge=0).fit(X[:5], Y[:5]), ValueError, r"ridge must be greater than 0 here: .* of x"),
        (lambda: LinearCCA(ridge=0).fit(X, np.ones((20, 2))), ValueError, r"ridge must be greater than 0 here: .* y"),
        (lambda: LinearCCA().transform_x(X), ValueError, r"must be fitted before it is used"),
        (lambda: LinearCCA().fit(X, Y).transform_x(Y), ValueError, r"x must have 9 columns as in fit, got 6"),
        (lambda: LinearCCA().fit(X, Y).transform(X, X), ValueError, r"y must have 6 columns as in fit, got 9"),
        (
            lambda: LinearCCA().partial_fit(X, Y).partial_fit(Y, Y),
            ValueError,
            r"x must have 9 columns as in fit, got 6",
        ),
        (lambda: LinearCCA().set_params(rigde=1), ValueError, r"no parameter 'rigde'"),
        (lambda: LinearCCA().load_state_dict({"a": 1}), ValueError, r"state must be the result of .* keys \['a'\]"),
    ],
)
def test_errors_name_the_argument(act, error, message):
    with pytest.raises(error, match=message):
        act()


BAD = {
    "NaN": (np.where(np.arange(20)[:, None] == 3, np.nan, X), "x must be finite, got NaN or infinity in row 3"),
    "infinity": (np.where(np.arange(20)[:, None] == 3, np.inf, X), "x must be finite, got NaN or infinity in row 3"),
    "complex": (X + 1j, "x must be real, got complex128"),
    "mask": (np.ma.masked_less(X, 0), "x must have no masked entries"),
    "strings": (X.astype(str), "x must be an array of numbers, got strings"),
    "vector": (X[0], r"x must have shape \(m, d\), got \(9,\)"),
    "three axes": (X[None], r"x must have shape \(m, d\), got \(1, 20, 9\)"),
}


@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize(
    "act",
    [
        lambda m, x: LinearCCA().fit(x, Y),
        lambda m, x: LinearCCA().fit([(x, Y)]),
        lambda m, x: LinearCCA().partial_fit(x, Y),
        lambda m, x: m.transform(x),
        lambda m, x: m.transform(x, Y),
        lambda m, x: m.transform_x(x),
        lambda m, x: LinearCCA().fit(Y, X).transform_y(x),
        lambda m, x: m.score(x, Y),
        lambda m, x: LinearCCA().fit_transform(x, Y),
    ],
    ids=["fit", "chunks", "partial_fit", "transform", "both", "transform_x", "transform_y", "score", "fit_transform"],
)
def test_every_method_refuses_unsuitable_data(act, bad):
    x, message = BAD[bad]
    with pytest.raises((ValueError, TypeError), match=message.replace("x must", "[xy] must")) as caught:
        act(LinearCCA().fit(X, Y), x)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("bad", BAD)
def test_embed_refuses_unsuitable_data_by_the_name_of_its_argument(bad):
    x, message = BAD[bad]
    if bad == "three axes":
        message = "x must have 9 columns as in fit, got 180"  # images are flattened
    with pytest.raises((ValueError, TypeError), match=message.replace("x must", "image must")):
        LinearCCA().fit(X, Y).embed(x, Y)


@pytest.mark.parametrize(
    "read",
    [
        lambda a: a[::-1][::-1],
        lambda a: a.astype(">f8"),
        lambda a: a.astype(object),
        lambda a: a.tolist(),
        lambda a: np.ma.masked_invalid(a),
        lambda a: torch.tensor(a).mT.contiguous().mT,
        lambda a: torch.tensor(a).to_sparse(),
    ],
    ids=["strides", "byte order", "objects", "list", "no masks", "columns first", "sparse"],
)
def test_whatever_numpy_reads_gives_the_same_model(read):
    want, got = LinearCCA(2).fit(X, Y), LinearCCA(2).fit(read(X), read(Y))
    torch.testing.assert_close(got.correlations_, want.correlations_, rtol=0, atol=1e-12)
    np.testing.assert_allclose(np.asarray(got.transform(read(X))), want.transform(X), atol=1e-9)
    assert got.score(read(X), read(Y)) == pytest.approx(want.score(X, Y))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_views_are_projected_in_float32(dtype):
    x, y = (torch.tensor(v + 20).to(dtype) for v in (X, Y))
    model, wide = LinearCCA(3).fit(x, y), LinearCCA(3).fit(x.double(), y.double())
    torch.testing.assert_close(model.correlations_, wide.correlations_)
    for got, want in zip(model.embed(x, y), wide.embed(x.double(), y.double())):
        assert got.dtype == torch.float32
        torch.testing.assert_close(got.double(), want, rtol=1e-4, atol=1e-4)
    assert model.transform(x).dtype == dtype
    assert model.score(x, y) == pytest.approx(wide.score(x.double(), y.double()))


def test_embeddings_are_tensors_of_one_type_and_images_are_flattened():
    pictures = np.random.default_rng(0).integers(0, 256, (20, 1, 3, 3), dtype=np.uint8)
    flat = pictures.reshape(20, 9) / np.float32(255)
    model = LinearCCA(2, power=1).fit(flat, Y)
    u, v = model.embed(pictures, Y.astype(np.float32))
    assert u.dtype == v.dtype == torch.float32
    torch.testing.assert_close(u, torch.from_numpy(model.transform(flat)))
    assert model.embed_text(Y.tolist()).dtype == torch.float64
    assert retrieval.evaluate(*model.transform(flat.astype(np.float64), Y.astype(np.float32)))["gallery"] == 20


@pytest.mark.parametrize("scale", [1e-140, 1e140])
def test_score_does_not_depend_on_the_scale(scale):
    model = LinearCCA(2, ridge=1e-3, relative=True).fit(X, Y)
    want = model.score(X, Y)
    model.load_state_dict({"params": model.get_params(), "fitted": {**model.solution._asdict(),
        "x_weights": model.x_weights_ / scale, "x_mean": model.x_mean_ * scale}})  # fmt: skip
    assert model.score(X * scale, Y) == pytest.approx(want)


def test_values_too_large_to_square_are_refused():
    with pytest.raises(ValueError, match="x must be small enough to square, got a covariance beyond float64"):
        LinearCCA().fit(X * 1e200, Y)


@pytest.mark.parametrize(
    ("act", "message"),
    [
        (lambda: LinearCCA().fit(X), "y must be given: LinearCCA requires y to be passed"),
        (lambda: LinearCCA().fit(X, Y[:, 0]), r"y must have shape \(m, d\), got \(20,\)"),
        (lambda: LinearCCA().fit(3), r"x must be an array, or an iterable of pairs \(x, y\), got int"),
        (lambda: LinearCCA(power="a").fit(X, Y).transform(X), "power must be a finite number, got 'a'"),
    ],
)
def test_more_errors_name_the_argument(act, message):
    with pytest.raises((ValueError, TypeError), match=message):
        act()
