"""The nearest rows of rows, by Euclidean distance.

In few dimensions a tree finds them; in many, where a tree visits everything, products block by
block are as fast as the machine.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.neighbors import NearestNeighbors

from coincide._threads import every_pool_for, threads_for
from coincide.representations.rows import Points

_FEW_DIMENSIONS = 16  # below this scikit-learn, too, builds a tree
_BLOCK = 2**24  # distances held at a time: 64 MiB


def nearest_rows(
    points: Points,
    n_neighbors: int,
    numbers: NDArray[np.int64] | None = None,
    *,
    among: int | None = None,
) -> NDArray[np.int64]:
    """Return the nearest of the points to some of them, itself left out.

    Parameters
    ----------
    points : array of shape (M, D), float32
    n_neighbors : int
        Below M.
    numbers : array of shape (n,), int64, optional
        Of the points whose neighbors are asked for; all by default.
    among : int, optional
        The neighbors are among so many first points; all by default.

    Returns
    -------
    array of shape (n, n_neighbors), int64
        Numbers of points, the nearest first.
    """
    asked = np.arange(len(points)) if numbers is None else numbers
    points, asked_points = points[:among], points[asked]
    if points.shape[1] < _FEW_DIMENSIONS:
        with every_pool_for(len(asked) * len(points)):
            index = NearestNeighbors(n_neighbors=n_neighbors + 1).fit(points)
            found = index.kneighbors(asked_points, return_distance=False)
        return _without(found, asked)
    held = torch.from_numpy(points)
    offset = held.square().sum(1) / 2
    blocks = []
    with threads_for(len(asked) * len(points)):
        size = max(1, _BLOCK // len(points))
        for start in range(0, len(asked), size):
            part = torch.from_numpy(asked[start : start + size])
            rows = torch.from_numpy(asked_points[start : start + size])
            nearness = torch.addmm(-offset, rows, held.T)
            own = (part < len(points)).nonzero()[:, 0]
            nearness[own, part[own]] = -torch.inf
            blocks.append(nearness.topk(n_neighbors, dim=1).indices)
    found = torch.cat(blocks).numpy()
    return np.asarray(found, np.int64)


def _without(found: NDArray[np.int64], asked: NDArray[np.int64]) -> NDArray[np.int64]:
    """Leave out the row itself; among many equal rows it may not be among the found at all."""
    own = found == asked[:, None]
    own[~own.any(1), -1] = True
    return np.asarray(found[~own].reshape(len(found), -1), np.int64)
