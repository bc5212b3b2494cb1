"""Landmarks: the spectrum of the graph they stand for, new rows, and what is awkward."""

import numpy as np
import pytest
import torch
from scipy.sparse import csgraph
from sklearn.datasets import make_circles

from coincide.representations import Landmarks, fit_landmarks, fit_scaling, nearest_rows

X, Y = make_circles(400, factor=0.5, noise=0.03, random_state=0)
SCALING = fit_scaling(X, "isotropic")


def points_of(features):
    return SCALING(torch.from_numpy(np.asarray(features, float))).numpy()


@pytest.fixture(scope="module")
def landmarks():
    return fit_landmarks(points_of(X), SCALING, 2, seed=0)


def test_affinities_are_distributions_over_the_nearest(landmarks):
    points = points_of(X[:50])
    affinities = landmarks.affinities(points).toarray()
    np.testing.assert_allclose(affinities.sum(1), 1)
    distances = np.linalg.norm(points[:, None] - landmarks.centers, axis=2)
    for row, far in zip(affinities, distances, strict=True):
        assert set(np.flatnonzero(row)) <= set(np.argsort(far)[:5])
        assert row.argmax() in np.argsort(far / landmarks.widths)[:5]


def test_features_are_the_singular_vectors_of_normalized_affinities(landmarks):
    affinities = landmarks.affinities(points_of(X)).toarray()
    normalized = affinities / np.sqrt(affinities.sum(0))
    left, _, _ = np.linalg.svd(normalized, full_matrices=False)
    found = landmarks.spectral(points_of(X))
    # The same plane: all of the first is in the span of the second.
    unit = found / np.linalg.norm(found, axis=0)
    np.testing.assert_allclose(np.linalg.norm(left[:, :2].T @ unit, axis=0), 1, atol=1e-6)


def test_connected_rows_point_the_same_way(landmarks):
    features = landmarks(torch.from_numpy(X)).numpy()
    np.testing.assert_allclose(np.linalg.norm(features, axis=1), np.sqrt(2), rtol=1e-5)
    inner, outer = (features[y == Y].mean(0) for y in (0, 1))
    assert abs(inner @ outer) < 0.05
    graph = (landmarks.affinities(points_of(X)) @ landmarks.affinities(points_of(X)).T) > 0
    assert csgraph.connected_components(graph)[0] == 2


def test_tensors_bring_landmarks_back(landmarks):
    loaded = Landmarks.from_tensors("isotropic", landmarks.tensors())
    rows = torch.from_numpy(X[:9])
    assert torch.equal(loaded(rows), landmarks(rows))


def test_integer_weights_count_as_rows():
    points, counts = points_of(X), np.random.default_rng(0).integers(1, 4, len(X))
    fitted = fit_landmarks(points, SCALING, 2, weights=counts.astype(float))
    assert fitted.degrees.sum() == pytest.approx(counts.sum())


@pytest.mark.parametrize("features", [np.repeat(X[:8], 50, 0), X * 1e-6 + 1e4, X[:9]])
def test_repeated_shifted_and_few_rows(features):
    scaling = fit_scaling(features, "isotropic")
    points = scaling(torch.from_numpy(features)).numpy()
    fitted = fit_landmarks(points, scaling, 2)
    shown = fitted(torch.from_numpy(features))
    assert bool(shown.isfinite().all())
    assert shown.shape == (len(features), 2)


def test_a_row_on_one_of_two_landmarks_has_no_affinity_to_the_other():
    features = np.repeat([[0.0, 1.0], [2.0, 3.0]], 20, 0)
    scaling = fit_scaling(features, "isotropic")
    points = scaling(torch.from_numpy(features)).numpy()
    affinities = fit_landmarks(points, scaling, 2).affinities(points).toarray()
    assert sorted(set(affinities.ravel())) == [0, 1]


@pytest.mark.parametrize("width", [3, 40])
def test_nearest_rows_are_those_of_all_distances(width):
    points = np.random.default_rng(0).normal(size=(200, width)).astype(np.float32)
    distances = np.linalg.norm(points[:, None] - points, axis=2) + 1e9 * np.eye(200)
    expected = np.argsort(distances, axis=1)[:, :5]
    np.testing.assert_array_equal(nearest_rows(points, 5), expected)
    some = np.array([3, 150])
    np.testing.assert_array_equal(nearest_rows(points, 5, some), expected[some])
    first = np.argsort(distances[some, :100], axis=1)[:, :5]
    np.testing.assert_array_equal(nearest_rows(points, 5, some, among=100), first)


@pytest.mark.parametrize("width", [2, 20])
def test_equal_rows_are_neighbors_but_never_of_themselves(width):
    found = nearest_rows(np.ones((30, width), np.float32), 4)
    assert found.shape == (30, 4)
    assert not (found == np.arange(30)[:, None]).any()
