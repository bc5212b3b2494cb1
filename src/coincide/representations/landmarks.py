"""Spectral features by landmarks: clusters of any shape become directions.

A few landmarks stand for the rows. Each row has an affinity to its nearest landmarks on a scale of
its own (Zelnik-Manor & Perona 2004), and the affinities ``A`` (M×L, rows summing to 1, columns
divided by the roots of their sums) have the singular vectors of the graph that links rows through
landmarks (Chen & Cai 2011). The features of a row are its entries in the first K of them, at unit
length. Rows that a chain of near rows connects point the same way, whatever the shape; and a new
row maps by its own affinities.
"""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.linalg import eigh
from scipy.sparse import csr_array
from sklearn.cluster import KMeans
from sklearn.exceptions import ConvergenceWarning
from sklearn.neighbors import NearestNeighbors
from torch import Tensor

from coincide._threads import every_pool_for
from coincide.representations.rows import Points
from coincide.representations.scaling import Scaling

_NEAREST = 5  # landmarks that a row has an affinity to; of 4 to 10 the best on the panel
_PER_CLUSTER = 4  # landmarks that a cluster needs at the least
_MOST = 1000
_ROWS_PER_LANDMARK = 10  # that K-means places them by
_PASSES = 5  # of K-means: its seeding is what spreads landmarks over thin places

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Landmarks:
    """Fitted landmarks.

    Attributes
    ----------
    scaling : Scaling
        Of the rows, before anything else.
    centers : array of shape (L, D), float32
        The landmarks, among scaled rows.
    widths : array of shape (L,), float64
        Distance of each to the last of its nearest landmarks.
    degrees : array of shape (L,), float64
        Sum of the rows' affinities to each.
    directions : array of shape (L, K), float64
        From normalized affinities to features.
    """

    scaling: Scaling
    centers: Points
    widths: Floats
    degrees: Floats
    directions: Floats

    def __call__(self, rows: Tensor) -> Tensor:
        """Return float32 features, ``(n, K)``: each row of length ``√K``, or zero."""
        return torch.from_numpy(self.features(self.scaling(rows).cpu().numpy())).to(rows.device)

    def features(self, points: Points) -> Points:
        """Return the features of rows that are scaled already."""
        return unit_rows(self.spectral(points))

    def spectral(self, points: Points) -> Floats:
        """Return the entries of scaled rows in the singular vectors, the first ones first."""
        found = self.affinities(points) @ (self.directions / np.sqrt(self.degrees)[:, None])
        return np.asarray(found, np.float64)

    def first(self, n_features: int) -> Landmarks:
        """Return landmarks that show only the first of the features."""
        return replace(self, directions=np.ascontiguousarray(self.directions[:, :n_features]))

    def affinities(self, points: Points) -> csr_array:
        """Return the affinities of scaled rows to their nearest landmarks, summing to 1."""
        return _affinities(self._index, self.widths, points)

    def tensors(self) -> dict[str, Tensor]:
        """Return what a saved model keeps beside the kind of the scaling."""
        own = {name: torch.from_numpy(getattr(self, name)) for name in _OWN}
        return {**self.scaling.tensors(), **own}

    @classmethod
    def from_tensors(cls, kind: str, tensors: dict[str, Tensor]) -> Landmarks:
        """Return the landmarks that :meth:`tensors` was of."""
        own = {name: tensors[name].numpy() for name in _OWN}
        return cls(Scaling.from_tensors(kind, tensors), **own)

    @cached_property
    def _index(self) -> NearestNeighbors:
        return _index(self.centers)


_OWN = ("centers", "widths", "degrees", "directions")


def unit_rows(spectral: Floats) -> Points:
    """Return rows of ``d`` entries at length ``√d``; a row of zeros stays one."""
    length = np.linalg.norm(spectral, axis=1, keepdims=True)
    unit = spectral / np.where(length > 0, length, 1)
    return np.asarray(unit * math.sqrt(spectral.shape[1]), np.float32)


def can_have_landmarks(n_rows: int, n_clusters: int) -> bool:
    """Whether each of so many clusters can have landmarks of its own."""
    return n_clusters <= most_clusters() and _PER_CLUSTER * n_clusters <= n_rows


def most_clusters() -> int:
    """Return how many clusters landmarks can show, whatever the rows."""
    return _MOST // _PER_CLUSTER


def fit_landmarks(
    points: Points,
    scaling: Scaling,
    n_clusters: int,
    *,
    n_landmarks: int = _MOST,
    weights: Floats | None = None,
    seed: int = 0,
) -> Landmarks:
    """Place landmarks by K-means and return what turns rows into features.

    Parameters
    ----------
    points : array of shape (M, D), float32
        Rows, scaled; all of them or a sample in random order.
    scaling : Scaling
        That they were scaled by.
    n_clusters : int
        ``K``, also the number of features; see :func:`can_have_landmarks`.
    n_landmarks : int
        At the most; also at most one for two rows, but at least four for each cluster.
    weights : array of shape (M,), optional
        Of the rows.
    seed : int
        Of K-means.
    """
    least = _PER_CLUSTER * n_clusters
    count = min(max(least, min(n_landmarks, len(points) // 2)), len(points))
    seen = slice(0, _ROWS_PER_LANDMARK * count)
    seeds = _spread(points[seen], count, np.random.RandomState(seed))
    means = KMeans(len(seeds), init=seeds, n_init=1, max_iter=_PASSES)
    with warnings.catch_warnings(), every_pool_for(points[seen].size * count):
        # It is stopped early on purpose, and rows that repeat give fewer landmarks.
        warnings.simplefilter("ignore", ConvergenceWarning)
        means.fit(points[seen], sample_weight=None if weights is None else weights[seen])
    centers = np.unique(means.cluster_centers_, axis=0).astype(np.float32)
    index = _index(centers)
    widths = np.asarray(index.kneighbors(centers)[0][:, -1], np.float64)
    affinities = _affinities(index, widths, points)
    weighed = affinities if weights is None else affinities.multiply(weights[:, None]).tocsr()
    degrees = np.asarray(weighed.sum(0)).ravel()
    # A landmark that no row has an affinity to has none to give.
    degrees = np.where(degrees > 0, degrees, 1.0)
    links = (affinities.T @ weighed).toarray() / np.sqrt(np.outer(degrees, degrees))
    n_features = min(n_clusters, len(centers))
    last = len(centers) - 1
    _, directions = eigh(links, subset_by_index=[last + 1 - n_features, last])
    return Landmarks(scaling, centers, widths, degrees, np.ascontiguousarray(directions[:, ::-1]))


def _spread(points: Points, count: int, random: np.random.RandomState) -> Points:
    """Return points of which each is drawn by its squared distance to those before it.

    It is K-means++ with one try a point: scikit-learn's takes ten times as long for as many.
    """
    chosen = [points[random.randint(len(points))]]
    nearest = np.full(len(points), np.inf)
    lengths = np.einsum("ij,ij->i", points, points)
    for draw in random.random_sample(count - 1):
        last = chosen[-1]
        distances = lengths - 2 * (points @ last) + last @ last
        np.minimum(nearest, distances, out=nearest)
        total = np.cumsum(np.maximum(nearest, 0), dtype=np.float64)
        if total[-1] == 0:  # no other points are left
            break
        chosen.append(points[min(np.searchsorted(total, draw * total[-1]), len(points) - 1)])
    return np.stack(chosen)


def _index(centers: Points) -> NearestNeighbors:
    return NearestNeighbors(n_neighbors=min(_NEAREST, len(centers))).fit(centers)


def _affinities(index: NearestNeighbors, widths: Floats, points: Points) -> csr_array:
    """Return ``exp(-d²/(w_row w_landmark))`` at the nearest landmarks, each row summing to 1.

    The scale of a row is its distance to the last but one of them.
    """
    with every_pool_for(len(points) * len(widths)):
        distances, nearest = index.kneighbors(points)
    distances = distances.astype(np.float64)
    scale = distances[:, -2:-1] * widths[nearest]
    # A row on top of a landmark, with a scale of 0, is as far from all others as can be.
    farthest = np.where(distances > 0, np.inf, 0.0)
    relative = np.divide(distances**2, scale, out=farthest, where=scale > 0)
    # The nearest landmark counts as 1: far from all of them nothing underflows.
    affinity = np.exp(relative.min(1, keepdims=True) - relative)
    affinity /= affinity.sum(1, keepdims=True)
    starts = np.arange(0, affinity.size + 1, affinity.shape[1])
    shape = (len(points), len(widths))
    return csr_array((affinity.ravel(), nearest.ravel(), starts), shape=shape)
