"""Blobs that a short fit tells apart, and the short fit."""

from sklearn.datasets import make_blobs

from coincide.cluster import CollisionClustering

K, D = 3, 5
X, Y = make_blobs(300, n_features=D, centers=K, cluster_std=0.6, random_state=0)
QUICK = {"n_clusters": K, "n_init": 1, "max_epochs": 20, "random_state": 0}


def fitted(features=X, /, **changes):
    return CollisionClustering(**{**QUICK, **changes}).fit(features)
