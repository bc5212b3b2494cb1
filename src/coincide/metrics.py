"""How well clusters agree with classes, and confidences with correctness.

Every clustering score is a function of one small table, how often class ``t`` and cluster ``p``
came together. Tables of batches, files or ranks are summed; the score of the sum is the score of
the whole:

    labels ─▶ contingency_table ─▶ accuracy_of_table · nmi_of_table · ari_of_table

NumPy in, NumPy and floats out.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import linear_sum_assignment
from scipy.special import entr

from coincide._checks import check_integer, parameter_message

__all__ = [
    "accuracy_of_table",
    "ari_of_table",
    "calibration_error",
    "clustering_accuracy",
    "contingency_table",
    "match_clusters",
    "nmi_of_table",
    "score_clustering",
]


def score_clustering(
    y_true: ArrayLike, y_pred: ArrayLike, confidence: ArrayLike | None = None
) -> dict[str, float]:
    """Return all scores of a clustering by name.

    Parameters
    ----------
    y_true, y_pred : array-like of shape (M,)
        Class and cluster of every point: numbers or strings.
    confidence : array-like of shape (M,), optional
        The probability that the model gave to the predicted cluster.

    Returns
    -------
    dict of str to float
        ``accuracy``, ``nmi`` and ``ari``; with ``confidence`` also ``calibration_error``, where a
        point is correct if its cluster is the one matched to its class.

    Raises
    ------
    ValueError
        If an array is empty, not 1-D, not of the length of the others, or has NaN.

    Examples
    --------
    >>> score_clustering([0, 0, 1, 1], [1, 1, 0, 0])
    {'accuracy': 1.0, 'nmi': 1.0, 'ari': 1.0}
    """
    owner = "score_clustering"
    true_ids, n_true = _ids(y_true, None, "y_true", owner)
    pred_ids, n_pred = _ids(y_pred, None, "y_pred", owner)
    _check_same_length(true_ids, pred_ids, "y_pred", owner)
    table = _count_pairs(true_ids, pred_ids, n_true, n_pred)
    scores = {
        "accuracy": accuracy_of_table(table),
        "nmi": nmi_of_table(table),
        "ari": ari_of_table(table),
    }
    if confidence is not None:
        confidence = _numbers(confidence, "confidence", owner)
        _check_same_length(true_ids, confidence, "confidence", owner)
        correct = match_clusters(table)[pred_ids] == true_ids
        scores["calibration_error"] = calibration_error(confidence, correct)
    return scores


def clustering_accuracy(y_true: ArrayLike, y_pred: ArrayLike) -> float:
    """Return the share of points that are right under the best matching of clusters to classes.

    Every class is matched with at most one cluster and the reverse (Hungarian algorithm). The
    numbers of classes and clusters may differ; points of an unmatched cluster are wrong.

    Parameters
    ----------
    y_true, y_pred : array-like of shape (M,)
        Class and cluster of every point: numbers or strings.

    Returns
    -------
    float
        In ``(0, 1]``, whatever the clusters are called.

    Examples
    --------
    >>> clustering_accuracy(["cat", "cat", "dog", "dog"], [7, 7, 3, 7])
    0.75
    """
    return accuracy_of_table(_table(y_true, y_pred, "clustering_accuracy"))


def contingency_table(
    y_true: ArrayLike,
    y_pred: ArrayLike,
    n_true: int | None = None,
    n_pred: int | None = None,
) -> NDArray[np.int64]:
    """Return how often each class and each cluster came together.

    Parameters
    ----------
    y_true, y_pred : array-like of shape (M,)
        Class and cluster of every point.
    n_true, n_pred : int, optional
        Number of rows and columns. Labels are then ids from 0 to ``n - 1``, so that the tables
        of several batches fit together and can be summed. Otherwise the values that occur, of
        any sortable kind, are the rows and columns in sorted order.

    Returns
    -------
    ndarray of int64, shape (n_true, n_pred)

    Raises
    ------
    ValueError
        If an array is empty, not 1-D, not of the length of the other, has NaN, or an id is out
        of range.
    TypeError
        If labels cannot be sorted, or are not integers where ids are asked for.

    Examples
    --------
    >>> contingency_table(["a", "b", "b"], [0, 0, 2], n_pred=3)
    array([[1, 0, 0],
           [1, 0, 1]])
    """
    return _table(y_true, y_pred, "contingency_table", n_true, n_pred)


def match_clusters(table: ArrayLike) -> NDArray[np.int64]:
    """Return the class matched to each cluster, so that the most points are right.

    Parameters
    ----------
    table : array-like of int, shape (n_true, n_pred)
        A contingency table.

    Returns
    -------
    ndarray of int64, shape (n_pred,)
        Row of the class for every column of the table, or -1 for clusters left over when there
        are more of them than classes.

    Examples
    --------
    >>> match_clusters([[0, 5, 1], [4, 1, 0]])
    array([ 1,  0, -1])
    """
    counts = _check_table(table, "match_clusters")
    classes, clusters = linear_sum_assignment(counts, maximize=True)
    matched = np.full(counts.shape[1], -1, dtype=np.int64)
    matched[clusters] = classes
    return matched


def accuracy_of_table(table: ArrayLike) -> float:
    """Return :func:`clustering_accuracy` from a :func:`contingency_table`.

    Examples
    --------
    >>> accuracy_of_table([[0, 5], [4, 1]])
    0.9
    """
    counts = _check_table(table, "accuracy_of_table")
    return float(counts[linear_sum_assignment(counts, maximize=True)].sum() / counts.sum())


def nmi_of_table(table: ArrayLike) -> float:
    """Return the mutual information of class and cluster over the mean of their entropies.

    From a :func:`contingency_table`. In [0, 1], as scikit-learn's
    ``normalized_mutual_info_score``: 1 for one class and one cluster, 0 where only one of them is
    single, for then there is nothing to share.

    Examples
    --------
    >>> nmi_of_table([[0, 5], [5, 0]]), nmi_of_table([[5, 5], [5, 5]])
    (1.0, 0.0)
    """
    joint = _check_table(table, "nmi_of_table")
    joint = joint[joint.any(axis=1)][:, joint.any(axis=0)]
    true_shares, pred_shares = joint.sum(axis=1) / joint.sum(), joint.sum(axis=0) / joint.sum()
    if joint.shape == (1, 1):
        return 1.0
    t, p = joint.nonzero()
    shares = joint[t, p] / joint.sum()
    # Of shares: the products of counts in scikit-learn pass the range of int64 at 1e10 points.
    information = float(shares @ np.log(shares / true_shares[t] / pred_shares[p]))
    # Rounding leaves about 1e-16 of either sign where the labelings are independent, and may
    # pass 1 by as little where they are the same.
    if information <= np.finfo(float).eps:
        return 0.0
    return min(1.0, 2 * information / float(entr(true_shares).sum() + entr(pred_shares).sum()))


def ari_of_table(table: ArrayLike) -> float:
    """Return the share of pairs of points on which both labelings agree, corrected for chance.

    From a :func:`contingency_table`. In [-1/2, 1], 0 on average for random labels: scikit-learn's
    ``adjusted_rand_score``.

    Examples
    --------
    >>> ari_of_table([[0, 5], [5, 0]])
    1.0
    """
    joint = _check_table(table, "ari_of_table")
    both, pairs = _pairs(joint), _pairs(joint.sum())
    in_true, in_pred = _pairs(joint.sum(axis=1)), _pairs(joint.sum(axis=0))
    if both == in_true == in_pred:
        return 1.0
    by_chance = 2 * in_true * in_pred
    return (2 * both * pairs - by_chance) / ((in_true + in_pred) * pairs - by_chance)


def calibration_error(confidence: ArrayLike, correct: ArrayLike, n_bins: int = 15) -> float:
    """Return the expected calibration error: how far confidences are from hit rates.

    ``Σ_b (M_b / M) |hit rate in b - mean confidence in b|`` over ``n_bins`` bins of equal width,
    ``(b/n, (b+1)/n]``; a confidence of 0 is in the first.

    Parameters
    ----------
    confidence : array-like of shape (M,)
        Probability given to the predicted class, in [0, 1] but for 1e-6 of rounding.
    correct : array-like of bool, shape (M,)
        Whether the prediction was right; 0 and 1 will do.
    n_bins : int >= 1
        Number of bins.

    Returns
    -------
    float
        From 0 (as often right as said) to 1.

    Raises
    ------
    ValueError
        If an array is empty, not 1-D, or out of range, or if lengths differ.

    Examples
    --------
    >>> calibration_error([0.75, 0.75, 0.75, 0.75], [True, True, True, False])
    0.0
    """
    owner = "calibration_error"
    n_bins = check_integer(n_bins, "n_bins", owner, low=1)
    stated = _numbers(confidence, "confidence", owner)
    hits = _numbers(correct, "correct", owner)
    _check_same_length(stated, hits, "correct", owner)
    outside = ~((stated >= -1e-6) & (stated <= 1 + 1e-6))
    if outside.any():
        raise ValueError(
            _first_bad("confidence", owner, "probabilities in [0, 1]", stated, outside)
        )
    undecided = (hits != 0) & (hits != 1)
    if undecided.any():
        raise ValueError(_first_bad("correct", owner, "True or False (1 or 0)", hits, undecided))
    # Compared with the edges, since 15 times a confidence may round past a whole number.
    edges = np.arange(1, n_bins) / n_bins
    bins = np.searchsorted(edges, stated, side="left")
    surplus = np.bincount(bins, weights=hits - stated, minlength=n_bins)
    return float(np.abs(surplus).sum() / len(stated))


def _table(
    y_true: ArrayLike,
    y_pred: ArrayLike,
    owner: str,
    n_true: int | None = None,
    n_pred: int | None = None,
) -> NDArray[np.int64]:
    true_ids, n_true = _ids(y_true, n_true, "y_true", owner)
    pred_ids, n_pred = _ids(y_pred, n_pred, "y_pred", owner)
    _check_same_length(true_ids, pred_ids, "y_pred", owner)
    return _count_pairs(true_ids, pred_ids, n_true, n_pred)


def _count_pairs(
    true_ids: NDArray[np.int64], pred_ids: NDArray[np.int64], n_true: int, n_pred: int
) -> NDArray[np.int64]:
    pairs = np.bincount(true_ids * n_pred + pred_ids, minlength=n_true * n_pred)
    return pairs.reshape(n_true, n_pred).astype(np.int64)


def _ids(
    labels: ArrayLike, n_ids: int | None, name: str, owner: str
) -> tuple[NDArray[np.int64], int]:
    """Return labels as ids from 0 to ``n - 1``, and ``n``, or refuse them."""
    values = np.asarray(labels)
    _check_vector(values, name, owner)
    if values.dtype.kind == "f" and np.isnan(values).any():
        raise ValueError(_first_bad(name, owner, "labels without NaN", values, np.isnan(values)))
    if n_ids is None:
        try:
            found, ids = np.unique(values, return_inverse=True)
        except TypeError:
            expected = "labels of one sortable kind, such as integers or strings"
            kinds = ", ".join(sorted({type(value).__name__ for value in values}))
            raise TypeError(parameter_message(name, owner, expected, kinds)) from None
        return ids.astype(np.int64), len(found)
    n_ids = check_integer(n_ids, "n" + name.removeprefix("y"), owner, low=1)
    expected = f"integers from 0 to {n_ids - 1}"
    if values.dtype.kind not in "iu":
        raise TypeError(parameter_message(name, owner, expected, str(values.dtype)))
    outside = (values < 0) | (values >= n_ids)
    if outside.any():
        raise ValueError(_first_bad(name, owner, expected, values, outside))
    return values.astype(np.int64), n_ids


def _numbers(values: ArrayLike, name: str, owner: str) -> NDArray[np.float64]:
    array = np.asarray(values)
    _check_vector(array, name, owner)
    if array.dtype.kind not in "biuf":
        raise TypeError(parameter_message(name, owner, "numeric", str(array.dtype)))
    return array.astype(np.float64)


def _check_table(table: ArrayLike, owner: str) -> NDArray[np.int64]:
    counts = np.asarray(table)
    expected = "a 2-D table of counts, non-negative integers that are not all zero"
    if counts.dtype.kind not in "iu":
        raise TypeError(parameter_message("table", owner, expected, str(counts.dtype)))
    if counts.ndim != 2:
        raise ValueError(parameter_message("table", owner, expected, counts.shape))
    if not counts.any() or (counts < 0).any():
        got = "a negative count" if counts.any() else f"no point in a table of {counts.shape}"
        raise ValueError(parameter_message("table", owner, expected, got))
    return counts.astype(np.int64)


def _check_vector(values: NDArray[np.generic], name: str, owner: str) -> None:
    if values.ndim != 1 or values.size == 0:
        expected = "1-D, with at least one entry"
        raise ValueError(parameter_message(name, owner, expected, values.shape))


def _check_same_length(
    first: NDArray[np.generic], second: NDArray[np.generic], name: str, owner: str
) -> None:
    if len(first) != len(second):
        expected = f"as long as the first, {len(first)} entries"
        raise ValueError(parameter_message(name, owner, expected, len(second)))


def _first_bad(
    name: str, owner: str, expected: str, values: NDArray[np.generic], bad: NDArray[np.bool_]
) -> str:
    row = int(bad.argmax())
    message = parameter_message(name, owner, expected, values[row].item())
    return f"{message} This is entry {row}, the first of {int(bad.sum())} such entries."


def _pairs(counts: NDArray[np.int64]) -> int:
    """Return the ordered pairs within the groups, in integers of any size: int64 is too small."""
    return sum(int(count) * (int(count) - 1) for count in np.ravel(counts))
