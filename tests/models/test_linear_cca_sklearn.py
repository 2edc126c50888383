"""LinearCCA keeps scikit-learn's contract for estimators, as far as two views allow."""

import subprocess
import sys

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils import estimator_checks
from sklearn.utils.validation import check_is_fitted

from xmodal_ops.models import LinearCCA

RNG = np.random.default_rng(0)
X, Y = RNG.normal(size=(30, 4)), RNG.normal(size=(30, 3))


class CCA(LinearCCA):
    """The name by which scikit-learn's checks know an estimator whose `transform(x, y)` gives both views."""


# What cannot pass, with the reason.
EXPECTED = {
    "check_transformer_preserve_dtypes": "passes a vector as y, which the tags say is a matrix; tested below",
}
GENERATED = [check for _, check in estimator_checks.estimator_checks_generator(CCA())]
MORE = [  # that scikit-learn keeps for its own estimators
    "check_get_feature_names_out_error",
    "check_transformer_get_feature_names_out",
    "check_transformer_get_feature_names_out_pandas",
    "check_set_output_transform",
    "check_set_output_transform_pandas",
    "check_global_output_transform_pandas",
    "check_dataframe_column_names_consistency",
    "check_n_features_in",
    "check_requires_y_none",
]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("check", GENERATED, ids=lambda check: check.func.__name__)
def test_the_checks_of_scikit_learn_pass(check):
    if reason := EXPECTED.get(check.func.__name__):
        pytest.xfail(reason)
    check(CCA())


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", [name for name in MORE if hasattr(estimator_checks, name)])
def test_the_checks_of_its_own_estimators_pass_too(name):
    getattr(estimator_checks, name)("CCA", CCA())  # those about pandas skip themselves without pandas


def test_it_is_the_last_step_of_a_pipeline():
    pipe = make_pipeline(StandardScaler(), LinearCCA(2)).fit(X, Y)
    check_is_fitted(pipe)
    assert pipe.transform(X).shape == (30, 2)
    assert pipe.score(X, Y) > 0
    assert list(pipe.get_feature_names_out()) == ["linearcca0", "linearcca1"]


def test_fitted_is_what_has_a_solution():
    for model in (LinearCCA(), LinearCCA().partial_fit(X[:1], Y[:1])):
        with pytest.raises(NotFittedError):
            check_is_fitted(model)
    check_is_fitted(LinearCCA().partial_fit(X, Y))
    failed = LinearCCA().fit(X, Y)
    with pytest.raises(ValueError, match="finite"):
        failed.fit([(X, Y), (X, np.full_like(Y, np.nan))])
    with pytest.raises(NotFittedError, match="LinearCCA must be fitted before it is used"):
        failed.transform(X)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_floating_types_are_preserved_and_mixed_ones_promoted(dtype):
    model = LinearCCA(2).fit(X, Y)
    assert model.transform(X.astype(dtype)).dtype == dtype
    u, v = model.transform(X.astype(dtype), Y.astype(np.float32))
    assert u.dtype == v.dtype == np.promote_types(dtype, np.float32)


def test_data_frames_give_names_and_names_must_match():
    class Frame:
        def __init__(self, values, columns):
            self.values, self.columns = values, columns

        def __array__(self, dtype=None, copy=None):
            return self.values

    model = LinearCCA(2).fit(Frame(X, ["a", "b", "c", "d"]), Frame(Y, ["e", "f", "g"]))
    assert list(model.feature_names_in_) == ["a", "b", "c", "d"]
    assert model.n_features_in_ == 4
    with pytest.raises(ValueError, match="should match those that were passed during fit"):
        model.transform(Frame(X, ["b", "a", "c", "d"]))
    with pytest.raises(ValueError, match="should match those that were passed during fit"):
        model.transform_y(Frame(Y, ["e", "f", "x"]))
    with pytest.warns(UserWarning, match="X does not have valid feature names"):
        model.transform(X)
    assert not hasattr(model.fit(X, Y), "feature_names_in_")


def test_clones_keep_the_container_and_nothing_fitted():
    model = clone(LinearCCA(2, ridge=(0.1, 0.2)).set_output(transform="default").fit(X, Y))
    assert model.get_params()["ridge"] == (0.1, 0.2)
    with pytest.raises(NotFittedError):
        check_is_fitted(model)
    with pytest.raises(ValueError, match="transform must be one of 'default', 'pandas', 'polars', got 'list'"):
        model.set_output(transform="list")


def test_scikit_learn_is_not_imported():
    code = """
import sys, numpy as np
from xmodal_ops.models import LinearCCA
x = np.random.default_rng(0).normal(size=(9, 2))
try:
    LinearCCA().transform(x)
except ValueError as error:
    assert isinstance(error, AttributeError)
LinearCCA().fit(x, x).transform(x, x)
assert "sklearn" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True)
