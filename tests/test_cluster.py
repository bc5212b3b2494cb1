"""The estimator: scikit-learn's manners, what a fit promises, and what it finds."""

import warnings

import numpy as np
import pytest
import torch
from sklearn.cluster import KMeans
from sklearn.datasets import load_digits, make_blobs
from sklearn.metrics import adjusted_rand_score
from sklearn.utils import estimator_checks
from sklearn.utils.estimator_checks import parametrize_with_checks
from torch import nn

from coincide import solve_pseudo_labels
from coincide.cluster import CollisionClustering
from coincide.data import scaling as scaling_module
from coincide.metrics import clustering_accuracy
from quick_fits import QUICK, D, K, X, Y, fitted


@pytest.fixture(scope="module")
def model():
    return fitted()


# scikit-learn's checks

_ONE_CLUSTER = "the check sets n_clusters=1; K < 2 is refused, for one cluster is no clustering"
_EXCUSED = {
    "check_dont_overwrite_parameters": _ONE_CLUSTER,
    "check_methods_subset_invariance": _ONE_CLUSTER,
    "check_fit2d_1sample": _ONE_CLUSTER,
    "check_fit2d_1feature": _ONE_CLUSTER,
    "check_fit2d_predict1d": _ONE_CLUSTER,
    "check_sample_weight_equivalence_on_dense_data": (
        "dropout is drawn for every row and batches are random, so a row of weight 2 is not"
        " bit for bit two rows; with neither, test_weights_are_repeated_rows shows it"
    ),
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
    settings = {"view_dropout": 0.0, "batch_size": 10_000, "network": network}
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
    monkeypatch.setattr(scaling_module, "_ENTRIES_PER_BLOCK", 35)
    np.testing.assert_allclose(model.predict_proba(X), whole, atol=1e-6)


def test_the_objective_is_that_of_the_public_solver(model):
    exact = solve_pseudo_labels(model.predict_proba(X).astype(np.float64), tol=1e-9)
    assert model.objective_ - model.gap_ <= exact.objective + 1e-6
    assert model.objective_ >= exact.objective - 1e-6
    assert 0 <= model.gap_ < 1e-2
    assert model.score(X) == pytest.approx(-model.objective_, abs=1e-5)


def test_score_is_higher_where_the_clusters_are(model):
    noise = X.mean(0) + X.std(0) * np.random.default_rng(0).normal(size=X.shape)
    assert model.score(X) > model.score(noise)


def test_history_restarts_and_callback():
    heard = []
    model = fitted(n_init=3, max_epochs=4, callback=heard.append)
    assert [record["restart"] for record in heard] == [0] * 4 + [1] * 4 + [2] * 4
    assert [record["epoch"] for record in heard] == [0, 1, 2, 3] * 3
    assert {(record["n_restarts"], record["n_epochs"]) for record in heard} == {(3, 4)}
    assert set(heard[0]) == {
        *("restart", "n_restarts", "epoch", "n_epochs", "loss", "live_clusters", "changed"),
        *("least_share", "largest_share", "quantities", "revived"),
    }
    assert len(model.history_) == model.n_iter_ == 4
    objectives = [restart["objective"] for restart in model.restarts_]
    assert len(set(objectives)) == 3
    assert model.objective_ == min(objectives)
    best = int(np.argmin(objectives))
    losses = [record["loss"] for record in heard if record["restart"] == best]
    assert [record["loss"] for record in model.history_] == losses


def test_a_diverged_restart_never_wins(monkeypatch):
    starts = []
    start = CollisionClustering._start_network

    def first_is_broken(self, rows, seed):
        network = start(self, rows, seed)
        starts.append(seed)
        if len(starts) == 1:
            with torch.no_grad():
                network.weight.fill_(float("nan"))
        return network

    monkeypatch.setattr(CollisionClustering, "_start_network", first_is_broken)
    model = fitted(n_init=2, max_epochs=2)
    assert np.isnan(model.restarts_[0]["objective"])
    assert model.objective_ == model.restarts_[1]["objective"]


def test_a_fit_that_diverged_is_refused():
    with pytest.raises(ValueError, match="smaller learning_rate"):
        fitted(learning_rate=1e30, max_epochs=3)


@pytest.mark.parametrize(
    ("rows", "clusters", "restarts"), [(100, 2, 10), (80_000, 5, 5), (80_000, 15, 1)]
)
def test_the_number_of_automatic_restarts(rows, clusters, restarts):
    features = np.random.default_rng(0).normal(size=(rows, 2))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = CollisionClustering(clusters, max_epochs=1, random_state=0).fit(features)
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


# What it finds


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
        {"scaling": "none", "n_init": 10},  # a start is as likely to fail as not
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
    features, classes = make_blobs([600, 300, 100], centers=centers, random_state=0)
    model = fitted(features, prior=shares, n_init=3, max_epochs=80, weight_decay=0.01)
    np.testing.assert_allclose(np.bincount(model.labels_) / 1000, shares, atol=0.02)
    np.testing.assert_allclose(model.mean_label_, shares, atol=0.02)
    assert adjusted_rand_score(classes, model.labels_) > 0.95
    # Not by the shares of the classes: equal sizes cut the largest class.
    equal = fitted(features, n_init=3, max_epochs=80, weight_decay=0.01)
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
    monkeypatch.setattr(scaling_module, "_KEPT_ENTRIES", 10)
    model = fitted(np.load(tmp_path / "x.npy", mmap_mode="r"))
    np.testing.assert_allclose(model.predict_proba(X), expected, atol=1e-4)
