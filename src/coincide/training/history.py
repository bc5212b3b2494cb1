"""What a training tells of itself while it runs."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor


@dataclass(frozen=True)
class EpochRecord:
    """What an epoch looked like.

    Attributes
    ----------
    epoch, n_epochs : int
        Counted from 0.
    loss : float
        Mean of the batches' losses.
    live_clusters : int
        Clusters that some row was assigned to.
    changed : float
        Share of the rows whose cluster differs from the epoch before; 1 in the first epoch.
    least_share, largest_share : float
        The range of the clusters' shares of the rows.
    quantities : dict
        Means of what the method reports of its steps.
    revived : int
        Empty clusters that took over half of a large one, before the epoch or within it.
    """

    epoch: int
    n_epochs: int
    loss: float
    live_clusters: int
    changed: float
    least_share: float
    largest_share: float
    quantities: dict[str, float] = field(default_factory=dict)
    revived: int = 0


@dataclass(frozen=True)
class StepRecord:
    """Where the training stands after a step.

    Attributes
    ----------
    step, n_steps : int
        Steps done, and of the whole training.
    rows : int
        Rows of the step, over all ranks.
    loss : Tensor
        Its loss; reading the number waits for the device.
    """

    step: int
    n_steps: int
    rows: int
    loss: Tensor
