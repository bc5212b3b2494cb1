"""The scores against scikit-learn, brute force, and the laws of tables."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score
from sklearn.metrics.cluster import contingency_matrix

from coincide.metrics import (
    accuracy_of_table,
    ari_of_table,
    calibration_error,
    clustering_accuracy,
    contingency_table,
    match_clusters,
    nmi_of_table,
    score_clustering,
)

LAWS = settings(max_examples=100, deadline=None)
Labels = NDArray[np.int64]


@st.composite
def labelings(draw: st.DrawFn) -> tuple[Labels, Labels]:
    """Draw two labelings with their own numbers of values, from independent to equal."""
    size = draw(st.integers(1, 60))
    rng = np.random.default_rng(draw(st.integers(0, 2**31 - 1)))
    y_true = rng.integers(draw(st.integers(1, 5)), size=size)
    y_pred = rng.integers(draw(st.integers(1, 6)), size=size)
    copied = rng.random(size) < draw(st.sampled_from([0.0, 0.5, 1.0]))
    return y_true, np.where(copied, y_true, y_pred)


@LAWS
@given(labelings())
def test_scores_are_scikit_learns(pair: tuple[Labels, Labels]) -> None:
    y_true, y_pred = pair
    scores = score_clustering(y_true, y_pred)
    assert scores["ari"] == adjusted_rand_score(y_true, y_pred)
    expected = normalized_mutual_info_score(y_true, y_pred)
    assert scores["nmi"] == pytest.approx(expected, rel=1e-12, abs=1e-14)
    np.testing.assert_array_equal(
        contingency_table(y_true, y_pred), contingency_matrix(y_true, y_pred)
    )


@LAWS
@given(labelings())
def test_accuracy_is_the_best_of_all_matchings(pair: tuple[Labels, Labels]) -> None:
    y_true, y_pred = pair
    classes, clusters = np.unique(y_true), np.unique(y_pred)
    # Pad the classes with one that never occurs, so that clusters may stay unmatched.
    padded = [*classes, *[-1] * len(clusters)]
    best = max(
        np.mean(np.asarray(choice)[np.searchsorted(clusters, y_pred)] == y_true)
        for choice in set(
            itertools.permutations(padded[: max(len(classes), len(clusters))], len(clusters))
        )
    )
    assert clustering_accuracy(y_true, y_pred) == pytest.approx(best, rel=1e-14)


@LAWS
@given(labelings(), st.integers(0, 2**31 - 1))
def test_names_do_not_matter(pair: tuple[Labels, Labels], seed: int) -> None:
    y_true, y_pred = pair
    names = np.random.default_rng(seed).permutation(10) * 7 - 20
    expected = score_clustering(y_true, y_pred)
    renamed = score_clustering([f"class {label}" for label in y_true], names[y_pred])
    assert renamed == pytest.approx(expected, rel=1e-12, abs=1e-14)


@LAWS
@given(labelings())
def test_tables_of_batches_add_up(pair: tuple[Labels, Labels]) -> None:
    y_true, y_pred = pair
    whole = contingency_table(y_true, y_pred, 8, 9)
    assert whole.shape == (8, 9)
    assert whole.dtype == np.int64
    cut = len(y_true) // 2
    parts = [
        contingency_table(y_true[part], y_pred[part], 8, 9)
        for part in (slice(cut), slice(cut, None))
        if len(y_true[part])
    ]
    np.testing.assert_array_equal(sum(parts), whole)
    # The empty rows and columns of ids that do not occur change nothing.
    scores = score_clustering(y_true, y_pred)
    assert accuracy_of_table(whole) == scores["accuracy"]
    assert nmi_of_table(whole) == scores["nmi"]
    assert ari_of_table(whole) == scores["ari"]


@LAWS
@given(labelings())
def test_same_labels_are_perfect(pair: tuple[Labels, Labels]) -> None:
    labels, _ = pair
    perfect = {"accuracy": 1.0, "nmi": pytest.approx(1.0, abs=1e-12), "ari": 1.0}
    assert score_clustering(labels, labels) == perfect


def test_matching_by_hand() -> None:
    # Greedy would give cluster 0 to class 0 (6 points) and end with 6 + 0; the best is 5 + 5.
    table = np.array([[6, 5], [5, 0]])
    assert match_clusters(table).tolist() == [1, 0]
    assert accuracy_of_table(table) == 10 / 16
    assert match_clusters([[0, 5, 1], [4, 1, 0]]).tolist() == [1, 0, -1]
    assert match_clusters([[0], [3]]).tolist() == [1]


def test_large_tables_do_not_overflow() -> None:
    # 1e10 points: the pairs (1e20) pass the range of int64, their products that of 128 bits.
    table = np.array([[4, 1], [2, 3]], dtype=np.int64) * 10**9
    small = table // 10**9
    assert ari_of_table(table) == pytest.approx(ari_of_table(small * 10**6), abs=1e-6)
    assert 0 < ari_of_table(table) < 1
    assert nmi_of_table(table) == pytest.approx(nmi_of_table(small), rel=1e-12)


def test_single_clusters() -> None:
    assert score_clustering([1, 1, 1], ["a", "a", "a"]) == {"accuracy": 1.0, "nmi": 1.0, "ari": 1.0}
    assert score_clustering([0, 1, 2], [5, 5, 5]) == {"accuracy": 1 / 3, "nmi": 0.0, "ari": 0.0}
    assert score_clustering([3], [9])["ari"] == 1.0


# --- calibration ----------------------------------------------------------------------------


@LAWS
@given(st.integers(1, 50), st.integers(1, 20), st.integers(0, 2**31 - 1))
def test_calibration_error_by_loop(size: int, n_bins: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    confidence = rng.integers(0, 2 * n_bins + 1, size) / (2 * n_bins)  # many on the edges
    correct = rng.random(size) < 0.6
    expected = 0.0
    for b in range(n_bins):
        low, high = b / n_bins, (b + 1) / n_bins
        inside = (confidence > low) & (confidence <= high)
        if b == 0:
            inside |= confidence == 0
        if inside.any():
            gap = correct[inside].mean() - confidence[inside].mean()
            expected += inside.mean() * abs(gap)
    assert calibration_error(confidence, correct, n_bins) == pytest.approx(expected, abs=1e-12)


def test_calibration_error_by_hand() -> None:
    # Two bins: (.25 said, 1 of 2 hit) and (.75 said, 2 of 2 hit).
    found = calibration_error([0.25, 0.25, 0.75, 0.75], [1, 0, 1, 1], n_bins=2)
    assert found == pytest.approx(0.5 * 0.25 + 0.5 * 0.25)
    assert calibration_error([1.0, 1.0], [True, True]) == 0
    assert calibration_error([1.0, 1.0], [False, False]) == 1
    assert calibration_error([0.0], [False]) == 0


def test_score_with_confidence_judges_after_matching() -> None:
    y_true, y_pred = ["a", "a", "b", "b"], [1, 1, 0, 1]
    confidence = [1.0, 1.0, 1.0, 1.0]
    scores = score_clustering(y_true, y_pred, confidence)
    assert scores["calibration_error"] == pytest.approx(0.25)
    assert list(scores) == ["accuracy", "nmi", "ari", "calibration_error"]
    # Points of a cluster left over are wrong.
    assert score_clustering([0, 0], [0, 1], [1.0, 1.0])["calibration_error"] == 0.5


def test_inputs_are_untouched() -> None:
    y_true, y_pred, confidence = np.array([2, 0]), np.array([5, 5]), np.array([0.5, 1.0])
    score_clustering(y_true, y_pred, confidence)
    assert (y_true.tolist(), y_pred.tolist(), confidence.tolist()) == ([2, 0], [5, 5], [0.5, 1.0])


# --- refusals -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: clustering_accuracy([], []), ValueError, "'y_true' .* at least one entry"),
        (lambda: clustering_accuracy([0, 1], [0]), ValueError, "'y_pred' .* 2 entries.* Got 1"),
        (lambda: clustering_accuracy([[0, 1]], [0]), ValueError, r"'y_true' .* 1-D.* \(1, 2\)"),
        (lambda: clustering_accuracy(3, [0]), ValueError, r"'y_true' .* Got \(\)"),
        (lambda: score_clustering([0, math.nan], [0, 1]), ValueError, "NaN.* entry 1"),
        (lambda: score_clustering([0, None], [0, 1]), TypeError, "sortable .*NoneType, int"),
        (
            lambda: contingency_table([0, 3], [0, 1], n_true=3),
            ValueError,
            "0 to 2. Got 3 .*entry 1",
        ),
        (lambda: contingency_table([0, -1], [0, 1], n_true=3), ValueError, "Got -1"),
        (lambda: contingency_table([0.0], [0], n_true=3), TypeError, "'y_true' .*float64"),
        (lambda: contingency_table([0], [0], n_pred=0), ValueError, "'n_pred' .* >= 1"),
        (lambda: contingency_table([0], [0], n_pred=1.0), TypeError, "'n_pred'"),
        (lambda: accuracy_of_table([1, 2]), ValueError, "'table' parameter of accuracy_of_table"),
        (lambda: nmi_of_table([[0.5]]), TypeError, "'table' .*float64"),
        (lambda: ari_of_table([[0, 0]]), ValueError, "not all zero"),
        (lambda: match_clusters([[1, -1]]), ValueError, "negative count"),
        (lambda: calibration_error([], []), ValueError, "'confidence' .* at least one"),
        (lambda: calibration_error([0.5, 1.5], [1, 0]), ValueError, "Got 1.5 .* entry 1"),
        (lambda: calibration_error([math.nan], [1]), ValueError, "'confidence' .* Got nan"),
        (lambda: calibration_error([0.5], [2]), ValueError, "'correct' .* True or False"),
        (lambda: calibration_error([0.5], [1, 0]), ValueError, "'correct' .* 1 entries"),
        (lambda: calibration_error(["a"], [1]), TypeError, "'confidence' .* numeric"),
        (lambda: calibration_error([0.5], [1], n_bins=0), ValueError, "'n_bins' .* >= 1"),
        (
            lambda: score_clustering([0, 1], [0, 1], [0.5]),
            ValueError,
            "'confidence' parameter of score_clustering",
        ),
    ],
)
def test_refused(call: Callable[[], object], error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        call()
