"""The estimator's warnings, each on a case made for it, and its sentence for each mistake."""

import re
import warnings
from pathlib import Path

import numpy as np
import pytest
from sklearn.datasets import make_blobs
from sklearn.exceptions import ConvergenceWarning, NotFittedError
from torch import nn

from coincide.cluster import ClusteringWarning, CollisionClustering
from quick_fits import QUICK, D, K, X, fitted


@pytest.fixture(scope="module")
def model():
    return fitted()


# Warnings


def caught(features, **changes):
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        CollisionClustering(**{**QUICK, **changes}).fit(features)
    return found


def test_a_good_fit_warns_of_nothing():
    assert [str(w.message) for w in caught(X, max_epochs=80)] == []


def test_uniform_predictions_are_told():
    """Weight decay that no loss can withstand."""
    found = caught(X, weight_decay=30.0, learning_rate=0.01, max_epochs=100)
    stuck = [w for w in found if "The loss did not fall" in str(w.message)]
    assert [w.category for w in stuck] == [ClusteringWarning]
    assert Path(stuck[0].filename) == Path(__file__)


def test_a_network_that_did_not_learn_is_told():
    assert any(w.category is ClusteringWarning for w in caught(X, learning_rate=1e-6))


def test_empty_clusters_are_told():
    """Without fairness nothing keeps a cluster alive."""
    found = [w for w in caught(X, fairness=0.0, n_clusters=8) if "are empty" in str(w.message)]
    assert [w.category for w in found] == [ClusteringWarning]
    assert re.search(r"[1-7] of 8 clusters are empty", str(found[0].message))


def test_a_cluster_that_the_prior_forbids_is_not_missed():
    told = [str(w.message) for w in caught(X, prior=[0.5, 0.5, 0.0])]
    assert not any("are empty" in message for message in told)


def test_shared_rows_are_told():
    """Two tight blobs leave nothing to tell eight clusters apart by."""
    features, _ = make_blobs(200, n_features=4, centers=2, cluster_std=0.01, random_state=0)
    found = [w for w in caught(features, n_clusters=8) if "share their rows" in str(w.message)]
    assert [w.category for w in found] == [ClusteringWarning]
    assert re.search(r"\d and \d", str(found[0].message))


def test_restless_rows_are_told():
    noise = np.random.default_rng(0).normal(size=(400, 20))
    unrest = {"n_clusters": 10, "max_epochs": 2, "batch_size": 40, "learning_rate": 3.0}
    found = [w for w in caught(noise, **unrest) if w.category is ConvergenceWarning]
    assert len(found) == 1
    assert "still changed cluster" in str(found[0].message)
    with pytest.warns(ConvergenceWarning):
        assert not fitted(noise, **unrest).converged_


# Bad input, each with its sentence


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("n_clusters", 1, "an integer >= 2. Got 1"),
        ("n_clusters", 2.5, "an integer >= 2. Got 2.5"),
        ("n_clusters", True, "an integer >= 2. Got True"),
        ("objective", "ce", "'cce+', 'cce'"),
        ("solver", "newton", "'auto', 'active-set', 'interior-point'"),
        ("solver", 3, "'interior-point'"),
        ("fairness", -1.0, "a finite number >= 0. Got -1.0"),
        ("fairness", float("nan"), "a finite number >= 0. Got nan"),
        ("fairness", "much", "a finite number >= 0. Got 'much'"),
        ("prior", [0.5, 0.5], "of shape (3,)"),
        ("prior", [0.5, 0.6, 0.1], "sums to 1.2"),
        ("prior", [1.5, -0.5, 0.0], "negative"),
        ("network", "vgg", "one of 'linear', 'mlp'. Got 'vgg'"),
        ("network", nn.Linear(D, 4), "3 logits a row"),
        ("network", nn.Linear(4, K), "rows of 5 features"),
        ("init", "zeros", "one of 'random', 'k-means'. Got 'zeros'"),
        ("scaling", "minmax", "one of 'unit-norm', 'standard', 'none'. Got 'minmax'"),
        ("n_init", 0, "an integer >= 1. Got 0"),
        ("n_init", "some", "an integer >= 1. Got 'some'"),
        ("max_epochs", 0, "an integer >= 1. Got 0"),
        ("batch_size", 1, "an integer >= 2. Got 1"),
        ("learning_rate", 0.0, "a finite number > 0. Got 0.0"),
        ("learning_rate", float("inf"), "a finite number > 0. Got inf"),
        ("momentum", -0.1, "a finite number >= 0. Got -0.1"),
        ("momentum", 1.0, "a number below 1. Got 1.0"),
        ("weight_decay", -1, "a finite number >= 0. Got -1"),
        ("view_dropout", 1.0, "a number below 1. Got 1.0"),
        ("view_dropout", -0.1, "a finite number >= 0. Got -0.1"),
        ("view_noise", -0.1, "a finite number >= 0. Got -0.1"),
        ("device", "abacus", "a device that is there"),
        ("device", None, "a device that is there"),
    ],
)
@pytest.mark.parametrize("method", ["fit", "partial_fit"])
def test_unfit_parameters(name, value, words, method):
    model = CollisionClustering(**{**QUICK, name: value})
    with pytest.raises((ValueError, TypeError)) as error:
        getattr(model, method)(X)
    sentence = str(error.value)
    assert f"The '{name}' parameter of CollisionClustering" in sentence
    assert words in sentence


def test_an_unfit_pair():
    with pytest.raises(ValueError, match="does not fit the objective 'cce'"):
        fitted(solver="em", objective="cce")
    with pytest.raises(ValueError, match="'random' unless network is 'linear'"):
        fitted(init="k-means", network="mlp")


@pytest.mark.parametrize("method", ["fit", "partial_fit"])
@pytest.mark.parametrize(
    ("features", "words"),
    [
        (np.ones((20, 2)), "constant"),
        (np.full((20, 2), 0.1), "constant"),
        (np.where(np.eye(20, 2) > 0, np.nan, 1.0), "NaN"),
        (np.where(np.eye(20, 2) > 0, np.inf, 1.0), "infinity"),
        (np.arange(20.0), "1D array"),
        (np.ones((4, 3, 2)), "dim 3"),
        (np.empty((0, 3)), "0 sample"),
        (np.empty((20, 0)), "0 feature"),
        (X[:2], "n_samples=2 should be >= n_clusters=3"),
        (X * 1j, "Complex"),
        ([["a", "b"]] * 5, "strings"),
    ],
)
def test_unfit_features(features, words, method):
    with pytest.raises(ValueError, match=words):
        getattr(CollisionClustering(**QUICK), method)(features)


@pytest.mark.parametrize(
    ("weights", "words"),
    [
        ([1.0, 2.0], r"of shape \(300,\)"),
        (np.full(300, -1.0), "non-negative"),
        (np.full(300, np.nan), "finite"),
        (np.zeros(300), "not all zero"),
        (np.eye(1, 300)[0], "n_samples=1 should be >= n_clusters=3"),
    ],
)
def test_unfit_weights(weights, words):
    with pytest.raises(ValueError, match=words):
        CollisionClustering(**QUICK).fit(X, sample_weight=weights)


def test_other_features_are_refused_later(model):
    for method in (model.predict, model.predict_proba, model.score):
        with pytest.raises(ValueError, match="4 features"):
            method(X[:, :4])
        with pytest.raises(ValueError, match="NaN"):
            method(np.full((2, D), np.nan))


def test_nothing_works_before_fit(tmp_path):
    model = CollisionClustering(**QUICK)
    for method in (model.predict, model.predict_proba, model.score):
        with pytest.raises(NotFittedError):
            method(X)
    with pytest.raises(NotFittedError):
        model.save(tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.filterwarnings("ignore::coincide.cluster.ClusteringWarning")
@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_as_many_clusters_as_rows():
    model = CollisionClustering(2, n_init=1, random_state=0).fit(X[:2])
    assert sorted(model.labels_) == [0, 1]
    assert CollisionClustering(6, n_init=1, random_state=0).fit(X[:6]).labels_.shape == (6,)
