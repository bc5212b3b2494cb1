"""One sweep of EM compiled by Numba: E-step and M-step in one or two passes over the rows.

The mathematics is that of :mod:`coincide.pseudolabels.em` with ``d`` relative to ``1 + a``, the
share ``ρ = d/(1 + a)``, and with ``q_k = 1 - σ_k/σ_max``:

    y_k = c_k / ((1 + a)(ρ + q_k (1 - ρ))),      1 + a = Σ_k c_k / (ρ + q_k (1 - ρ)) at the root.

Neither sum of the denominator cancels, and it holds for ``c_k = 0`` too: ``ρ`` stays above a floor
below which only the class with ``q_k = 0`` feels it, and that class takes the left-over mass.

Division bounds the time, so the sweeps save divisions. A row starts at a ``ρ`` extrapolated from
the last three sweeps; most often that is close enough and the pass that tries it has filled in
the labels. Otherwise a step of third order, and a pass that replaces the denominators. Rows are
not normalized in a pass of their own: their mass is kept beside them.

The arrays lie in tiles of rows, ``(tile, class, row)``: the innermost loops run along the rows of
a tile, with no remainder, and a tile stays in the cache for all its passes.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from coincide._compiled_rows import BlockedRows, compiled
from coincide.pseudolabels.kernels.contract import Vector

Array = NDArray[Any]

_TILE = 64
_MOST_PASSES = 60

# Of the rows of a tile: the denominators ρ + q (1 - ρ), the earlier ones, sums over classes, and
# the largest prediction with its inverse: q = (σ_max - σ)/σ_max is made anew from predictions that
# may have fewer digits. One array holds them all: the compiler then knows that they do not
# overlap, and vectorizes.
_ROOT, _REST, _OLD_ROOT, _OLD_REST, _TOTAL, _VALUE, _SLOPE, _BEND, _LEVEL, _GUESS = range(10)
_MOST, _INVERSE = 10, 11
_LANES = 12


@compiled
def _place(p, y, scale, lanes):
    """Replace ``y`` by ``c / (ρ + q (1 - ρ))`` with ``c = scale · y``; sum over the classes."""
    zero, one = y.dtype.type(0), y.dtype.type(1)
    # Smaller labels would slow every later sweep: processors trap on denormal numbers.
    least = y.dtype.type(np.finfo(y.dtype).tiny / np.finfo(y.dtype).eps)
    lanes[_TOTAL : _BEND + 1] = 0
    for k in range(p.shape[0]):
        pk, yk, sk = p[k], y[k], scale[k]
        for j in range(_TILE):
            q = (lanes[_MOST, j] - pk[j]) * lanes[_INVERSE, j]
            term = sk * yk[j]
            lanes[_TOTAL, j] += term
            inverse = one / (lanes[_ROOT, j] + q * lanes[_REST, j])
            term *= inverse
            term = term if term > least else zero
            yk[j] = term
            lanes[_VALUE, j] += term
            inverse *= lanes[_ROOT, j]
            inverse -= q * inverse
            term *= inverse
            lanes[_SLOPE, j] += term
            lanes[_BEND, j] += term * inverse


@compiled
def _replace(p, y, lanes):
    """Exchange the old denominators of ``y`` for the new ones; sum over the classes."""
    one = y.dtype.type(1)
    lanes[_VALUE : _BEND + 1] = 0
    for k in range(p.shape[0]):
        pk, yk = p[k], y[k]
        for j in range(_TILE):
            q = (lanes[_MOST, j] - pk[j]) * lanes[_INVERSE, j]
            inverse = one / (lanes[_ROOT, j] + q * lanes[_REST, j])
            term = yk[j] * inverse * (lanes[_OLD_ROOT, j] + q * lanes[_OLD_REST, j])
            yk[j] = term
            lanes[_VALUE, j] += term
            inverse *= lanes[_ROOT, j]
            inverse -= q * inverse
            term *= inverse
            lanes[_SLOPE, j] += term
            lanes[_BEND, j] += term * inverse


@compiled
def _improve(lanes, root, floor, tolerance):
    """Move ``ρ`` by a step of third order on ``1 - 1/F``; return how many rows were not close."""
    zero, one, half = root.dtype.type(0), root.dtype.type(1), root.dtype.type(0.5)
    least_factor = root.dtype.type(0.125)
    rounding = root.dtype.type(16 * np.finfo(root.dtype).eps)
    far = 0
    for j in range(_TILE):
        excess = lanes[_VALUE, j] - lanes[_LEVEL, j]
        bound = max(tolerance, rounding * lanes[_LEVEL, j])
        close = (excess <= bound) & ((-excess <= bound) | (root[j] <= floor))
        far += 0 if close else 1
    for j in range(_TILE):
        per_level, per_slope = one / lanes[_LEVEL, j], one / lanes[_SLOPE, j]
        excess = lanes[_VALUE, j] * per_level - one
        newton = excess * (lanes[_VALUE, j] * per_slope)
        bend = lanes[_BEND, j] * per_slope * (lanes[_VALUE, j] * per_slope) - one
        step = newton * (one + min(max(excess * bend, -half), one))
        # Without a slope no ρ places the mass: the leading class takes what is left over.
        factor = max(one + step, least_factor) if lanes[_SLOPE, j] > floor * floor else zero
        # At ρ = a/(1 + a) F is 1 at most.
        root[j] = max(floor, min(root[j] * factor, one - per_level))
    return far


@compiled
def _guess(lanes, root, change, last_change, floor):
    """Move ``ρ`` to where a parabola through the last three sweeps continues."""
    one, two, half = root.dtype.type(1), root.dtype.type(2), root.dtype.type(0.5)
    most = one - root.dtype.type(np.finfo(root.dtype).eps)
    for j in range(_TILE):
        guess = root[j] + change[j] + (change[j] - last_change[j])
        guess = min(max(guess, half * root[j]), two * root[j])
        lanes[_GUESS, j] = max(floor, min(guess, most))
    for j in range(_TILE):
        last_change[j] = change[j]
    for j in range(_TILE):
        change[j] = -root[j]
    for j in range(_TILE):
        root[j] = lanes[_GUESS, j]


@compiled
def _give_leftover(y, lanes, floor, leading):
    """Give the mass that no ``ρ`` above the floor can place to the class with ``q = 0``."""
    low = 0
    for j in range(_TILE):
        low += 1 if lanes[_ROOT, j] <= floor else 0
    if low == 0:
        return
    for j in range(_TILE):
        leftover = lanes[_LEVEL, j] - lanes[_VALUE, j]
        if leftover > 0 and lanes[_ROOT, j] <= floor:
            lanes[_VALUE, j] = lanes[_LEVEL, j]
            y[leading[j], j] += leftover


@compiled
def _sweep(
    tiles, p, most, weights, leading, y, masses, roots, placed, changes, scale, tolerance, mean
):
    """Replace the labels ``y/mass`` by the M-step for ``c = scale · y/mass``; add ``Σ ω y``."""
    zero, one = y.dtype.type(0), y.dtype.type(1)
    eps = y.dtype.type(np.finfo(y.dtype).eps)
    floor = eps * eps  # a positive q is at least eps
    lanes = np.empty((_LANES, _TILE), y.dtype)
    for tile in range(tiles[0], tiles[1]):
        pt, yt, mass, root = p[tile], y[tile], masses[tile], roots[tile]
        _guess(lanes, root, changes[tile, 0], changes[tile, 1], floor)
        for j in range(_TILE):
            lanes[_MOST, j] = most[tile, j]
            lanes[_INVERSE, j] = one / lanes[_MOST, j]
            lanes[_ROOT, j] = root[j] * mass[j]
            lanes[_REST, j] = (one - root[j]) * mass[j]
        _place(pt, yt, scale, lanes)
        for j in range(_TILE):
            lanes[_LEVEL, j] = one + lanes[_TOTAL, j] / mass[j]
            lanes[_ROOT, j] = root[j]
            lanes[_REST, j] = one - root[j]
        for _ in range(_MOST_PASSES):
            if _improve(lanes, root, floor, tolerance) == 0:
                break
            for j in range(_TILE):
                lanes[_OLD_ROOT, j] = lanes[_ROOT, j]
                lanes[_OLD_REST, j] = lanes[_REST, j]
                lanes[_ROOT, j] = root[j]
                lanes[_REST, j] = one - root[j]
            _replace(pt, yt, lanes)
        for j in range(_TILE):
            changes[tile, 0, j] += root[j]
        _give_leftover(yt, lanes, floor, leading[tile])
        for j in range(_TILE):
            mass[j] = lanes[_VALUE, j]
        for j in range(_TILE):
            placed[tile, j] = lanes[_ROOT, j]
        for j in range(_TILE):
            lanes[_GUESS, j] = weights[tile, j] / lanes[_VALUE, j]
        for k in range(yt.shape[0]):
            yk = yt[k]
            held = zero
            for j in range(_TILE):
                held += lanes[_GUESS, j] * yk[j]
            mean[k] += held


class NumbaSweep:
    """EM sweeps over rows kept in the compiled layout.

    Parameters
    ----------
    probs : Tensor of shape (M, K)
        float32 or float64; kept as it is.
    weights : Tensor of shape (M,)
    labels : Tensor of shape (M, K)
        Where to start, positive; the caller's tensor stays untouched. All arithmetic is in its
        precision.
    """

    def __init__(self, probs: Tensor, weights: Tensor, labels: Tensor) -> None:
        self._n_rows, n_classes = probs.shape
        most, leading = probs.max(1, keepdim=True)
        self._p = _tiled(probs)
        self._most, self._weights, self._leading = (
            _tiled(column, filling)[:, 0]
            for column, filling in ((most, 1), (weights[:, None].to(labels), 0), (leading, 0))
        )
        self._y = _tiled(labels)
        self._masses = np.ones_like(self._weights)
        self._roots = np.full_like(self._weights, 0.5)
        self._placed = self._roots.copy()  # where the labels are; roots are where to go on
        self._changes: Array = np.zeros((len(self._y), 2, _TILE), self._y.dtype)
        self._work = BlockedRows(len(self._y), _TILE * n_classes)

    @property
    def labels(self) -> Tensor:
        """The current labels, ``(M, K)``, a copy."""
        y, masses = torch.from_numpy(self._y), torch.from_numpy(self._masses)
        rows = y.new_empty(len(y) * _TILE, y.shape[1])
        torch.div(y.transpose(1, 2), masses[:, :, None], out=rows.view(len(y), _TILE, -1))
        return rows[: self._n_rows]

    def sweep(self, multipliers: Vector, tolerance: float) -> Vector:
        """Take a sweep and return ``Σ_i ω_i y_i``; ``tolerance`` bounds ``(1 + a) |F - 1|``."""
        scale = multipliers.astype(self._y.dtype)
        means = np.zeros((self._work.count, len(scale)))

        def work(number: int, tiles: tuple[int, int]) -> None:
            _sweep(
                tiles, self._p, self._most, self._weights, self._leading, self._y, self._masses,
                self._roots, self._placed, self._changes, scale,
                scale.dtype.type(tolerance), means[number],
            )  # fmt: skip

        self._work.each(work)
        total: Vector = means.sum(0)
        return total


def _tiled(rows: Tensor, filling: float = 0) -> Array:
    """Return rows as ``(tile, class, row)``, filled up with rows of one number."""
    n_rows, n_classes = rows.shape
    whole = n_rows // _TILE
    split = whole * _TILE
    # Torch aligns its memory to cache lines, NumPy does not: a quarter of the time.
    tiles = rows.new_empty(-(-n_rows // _TILE), n_classes, _TILE)
    tiles[:whole] = rows[:split].reshape(whole, _TILE, n_classes).transpose(1, 2)
    if split < n_rows:
        tiles[-1] = filling
        tiles[-1, :, : n_rows - split] = rows[split:].T
    array: Array = tiles.numpy()
    return array
