"""The coupling of a few rows over many classes, compiled by Numba: two unknowns a row.

See :class:`coincide.pseudolabels.kernels.contract.RowSystem`. A class that belongs to one row alone
almost cancels what that row has; so what the others have of it is summed without that row, never
subtracted.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from coincide._compiled_rows import compiled
from coincide.pseudolabels.kernels.contract import Vector

Array = NDArray[Any]


@compiled
def _weigh(order, w, y, iz, g, rows, mass, slope):
    """Fill ``ω d`` and ``q`` of the entries, class by class."""
    width = y.shape[1]
    for n in range(len(order)):
        i, c = rows[n], order[n] - rows[n] * width
        mass[n], slope[n] = w[i] * y[i, c] * iz[i, c], g[i, c]


@compiled
def _sum_classes(starts, mass, totals):
    """Sum the mass of every class."""
    for k in range(len(totals)):
        totals[k] = mass[starts[k] : starts[k + 1]].sum()


@compiled
def _project(starts, rows, mass, slope, w, start, vector, sums, out):
    """Fill ``Σ_i ω_i P_i vector``, of every row relative to its ``start``."""
    sums[:] = 0
    for k in range(len(out)):
        for n in range(starts[k], starts[k + 1]):
            i, q = rows[n], slope[n]
            moved = mass[n] * (vector[k] - start[i])
            sums[0, i] += mass[n]
            sums[1, i] += mass[n] * q
            sums[2, i] += mass[n] * q * q
            sums[3, i] += moved
            sums[4, i] += moved * q
    for i in range(len(w)):
        if w[i] == 0:
            continue
        # The row's own two equations, for β and γ.
        curved = w[i] + sums[2, i]
        beta = (sums[3, i] - sums[1, i] * sums[4, i] / curved) / (
            sums[0, i] - sums[1, i] * sums[1, i] / curved
        )
        sums[0, i], sums[1, i] = beta, (sums[4, i] - sums[1, i] * beta) / curved
    for k in range(len(out)):
        total = 0.0
        for n in range(starts[k], starts[k + 1]):
            i = rows[n]
            total += mass[n] * (vector[k] - start[i] - sums[0, i] - slope[n] * sums[1, i])
        out[k] = total


@compiled
def _assemble(starts, rows, mass, slope, totals, curvature, w, system):
    """Add up the lower triangle; unknowns ``2i`` and ``2i + 1`` are row ``i``'s ``β`` and ``γ``."""
    for k in range(len(curvature)):
        first, last, h = starts[k], starts[k + 1], curvature[k]
        top = first
        for n in range(first, last):
            if mass[n] > mass[top]:
                top = n
        beside_top = 0.0
        for n in range(first, last):
            beside_top += mass[n] if n != top else 0.0
        soft = 1 + h * totals[k]
        for n in range(first, last):
            i, q = 2 * rows[n], slope[n]
            beside = beside_top if n == top else totals[k] - mass[n]
            own, share = mass[n] * ((1 + h * beside) / soft), mass[n] * (h / soft)
            system[i, i] += own
            system[i + 1, i] += own * q
            system[i + 1, i + 1] += own * q * q
            for m in range(first, n):
                j, both = 2 * rows[m], share * mass[m]
                system[i, j] -= both
                system[i, j + 1] -= both * slope[m]
                system[i + 1, j] -= both * q
                system[i + 1, j + 1] -= both * q * slope[m]
    for i in range(len(w)):
        if w[i] == 0:  # nothing is asked of the row, and its unknowns are 0
            system[2 * i, 2 * i] = system[2 * i + 1, 2 * i + 1] = 1
        system[2 * i + 1, 2 * i + 1] += w[i]


@compiled
def _gather(starts, rows, mass, slope, vector, out):
    """Add a vector of the classes up to what it is to the unknowns."""
    for k in range(len(vector)):
        for n in range(starts[k], starts[k + 1]):
            moved = mass[n] * vector[k]
            out[2 * rows[n]] += moved
            out[2 * rows[n] + 1] += moved * slope[n]


@compiled
def _scatter(starts, rows, mass, slope, levels, out):
    """Fill ``out`` with what the unknowns are to the classes."""
    for k in range(len(out)):
        total = 0.0
        for n in range(starts[k], starts[k + 1]):
            total += mass[n] * (levels[2 * rows[n]] + slope[n] * levels[2 * rows[n] + 1])
        out[k] = total


class NumbaRowSystem:
    """Rows with a few classes each, sorted by class once, weighed anew for every system.

    Parameters
    ----------
    weights : array of shape (R,)
    classes : array of shape (R, C)
        Different within a row.
    n_classes : int
        K.
    """

    def __init__(self, weights: Array, classes: Array, n_classes: int) -> None:
        self._weights, self._classes = weights, classes
        self._order = np.argsort(classes, axis=None, kind="stable")
        self._rows = self._order // classes.shape[1]
        counts = np.bincount(classes.ravel(), minlength=n_classes)
        self._starts = np.concatenate(([0], np.cumsum(counts)))
        self._mass, self._slope = np.empty((2, classes.size))
        self._lead = classes[:, 0]
        self.mass: Vector = np.empty(n_classes)

    def weigh(self, labels: Array, inverse_slacks: Array, slopes: Array, lead: Array) -> None:
        """Take labels, inverse slacks and slopes ``q`` of all entries, and where the rows lead."""
        self._lead = self._classes[np.arange(len(lead)), lead]
        _weigh(
            self._order, self._weights, labels, inverse_slacks, slopes, self._rows,
            self._mass, self._slope,
        )  # fmt: skip
        _sum_classes(self._starts, self._mass, self.mass)

    def apply(self, vector: Vector) -> Vector:
        """Return ``(Σ_i ω_i P_i) vector``."""
        out, sums = np.empty(len(self.mass)), np.empty((5, len(self._weights)))
        _project(
            self._starts, self._rows, self._mass, self._slope, self._weights,
            vector[self._lead], vector, sums, out,
        )  # fmt: skip
        return out

    def assemble(self, curvature: Vector) -> Vector:
        """Return the lower triangle of the system, ``(2R, 2R)``."""
        system = np.zeros((2 * len(self._weights), 2 * len(self._weights)))
        _assemble(
            self._starts, self._rows, self._mass, self._slope, self.mass, curvature,
            self._weights, system,
        )  # fmt: skip
        return system

    def gather(self, vector: Vector) -> Vector:
        """Return ``Σ_k ω_i d_ik vector_k`` and ``Σ_k ω_i e_ik vector_k`` of the rows, ``(2R,)``."""
        out = np.zeros(2 * len(self._weights))
        _gather(self._starts, self._rows, self._mass, self._slope, vector, out)
        return out

    def scatter(self, levels: Vector) -> Vector:
        """Return ``Σ_i ω_i (d_i β_i + e_i γ_i)``, ``(K,)``: :meth:`gather` transposed."""
        out = np.empty(len(self.mass))
        _scatter(self._starts, self._rows, self._mass, self._slope, levels, out)
        return out
