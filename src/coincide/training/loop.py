"""The one loop: batch, views, network, method, step.

It knows neither files nor estimators. A method says what the loss is, a view what change the
class should survive, the configuration how fast to go, the ranks who else works on the batch. A
trainer can be stopped after any step and taken up again from its state, bit for bit on a CPU.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from coincide._checks import UNKNOWN
from coincide._threads import network_entries, threads_for
from coincide.methods.method import Batch, BatchLoss, Method
from coincide.networks import parameter_groups
from coincide.training.config import TrainingConfig
from coincide.training.history import EpochRecord, StepRecord
from coincide.training.ranks import ALONE, Ranks
from coincide.training.revival import revive, stretches, take_over
from coincide.training.rows import PredictedRows, Rows

_REVIVED_UNTIL = 0.7  # of all epochs; what comes to life later would not be settled in time


@dataclass(frozen=True)
class Data:
    """What is learned from.

    Attributes
    ----------
    rows : Rows
        The inputs, M of them.
    known : Tensor of shape (M,), int64, optional
        The class of each row, :data:`~coincide.methods.UNKNOWN` where there is none.
    weights : Tensor of shape (M,), optional
        Non-negative row weights, on the device of the network.
    """

    rows: Rows
    known: Tensor | None = None
    weights: Tensor | None = None


@dataclass
class _Epoch:
    """A pass over the data under way."""

    order_state: Tensor  # of the generator, before it drew the order of the rows
    step: int = 0
    losses: list[Tensor] = field(default_factory=list)
    quantities: list[dict[str, float]] = field(default_factory=list)
    revived: int = 0


class Trainer:
    """Trains a network in place, step by step.

    Parameters
    ----------
    network : nn.Module
        From a batch of inputs to logits ``(n, K)``; on the device already.
    method : Method
    view : callable
        Changes a batch of inputs at random.
    config : TrainingConfig
    generator : torch.Generator
        Draws the order of the rows.
    ranks : Ranks, optional
        The processes that share every batch.
    row_shape : sequence of int
        Of an input that is an image; it decides how many threads a step is worth.

    Attributes
    ----------
    epoch : int
        Epochs done.
    records : list of EpochRecord
    sizes : ndarray of shape (K,)
        Rows in each cluster, as the last epoch saw them.
    products : ndarray of shape (K, K)
        ``Σ_i σ_i σ_iᵀ`` of the last epoch's predictions, for those who watch over collapse.
    """

    def __init__(
        self,
        network: nn.Module,
        method: Method,
        view: Callable[[Tensor], Tensor],
        config: TrainingConfig,
        *,
        generator: torch.Generator,
        ranks: Ranks = ALONE,
        row_shape: Sequence[int] = (),
    ) -> None:
        self.network = network
        self.method = method
        self.config = config
        self.epoch = 0
        self.records: list[EpochRecord] = []
        self.sizes: NDArray[np.int64] = np.zeros(method.n_clusters, np.int64)
        self.products: NDArray[np.float64] = np.zeros((method.n_clusters, method.n_clusters))
        self._view = view
        self._half = config.precision == "bfloat16"
        self._generator = generator
        self._ranks = ranks
        self._row_shape = tuple(row_shape)
        self._optimizer = build_optimizer(network, config)
        self._rates = [group["lr"] for group in self._optimizer.param_groups]
        self._under_way: _Epoch | None = None
        self._clusters: Tensor | None = None
        self._before: Tensor | None = None
        self._late: Tensor | None = None  # the rows of the epoch's last stretch
        method.sums = ranks if ranks.size > 1 else None

    def fit(
        self,
        data: Data,
        *,
        until: int | None = None,
        on_epoch: Callable[[EpochRecord], None] | None = None,
        on_step: Callable[[StepRecord], None] | None = None,
    ) -> list[EpochRecord]:
        """Train up to an epoch, by default the configured number, and return all records.

        Parameters
        ----------
        data : Data
        until : int, optional
            The epoch to stop at, at most the configured number.
        on_epoch, on_step : callable, optional
            Called with every record as it is made; what they raise ends the training in a state
            that can be taken up again.
        """
        n_epochs = self.config.epochs(len(data.rows))
        n_rows = min(self.config.batch_size, len(data.rows))
        entries = network_entries(self.network, (n_rows, *self._row_shape))
        for epoch in range(self.epoch, n_epochs if until is None else min(until, n_epochs)):
            per_epoch = self.config.steps_per_epoch(len(data.rows))
            with threads_for(entries):
                record = self.run_epoch(data, epoch * per_epoch, n_epochs * per_epoch, on_step)
            if on_epoch is not None:
                on_epoch(record)
        return self.records

    def run_epoch(
        self,
        data: Data,
        begun: int = 0,
        n_steps: int | None = None,
        on_step: Callable[[StepRecord], None] | None = None,
    ) -> EpochRecord:
        """Pass over the rows once, or finish the pass that was under way.

        Parameters
        ----------
        data : Data
        begun : int
            Steps that lie behind this pass.
        n_steps : int, optional
            Steps of the whole training; without it the learning rate stays as configured.
        on_step : callable, optional
        """
        rows = data.rows
        n_epochs = self.config.epochs(len(rows))
        self.network.train()
        seen = PredictedRows(self.network, rows, half=self._half)
        if self._under_way is None:
            revived = 0
            if self._clusters is not None and self._late is not None and self.revives(n_epochs):
                revived = self._revive(self._clusters, self._late, seen)
            self._under_way = _Epoch(self._generator.get_state(), revived=revived)
            self._before = self._clusters
            self._clusters = torch.zeros(len(rows), dtype=torch.int64)
            self.products = np.zeros_like(self.products)
            self.method.begin_epoch(self.epoch, n_epochs, seen)
        else:
            self.method.begin_epoch(self.epoch, n_epochs, None)
        running = self._under_way
        assert self._clusters is not None
        self._generator.set_state(running.order_state)
        order = torch.randperm(len(rows), generator=self._generator)
        batches = order.tensor_split(self.config.steps_per_epoch(len(rows)))
        parts = stretches(len(batches), len(rows), self.method.n_clusters)
        ended = {part.stop: batches[part.start : part.stop] for part in parts}
        for number in range(running.step, len(batches)):
            if number in ended and self.revives(n_epochs, number / len(batches)):
                late = torch.cat(ended[number])
                running.revived += self._revive(self._ranks.total(self._clusters), late, seen)
            if n_steps is not None:
                self._set_learning_rate((begun + number) / n_steps)
            loss = self._train_on(data, batches[number])
            running.losses.append(loss)
            running.step += 1
            if on_step is not None:
                total = len(batches) if n_steps is None else n_steps
                on_step(StepRecord(begun + number + 1, total, len(batches[number]), loss))
        if self.config.revive:
            self._late = torch.cat(ended[len(batches)])
        return self._finish(running, n_epochs)

    def step(self, batch: Batch) -> BatchLoss:
        """Take one step on a batch and return what the method made of it."""
        self._optimizer.zero_grad(set_to_none=True)
        outcome = self._backward(batch, 1.0, 1.0)
        self._ranks.average_gradients(self.network.parameters())
        self._optimizer.step()
        return outcome

    def revives(self, n_epochs: int, done: float = 0.0) -> bool:
        """Whether clusters that are empty are revived, a share of the next epoch being done."""
        return bool(self.config.revive) and self.epoch + done < _REVIVED_UNTIL * n_epochs

    def _revive(self, clusters: Tensor, late: Tensor, seen: PredictedRows) -> int:
        """Give clusters that the latest rows left empty half of a large one; return how many."""
        head = self.network.head
        assert isinstance(head, nn.Linear)
        lately = torch.full_like(clusters, -1)
        lately[late] = clusters[late]
        pairs = revive(head, lately, seen, self._ranks)
        take_over(self._optimizer, head.parameters(), pairs)
        return len(pairs)

    def _train_on(self, data: Data, batch: Tensor) -> Tensor:
        """Take one step on the rows of a batch, this rank on its share; return the loss."""
        assert self._clusters is not None
        assert self._under_way is not None
        ranks = self._ranks
        if len(batch) < ranks.size:
            raise ValueError(
                f"{ranks.size} processes cannot share a batch of {len(batch)} rows. Choose a larger"
                " batch_size, or fewer processes."
            )
        self._optimizer.zero_grad(set_to_none=True)
        total = torch.zeros(())
        # Cut so that no process is ever without a row: they all wait for each other's sums.
        for part in batch.tensor_split(min(self.config.accumulate, len(batch) // ranks.size)):
            mine = part.tensor_split(ranks.size)[ranks.index]
            share, known_share = (ranks.size * share for share in _shares(data, mine, batch))
            outcome = self._backward(self._batch(data, mine), share, known_share)
            total = total + share * outcome.loss.cpu()
            self._count(mine, outcome)
        ranks.average_gradients(self.network.parameters())
        self._optimizer.step()
        return total

    def _batch(self, data: Data, rows: Tensor) -> Batch:
        plain = data.rows[rows]
        partners = self.method.partners(rows)
        weights = data.weights
        return Batch(
            rows=rows,
            plain=plain,
            views=tuple(self._view(plain) for _ in range(self.method.n_views)),
            partners=None if partners is None else self._view(data.rows[partners]),
            known=None if data.known is None else data.known[rows].to(plain.device),
            weights=None if weights is None else weights[rows.to(weights.device)],
        )

    def _backward(self, batch: Batch, share: float, known_share: float) -> BatchLoss:
        """Add the gradient of ``share`` times the method's loss and of that of known classes."""
        with torch.autocast(batch.plain.device.type, torch.bfloat16, enabled=self._half):
            outcome = self.method.loss(self.network, batch)
        weight = known_share * self.config.known_weight
        loss = share * outcome.loss + weight * known_loss(outcome.logits, batch.known)
        loss.backward()  # type: ignore[no-untyped-call]
        return replace(outcome, loss=outcome.loss.detach())

    @torch.no_grad()
    def _count(self, rows: Tensor, outcome: BatchLoss) -> None:
        """Note the clusters of a batch's rows as they are seen now."""
        assert self._clusters is not None
        assert self._under_way is not None
        self._under_way.quantities.append(outcome.quantities)
        if not self.method.clusters:
            return
        seen = outcome.logits.float() if outcome.seen is None else outcome.seen
        self._clusters[rows] = seen.argmax(1).cpu()
        probs = seen if outcome.seen is not None else torch.softmax(seen, 1)
        self.products += (probs.T @ probs).double().cpu().numpy()

    def _finish(self, running: _Epoch, n_epochs: int) -> EpochRecord:
        """Close the epoch: sums over its batches and over the ranks."""
        assert self._clusters is not None
        self._clusters = self._ranks.total(self._clusters)
        self.products = self._ranks.total(torch.from_numpy(self.products)).numpy()
        losses = self._ranks.total(torch.stack(running.losses)) / self._ranks.size
        sizes = torch.bincount(self._clusters, minlength=self.method.n_clusters)
        self.sizes = sizes.numpy()
        changed = 1.0
        if self._before is not None and len(self._before) == len(self._clusters):
            changed = float((self._clusters != self._before).double().mean())
        record = EpochRecord(
            epoch=self.epoch,
            n_epochs=n_epochs,
            loss=float(losses.mean()),
            live_clusters=int((sizes > 0).sum()),
            changed=changed,
            least_share=float(sizes.min()) / len(self._clusters),
            largest_share=float(sizes.max()) / len(self._clusters),
            quantities=_means(running.quantities, self._ranks),
            revived=running.revived,
        )
        self.records.append(record)
        self.epoch += 1
        self._under_way = None
        return record

    def _set_learning_rate(self, progress: float) -> None:
        share = self.config.rate_share(progress)
        for group, rate in zip(self._optimizer.param_groups, self._rates, strict=True):
            group["lr"] = rate * share

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Return all that the training depends on: tensors by name, and what JSON holds.

        torch's global random states are the caller's. Within an epoch every rank has a state of
        its own; between epochs they differ in batch statistics alone.
        """
        tensors = {f"network.{name}": t for name, t in self.network.state_dict().items()}
        optimizer = self._optimizer.state_dict()["state"]
        for number, entries in optimizer.items():
            tensors |= {f"optimizer.{number}.{name}": t for name, t in entries.items()}
        tensors |= {f"method.{name}": t for name, t in self.method.state().items()}
        tensors["generator"] = self._generator.get_state()
        tensors["products"] = torch.from_numpy(self.products)
        found = {"clusters": self._clusters, "before": self._before, "late": self._late}
        tensors |= {name: tensor for name, tensor in found.items() if tensor is not None}
        about: dict[str, Any] = {
            "epoch": self.epoch,
            "records": [asdict(record) for record in self.records],
            "under_way": None,
        }
        if self._under_way is not None:
            running = self._under_way
            tensors["order"] = running.order_state
            tensors["losses"] = torch.stack([torch.zeros(()), *running.losses])[1:]
            about["under_way"] = {
                "step": running.step,
                "quantities": running.quantities,
                "revived": running.revived,
            }
        return {name: t.detach().clone() for name, t in tensors.items()}, about

    def restore(self, tensors: dict[str, Tensor], about: dict[str, Any]) -> None:
        """Take up what :meth:`state` returned.

        Raises
        ------
        KeyError, RuntimeError
            If it is the state of another training.
        """
        tensors = {name: tensor.clone() for name, tensor in tensors.items()}
        weights = _part(tensors, "network.")
        other = weights.keys() ^ self.network.state_dict().keys()
        if other:  # torch itself makes up the counters of a batch norm that are not there
            raise RuntimeError(f"the network differs in {', '.join(sorted(other))}")
        self.network.load_state_dict(weights)
        entries: dict[int, dict[str, Tensor]] = {}
        for name, tensor in _part(tensors, "optimizer.").items():
            number, _, entry = name.partition(".")
            entries.setdefault(int(number), {})[entry] = tensor
        groups = self._optimizer.state_dict()["param_groups"]
        self._optimizer.load_state_dict({"state": entries, "param_groups": groups})
        self.method.restore(_part(tensors, "method."))
        self._generator.set_state(tensors["generator"])
        self.products = tensors["products"].numpy()
        self._clusters, self._before = tensors.get("clusters"), tensors.get("before")
        self._late = tensors.get("late")
        self.epoch = about["epoch"]
        self.records = [EpochRecord(**record) for record in about["records"]]
        self._under_way = None
        if about["under_way"] is not None:
            self._under_way = _Epoch(
                order_state=tensors["order"],
                step=about["under_way"]["step"],
                losses=list(tensors["losses"].unbind()),
                quantities=about["under_way"]["quantities"],
                revived=about["under_way"]["revived"],
            )


def build_optimizer(network: nn.Module, config: TrainingConfig) -> torch.optim.Optimizer:
    """Return the configured optimizer over the network's parameters."""
    groups = parameter_groups(
        network, config.learning_rate, config.backbone_learning_rate, config.weight_decay
    )
    if config.optimizer == "sgd":
        return torch.optim.SGD(groups, momentum=config.momentum)
    return torch.optim.Adam(groups, decoupled_weight_decay=config.optimizer == "adamw")


def known_loss(logits: Tensor, known: Tensor | None) -> Tensor:
    """Return the mean cross-entropy of the rows whose class is known; 0 if there are none."""
    if known is None or not bool((known != UNKNOWN).any()):
        return logits.new_zeros((), dtype=torch.float32)
    return F.cross_entropy(logits.float(), known, ignore_index=UNKNOWN)


def _shares(data: Data, rows: Tensor, batch: Tensor) -> tuple[float, float]:
    """Return the shares of a batch's weight, and of its known classes, that lie with some rows."""
    share, known_share = len(rows) / len(batch), 0.0
    if data.weights is not None:
        own, whole = (data.weights[r.to(data.weights.device)].double() for r in (rows, batch))
        share = float(own.sum() / whole.sum())
    if data.known is not None:
        known = int((data.known[batch] != UNKNOWN).sum())
        known_share = int((data.known[rows] != UNKNOWN).sum()) / max(1, known)
    return share, known_share


def _means(quantities: list[dict[str, float]], ranks: Ranks) -> dict[str, float]:
    """Return the mean of every quantity over the steps and the ranks."""
    names = list(quantities[0]) if quantities else []
    own = np.array([np.mean([step[name] for step in quantities]) for name in names])
    return dict(zip(names, (ranks.sum(own) / ranks.size).tolist(), strict=True))


def _part(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}
