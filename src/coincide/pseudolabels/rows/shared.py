"""The passes of one problem whose rows lie with several processes.

Every process works on its rows; what the coupling needs are sums of K-vectors, one K×K sum and a
few smallest entries. Nothing else crosses.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
from torch import Tensor

from coincide.pseudolabels.rows.contract import (
    Extents,
    Factors,
    NewtonRows,
    Prediction,
    StepArrays,
    Vector,
)


class Sums(Protocol):
    """Sums over the processes that hold the rows of one problem: each gets the same back."""

    def sum(self, vector: Vector) -> Vector:
        """Return the sum over the processes."""
        ...

    def least(self, value: float) -> float:
        """Return the smallest value of any process."""
        ...


def sum_together(sums: Sums, *arrays: Vector) -> list[Vector]:
    """Return the sums of several arrays over the processes, in one message."""
    flat = sums.sum(np.concatenate([array.ravel() for array in arrays]))
    pieces = np.split(flat, np.cumsum([array.size for array in arrays])[:-1])
    return [piece.reshape(own.shape) for piece, own in zip(pieces, arrays, strict=True)]


class NoRows:
    """The passes of a process that has no row to solve for: it adds nothing to the sums."""

    def __init__(self, n_classes: int) -> None:
        self._nothing = np.zeros(n_classes)

    def load(self, labels: Tensor, slacks: Tensor) -> StepArrays:
        """Take arrays without rows."""
        self._arrays = StepArrays(labels, slacks)
        return self._arrays

    def factor(self) -> Factors:
        """Return sums of nothing."""
        return Factors(np.diag(self._nothing), self._nothing, self._nothing, 0.0)

    def predict(self, shift: Vector) -> Prediction:
        """Return sums of nothing, and extents that no row has."""
        del shift
        return Prediction(np.inf, -np.inf, 0.0, 0.0, self._nothing, self._nothing)

    def correct(self, shift: Vector, target: float) -> Extents:
        """Return extents that no row has."""
        del shift, target
        return Extents(np.inf, np.inf)

    def advance(self, primal: float, dual: float) -> StepArrays:
        """Return the arrays without rows."""
        del primal, dual
        return self._arrays


class SharedRows:
    """The passes of this process's rows, with sums over those of all processes.

    Parameters
    ----------
    rows : NewtonRows
    sums : Sums
    """

    def __init__(self, rows: NewtonRows, sums: Sums) -> None:
        self._rows = rows
        self._sums = sums

    def load(self, labels: Tensor, slacks: Tensor) -> StepArrays:
        """Take the first iterate of the own rows."""
        return self._rows.load(labels, slacks)

    def factor(self) -> Factors:
        """Factor the own rows' Hessians and sum over all rows."""
        own = self._rows.factor()
        gram, gradient, mean_label, complementarity = sum_together(
            self._sums, own.gram, own.gradient, own.mean_label, np.array(own.complementarity)
        )
        return Factors(gram, gradient, mean_label, float(complementarity))

    def predict(self, shift: Vector) -> Prediction:
        """Find the affine direction of the own rows; sum over all."""
        own = self._rows.predict(shift)
        numbers, center, correction = sum_together(
            self._sums, np.array([own.first, own.second]), own.center, own.correction
        )
        low, high = self._sums.least(own.low), -self._sums.least(-own.high)
        return Prediction(low, high, float(numbers[0]), float(numbers[1]), center, correction)

    def correct(self, shift: Vector, target: float) -> Extents:
        """Find the corrected direction of the own rows, and the extents of all."""
        own = self._rows.correct(shift, target)
        return Extents(self._sums.least(own.primal), self._sums.least(own.dual))

    def advance(self, primal: float, dual: float) -> StepArrays:
        """Take steps on the own rows."""
        return self._rows.advance(primal, dual)
