"""Which clustering of the same rows is the better one, told without labels.

Near rows mostly belong together. How much a row's cluster tells about the cluster of its neighbors
is their mutual information; relative to the entropy of the clusters it is 1 where every row has the
cluster of all its neighbors, and 0 where the two have nothing to do with each other. Unlike the
objective of a training it can be compared across representations, starts, priors and λ. It is
IIC's quantity (Ji et al. 2019), between neighbors instead of views, and used to choose, not to
train.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.special import entr

from coincide.representations import Points, nearest_rows

_ASKED_ROWS = 2_500


class NeighborEvidence:
    """The neighbors of some rows, and how well clusters agree with them.

    Parameters
    ----------
    points : array of shape (M, D), float32
        Scaled rows in random order; the first 2,500 are asked for their neighbors among all.
    n_neighbors : int
        Below M.
    """

    def __init__(self, points: Points, n_neighbors: int) -> None:
        numbers = np.arange(min(_ASKED_ROWS, len(points)))
        self._neighbors = nearest_rows(points, n_neighbors, numbers)

    def of(self, clusters: NDArray[np.int64]) -> float:
        """Return ``I(c; c') / H(c)`` of the clusters of all points, in [0, 1]."""
        own = np.repeat(clusters[: len(self._neighbors)], self._neighbors.shape[1])
        return shared_information(own, clusters[self._neighbors].ravel())


def shared_information(first: NDArray[np.int64], second: NDArray[np.int64]) -> float:
    """Return the mutual information of pairs in either order, relative to the entropy of one.

    Examples
    --------
    >>> import numpy as np
    >>> from coincide.cluster.evidence import shared_information
    >>> shared_information(np.array([0, 1, 1]), np.array([0, 1, 1]))
    1.0
    """
    size = int(max(first.max(), second.max())) + 1
    own, other = np.concatenate([first, second]), np.concatenate([second, first])
    entropy = _entropy(own)
    if entropy == 0:
        return 0.0
    return min(1.0, max(0.0, 2 - _entropy(own * size + other) / entropy))


def _entropy(drawn: NDArray[np.int64]) -> float:
    """Return the entropy of what was drawn; most of the pairs that could be never are."""
    counts = np.unique(drawn, return_counts=True)[1]
    return float(entr(counts / len(drawn)).sum())


def effective_dimension(points: Points) -> float:
    """Return ``(tr C)² / tr C²`` of the covariance: D where all directions vary alike.

    Where it is above the number of clusters, there are enough directions for a linear head to tell
    each of them from all others.
    """
    centered = points - points.mean(0)
    # The products of rows have the spectrum of those of columns; the fewer are taken.
    narrow = centered.T if len(centered) > centered.shape[1] else centered
    products = (narrow @ narrow.T).astype(np.float64)
    return float(np.trace(products) ** 2 / np.square(products).sum())
