"""The one loop: batch, labels from the plain view, loss on the changed view, step.

It knows neither files nor estimators. A method says what labels and loss are, a view what
change the class should survive, the configuration how fast to go.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from coincide.training.config import TrainingConfig


class Rows(Protocol):
    """Inputs that can be indexed by row numbers and come as tensors on the device."""

    def __len__(self) -> int: ...

    def __getitem__(self, rows: Tensor | slice) -> Tensor: ...


class Method(Protocol):
    """What to learn from a batch: labels of its predictions, and a loss to them."""

    def labels(self, logits: Tensor, weights: Tensor | None = None) -> Tensor:
        """Return the labels of a batch."""
        ...

    def loss(self, logits: Tensor, labels: Tensor, weights: Tensor | None = None) -> Tensor:
        """Return the loss of a batch."""
        ...


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
    """

    epoch: int
    n_epochs: int
    loss: float
    live_clusters: int
    changed: float


class Trainer:
    """Trains a network in place, epoch by epoch.

    Parameters
    ----------
    network : nn.Module
        From a batch of inputs to logits ``(n, K)``; on the device already.
    method : Method
    view : callable
        Changes a batch of inputs at random.
    config : TrainingConfig
    """

    def __init__(
        self,
        network: nn.Module,
        method: Method,
        view: Callable[[Tensor], Tensor],
        config: TrainingConfig,
    ) -> None:
        self._network = network
        self._method = method
        self._view = view
        self._config = config
        self._optimizer = torch.optim.SGD(
            network.parameters(),
            lr=config.learning_rate,
            momentum=config.momentum,
            weight_decay=config.weight_decay,
        )

    def fit(
        self,
        rows: Rows,
        *,
        generator: torch.Generator,
        weights: Tensor | None = None,
        on_epoch: Callable[[EpochRecord], None] | None = None,
    ) -> list[EpochRecord]:
        """Train for the configured number of epochs and return their records.

        Parameters
        ----------
        rows : Rows
            The inputs, M of them.
        generator : torch.Generator
            Draws the order of the rows.
        weights : Tensor of shape (M,), optional
            Non-negative row weights, on the device of the network.
        on_epoch : callable, optional
            Called with every record as it is made.
        """
        n_epochs = self._config.epochs(len(rows))
        n_steps = n_epochs * self._config.steps_per_epoch(len(rows))
        clusters: Tensor | None = None
        records = []
        for epoch in range(n_epochs):
            before = clusters
            loss, clusters, live = self.run_epoch(
                rows, generator=generator, weights=weights, begun=epoch / n_epochs, n_steps=n_steps
            )
            changed = 1.0 if before is None else float((clusters != before).double().mean())
            records.append(EpochRecord(epoch, n_epochs, loss, live, changed))
            if on_epoch is not None:
                on_epoch(records[-1])
        return records

    def run_epoch(
        self,
        rows: Rows,
        *,
        generator: torch.Generator,
        weights: Tensor | None = None,
        begun: float = 0.0,
        n_steps: int | None = None,
    ) -> tuple[float, Tensor, int]:
        """Pass over the rows once; return the mean loss, every row's cluster, the live clusters.

        Parameters
        ----------
        rows, generator, weights
            As for :meth:`fit`.
        begun : float
            Share of the training that lies behind this pass.
        n_steps : int, optional
            Steps of the whole training; without it the learning rate stays as configured.
        """
        losses: list[Tensor] = []
        clusters = torch.empty(len(rows), dtype=torch.int64)
        n_clusters = 0
        order = torch.randperm(len(rows), generator=generator)
        self._network.train()
        for number, batch in enumerate(order.tensor_split(self._config.steps_per_epoch(len(rows)))):
            progress = 0.0 if n_steps is None else begun + number / n_steps
            self._set_learning_rate(progress)
            chosen = None if weights is None else weights[batch.to(weights.device)]
            loss, logits = self.step(rows[batch], chosen)
            losses.append(loss)
            clusters[batch] = logits.argmax(1).cpu()
            n_clusters = logits.shape[1]
        live = int((torch.bincount(clusters, minlength=n_clusters) > 0).sum())
        return float(torch.stack(losses).mean()), clusters, live

    def step(self, inputs: Tensor, weights: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Take one step on a batch; return its loss and the logits of the plain view."""
        with torch.no_grad():
            logits = self._network(inputs)
        labels = self._method.labels(logits, weights)
        loss = self._method.loss(self._network(self._view(inputs)), labels, weights)
        self._optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        self._optimizer.step()
        return loss.detach(), logits

    def _set_learning_rate(self, progress: float) -> None:
        """Hold the learning rate over three quarters, then let it fall linearly to 0."""
        share = min(1.0, 4 * (1 - progress))
        for group in self._optimizer.param_groups:
            group["lr"] = self._config.learning_rate * share
