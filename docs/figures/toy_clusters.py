"""Draw the picture of the page on clustering: toy sets, and what four clusterers make of them.

    python docs/figures/toy_clusters.py

All are told the number of clusters but HDBSCAN, which finds it; its noise is light gray. Ours are
the paler the less certain.
"""

from __future__ import annotations

import warnings
from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure
from sklearn import datasets
from sklearn.cluster import HDBSCAN, KMeans
from sklearn.mixture import GaussianMixture
from sklearn.preprocessing import StandardScaler

from coincide import CollisionClustering

OUT = Path(__file__).parents[1] / "_static" / "toy_clusters.png"
INK = "#3a3f4b"


def toy_sets() -> dict[str, tuple[np.ndarray, int]]:
    """Return the sets and their numbers of clusters."""
    stretched, _ = datasets.make_blobs(500, random_state=170)
    corners = [[0, 0], [6, 0], [0, 6]]
    return {
        "moons": (datasets.make_moons(500, noise=0.05, random_state=30)[0], 2),
        "circles": (datasets.make_circles(500, factor=0.5, noise=0.05, random_state=30)[0], 2),
        "anisotropic": (stretched @ [[0.6, -0.6], [-0.4, 0.8]], 3),
        "varied": (datasets.make_blobs(500, cluster_std=[1, 2.5, 0.5], random_state=170)[0], 3),
        "uneven": (datasets.make_blobs([900, 80, 20], centers=corners, random_state=0)[0], 3),
        "no structure": (np.random.RandomState(30).rand(500, 2), 3),
    }


def main() -> None:
    """Fit, draw and write the picture."""
    warnings.simplefilter("ignore")
    figure = Figure(figsize=(8, 5.6), layout="constrained")
    cells = figure.subplots(4, 6)
    for column, (name, (features, k)) in enumerate(toy_sets().items()):
        rows = StandardScaler().fit_transform(features)
        ours = CollisionClustering(k, random_state=0).fit(rows)
        found = {
            "coincide": ours.labels_,
            "K-means": KMeans(k, n_init=10, random_state=0).fit_predict(rows),
            "mixture": GaussianMixture(k, random_state=0).fit_predict(rows),
            "HDBSCAN": HDBSCAN(copy=True).fit_predict(rows),
        }
        for cell, (method, clusters) in zip(cells[:, column], found.items(), strict=True):
            order = np.argsort(-np.bincount(clusters[clusters >= 0]))
            place = np.argsort(order)[clusters]
            colors = np.array(mpl.colormaps["tab10"](place % 10))
            colors[clusters < 0] = (0.85, 0.85, 0.85, 1)
            if method == "coincide":
                sure = ours.predict_proba(rows).max(1)
                colors[:, 3] = np.clip((sure - 0.4) / 0.6, 0.15, 1)
            cell.scatter(*rows.T, s=3, c=colors, linewidths=0)
            cell.set(xticks=[], yticks=[])
            for edge in cell.spines.values():
                edge.set_color("#d8dbe2")
            if method == "coincide":
                cell.set_title(name, color=INK, size=9)
            if column == 0:
                cell.set_ylabel(method, color=INK, size=9)
    figure.savefig(OUT, dpi=130, facecolor="white")
    print(f"wrote {OUT.name}")


if __name__ == "__main__":
    main()
