"""How a network is trained, in one frozen record."""

from __future__ import annotations

import math
from dataclasses import dataclass

_LEAST_EPOCHS = 3
_LEAST_STEPS = 120


@dataclass(frozen=True)
class TrainingConfig:
    """The settings of the loop.

    Attributes
    ----------
    batch_size : int
        Rows a step; also the size of the pseudo-label problem.
    learning_rate, momentum, weight_decay : float
        Of stochastic gradient descent; the learning rate falls linearly over the last quarter.
    max_epochs : int or None
        Passes over the data; None: at least 3 and at least 120 steps.
    """

    batch_size: int = 500
    learning_rate: float = 0.3
    momentum: float = 0.9
    weight_decay: float = 0.1
    max_epochs: int | None = None

    def steps_per_epoch(self, n_rows: int) -> int:
        """Return the number of batches, all of nearly the same size and none above the limit."""
        return math.ceil(n_rows / self.batch_size)

    def epochs(self, n_rows: int) -> int:
        """Return the number of passes over ``n_rows`` rows."""
        if self.max_epochs is not None:
            return self.max_epochs
        return max(_LEAST_EPOCHS, math.ceil(_LEAST_STEPS / self.steps_per_epoch(n_rows)))
