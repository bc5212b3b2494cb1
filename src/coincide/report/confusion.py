"""Which cluster holds which class: the table of both, the clusters matched to the classes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from coincide._checks import parameter_message
from coincide.metrics import contingency_table, match_clusters
from coincide.report.run_folder import METRICS, part

MAX_CLASSES = 60  # drawn, and as many clusters; beyond, cells and names would be too small


@dataclass(frozen=True)
class Confusion:
    """Classes (C rows) by clusters (K columns), matched ones on the diagonal."""

    classes: list[str]
    clusters: list[int]
    counts: NDArray[np.int64]


def matched_confusion(
    y_true: ArrayLike, clusters: ArrayLike, n_clusters: int, names: Sequence[str]
) -> dict[str, Any]:
    """Return how often each class and each cluster came together, matched ones on the diagonal.

    Clusters are matched to classes so that the most points are right (Hungarian algorithm), as in
    :func:`coincide.metrics.clustering_accuracy`: the diagonal over the whole is that accuracy.
    Points of unknown class, -1, are not counted.

    Returns
    -------
    dict
        What ``metrics.json`` keeps under ``confusion``: ``classes``, the C names, those without a
        cluster last; ``clusters``, the K ids in the order of their classes, those without a class
        last; ``counts``, C lists of K integers.

    Examples
    --------
    >>> from coincide.report import matched_confusion
    >>> matched_confusion([0, 0, 1, 1, -1], [1, 1, 0, 1, 0], 2, ["cat", "dog"])
    {'classes': ['cat', 'dog'], 'clusters': [1, 0], 'counts': [[2, 0], [1, 1]]}
    """
    classes, ids = np.asarray(y_true), np.asarray(clusters)
    if classes.ndim != 1 or ids.shape != classes.shape:
        expected = f"1-D, one cluster for each class in y_true of shape {classes.shape}"
        raise ValueError(parameter_message("clusters", "matched_confusion", expected, ids.shape))
    known = classes != -1
    if not known.any():
        expected = "the classes of one point at least, integers from 0"
        raise ValueError(parameter_message("y_true", "matched_confusion", expected, "none"))
    table = contingency_table(classes[known], ids[known], len(names), n_clusters)
    matched = match_clusters(table)  # the class of each cluster, -1 for none
    order = np.argsort(np.where(matched < 0, len(names), matched), kind="stable")
    with_cluster = np.isin(np.arange(len(names)), matched)
    rows = np.argsort(~with_cluster, kind="stable")
    return {
        "classes": [str(names[row]) for row in rows],
        "clusters": order.tolist(),
        "counts": table[rows][:, order].tolist(),
    }


def read_confusion(metrics: dict[str, Any], n_clusters: int) -> Confusion | None:
    """Return the part ``confusion`` of the metrics, None if absent; refuse one that is damaged."""
    found = part(metrics, "confusion", {})
    if not found:
        return None
    try:
        classes = [str(name) for name in found["classes"]]
        clusters = [int(cluster) for cluster in found["clusters"]]
        counts = np.asarray(found["counts"])
        good = (
            counts.dtype.kind in "iu"
            and counts.shape == (len(classes), len(clusters))
            and counts.size > 0
            and bool((counts >= 0).all())
            and all(0 <= cluster < n_clusters for cluster in clusters)
        )
    except (KeyError, TypeError, ValueError, OverflowError):
        good = False
    if not good:
        raise ValueError(
            f"'confusion' in {METRICS} must give 'classes', 'clusters' (below {n_clusters}) and"
            " 'counts', one list of whole numbers for each class. Run the command again."
        )
    return Confusion(classes, clusters, counts.astype(np.int64))
