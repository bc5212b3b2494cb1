"""Clusters that a training can start from: more and smaller ones, merged by Ward's criterion.

Ward's tree of a thousand centers takes milliseconds and, unlike a few starts of K-means, leaves no
two far clusters in one; K-means from its clusters then has the last word.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from sklearn.cluster import AgglomerativeClustering, KMeans

from coincide._threads import every_pool_for
from coincide.cluster.evidence import NeighborEvidence
from coincide.representations import Landmarks, Points, Scaling, fit_landmarks
from coincide.representations.landmarks import Floats, unit_rows

# Landmarks, for fine shapes and for clusters that noise connects. Settled on the panel of
# benchmarks/panel.py.
_RESOLUTIONS = (1000, 100)


@dataclass(frozen=True)
class Proposal:
    """Clusters of the rows in the features of landmarks.

    Attributes
    ----------
    landmarks : Landmarks
    centers : array of shape (K, d)
        Among their features.
    shares : array of shape (K,), float64
        Of the rows in each cluster.
    evidence : float
    """

    landmarks: Landmarks
    centers: Points
    shares: Floats
    evidence: float


class Resolution(NamedTuple):
    """Landmarks, and what they show of the rows and of each other, before its length is 1."""

    landmarks: Landmarks
    rows: Floats
    centers: Floats


def place_landmarks(
    points: Points, scaling: Scaling, n_clusters: int, *, weights: Floats | None, seed: int
) -> list[Resolution]:
    """Return many and few landmarks for up to so many clusters.

    Parameters
    ----------
    points : array of shape (M, D), float32
        Scaled rows in random order.
    scaling : Scaling
        That they were scaled by.
    n_clusters : int
    weights : array of shape (M,), optional
    seed : int
    """
    found: list[Resolution] = []
    for n_landmarks in _RESOLUTIONS:
        landmarks = fit_landmarks(
            points, scaling, n_clusters, n_landmarks=n_landmarks, weights=weights, seed=seed
        )
        rows, centers = landmarks.spectral(points), landmarks.spectral(landmarks.centers)
        found.append(Resolution(landmarks, rows, centers))
        if len(landmarks.centers) <= _RESOLUTIONS[-1]:
            break
    return found


def propose(
    resolutions: list[Resolution],
    n_clusters: int,
    evidence: NeighborEvidence,
    weights: Floats | None = None,
) -> Proposal:
    """Return the proposal with the most evidence, which is of the same rows, among resolutions."""
    proposals = []
    for landmarks, rows, centers in resolutions:
        held = unit_rows(centers[:, :n_clusters])
        means, _ = merged_clusters(held, n_clusters, landmarks.degrees)
        clusters = nearest_centers(unit_rows(rows[:, :n_clusters]), means)
        shares = np.bincount(clusters, weights, minlength=n_clusters)
        told = evidence.of(clusters)
        shown = landmarks.first(n_clusters)
        proposals.append(Proposal(shown, means, shares / shares.sum(), told))
    return max(proposals, key=lambda proposal: proposal.evidence)


def merged_clusters(
    points: Points, n_clusters: int, weights: Floats | None = None
) -> tuple[Points, NDArray[np.int64]]:
    """Return the centers of clusters merged by Ward's criterion, and the cluster of each point.

    Parameters
    ----------
    points : array of shape (n, d), float32
        A few thousand at most: time grows with their square.
    n_clusters : int
    weights : array of shape (n,), optional
    """
    count = min(n_clusters, len(np.unique(points, axis=0)))
    tree = AgglomerativeClustering(count).fit_predict(points)
    # A cluster more than there are different points stands where the first one stands.
    members = [tree == (number if number < count else 0) for number in range(n_clusters)]
    share = np.ones(len(points)) if weights is None else weights
    start = np.stack([np.average(points[own], axis=0, weights=share[own]) for own in members])
    if count < n_clusters:
        return start, tree.astype(np.int64)
    means = KMeans(n_clusters, init=start, n_init=1)
    with every_pool_for(points.size * n_clusters):
        means.fit(points, sample_weight=weights)
    return means.cluster_centers_, means.labels_.astype(np.int64)


def nearest_centers(points: Points, centers: Points) -> NDArray[np.int64]:
    """Return the number of the nearest center of each point."""
    offset = np.square(centers).sum(1) / 2
    return np.asarray((points @ centers.T - offset).argmax(1), np.int64)
