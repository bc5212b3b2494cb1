"""Extrapolated EM compiled by Numba: a pass that continues two sweeps by integer powers.

The mathematics is that of :mod:`coincide.pseudolabels.accelerated_em`. What a sweep multiplied a
label by, ``g_ik = w_k / (F_i (ρ_i + q_ik (1 - ρ_i)))``, follows from a K-vector and two numbers a
row: neither earlier labels nor logarithms are needed.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from coincide._compiled_rows import compiled
from coincide.pseudolabels.kernels.contract import Vector
from coincide.pseudolabels.kernels.numba_em import _TILE, Array, NumbaSweep

_SAMPLE = 16  # one tile in so many tells how far to go

# Of the rows of a tile: denominators of both sweeps with their mass, powers, and sums.
_FIRST, _FIRST_REST, _SECOND, _SECOND_REST, _POWER, _GROWTH, _UNIT, _MASS, _NOW, _NEXT = range(10)
_MOST, _INVERSE = 10, 11
_LANES = 12


@compiled
def _extrapolate(
    tiles, p, most, weights, y, masses, saved, first, second, ratio, scale, doublings, mean, losses
):
    """Replace ``y`` by ``y (h^m g²)^m``, ``m = 2^doublings``; add ``Σ ω y`` and the row losses."""
    zero, one = y.dtype.type(0), y.dtype.type(1)
    least = y.dtype.type(1e-30)  # no label dies of an extrapolation
    lanes = np.empty((_LANES, _TILE), y.dtype)
    for tile in range(tiles[0], tiles[1]):
        pt, yt, st = p[tile], y[tile], saved[tile]
        for j in range(_TILE):
            lanes[_FIRST, j] = first[tile, 0, j] * first[tile, 1, j]
            lanes[_FIRST_REST, j] = (one - first[tile, 0, j]) * first[tile, 1, j]
            lanes[_SECOND, j] = second[tile, 0, j] * second[tile, 1, j]
            lanes[_SECOND_REST, j] = (one - second[tile, 0, j]) * second[tile, 1, j]
            lanes[_UNIT, j] = one / masses[tile, j]
            lanes[_MOST, j] = most[tile, j]
            lanes[_INVERSE, j] = one / lanes[_MOST, j]
        lanes[_MASS : _NEXT + 1] = 0
        for k in range(yt.shape[0]):
            pk, yk, sk, rk, ck = pt[k], yt[k], st[k], ratio[k], scale[k]
            for j in range(_TILE):
                q = (lanes[_MOST, j] - pk[j]) * lanes[_INVERSE, j]
                inverse = one / (lanes[_SECOND, j] + q * lanes[_SECOND_REST, j])
                lanes[_GROWTH, j] = ck * inverse
                before = lanes[_FIRST, j] + q * lanes[_FIRST_REST, j]
                lanes[_POWER, j] = rk * before * inverse
            for _ in range(doublings):
                for j in range(_TILE):
                    lanes[_POWER, j] *= lanes[_POWER, j]
            for j in range(_TILE):
                lanes[_POWER, j] *= lanes[_GROWTH, j] * lanes[_GROWTH, j]
            for _ in range(doublings):
                for j in range(_TILE):
                    lanes[_POWER, j] *= lanes[_POWER, j]
            for j in range(_TILE):
                sk[j] = yk[j]
            for j in range(_TILE):
                q = (lanes[_MOST, j] - pk[j]) * lanes[_INVERSE, j]
                now = sk[j] * lanes[_UNIT, j]
                label = max(now * lanes[_POWER, j], least)
                yk[j] = label
                lanes[_MASS, j] += label
                lanes[_NEXT, j] += label - q * label
                lanes[_NOW, j] += now - q * now
        for j in range(_TILE):
            masses[tile, j] = lanes[_MASS, j]
        for j in range(_TILE):
            lanes[_UNIT, j] = weights[tile, j] / lanes[_MASS, j]
        for j in range(_TILE):
            if weights[tile, j] > 0:
                losses[0] -= weights[tile, j] * np.log(lanes[_NOW, j])
                losses[1] -= weights[tile, j] * np.log(lanes[_NEXT, j] / lanes[_MASS, j])
        for k in range(yt.shape[0]):
            yk = yt[k]
            held = zero
            for j in range(_TILE):
                held += lanes[_UNIT, j] * yk[j]
            mean[k] += held


class NumbaSquarem(NumbaSweep):
    """EM sweeps, and the extrapolation of the last two."""

    def __init__(self, probs: Tensor, weights: Tensor, labels: Tensor) -> None:
        super().__init__(probs, weights, labels)
        self._saved = torch.empty(self._y.shape, dtype=labels.dtype).numpy()
        self._kept = self._masses
        self._factors: list[tuple[Array, Array]] = []

    def sweep(self, multipliers: Vector, tolerance: float) -> Vector:
        """Take a sweep and return ``Σ_i ω_i y_i``; remember what it multiplied the labels by."""
        mean = super().sweep(multipliers, tolerance)
        rows = np.stack((self._placed, self._masses), 1)
        self._factors = [*self._factors[-1:], (multipliers.astype(self._y.dtype), rows)]
        return mean

    def length(self) -> float:
        """Return ``‖ln g₁‖/‖ln h‖`` with the labels as weights, from a sample of the rows."""
        part = slice(None, None, _SAMPLE)
        most, logs = self._most[part, None], []
        q = (most - self._p[part]) / most
        for scale, rows in self._factors:
            root, mass = rows[part, :1], rows[part, 1:]
            # A class without coefficients has no labels to weigh it.
            growth = np.log(np.where(scale > 0, scale, 1))[:, None]
            logs.append(growth - np.log(mass * (root + q * (1 - root))))
        shares = self._y[part] * (self._weights[part] / self._masses[part])[:, None]
        change, bend = (float((shares * x**2).sum()) for x in (logs[0], logs[1] - logs[0]))
        return float(np.sqrt(change / bend)) if bend > 0 else 1.0

    def extrapolate(self, doublings: int) -> tuple[Vector, float, float]:
        """Continue the path; return ``Σ_i ω_i y_i``, the row losses before and after."""
        (before, first), (scale, second) = self._factors
        ratio = np.divide(scale, before, out=np.zeros_like(scale), where=before > 0)
        means, losses = np.zeros((self._work.count, len(scale))), np.zeros((self._work.count, 2))
        self._kept = self._masses.copy()

        def work(number: int, tiles: tuple[int, int]) -> None:
            _extrapolate(
                tiles, self._p, self._most, self._weights, self._y, self._masses, self._saved,
                first, second, ratio, scale, doublings, means[number], losses[number],
            )  # fmt: skip

        self._work.each(work)
        self._changes[:] = 0
        now, then = losses.sum(0)
        return means.sum(0), float(now), float(then)

    def restore(self) -> None:
        """Return to the labels before the extrapolation."""
        self._y, self._saved, self._masses = self._saved, self._y, self._kept
