"""Row kernels of one problem whose rows lie with several processes.

Every process works on its rows; what the coupling needs are sums of K-vectors, one K×K sum and a
few smallest entries. Nothing else crosses.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
from torch import Tensor

from coincide.pseudolabels.kernels.contract import (
    Extents,
    Factors,
    Prediction,
    RowKernels,
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


class NoRows:
    """The kernels of a process that has no row to solve for: it adds nothing to the sums."""

    name = "none"

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

    def advance(self, length: float) -> StepArrays:
        """Return the arrays without rows."""
        del length
        return self._arrays


class SharedRows:
    """The kernels of this process's rows, with sums over those of all processes.

    Parameters
    ----------
    rows : RowKernels
    sums : Sums
    """

    def __init__(self, rows: RowKernels, sums: Sums) -> None:
        self.name = rows.name
        self._rows = rows
        self._sums = sums

    def load(self, labels: Tensor, slacks: Tensor) -> StepArrays:
        """Take the first iterate of the own rows."""
        return self._rows.load(labels, slacks)

    def factor(self) -> Factors:
        """Factor the own rows' Hessians and sum over all rows."""
        own = self._rows.factor()
        return Factors(
            self._sums.sum(own.gram),
            self._sums.sum(own.pull),
            self._sums.sum(own.mean_label),
            self._number(own.complementarity),
        )

    def predict(self, shift: Vector) -> Prediction:
        """Find the affine direction of the own rows; sum over all."""
        own = self._rows.predict(shift)
        return Prediction(
            self._sums.least(own.low),
            -self._sums.least(-own.high),
            self._number(own.first),
            self._number(own.second),
            self._sums.sum(own.center),
            self._sums.sum(own.bend),
        )

    def correct(self, shift: Vector, target: float) -> Extents:
        """Find the corrected direction of the own rows, and the extents of all."""
        own = self._rows.correct(shift, target)
        return Extents(self._sums.least(own.primal), self._sums.least(own.dual))

    def advance(self, length: float) -> StepArrays:
        """Take a step on the own rows."""
        return self._rows.advance(length)

    def _number(self, value: float) -> float:
        return float(self._sums.sum(np.array([value]))[0])
