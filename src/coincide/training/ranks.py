"""The processes that share every batch: here, the one process that is alone."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn


class Ranks:
    """What a training needs of the processes that share its batches; these are a single one.

    Every process gets the same numbers back.
    """

    size: int = 1
    index: int = 0

    def total(self, tensor: Tensor) -> Tensor:
        """Return the sum over the processes."""
        return tensor

    def sum(self, vector: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the sum over the processes."""
        return vector

    def least(self, value: float) -> float:
        """Return the smallest value of any process."""
        return value

    def average_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Replace every gradient by its mean over the processes."""


ALONE = Ranks()
