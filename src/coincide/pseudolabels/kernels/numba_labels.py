"""What an objective needs of labels, compiled by Numba: one pass over them and the predictions.

The labels may lie row by row or class by class.
"""

from __future__ import annotations

import numpy as np
from torch import Tensor

from coincide._compiled_rows import BlockedRows, compiled
from coincide.pseudolabels.kernels.contract import Vector


@compiled
def _sum_labels(rows, p, y, weights, block, mean):
    """Add ``Σ ω y`` to ``mean`` and return ``Σ ω (-ln σ·y)``."""
    lanes, total = np.empty((2, block)), 0.0
    for first in range(rows[0], rows[1], block):
        n = min(block, rows[1] - first)
        lanes[0] = 0.0
        for j in range(n):
            lanes[1, j] = weights[first + j]
        for k in range(p.shape[1]):
            held = 0.0
            for j in range(n):
                own = np.float64(y[first + j, k])
                lanes[0, j] += np.float64(p[first + j, k]) * own
                held += lanes[1, j] * own
            mean[k] += held
        for j in range(n):
            total -= lanes[1, j] * np.log(lanes[0, j])
    return total


def summed_labels(probs: Tensor, weights: Tensor, labels: Tensor) -> tuple[Vector, Vector]:
    """Return the mean collision cross-entropy and the mean label; weights are float64."""
    work = BlockedRows(*probs.shape)
    p, y, w = (tensor.numpy() for tensor in (probs, labels, weights))
    means = np.zeros((work.count, probs.shape[1]))
    losses = work.each(lambda n, rows: _sum_labels(rows, p, y, w, work.block, means[n]))
    return np.array(sum(losses)), work.summed(means)
