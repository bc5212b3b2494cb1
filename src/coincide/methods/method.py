"""What a method is: from a batch of rows to a loss, and nothing about files, devices or ranks.

The loop shows a method one batch at a time: the rows as they are, randomly changed views of them,
what is known of their classes. The method calls the network as it needs and answers with a loss
and the logits it came from. A new method is one new file with one class, and one line in
``METHODS``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from torch import Tensor, nn

from coincide.pseudolabels.rows.shared import Sums


@dataclass(frozen=True)
class Batch:
    """What a method sees of a step.

    Attributes
    ----------
    rows : Tensor of shape (n,), int64
        The numbers of the rows within the data.
    plain : Tensor of shape (n, ...)
        The rows as they are.
    views : tuple of Tensor of shape (n, ...)
        As many random changes of the same rows as the method's ``n_views``.
    partners : Tensor of shape (n, ...), optional
        A changed view of the partner that the method named for every row.
    known : Tensor of shape (n,), int64, optional
        The class of each row, :data:`UNKNOWN` where there is none; None when all are unknown.
    weights : Tensor of shape (n,), optional
        Non-negative row weights; equal without them.
    """

    rows: Tensor
    plain: Tensor
    views: tuple[Tensor, ...]
    partners: Tensor | None = None
    known: Tensor | None = None
    weights: Tensor | None = None


@dataclass(frozen=True)
class BatchLoss:
    """What a method makes of a batch.

    Attributes
    ----------
    loss : Tensor
        A scalar to step on.
    logits : Tensor of shape (n, K)
        Of the batch's rows, with their gradient: the cross-entropy of known classes is taken of
        them.
    quantities : dict
        Scalars worth a line in the log, such as ``gap``.
    seen : Tensor of shape (n, K), optional
        Probabilities of the rows, on which clusters are counted; those of the logits without it.
    """

    loss: Tensor
    logits: Tensor
    quantities: dict[str, float] = field(default_factory=dict)
    seen: Tensor | None = None


class AllRows(Protocol):
    """The whole data, seen through the network as it is: plain views, evaluation mode."""

    def __len__(self) -> int: ...

    def logits(self) -> Tensor:
        """Return the logits of every row, ``(M, K)``, float32 on the CPU."""
        ...

    def features(self, rows: Tensor | None = None) -> Tensor:
        """Return what the head sees of every row, or of some, ``(M, D)``, float32 on the CPU."""
        ...

    def inputs(self, rows: Tensor) -> Tensor:
        """Return plain rows by their numbers, as in ``Batch.plain``."""
        ...


class Method:
    """The manners every method has; only :meth:`loss` must be written.

    The network is a :class:`coincide.networks.Network`: ``network(x)`` gives logits ``(n, K)``,
    ``network.backbone(x)`` features ``(n, D)`` and ``network.head(features)`` logits. In float32
    whatever the precision of the network.
    """

    n_views: int = 1
    n_clusters: int
    clusters: bool = True  # whether the logits mean clusters; a pretext's do not
    sums: Sums | None = None  # over the processes that share every batch

    def head(self, width: int) -> Callable[[], nn.Module] | None:
        """Return how to build the head on ``width`` features; None for a linear layer."""
        del width
        return None

    def begin_epoch(self, epoch: int, n_epochs: int, data: AllRows | None) -> None:
        """Prepare for a pass over the data, counted from 0.

        ``data`` is None when a pass is taken up again that was begun before: what was computed
        from the data then is in the state.
        """

    def partners(self, rows: Tensor) -> Tensor | None:
        """Return the number of a partner for every row, to be changed and shown beside it."""
        del rows
        return None

    def loss(self, network: nn.Module, batch: Batch) -> BatchLoss:
        """Return the loss of a batch and the logits of its rows."""
        raise NotImplementedError

    def state(self) -> dict[str, Tensor]:
        """Return what must survive a restart, by name."""
        return {}

    def restore(self, state: dict[str, Tensor]) -> None:
        """Take up what :meth:`state` returned."""


def weighted_mean(values: Tensor, weights: Tensor | None) -> Tensor:
    """Return the mean of one value a row, ``(n,)``, under row weights."""
    if weights is None:
        return values.mean()
    # Not a matrix product: autocast would take it in half precision.
    return (weights * values).sum() / weights.sum()


def mean_probs(probs: Tensor, weights: Tensor | None = None) -> Tensor:
    """Return ``σ̄``, the mean prediction of a batch, ``(K,)``."""
    if weights is None:
        return probs.mean(0)
    return (weights[:, None] * probs).sum(0) / weights.sum()
