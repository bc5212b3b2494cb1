"""The evidence that chooses among clusterings: scikit-learn's information, and its limits."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.datasets import make_blobs
from sklearn.metrics import mutual_info_score

from coincide.cluster.evidence import NeighborEvidence, effective_dimension, shared_information
from coincide.cluster.proposals import merged_clusters, nearest_centers

pairs = st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=2, max_size=60)


@given(pairs)
def test_it_is_the_mutual_information_of_pairs_in_either_order(drawn):
    first, second = np.array(drawn).T
    both, other = np.concatenate([first, second]), np.concatenate([second, first])
    shares = np.bincount(both) / len(both)
    entropy = -(shares[shares > 0] * np.log(shares[shares > 0])).sum()
    expected = mutual_info_score(both, other) / entropy if entropy > 0 else 0.0
    assert shared_information(first, second) == pytest.approx(expected, abs=1e-9)
    renamed = np.random.default_rng(0).permutation(5)
    again = shared_information(renamed[first], renamed[second])
    assert again == pytest.approx(expected, abs=1e-9)


def test_very_many_clusters_take_no_memory():
    own = np.arange(200_000)
    assert shared_information(own, own) == pytest.approx(1)


def test_the_classes_have_more_than_what_cuts_them():
    points, classes = make_blobs(600, centers=9 * np.eye(4, 3), random_state=0)
    evidence = NeighborEvidence(points.astype(np.float32), 10)
    cut = np.where((classes == 0) & (points[:, 0] > points[classes == 0, 0].mean()), 4, classes)
    assert evidence.of(classes) > 0.99 > evidence.of(cut)
    assert evidence.of(np.random.default_rng(0).permutation(classes)) < 0.05
    assert evidence.of(np.zeros_like(classes)) == 0


def test_the_effective_dimension_is_that_of_equal_directions():
    points = np.random.default_rng(0).normal(size=(20_000, 30)).astype(np.float32)
    assert effective_dimension(points) == pytest.approx(30, rel=0.01)
    wide = np.random.default_rng(0).normal(size=(40, 3000)).astype(np.float32)
    assert effective_dimension(wide) == pytest.approx(39, rel=0.05)
    assert effective_dimension(points * np.eye(1, 30, dtype=np.float32)) == pytest.approx(1)


def test_merged_clusters_leave_no_two_blobs_in_one():
    points, classes = make_blobs(2000, n_features=16, centers=60, cluster_std=0.3, random_state=0)
    centers, clusters = merged_clusters(points.astype(np.float32), 60)
    assert len({*zip(classes, clusters, strict=True)}) == 60
    np.testing.assert_array_equal(nearest_centers(points.astype(np.float32), centers), clusters)


def test_fewer_different_points_than_clusters():
    points = np.repeat(np.eye(3, dtype=np.float32), 10, 0)
    centers, clusters = merged_clusters(points, 5)
    assert centers.shape == (5, 3)
    assert len(np.unique(clusters)) == 3
