"""One sweep of EM compiled by Numba: E-step and M-step in one pass over the rows, in place.

The mathematics is that of :mod:`coincide.pseudolabels.em`, for labels that are all positive. The
arrays lie class by class, so that the innermost loops run along rows and are vectorized.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from coincide.pseudolabels.kernels.contract import Vector
from coincide.pseudolabels.kernels.numba_blocks import BlockedRows, compiled

Array = NDArray[Any]

_NEWTON_STEPS = 60


@compiled
def _sweep(rows, p, w, y, scale, peak, block, mean):
    """Replace ``y`` by the M-step for ``c = scale · y``; add ``Σ ω y``; return the smallest."""
    classes = p.shape[0]
    one = p.dtype.type(1)
    close = one + 16 * np.finfo(p.dtype).eps
    low = np.inf
    for first in range(rows[0], rows[1], block):
        part = slice(first, min(first + block, rows[1]))
        weight, inverse_peak = w[part], one / peak[part]
        total = np.zeros_like(weight)
        for k in range(classes):
            ck = y[k, part]
            sk = scale[k]
            for j in range(ck.shape[0]):
                ck[j] *= sk
            for j in range(ck.shape[0]):
                total[j] += ck[j]
        total += one
        # Lemma 1: below this d some class alone would hold more than all the mass.
        root = np.full_like(total, np.finfo(p.dtype).tiny)
        for k in range(classes):
            pk, ck = p[k, part], y[k, part]
            for j in range(pk.shape[0]):
                r = pk[j] * inverse_peak[j]
                least = (ck[j] - (one - r) * total[j]) / r if r > 0 else root[j]
                root[j] = max(root[j], least)
        value, slope, inverse = np.empty_like(total), np.empty_like(total), np.empty_like(total)
        for _ in range(_NEWTON_STEPS):
            value[:] = 0
            slope[:] = 0
            for k in range(classes):
                pk, ck = p[k, part], y[k, part]
                for j in range(pk.shape[0]):
                    r = pk[j] * inverse_peak[j]
                    inverse[j] = one / ((one - r) * total[j] + r * root[j])
                for j in range(pk.shape[0]):
                    value[j] += ck[j] * inverse[j]
                for j in range(pk.shape[0]):
                    slope[j] += ck[j] * inverse[j] * inverse[j] * pk[j] * inverse_peak[j]
            for j in range(root.shape[0]):
                root[j] += (value[j] - one) * value[j] / slope[j] if slope[j] > 0 else 0
            if value.max() <= close:
                break
        for j in range(value.shape[0]):
            value[j] = one / value[j]
        for k in range(classes):
            pk, ck = p[k, part], y[k, part]
            for j in range(pk.shape[0]):
                r = pk[j] * inverse_peak[j]
                inverse[j] = value[j] / ((one - r) * total[j] + r * root[j])
            for j in range(pk.shape[0]):
                ck[j] *= inverse[j]
            held = p.dtype.type(0)
            for j in range(pk.shape[0]):
                held += weight[j] * ck[j]
            mean[k] += held
            low = min(low, ck.min())
    return low


class NumbaSweep:
    """EM sweeps over rows kept in the compiled layout.

    Parameters
    ----------
    probs : Tensor of shape (M, K)
    weights : Tensor of shape (M,)
    labels : Tensor of shape (M, K)
        Where to start: positive everywhere; the caller's tensor stays untouched.
    """

    def __init__(self, probs: Tensor, weights: Tensor, labels: Tensor) -> None:
        self._probs: Array = np.ascontiguousarray(probs.numpy().T)
        self._weights: Array = weights.numpy()
        self._peak: Array = self._probs.max(0)
        self._y: Array = labels.numpy().T.copy()
        self._work = BlockedRows(*probs.shape)

    @property
    def labels(self) -> Tensor:
        """The current labels, ``(M, K)``, a view that the next sweep overwrites."""
        return torch.from_numpy(self._y).T

    def sweep(self, multipliers: Vector) -> tuple[Vector, bool]:
        """Take a sweep; return ``Σ_i ω_i y_i`` and whether all labels are still positive."""
        scale = multipliers.astype(self._probs.dtype)
        means = np.zeros((self._work.count, len(scale)))

        def work(number: int, rows: tuple[int, int]) -> float:
            return float(
                _sweep(
                    rows, self._probs, self._weights, self._y, scale, self._peak,
                    self._work.block, means[number],
                )
            )  # fmt: skip

        low = min(self._work.each(work))
        return means.sum(0), low > 0
