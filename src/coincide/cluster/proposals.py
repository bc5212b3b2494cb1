"""Clusters that a training on landmarks can start from: K-means among the landmarks."""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from sklearn.cluster import KMeans
from sklearn.exceptions import ConvergenceWarning

from coincide._threads import every_pool_for
from coincide.cluster.evidence import NeighborEvidence
from coincide.representations import Landmarks, Points, Scaling, fit_landmarks
from coincide.representations.landmarks import Floats

_RESOLUTIONS = (1000, 100)  # landmarks: fine shapes, and clusters that noise connects
_STARTS = 10  # of K-means, as scikit-learn took for long


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


def propose(
    points: Points,
    scaling: Scaling,
    n_clusters: int,
    evidence: NeighborEvidence,
    *,
    weights: Floats | None,
    seed: int,
) -> Proposal:
    """Return the proposal with the most evidence among few and many landmarks.

    Parameters
    ----------
    points : array of shape (M, D), float32
        Scaled rows in random order, those of the evidence.
    scaling : Scaling
        That they were scaled by.
    n_clusters : int
    evidence : NeighborEvidence
    weights : array of shape (M,), optional
    seed : int
    """
    proposals = []
    for n_landmarks in _RESOLUTIONS:
        landmarks = fit_landmarks(
            points, scaling, n_clusters, n_landmarks=n_landmarks, weights=weights, seed=seed
        )
        centers, clusters = _cluster(landmarks, landmarks.features(points), n_clusters, seed)
        shares = np.bincount(clusters, weights, minlength=n_clusters)
        told = evidence.of(clusters)
        proposals.append(Proposal(landmarks, centers, shares / shares.sum(), told))
        if len(landmarks.centers) <= _RESOLUTIONS[-1]:
            break
    return max(proposals, key=lambda proposal: proposal.evidence)


def _cluster(
    landmarks: Landmarks, features: Points, n_clusters: int, seed: int
) -> tuple[Points, NDArray[np.int64]]:
    """Return centers of clusters of the landmarks, which are fewer than the rows, and the rows'."""
    held = landmarks.features(landmarks.centers)
    means = KMeans(n_clusters, n_init=_STARTS, random_state=seed)
    with warnings.catch_warnings(), every_pool_for(held.size * n_clusters):
        # Fewer distinct landmarks than clusters: the evidence shows it.
        warnings.simplefilter("ignore", ConvergenceWarning)
        means.fit(held, sample_weight=landmarks.degrees)
        clusters = means.predict(features)
    return means.cluster_centers_, clusters.astype(np.int64)
