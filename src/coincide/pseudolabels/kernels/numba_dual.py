"""The dual of the rows compiled by Numba: every row's active-set search in cache.

The mathematics is that of :mod:`coincide.pseudolabels.kernels.dual`.
"""

from __future__ import annotations

import numpy as np
from torch import Tensor

from coincide.pseudolabels.kernels.contract import Vector
from coincide.pseudolabels.kernels.numba_blocks import BlockedRows, compiled

_MOST_ROUNDS = 200
_ROUNDING = 1e-15


@compiled
def _highest(row, t, start):
    """Return the line that is highest at ``t``."""
    best = 0
    for k in range(1, row.shape[0]):
        if row[k] * t + start[k] > row[best] * t + start[best]:
            best = k
    return best


@compiled
def _dual_rows(rows, p, start, values):
    """Fill ``g(w)`` of collision cross-entropy, for intercepts ``w`` at most 0."""
    classes = p.shape[1]
    for i in range(rows[0], rows[1]):
        row = p[i]
        steep = int(np.argmax(row))
        flat = steep
        level, height = 1.0, 0.0
        for _ in range(_MOST_ROUNDS):
            level = np.float64(row[steep])
            if start[flat] > start[steep]:
                tie = (np.float64(row[steep]) - row[flat]) / (start[flat] - start[steep])
                level = min(max(tie, row[flat]), row[steep])
            t = 1 / level
            height = -np.inf
            for k in range(classes):
                height = max(height, row[k] * t + start[k])
            pair = max(row[flat] * t + start[flat], row[steep] * t + start[steep])
            if height - pair <= _ROUNDING * (1 + abs(height)):
                break
            highest = _highest(row, t, start)
            # The highest line stands beside the one it leaves on the other side of the maximum.
            keep = flat
            if level >= row[steep] or (level > row[flat] and row[highest] < level):
                keep = steep
            flat, steep = (keep, highest) if row[highest] > row[keep] else (highest, keep)
        values[i] = 1 - np.log(level) - height


def compiled_dual_rows(probs: Tensor, multipliers: Vector) -> Vector:
    """Return ``g_i(w)`` of collision cross-entropy for every row, ``(M,)``.

    Parameters
    ----------
    probs : Tensor of shape (M, K)
        On the CPU; every row has a positive entry.
    multipliers : array of shape (K,)
        Finite.
    """
    p = np.ascontiguousarray(probs.numpy())
    top = multipliers.max()
    values = np.empty(len(p))
    BlockedRows(*p.shape).each(lambda _, rows: _dual_rows(rows, p, multipliers - top, values))
    result: Vector = values - top
    return result
