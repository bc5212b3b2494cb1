"""Notice collapse, the field's curse, and say in plain words what to change."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

_SHARED = 0.9  # cosine between the probabilities of two clusters
_UNMOVED = 0.98  # last loss relative to the first
_HIGH = 0.5  # loss relative to ln K
_NAMED = 5


def signs_of_collapse(
    sizes: NDArray[np.int64],
    products: NDArray[np.float64],
    prior: NDArray[np.float64],
    losses: Sequence[float],
) -> list[str]:
    """Return a sentence for every sign of collapse, with the way out.

    Parameters
    ----------
    sizes : array of shape (K,)
        Rows assigned to each cluster.
    products : array of shape (K, K)
        ``Σ_i σ_i σ_iᵀ`` of the predicted probabilities.
    prior : array of shape (K,)
        Expected shares; a cluster of prior 0 may be empty.
    losses : sequence of float
        Mean loss of each epoch.

    Returns
    -------
    list of str
        Empty when all is well.
    """
    signs = []
    dead = np.flatnonzero((sizes == 0) & (prior > 0))
    if len(dead):
        signs.append(
            f"{len(dead)} of {len(sizes)} clusters are empty ({_listed(dead)}). Try fewer clusters,"
            " more restarts (n_init), or a larger fairness."
        )
    norms = np.sqrt(np.diag(products))
    cosine = products / np.maximum(np.outer(norms, norms), np.finfo(float).tiny)
    pairs = [f"{a} and {b}" for a, b in np.argwhere(np.triu(cosine > _SHARED, 1))]
    if pairs:
        signs.append(
            f"Clusters share their rows: {_listed(pairs)}. There may be fewer clusters in the data;"
            " try fewer, or more restarts (n_init)."
        )
    stuck = len(losses) > 1 and losses[-1] > _UNMOVED * losses[0]
    if stuck and losses[-1] > _HIGH * np.log(len(sizes)):
        signs.append(
            f"The loss did not fall: {losses[-1]:.3f}, where ln {len(sizes)} is"
            f" {np.log(len(sizes)):.3f}. Try a smaller weight_decay, another learning_rate, or"
            " another scaling."
        )
    return signs


def _listed(items: Sequence[object] | NDArray[np.int64]) -> str:
    shown = ", ".join(str(item) for item in items[:_NAMED])
    return f"{shown} ..." if len(items) > _NAMED else shown
