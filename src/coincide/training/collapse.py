"""Notice collapse, the field's curse, and say in plain words what to change."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

_SHARED = 0.9  # cosine between the probabilities of two clusters
_UNMOVED = 0.98  # last loss relative to the first
_HIGH = 0.5  # loss relative to ln K
_NAMED = 5


class ClusteringWarning(UserWarning):
    """The clustering looks wrong, or will: dead or merged clusters, a loss that never fell."""


class Advice(NamedTuple):
    """What to try, in the words of those who can try it."""

    empty: str
    shared: str
    stuck: str


VECTOR_ADVICE = Advice(
    empty="Try fewer clusters, more restarts (n_init), or a larger fairness.",
    shared="There may be fewer clusters in the data; try fewer, or more restarts (n_init).",
    stuck="Try a smaller weight_decay, another learning_rate, or another scaling.",
)
IMAGE_ADVICE = Advice(
    empty="Try a larger fairness (relative to the mean loss), fewer clusters, or more starts.",
    shared="There may be fewer clusters in the images; try fewer, more starts, or another view.",
    stuck="Try another learning_rate, a smaller weight_decay, or a weaker view.",
)


def signs_of_collapse(
    sizes: NDArray[np.int64],
    products: NDArray[np.float64],
    prior: NDArray[np.float64],
    losses: Sequence[float],
    advice: Advice = VECTOR_ADVICE,
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
    advice : Advice
        The way out that each sentence names.

    Returns
    -------
    list of str
        Empty when all is well.
    """
    signs = []
    dead = np.flatnonzero((sizes == 0) & (prior > 0))
    if len(dead):
        signs.append(
            f"{len(dead)} of {len(sizes)} clusters are empty ({_listed(dead)}). {advice.empty}"
        )
    norms = np.sqrt(np.diag(products))
    cosine = products / np.maximum(np.outer(norms, norms), np.finfo(float).tiny)
    pairs = [f"{a} and {b}" for a, b in np.argwhere(np.triu(cosine > _SHARED, 1))]
    if pairs:
        signs.append(f"Clusters share their rows: {_listed(pairs)}. {advice.shared}")
    stuck = len(losses) > 1 and losses[-1] > _UNMOVED * losses[0]
    if stuck and losses[-1] > _HIGH * np.log(len(sizes)):
        signs.append(
            f"The loss did not fall: {losses[-1]:.3f}, where ln {len(sizes)} is"
            f" {np.log(len(sizes)):.3f}. {advice.stuck}"
        )
    return signs


def sums_of_predictions(
    blocks: Iterable[Tensor],
) -> tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.float64]]:
    """Return the clusters of rows from their logits, ``Σ_i σ_i`` and ``Σ_i σ_i σ_iᵀ``."""
    clusters: list[NDArray[np.int64]] = []
    sums: NDArray[np.float64] = np.zeros(())
    products: NDArray[np.float64] = np.zeros(())
    for logits in blocks:
        probs = torch.softmax(logits, 1).double()
        clusters.append(logits.argmax(1).cpu().numpy())
        sums = sums + probs.sum(0).cpu().numpy()
        products = products + (probs.T @ probs).cpu().numpy()
    return np.concatenate(clusters), sums, products


def _listed(items: Sequence[object] | NDArray[np.int64]) -> str:
    shown = ", ".join(str(item) for item in items[:_NAMED])
    return f"{shown} ..." if len(items) > _NAMED else shown
