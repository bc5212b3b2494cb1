"""The processes that share every batch, and the one process that is alone."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn


class Ranks(Protocol):
    """What a training needs of the other processes: sums, and the mean of the gradients.

    Every process gets the same numbers back.
    """

    size: int
    index: int

    def total(self, tensor: Tensor) -> Tensor:
        """Return the sum over the processes."""
        ...

    def sum(self, vector: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the sum over the processes."""
        ...

    def least(self, value: float) -> float:
        """Return the smallest value of any process."""
        ...

    def average_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Replace every gradient by its mean over the processes."""
        ...


class Alone:
    """A single process."""

    size = 1
    index = 0

    def total(self, tensor: Tensor) -> Tensor:
        """Return the tensor."""
        return tensor

    def sum(self, vector: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the vector."""
        return vector

    def least(self, value: float) -> float:
        """Return the value."""
        return value

    def average_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Leave the gradients as they are."""


ALONE = Alone()
