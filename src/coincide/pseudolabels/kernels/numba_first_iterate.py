"""Where the interior point starts, compiled by Numba: one pass over the rows.

The mathematics is that of :mod:`coincide.pseudolabels.kernels.first_iterate`.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from coincide._compiled_rows import BlockedRows, compiled
from coincide.pseudolabels.kernels.contract import StepArrays, Vector
from coincide.pseudolabels.kernels.first_iterate import NEWTON_STEPS

# Of a row: 1/x, the highest pull, the level and its least; sums.
_INVERSE, _TOP, _LEVEL, _LEAST, _SUM, _SLOPE = range(6)
_LANES = 6


@compiled
def _find_pulls(p, first, w, shares, gap, below, lanes, collision):
    """Fill ``below`` with how far each class's pull is below the row's highest."""
    n = lanes.shape[1]
    lanes[_SUM], lanes[_TOP] = 0.0, 0.0
    for k in range(p.shape[1]):
        bk = below[k]
        for j in range(n):
            bk[j] = p[first + j, k]
        for j in range(n):
            lanes[_SUM, j] += bk[j] * shares[k]
            lanes[_TOP, j] = max(lanes[_TOP, j], bk[j])
    for j in range(n):
        lanes[_INVERSE, j] = 1 / max(lanes[_SUM, j], lanes[_TOP, j] / (1 + gap))
        if not collision:
            lanes[_INVERSE, j] = 1.0
        lanes[_TOP, j] = -np.inf
    for k in range(p.shape[1]):
        bk, wk = below[k], w[k]
        for j in range(n):
            bk[j] = bk[j] * lanes[_INVERSE, j] + wk
            lanes[_TOP, j] = max(lanes[_TOP, j], bk[j])
    lanes[_LEAST] = 0.0
    for k in range(p.shape[1]):
        bk, target = below[k], gap * shares[k]
        for j in range(n):
            bk[j] = lanes[_TOP, j] - bk[j]
            least = target if bk[j] == 0 else 0.0
            lanes[_LEAST, j] = max(lanes[_LEAST, j], least)


@compiled
def _center(rows, p, w, shares, gap, collision, steps, block, y, zeta):
    """Fill labels and slacks, both ``(K, n)``."""
    classes = p.shape[1]
    work, room = np.empty((classes, block)), np.empty((_LANES, block))
    for first in range(rows[0], rows[1], block):
        n = min(block, rows[1] - first)
        below, lanes, part = work[:, :n], room[:, :n], slice(first, first + n)
        _find_pulls(p, first, w, shares, gap, below, lanes, collision)
        for j in range(n):
            lanes[_LEVEL, j] = lanes[_LEAST, j]
        for _ in range(steps):
            lanes[_SUM], lanes[_SLOPE] = 0.0, 0.0
            for k in range(classes):
                bk, target = below[k], gap * shares[k]
                for j in range(n):
                    inverse = 1 / (bk[j] + lanes[_LEVEL, j])
                    lanes[_SUM, j] += target * inverse
                    lanes[_SLOPE, j] += target * inverse * inverse
            for j in range(n):
                mass = lanes[_SUM, j]
                level = lanes[_LEVEL, j] + (mass - 1) * mass / lanes[_SLOPE, j]
                lanes[_LEVEL, j] = min(max(level, lanes[_LEAST, j]), gap)
        lanes[_SUM] = 0.0
        for k in range(classes):
            bk, yk, target = below[k], y[k, part], gap * shares[k]
            for j in range(n):
                yk[j] = target / (bk[j] + lanes[_LEVEL, j])
                lanes[_SUM, j] += yk[j]
        for j in range(n):
            lanes[_SUM, j] = 1 / lanes[_SUM, j]
        for k in range(classes):
            yk, zk, target = y[k, part], zeta[k, part], gap * shares[k]
            for j in range(n):
                yk[j] *= lanes[_SUM, j]
                zk[j] = target / yk[j]


def near_central_path(
    rows: Tensor, multipliers: Vector, shares: Vector, gap: float, *, collision: bool
) -> StepArrays:
    """Return labels and slacks with ``y ζ = μ``, and a small dual residual."""
    p = np.ascontiguousarray(rows.numpy())
    work = BlockedRows(*p.shape)
    arrays = np.empty((2, p.shape[1], len(p)))
    work.each(
        lambda _, part: _center(
            part, p, multipliers, shares, gap, collision, NEWTON_STEPS, work.block, *arrays
        )
    )
    return StepArrays(*(torch.from_numpy(array).T for array in arrays))
