"""IMSAT: mutual information, and predictions that withstand the worst small change.

loss   R_vat + R_sat + λ [mean H(σ) - μ H(σ̄)]                       σ from the plain view

    R_vat = mean_i KL(σ_i ‖ σ(x_i + ε_i d_i))     d_i the unit direction of the largest change
    R_sat = mean_i KL(σ_i ‖ σ'_i)                 σ' from the changed view

``σ_i`` has no gradient in either penalty. ``R_sat`` is what the source puts in the place of
``R_vat`` for a change of one's own, and the collision paper beside it, for images.

The direction takes one step of the power method, from a random unit vector ``d``: the gradient
of ``KL(σ(x) ‖ σ(x + ξ d))`` in ``d``. The radius ``ε_i`` is a share of the distance from ``x_i``
to its 10th neighbor.

Sources: Hu, Miyato, Tokui, Matsumoto & Sugiyama, *Learning Discrete Representations via
Information Maximizing Self-Augmented Training*, ICML 2017; Miyato, Maeda, Koyama & Ishii,
*Virtual Adversarial Training*, TPAMI 41 (2019).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from coincide._checks import check_integer, check_real, parameter_message
from coincide.methods.method import AllRows, Batch, BatchLoss, Method, weighted_mean
from coincide.methods.mi import check_positive_prior, information_loss
from coincide.pseudolabels.objectives import Vector

_BLOCK = 1024  # rows whose distances are found at a time


@dataclass
class IMSAT(Method):
    """Clustering by mutual information, smoothed by virtual adversarial training.

    Parameters
    ----------
    n_clusters : int
    prior : array of shape (K,), float64
        ``u``, positive in every class; see :class:`coincide.methods.mi.MutualInformation`.
    weight : float
        ``λ``, the weight of the mutual information.
    fairness : float
        ``μ``, the weight of the mean prediction's entropy within it.
    augment : bool
        Whether the changed view counts as well (``R_sat``). Without it the method asks for no
        view, and its logits are those of the plain rows.
    reach : float
        ``ε_i`` as a share of the distance to the neighbor.
    n_neighbors : int
        Which neighbor.
    probe : float
        ``ξ``, the length of the random vector that the power method starts from.
    n_references : int
        Neighbors are looked for among at most this many rows, drawn at random: the one at the
        same share of the rows, the nearest at least. It keeps ``M = 60,000`` images to seconds.
    """

    n_clusters: int
    prior: Vector
    weight: float = 0.1
    fairness: float = 4.0
    augment: bool = True
    reach: float = 0.25
    n_neighbors: int = 10
    probe: float = 10.0
    n_references: int = 5000
    _distances: Tensor | None = field(default=None, init=False, repr=False)

    def __post_init__(self) -> None:
        owner = type(self).__name__
        check_integer(self.n_clusters, "n_clusters", owner, low=2)
        self.prior = check_positive_prior(self.prior, self.n_clusters, owner)
        check_real(self.weight, "weight", owner)
        check_real(self.fairness, "fairness", owner)
        if not isinstance(self.augment, bool):
            raise TypeError(parameter_message("augment", owner, "True or False", self.augment))
        check_real(self.reach, "reach", owner)
        check_integer(self.n_neighbors, "n_neighbors", owner, low=1)
        check_real(self.probe, "probe", owner, open_low=True)
        check_integer(self.n_references, "n_references", owner, low=2)
        self.n_views = int(self.augment)

    def begin_epoch(self, epoch: int, n_epochs: int, data: AllRows | None) -> None:
        """Find every row's distance to its neighbor, once."""
        del n_epochs
        if epoch == 0 and data is not None:
            self._distances = neighbor_distances(data, self.n_neighbors, self.n_references)

    def loss(self, network: nn.Module, batch: Batch) -> BatchLoss:
        """Return the loss of a batch, the logits of its view (or rows) and the first penalty."""
        if self._distances is None:
            raise RuntimeError("IMSAT has no distances before begin_epoch(0, ...) or restore(...).")
        logits = network(batch.plain).float()
        log_probs = torch.log_softmax(logits, 1).detach()
        radius = self.reach * self._distances[batch.rows.cpu()].to(batch.plain)
        direction = adversarial_direction(network, batch.plain, log_probs, self.probe)
        moved = batch.plain + _by_row(radius, batch.plain) * direction
        with held_running_averages(network):
            adversarial = weighted_mean(_divergences(log_probs, network(moved)), batch.weights)
        information = information_loss(logits, self.prior, self.fairness, batch.weights)
        loss = adversarial + self.weight * information
        if self.augment:
            logits = network(batch.views[0]).float()
            loss = loss + weighted_mean(_divergences(log_probs, logits), batch.weights)
        return BatchLoss(loss, logits, {"vat": float(adversarial.detach())})

    def state(self) -> dict[str, Tensor]:
        """Return the distances, float32 of shape ``(M,)``; nothing before the first epoch."""
        return {} if self._distances is None else {"distances": self._distances}

    def restore(self, state: dict[str, Tensor]) -> None:
        """Take up the distances."""
        self._distances = state.get("distances")


def adversarial_direction(
    network: nn.Module, inputs: Tensor, log_probs: Tensor, probe: float
) -> Tensor:
    """Return the unit direction, row by row, in which predictions change the most.

    One step of the power method: ``∇_d KL(σ(x) ‖ σ(x + ξ d))`` at a random unit vector ``d``,
    normalized; zero for a row whose gradient vanishes. ``log_probs`` is ``ln σ(x)``, ``probe`` is
    ``ξ``. The network's parameters get no gradient and its running averages stay.
    """
    start = _unit(torch.randn_like(inputs)).requires_grad_()
    with held_running_averages(network):
        divergence = _divergences(log_probs, network(inputs + probe * start)).sum()
    (gradient,) = torch.autograd.grad(divergence, start)
    return _unit(gradient)


@contextmanager
def held_running_averages(network: nn.Module) -> Iterator[None]:
    """Normalize by the statistics of the batch inside the block, and remember none of them."""
    tracking: list[Any] = [
        module
        for module in network.modules()
        if module.training and getattr(module, "track_running_stats", False)
    ]
    for module in tracking:
        module.track_running_stats = False
    try:
        yield
    finally:
        for module in tracking:
            module.track_running_stats = True


def neighbor_distances(data: AllRows, n_neighbors: int, n_references: int) -> Tensor:
    """Return every row's distance to its nearest neighbors, the last of them: ``(M,)``, float32.

    It is looked for among ``n_references`` rows. With fewer than all, ``R`` of ``M``, it is the
    neighbor number ``n_neighbors · R/M`` among them, rounded, but at least the nearest.
    """
    n_rows = len(data)
    if n_rows < 2:
        return torch.zeros(n_rows)
    order = torch.randperm(n_rows, generator=torch.Generator().manual_seed(0))
    chosen = order[:n_references]
    rank = round(n_neighbors * len(chosen) / n_rows)
    rank = min(max(rank, 1), len(chosen) - 1)
    references = data.inputs(chosen).flatten(1).float()
    # Far from the origin the squares that the distances are made of would lose their digits.
    center = references.mean(0)
    references = references - center
    found = []
    for rows in torch.arange(n_rows).tensor_split(math.ceil(n_rows / _BLOCK)):
        distances = torch.cdist(data.inputs(rows).flatten(1).float() - center, references)
        itself = (rows[:, None] == chosen).to(distances.device)
        distances = distances.masked_fill(itself, torch.inf)
        found.append(distances.topk(rank, largest=False).values[:, -1].cpu())
    return torch.cat(found)


def _divergences(log_probs: Tensor, logits: Tensor) -> Tensor:
    """Return ``KL(σ ‖ softmax(z))`` row by row; finite where a probability underflows, too."""
    log_others = torch.log_softmax(logits.float(), 1)
    return F.kl_div(log_others, log_probs, reduction="none", log_target=True).sum(1)


def _unit(vectors: Tensor) -> Tensor:
    """Return the rows divided by their length; rows of zeros as they are."""
    # In float64 the squares of the smallest gradients do not vanish.
    lengths = torch.linalg.vector_norm(vectors.flatten(1), dim=1, dtype=torch.float64)
    lengths = lengths.to(vectors.dtype)
    return vectors / _by_row(torch.where(lengths > 0, lengths, 1.0), vectors)


def _by_row(values: Tensor, like: Tensor) -> Tensor:
    """Return one value a row, ``(n,)``, in a shape that broadcasts over rows ``(n, ...)``."""
    return values.view(-1, *[1] * (like.dim() - 1))
