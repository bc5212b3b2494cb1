"""The estimator: scikit-learn's manners, what a fit promises, and what it finds."""

import json
import pickle
import re
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.sparse import csr_matrix
from sklearn import config_context
from sklearn.base import clone
from sklearn.cluster import KMeans
from sklearn.datasets import load_digits, make_blobs, make_circles, make_moons
from sklearn.exceptions import ConvergenceWarning, NotFittedError
from sklearn.metrics import adjusted_rand_score
from sklearn.utils import estimator_checks
from sklearn.utils.estimator_checks import parametrize_with_checks
from torch import nn

from array_layouts import LAYOUTS
from coincide import solve_pseudo_labels
from coincide.cluster import ClusteringWarning, CollisionClustering, ModelError, fitting
from coincide.metrics import clustering_accuracy
from coincide.representations import rows as rows_module
from quick_fits import QUICK, D, K, X, Y, fitted


@pytest.fixture(scope="module")
def model():
    return fitted()


# scikit-learn's checks

_ONE_CLUSTER = "the check sets n_clusters=1; K < 2 is refused, for one cluster is no clustering"
_NO_CLASSIFIER = (
    "the check asks whoever has predict_proba for the tags of a classifier;"
    " test_sparse_rows_are_the_rows shows what it would"
)
_WEIGHTS = (
    "batches are random, so a row of weight 2 is not bit for bit two rows; with neither,"
    " test_weights_are_repeated_rows shows it"
)
_EXCUSED = {
    "check_dont_overwrite_parameters": _ONE_CLUSTER,
    "check_methods_subset_invariance": _ONE_CLUSTER,
    "check_fit2d_1sample": _ONE_CLUSTER,
    "check_fit2d_1feature": _ONE_CLUSTER,
    "check_fit2d_predict1d": _ONE_CLUSTER,
    "check_sample_weight_equivalence_on_dense_data": _WEIGHTS,
    "check_sample_weight_equivalence_on_sparse_data": _WEIGHTS,
    "check_estimator_sparse_array": _NO_CLASSIFIER,
    "check_estimator_sparse_matrix": _NO_CLASSIFIER,
}


@parametrize_with_checks(
    [CollisionClustering(n_init=1, max_epochs=20)],
    expected_failed_checks=lambda _: _EXCUSED,
)
@pytest.mark.filterwarnings("ignore::coincide.cluster.ClusteringWarning")
@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_sklearn_check(estimator, check):
    check(estimator)


class AtLeastTwo(CollisionClustering):
    """Takes n_clusters=1 for 2, so that scikit-learn's own checks can run."""

    @property
    def n_clusters(self):
        return self._n_clusters

    @n_clusters.setter
    def n_clusters(self, value):
        self._n_clusters = max(2, value)


@pytest.mark.parametrize("name", [n for n, why in _EXCUSED.items() if why is _ONE_CLUSTER])
@pytest.mark.filterwarnings("ignore::coincide.cluster.ClusteringWarning")
@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_the_checks_of_one_cluster_hold_for_two(name):
    check = getattr(estimator_checks, name)
    check("CollisionClustering", AtLeastTwo(n_init=1, max_epochs=20))


@pytest.mark.parametrize(
    "network",  # without batch normalization, which counts rows, not weights
    ["linear", nn.Sequential(nn.Linear(D, 16), nn.Tanh(), nn.Linear(16, K))],
    ids=["linear", "own"],
)
def test_weights_are_repeated_rows(network):
    counts = np.random.default_rng(0).integers(0, 4, len(X))
    settings = {"batch_size": 10_000, "network": network, "n_neighbors": 0}
    settings |= {"view_dropout": 0.0, "representation": "scaled", "init": "random"}
    weighted = CollisionClustering(**{**QUICK, **settings}).fit(X, sample_weight=counts)
    repeated = CollisionClustering(**{**QUICK, **settings}).fit(np.repeat(X, counts, axis=0))
    found, expected = weighted.predict_proba(X), repeated.predict_proba(X)
    np.testing.assert_allclose(found, expected, atol=1e-4)
    assert weighted.objective_ == pytest.approx(repeated.objective_, abs=2e-3)


def test_rows_of_weight_zero_are_not_there():
    kept = Y != 0
    settings = {"view_dropout": 0.0, "n_clusters": 2}
    weighted = CollisionClustering(**{**QUICK, **settings}).fit(X, sample_weight=kept * 3.0)
    removed = fitted(X[kept], **settings)
    found, expected = weighted.predict_proba(X), removed.predict_proba(X)
    np.testing.assert_allclose(found, expected, atol=1e-4)


# What a fit promises


@pytest.mark.parametrize("network", ["linear", "mlp"])
def test_labels_probabilities_and_predictions_agree(network):
    model = fitted(network=network)
    probabilities = model.predict_proba(X)
    assert probabilities.shape == (300, K)
    np.testing.assert_allclose(probabilities.sum(1), 1, atol=1e-6)
    np.testing.assert_array_equal(model.labels_, model.predict(X))
    np.testing.assert_array_equal(model.labels_, probabilities.argmax(1))
    np.testing.assert_allclose(model.mean_label_, probabilities.mean(0), atol=1e-6)
    again = CollisionClustering(**{**QUICK, "network": network}).fit_predict(X)
    np.testing.assert_array_equal(again, model.labels_)
    assert np.issubdtype(model.labels_.dtype, np.integer)


def test_blocks_do_not_change_predictions(model, monkeypatch):
    whole = model.predict_proba(X)
    monkeypatch.setattr(rows_module, "_ENTRIES_PER_BLOCK", 35)
    np.testing.assert_allclose(model.predict_proba(X), whole, atol=1e-6)


def test_the_objective_is_that_of_the_public_solver(model):
    probs = model.predict_proba(X).astype(np.float64)
    fairness = model.settings_["fairness"]
    exact = solve_pseudo_labels(probs, prior=model.prior_, fairness=fairness, tol=1e-9)
    assert model.objective_ - model.gap_ <= exact.objective + 1e-6
    assert model.objective_ >= exact.objective - 1e-6
    assert 0 <= model.gap_ < 1e-2
    assert model.score(X) == pytest.approx(-model.objective_, abs=1e-5)


def test_score_is_higher_where_the_clusters_are(model):
    noise = X.mean(0) + X.std(0) * np.random.default_rng(0).normal(size=X.shape)
    assert model.score(X) > model.score(noise)


def test_history_restarts_and_callback():
    heard = []
    settings = {"representation": "scaled", "init": "random"}
    model = fitted(n_init=3, max_epochs=4, callback=heard.append, **settings)
    assert [record["restart"] for record in heard] == [0] * 4 + [1] * 4 + [2] * 4
    assert [record["epoch"] for record in heard] == [0, 1, 2, 3] * 3
    assert {(record["n_restarts"], record["n_epochs"]) for record in heard} == {(3, 4)}
    assert set(heard[0]) == {
        *("restart", "n_restarts", "epoch", "n_epochs", "loss", "live_clusters", "changed"),
        *("least_share", "largest_share", "quantities", "revived"),
    }
    assert len(model.history_) == model.n_iter_ == 4
    evidence = [restart["evidence"] for restart in model.restarts_]
    assert len({restart["objective"] for restart in model.restarts_}) == 3
    assert model.evidence_ == max(evidence)
    best = [restart["objective"] for restart in model.restarts_].index(model.objective_)
    assert evidence[best] == model.evidence_
    losses = [record["loss"] for record in heard if record["restart"] == best]
    assert [record["loss"] for record in model.history_] == losses


def test_a_diverged_restart_never_wins(monkeypatch):
    starts = []
    start = fitting.fresh_network

    def first_is_broken(network, n_features, n_clusters):
        fresh = start(network, n_features, n_clusters)
        starts.append(fresh)
        if len(starts) == 1:
            with torch.no_grad():
                fresh.weight.fill_(float("nan"))
        return fresh

    monkeypatch.setattr(fitting, "fresh_network", first_is_broken)
    model = fitted(n_init=2, max_epochs=2, representation="scaled", init="random")
    assert np.isnan(model.restarts_[0]["objective"])
    assert model.objective_ == model.restarts_[1]["objective"]


def test_a_fit_that_diverged_is_refused():
    with pytest.raises(ValueError, match="smaller learning_rate"):
        fitted(learning_rate=1e30, max_epochs=3)


@pytest.mark.parametrize(
    ("rows", "clusters", "restarts"), [(100, 2, 3), (4_000, 50, 2), (24_000, 50, 1)]
)
def test_the_number_of_automatic_restarts(rows, clusters, restarts):
    features = np.random.default_rng(0).normal(size=(rows, 2))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        settings = {"representation": "scaled", "fairness": 0, "max_epochs": 1}
        model = CollisionClustering(clusters, **settings).fit(features)
    assert len(model.restarts_) == restarts


def test_random_state_repeats_and_differs(model):
    np.testing.assert_array_equal(fitted().predict_proba(X), model.predict_proba(X))
    assert fitted().history_ == model.history_
    assert not np.array_equal(fitted(random_state=1).predict_proba(X), model.predict_proba(X))
    shared = fitted(random_state=np.random.RandomState(0))
    np.testing.assert_array_equal(shared.predict_proba(X), model.predict_proba(X))


@pytest.mark.parametrize("init", ["random", "k-means"])
@pytest.mark.parametrize("method", ["fit", "partial_fit"])
def test_global_random_states_stay_untouched(init, method):
    torch.manual_seed(3)
    np.random.seed(3)
    before = torch.get_rng_state(), np.random.get_state()[1].copy()
    model = CollisionClustering(**{**QUICK, "init": init})
    for _ in range(2):
        getattr(model, method)(X)
    model.predict(X)
    assert torch.equal(torch.get_rng_state(), before[0])
    np.testing.assert_array_equal(np.random.get_state()[1], before[1])


def test_fitting_leaves_arguments_alone():
    network = nn.Linear(D, K)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    features, weights = X.copy(), np.ones(len(X))
    model = CollisionClustering(**{**QUICK, "network": network, "scaling": "none"})
    model.fit(features, sample_weight=weights)
    np.testing.assert_array_equal(features, X)
    assert weights.tolist() == [1.0] * len(X)
    assert model.network is network
    assert all(torch.equal(before[n], t) for n, t in network.state_dict().items())
    assert model.network_ is not network


@pytest.mark.parametrize("representation", ["landmarks", "scaled"])
def test_sparse_rows_are_the_rows(representation):
    features = np.maximum(X - X.mean(0), 0)
    weights = (np.arange(len(X)) % 3 > 0).astype(float)
    dense = fitted(features, representation=representation)
    sparse = fitted(csr_matrix(features), representation=representation)
    np.testing.assert_array_equal(sparse.labels_, dense.labels_)
    np.testing.assert_array_equal(sparse.predict(csr_matrix(features[:9])), dense.labels_[:9])
    weighed = CollisionClustering(**QUICK).fit(csr_matrix(features), sample_weight=weights)
    expected = CollisionClustering(**QUICK).fit(features, sample_weight=weights)
    np.testing.assert_array_equal(weighed.labels_, expected.labels_)


def test_tensors_and_pipelines(model):
    np.testing.assert_array_equal(model.predict(torch.from_numpy(X)), model.labels_)
    assert fitted(torch.from_numpy(X).bfloat16()).labels_.shape == (300,)
    with config_context(transform_output="pandas"):
        shown = model.transform(X)
    assert list(shown.columns) == [f"collisionclustering{k}" for k in range(K)]
    np.testing.assert_array_equal(shown.to_numpy(), model.predict_proba(X))


# What it finds


CLUSTERS = {
    "moons": make_moons(500, noise=0.05, random_state=1),
    "circles": make_circles(500, factor=0.5, noise=0.05, random_state=1),
    "uneven": make_blobs([900, 80, 20], centers=[[0, 0], [6, 0], [0, 6]], random_state=1),
    "many": make_blobs(3000, centers=30, n_features=16, random_state=1),
}


@pytest.mark.parametrize("name", CLUSTERS)
def test_clusters_of_any_shape_and_size_are_found(name):
    features, classes = CLUSTERS[name]
    k = len(np.unique(classes))
    model = CollisionClustering(k, random_state=0).fit(features)
    assert model.settings_["representation"] == "landmarks"
    assert clustering_accuracy(classes, model.labels_) > 0.99
    np.testing.assert_allclose(model.prior_.sum(), 1)
    # New rows have the probabilities of their cluster.
    again = CollisionClustering(k, random_state=0).fit(features[::2])
    assert clustering_accuracy(classes[1::2], again.predict(features[1::2])) > 0.98


def test_more_clusters_than_landmarks_can_show():
    features, classes = make_blobs(
        6000, centers=300, n_features=16, cluster_std=0.3, random_state=0
    )
    model = CollisionClustering(300, random_state=0).fit(features)
    assert model.settings_["representation"] == "scaled"
    assert len(np.unique(model.labels_)) == 300
    assert clustering_accuracy(classes, model.labels_) > 0.95


@pytest.mark.parametrize("k", [3, 6])
def test_the_number_of_clusters_is_found(k, tmp_path):
    features, _ = make_blobs(600, centers=10 * np.eye(k, 6), random_state=0)
    model = CollisionClustering("auto", random_state=0).fit(features)
    assert model.n_clusters_ == k
    assert [told["n_clusters"] for told in model.numbers_] == list(range(2, 21))
    model.save(tmp_path)
    loaded = CollisionClustering.load(tmp_path)
    np.testing.assert_array_equal(loaded.predict(features), model.labels_)
    assert CollisionClustering((2, k, 9), random_state=0).fit(features).n_clusters_ == k


def test_numbers_that_rows_cannot_bear_are_refused():
    with pytest.raises(ValueError, match=r"26 is too many.*100 rows"):
        CollisionClustering((2, 26)).fit(X[:100])
    assert CollisionClustering("auto", random_state=0).fit(X[:20]).numbers_[-1]["n_clusters"] == 5


@pytest.mark.filterwarnings("ignore::coincide.cluster.ClusteringWarning")
def test_more_clusters_than_different_rows():
    features = np.repeat([[0.0, 1.0], [2.0, 3.0]], 20, 0)
    labels = CollisionClustering(3, random_state=0).fit(features).labels_
    assert len(set(labels[:20])) == len(set(labels[20:])) == 1
    assert labels[0] != labels[-1]


def test_numbers_that_the_evidence_does_not_tell_apart_are_said():
    with pytest.warns(ClusteringWarning, match="or none"):
        CollisionClustering("auto", random_state=0).fit(
            np.random.default_rng(0).normal(size=X.shape)
        )


@pytest.mark.parametrize("k", range(3, 11))
def test_well_separated_blobs_are_found(k):
    features, classes = make_blobs(100 * k, n_features=16, centers=k, random_state=k)
    model = CollisionClustering(k, n_init=3, max_epochs=40, random_state=0).fit(features)
    assert adjusted_rand_score(classes, model.labels_) > 0.95


@pytest.mark.parametrize(
    "changes",
    [
        {"network": "mlp"},
        {"init": "k-means"},
        {"scaling": "standard"},
        {"scaling": "none", "n_init": 5},  # a start is as likely to fail as not
        {"objective": "cce"},
        {"solver": "em", "n_init": 1, "max_epochs": 10, "weight_decay": 0.01},  # slow steps
        {"solver": "projected-gradient"},
        {"batch_size": 50},
        {"view_dropout": 0.0, "view_noise": 0.3},
    ],
    ids=str,
)
def test_blobs_are_found_whatever_the_settings(changes):
    settings = {**QUICK, "n_init": 2, "max_epochs": 80, **changes}
    model = CollisionClustering(**settings).fit(X)
    assert adjusted_rand_score(Y, model.labels_) > 0.95
    assert model.predict_proba(X).max(1).mean() > 0.7  # decisive


def test_digits_beat_the_average_k_means():
    features, classes = load_digits(return_X_y=True)
    found = [
        clustering_accuracy(
            classes, fitted(features, n_clusters=10, random_state=s, max_epochs=80).labels_
        )
        for s in range(3)
    ]
    rivals = [
        clustering_accuracy(classes, KMeans(10, n_init=1, random_state=s).fit_predict(features))
        for s in range(10)
    ]
    assert np.mean(found) > np.mean(rivals)


def test_the_prior_sets_the_sizes():
    shares = np.array([0.6, 0.3, 0.1])
    centers = 6 * np.eye(3, 8)
    features, classes = make_blobs([300, 150, 50], centers=centers, random_state=0)
    model = fitted(features, prior=shares, n_init=3, max_epochs=80, weight_decay=0.01)
    np.testing.assert_allclose(np.bincount(model.labels_) / 500, shares, atol=0.02)
    np.testing.assert_allclose(model.mean_label_, shares, atol=0.02)
    assert adjusted_rand_score(classes, model.labels_) > 0.95
    # Not by the shares of the classes: equal sizes cut the largest class.
    settings = {"representation": "scaled", "init": "random", "prior": "equal"}
    equal = fitted(features, n_init=3, max_epochs=80, weight_decay=0.01, **settings)
    np.testing.assert_allclose(equal.mean_label_, 1 / 3, atol=0.05)


def test_other_data_get_the_labels_of_their_cluster(model):
    features, classes = X[1::2], Y[1::2]
    half = fitted(X[::2])
    assert adjusted_rand_score(classes, half.predict(features)) > 0.95
    assert adjusted_rand_score(Y, model.predict(X)) > 0.95


@pytest.mark.parametrize(
    "features",
    [
        X.astype(np.float16),
        X.astype(np.float32),
        np.round(10 * X).astype(np.int64),
        X[:, ::-1],
        X.astype(np.float32)[::-1][::1],
        X + 1.7e9,
        (X * 1e-60),
        X.tolist(),
    ],
    ids=["float16", "float32", "int64", "columns", "rows", "offset", "tiny", "list"],
)
@pytest.mark.parametrize("scaling", ["unit-norm", "standard"])
@pytest.mark.filterwarnings("error:The given NumPy array is not writable")
def test_kinds_of_features(features, scaling):
    model = fitted(features, scaling=scaling, max_epochs=40, n_init=2)
    first = np.asarray(features)[0]
    classes = Y[::-1] if first[0] == X.astype(np.float32)[-1, 0] else Y
    assert adjusted_rand_score(classes, model.labels_) > 0.95


@pytest.mark.filterwarnings("error:The given NumPy array is not writable")
def test_a_memory_map_read_batch_by_batch_gives_the_same(tmp_path, monkeypatch):
    np.save(tmp_path / "x.npy", X.astype(np.float32))
    expected = fitted(X.astype(np.float32)).predict_proba(X)
    monkeypatch.setattr(rows_module, "_KEPT_ENTRIES", 10)
    model = fitted(np.load(tmp_path / "x.npy", mmap_mode="r"))
    np.testing.assert_allclose(model.predict_proba(X), expected, atol=1e-4)


# Streams


def chunks(count=30, rows=100):
    generator = np.random.default_rng(0)
    for _ in range(count):
        yield X[generator.integers(len(X), size=rows)]


def test_a_stream_finds_the_blobs():
    model = CollisionClustering(**QUICK)
    for number, chunk in enumerate(chunks()):
        assert model.partial_fit(chunk) is model
        assert model.n_iter_ == len(model.history_) == number + 1
        np.testing.assert_array_equal(model.labels_, model.predict(chunk))
    assert adjusted_rand_score(Y, model.predict(X)) > 0.95


def test_a_stream_repeats_by_its_random_state():
    first, second = CollisionClustering(**QUICK), CollisionClustering(**QUICK)
    for chunk in chunks(4):
        first.partial_fit(chunk)
    torch.rand(7)  # what others draw must not matter
    for chunk in chunks(4):
        second.partial_fit(chunk)
    np.testing.assert_array_equal(first.predict_proba(X), second.predict_proba(X))


def test_the_scaling_of_a_stream_is_that_of_all_its_rows():
    model = CollisionClustering(**{**QUICK, "scaling": "standard"})
    for part in np.array_split(np.sort(X, axis=0), 4):
        model.partial_fit(part)
    np.testing.assert_allclose(model.representation_.mean, X.mean(0), rtol=1e-5)
    np.testing.assert_allclose(model.representation_.spread, X.std(0), rtol=1e-5)


def test_a_stream_keeps_its_width():
    model = CollisionClustering(**QUICK).partial_fit(X)
    with pytest.raises(ValueError, match="4 features"):
        model.partial_fit(X[:, :4])


def test_later_chunks_may_be_small_and_constant():
    model = CollisionClustering(**QUICK).partial_fit(X)
    assert model.partial_fit(X[:1]).labels_.shape == (1,)


def test_a_stream_goes_on_after_a_fit():
    """On the fitted network: as good as before, and moved."""
    model = CollisionClustering(**QUICK).partial_fit(X[:100]).fit(X)
    before = model.predict_proba(X)
    model.partial_fit(X)
    after = model.predict_proba(X)
    assert model.n_iter_ == QUICK["max_epochs"] + 1
    assert np.abs(after - before).max() > 0
    np.testing.assert_array_equal(after.argmax(1), before.argmax(1))


def test_a_stream_goes_on_after_loading(tmp_path):
    model = fitted(representation="scaled")
    model.save(tmp_path)
    loaded = CollisionClustering.load(tmp_path)
    before = loaded.predict(X)
    loaded.partial_fit(X[:50] + 1)
    assert loaded.n_iter_ == model.n_iter_ + 1
    np.testing.assert_array_equal(loaded.predict(X), before)
    # Weighed by the 300 rows that came before.
    expected = (X.sum(0) + (X[:50] + 1).sum(0)) / 350
    np.testing.assert_allclose(loaded.representation_.mean, expected, rtol=1e-5)


def test_fit_starts_anew(model):
    again = CollisionClustering(**QUICK).partial_fit(X).fit(X)
    np.testing.assert_array_equal(again.predict_proba(X), model.predict_proba(X))


def test_pickle_and_clone(model):
    stream = CollisionClustering(**QUICK).partial_fit(X)
    for one in (model, stream):
        copied = pickle.loads(pickle.dumps(one))
        np.testing.assert_array_equal(copied.predict_proba(X), one.predict_proba(X))
    assert not hasattr(clone(model), "network_")


@pytest.mark.parametrize("layout", LAYOUTS)
def test_arrays_of_any_layout_are_taken_as_they_are(model, layout):
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        warnings.simplefilter("ignore", ConvergenceWarning)
        changed = LAYOUTS[layout](X)
        other = fitted(changed)
    np.testing.assert_array_equal(other.labels_, model.labels_)
    np.testing.assert_array_equal(model.predict(changed), model.labels_)


def test_fits_in_threads_repeat_their_seed_and_leave_the_global_generator_alone(model):
    before = torch.get_rng_state()
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: fitted(), range(4)))
    assert torch.equal(torch.get_rng_state(), before)
    for one in found:
        np.testing.assert_array_equal(one.predict_proba(X), model.predict_proba(X))


UNITS = np.tile([1.0, 1000.0] + [1.0] * (D - 2), (len(X), 1))


def test_columns_of_other_units_are_said_with_the_way_out():
    frame = pd.DataFrame(X * UNITS, columns=["age", "income", *map(str, range(D - 2))])
    with pytest.warns(ClusteringWarning, match="'income'.*scaling='standard'"):
        fitted(frame, scaling="unit-norm")
    with pytest.warns(ClusteringWarning, match="'income'.*standardized.*scaling='isotropic'"):
        model = fitted(frame)
    assert model.settings_["scaling"] == "standard"
    with pytest.warns(ClusteringWarning, match="'income'.*standardized"):
        stream = CollisionClustering(**QUICK).partial_fit(frame)
    assert stream.representation_.kind == "standard"


@pytest.mark.parametrize(
    ("features", "scaling"),
    [
        (X, "unit-norm"),
        (X * UNITS, "standard"),
        (X * UNITS, "none"),
        # Rare values have a small deviation, and no unit of their own.
        (np.column_stack([X, np.arange(len(X)) == 7]), "unit-norm"),
        (np.column_stack([X, np.ones(len(X))]), "unit-norm"),
    ],
)
def test_columns_of_one_unit_are_not_spoken_of(features, scaling):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fitted(features, scaling=scaling)
    assert not [one for one in caught if "Columns differ" in str(one.message)]


# Saving and loading


def test_names_of_columns_survive_and_other_orders_are_refused(tmp_path):
    frame = pd.DataFrame(X, columns=[f"c{number}" for number in range(D)])
    model = fitted(frame)
    model.cluster_names_ = ["u", "", "w", "x"][:K]
    model.save(tmp_path)
    loaded = CollisionClustering.load(tmp_path)
    assert loaded.feature_names_in_.tolist() == frame.columns.tolist()
    assert loaded.cluster_names_ == model.cluster_names_
    np.testing.assert_array_equal(loaded.predict(frame), model.labels_)
    with pytest.raises(ValueError, match="same order"):
        loaded.predict(frame[frame.columns[::-1]])


def test_every_fitted_attribute_survives_or_is_documented_not_to(model, tmp_path):
    model.save(tmp_path)
    lost = set(vars(model)) - set(vars(CollisionClustering.load(tmp_path)))
    assert lost == {"labels_"}
    assert "``labels_``" in CollisionClustering.save.__doc__


def own_network():
    return nn.Sequential(nn.Linear(D, 7), nn.BatchNorm1d(7), nn.ReLU(), nn.Linear(7, K))


@pytest.mark.parametrize("network", ["linear", "mlp", "own"])
@pytest.mark.parametrize("scaling", ["unit-norm", "none"])
def test_a_saved_model_predicts_the_same(tmp_path, network, scaling):
    own = network == "own"
    changes = {"prior": np.full(K, 1 / K), "n_clusters": np.int64(K), "fairness": np.float32(50)}
    model = fitted(network=own_network() if own else network, scaling=scaling, **changes)
    model.save(tmp_path / "deep" / "run")
    loaded = CollisionClustering.load(
        tmp_path / "deep" / "run", network=own_network() if own else None
    )
    np.testing.assert_array_equal(loaded.predict_proba(X), model.predict_proba(X))
    np.testing.assert_array_equal(loaded.predict(X), model.labels_)
    assert loaded.score(X) == model.score(X)
    for name in ("objective_", "gap_", "n_iter_", "history_", "restarts_", "n_features_in_"):
        assert getattr(loaded, name) == getattr(model, name)
    np.testing.assert_array_equal(loaded.mean_label_, model.mean_label_)
    loaded.save(tmp_path / "again")
    assert {path.name for path in (tmp_path / "again").iterdir()} == {
        "model.json",
        "model.safetensors",
    }


def test_both_files_can_be_read_by_the_same_people(model, tmp_path):
    model.save(tmp_path)
    modes = {path.stat().st_mode for path in tmp_path.iterdir()}
    assert len(modes) == 1


def test_an_own_network_is_asked_for(tmp_path):
    fitted(network=own_network()).save(tmp_path)
    with pytest.raises(ModelError, match="network="):
        CollisionClustering.load(tmp_path)
    with pytest.raises(ModelError, match="does not hold a model that fits"):
        CollisionClustering.load(tmp_path, network=nn.Linear(D, K))


def test_a_model_that_cannot_be_described_leaves_the_earlier_one(model, tmp_path):
    model.save(tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    other = fitted(random_state=5)
    other.history_[0]["loss"] = float("nan")
    with pytest.raises(ValueError, match="JSON"):
        other.save(tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


class Malicious:
    def __reduce__(self):
        return Path("executed").touch, ()


@pytest.mark.parametrize("content", [b"", b"junk", pickle.dumps(Malicious()), "half", None])
@pytest.mark.parametrize("name", ["model.safetensors", "model.json"])
def test_damaged_files_are_refused(model, tmp_path, monkeypatch, name, content):
    monkeypatch.chdir(tmp_path)
    model.save(tmp_path)
    path = tmp_path / name
    whole = path.read_bytes()
    if content is None:
        path.unlink()
    else:
        path.write_bytes(whole[: len(whole) // 2] if content == "half" else content)
    with pytest.raises(ModelError, match=re.escape(name)):
        CollisionClustering.load(tmp_path)
    assert not Path("executed").exists()


@pytest.mark.parametrize(
    "text",
    [
        "[]",
        '{"format": 99}',
        '{"format": 1}',
        '{"format": 1, "parameters": {}, "fitted": {}}',
        '{"format": 1, "parameters": {"unknown": 1, "network": "linear"}, "fitted": {}}',
        '{"format": 1, "parameters": [], "fitted": []}',
    ],
)
def test_other_descriptions_are_refused(model, tmp_path, text):
    model.save(tmp_path)
    (tmp_path / "model.json").write_text(text)
    with pytest.raises(ModelError):
        CollisionClustering.load(tmp_path)


def test_weights_of_another_model_are_refused(model, tmp_path):
    model.save(tmp_path / "one")
    fitted(X[:, :4]).save(tmp_path / "two")
    other = (tmp_path / "two" / "model.safetensors").read_bytes()
    (tmp_path / "one" / "model.safetensors").write_bytes(other)
    with pytest.raises(ModelError, match="does not hold a model that fits"):
        CollisionClustering.load(tmp_path / "one")


def test_a_model_of_an_earlier_version_is_refused_with_the_way_out(model, tmp_path):
    model.save(tmp_path)
    description = json.loads((tmp_path / "model.json").read_text())
    del description["representation"]
    (tmp_path / "model.json").write_text(json.dumps(description))
    with pytest.raises(ModelError, match="earlier version: fit it again"):
        CollisionClustering.load(tmp_path)


def test_a_folder_that_is_none(tmp_path):
    with pytest.raises(ModelError, match="absent"):
        CollisionClustering.load(tmp_path / "absent")


# Warnings


def caught(features, **changes):
    changes = {"representation": "scaled", "scaling": "unit-norm", "init": "random", **changes}
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        CollisionClustering(**{**QUICK, **changes}).fit(features)
    return found


def test_a_good_fit_warns_of_nothing():
    assert [str(w.message) for w in caught(X, max_epochs=80)] == []
    assert [str(w.message) for w in caught(X, representation="auto", init="auto")] == []


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
        assert not fitted(noise, representation="scaled", **unrest).converged_


# Bad input, each with its sentence


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("n_clusters", 1, "an integer >= 2. Got 1"),
        ("n_clusters", 2.5, "an integer >= 2. Got 2.5"),
        ("n_clusters", True, "an integer >= 2. Got True"),
        ("n_clusters", "many", "or 'auto'. Got 'many'"),
        ("n_clusters", (), "several to choose from"),
        ("objective", "ce", "'cce+', 'cce'"),
        ("solver", "newton", "'auto', 'active-set', 'interior-point'"),
        ("solver", 3, "'interior-point'"),
        ("fairness", -1.0, "a finite number >= 0. Got -1.0"),
        ("fairness", float("nan"), "a finite number >= 0. Got nan"),
        ("fairness", "much", "a finite number >= 0. Got 'much'"),
        ("prior", "uneven", "'equal', 'learned'. Got 'uneven'"),
        ("prior", [0.5, 0.5], "of shape (3,)"),
        ("prior", [0.5, 0.6, 0.1], "sums to 1.2"),
        ("prior", [1.5, -0.5, 0.0], "negative"),
        ("network", "vgg", "one of 'linear', 'mlp'. Got 'vgg'"),
        ("network", nn.Linear(D, 4), "3 logits a row"),
        ("network", nn.Linear(4, K), "rows of 5 features"),
        ("init", "zeros", "one of 'auto', 'random', 'k-means'. Got 'zeros'"),
        ("scaling", "minmax", "'standard', 'isotropic', 'none'. Got 'minmax'"),
        ("representation", "pca", "'scaled', 'landmarks'. Got 'pca'"),
        ("n_neighbors", -1, "an integer >= 0. Got -1"),
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
    with pytest.raises(ValueError, match="another than 'k-means' unless network is 'linear'"):
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
