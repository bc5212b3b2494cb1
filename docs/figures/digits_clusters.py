"""Draw the README's picture: what CollisionClustering finds in scikit-learn's digits.

    python docs/figures/digits_clusters.py

Left, every image at its t-SNE place, in the color of its cluster, the paler the less certain.
Right, the ten clusters: the mean of their images, weighted by probability. No label is used.
"""

from __future__ import annotations

from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure
from sklearn.datasets import load_digits
from sklearn.manifold import TSNE

from coincide import CollisionClustering

OUT = Path(__file__).parents[1] / "_static" / "digits_clusters.png"
INK = "#3a3f4b"


def main() -> None:
    """Fit, draw and write the picture."""
    images = load_digits().images
    X = images.reshape(len(images), -1)
    model = CollisionClustering(n_clusters=10, random_state=0).fit(X)
    probs = model.predict_proba(X)
    places = TSNE(random_state=0).fit_transform(X)

    colors = mpl.colormaps["tab10"](model.labels_)
    colors[:, 3] = np.clip((probs.max(1) - 0.1) / 0.9, 0.08, 1)
    figure = Figure(figsize=(8, 4.6), layout="constrained")
    left, right = figure.subfigures(1, 2, width_ratios=(2.6, 1))
    axes = left.subplots()
    axes.scatter(*places.T, s=9, c=colors, linewidths=0)
    axes.set_axis_off()
    axes.set_title("1,797 images, no labels: ten clusters, with probabilities", color=INK, size=9.5)
    for k, cell in enumerate(right.subplots(5, 2).flat):
        mean = np.tensordot(probs[:, k], images, 1) / probs[:, k].sum()
        cell.imshow(mean, cmap="gray_r", interpolation="bicubic")
        cell.set(xticks=[], yticks=[])
        for edge in cell.spines.values():
            edge.set(color=mpl.colormaps["tab10"](k), linewidth=2.5)
    figure.savefig(OUT, dpi=130, facecolor="white")
    print(f"wrote {OUT.name}")


if __name__ == "__main__":
    main()
