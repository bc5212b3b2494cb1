"""SCAN: a row and its neighbors are of one cluster; then confident rows label themselves.

    clustering        mean_i -ln σ_i·σ_j - w H(σ̄)          j a neighbor of i; the first term is H₂
    self-labeling     mean over labels of their mean cross-entropy, rows with max σ > .99 only

Neighbors are mined once, in the features of a network that a pretext such as SimCLR has trained.
Source: Van Gansbeke, Vandenhende, Georgoulis, Proesmans & Van Gool, *SCAN: Learning to Classify
Images without Labels*, ECCV 2020.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from coincide._checks import UNKNOWN, check_integer, check_real, parameter_message
from coincide.losses import collision_cross_entropy, entropy
from coincide.methods.method import (
    AllRows,
    Batch,
    BatchLoss,
    Method,
    mean_probs,
    weighted_mean,
)
from coincide.methods.neighbors import mine_neighbors


@dataclass
class SCAN(Method):
    """Semantic clustering by adopting nearest neighbors.

    Parameters
    ----------
    n_clusters : int
        ``K``.
    n_neighbors : int
        Neighbors of a row; one of them is drawn at every step.
    entropy_weight : float
        ``w``, the weight of the entropy of the mean prediction.
    self_label_share : float in [0, 1)
        Share of the epochs, the last ones, that train on confident rows' own labels; 0 for none.
        The source takes 200 epochs after 50 to 100 of clustering, at a learning rate of 1e-4.
    threshold : float in [0, 1)
        The confidence, on the plain view, above which a row is labeled.

    Notes
    -----
    The clusters are drawn towards equal sizes: there is no prior.

    Self-labeling wants clusters that are sharp already. One with few confident rows loses the
    rest of its rows to the others, since nothing balances the sizes any more; so it is off by
    default, as in the results that the collision paper quotes.
    """

    n_clusters: int
    n_neighbors: int = 20
    entropy_weight: float = 5.0
    self_label_share: float = 0.0
    threshold: float = 0.99
    _neighbors: Tensor | None = field(default=None, init=False, repr=False, compare=False)
    _taken_up: bool = field(default=False, init=False, repr=False, compare=False)
    _self_labeling: bool = field(default=False, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        check_integer(self.n_clusters, "n_clusters", "SCAN", low=2)
        check_integer(self.n_neighbors, "n_neighbors", "SCAN", low=1)
        check_real(self.entropy_weight, "entropy_weight", "SCAN")
        for name in ("self_label_share", "threshold"):
            value = getattr(self, name)
            if check_real(value, name, "SCAN") >= 1:
                raise ValueError(parameter_message(name, "SCAN", "a number in [0, 1)", value))

    def begin_epoch(self, epoch: int, n_epochs: int, data: AllRows | None) -> None:
        """Mine the neighbors before the first epoch; change to self-labeling in due time."""
        if epoch == 0 and data is not None and not self._taken_up:
            self._neighbors = mine_neighbors(data.features(), self.n_neighbors)
        self._taken_up = False
        first = max(1, round((1 - self.self_label_share) * n_epochs))
        self._self_labeling = epoch >= first

    def partners(self, rows: Tensor) -> Tensor | None:
        """Return one of the neighbors of every row, drawn at random; None in self-labeling."""
        if self._self_labeling:
            return None
        if self._neighbors is None:
            raise RuntimeError("SCAN has no neighbors yet. Call begin_epoch(0, ...) first.")
        drawn = torch.randint(self._neighbors.shape[1], rows.shape)
        return self._neighbors[rows.cpu(), drawn].to(rows.device)

    def loss(self, network: nn.Module, batch: Batch) -> BatchLoss:
        """Return the loss of the phase, and the logits of the changed view."""
        logits = network(batch.views[0]).float()
        if not self._self_labeling:
            assert batch.partners is not None
            neighbors = network(batch.partners).float()
            loss = neighbor_loss(
                logits, neighbors, entropy_weight=self.entropy_weight, weights=batch.weights
            )
            return BatchLoss(loss, logits)
        with torch.no_grad():
            confidence, labels = network(batch.plain).float().softmax(1).max(1)
        confident = confidence > self.threshold
        if batch.known is not None:
            is_known = batch.known != UNKNOWN
            labels = torch.where(is_known, batch.known, labels)
            confident = confident | is_known
        counted = confident.float() if batch.weights is None else confident * batch.weights.float()
        loss = balanced_cross_entropy(logits, labels, counted)
        return BatchLoss(loss, logits, {"confident": float(confident.float().mean())})

    def state(self) -> dict[str, Tensor]:
        """Return the neighbors, ``(M, n_neighbors)``."""
        return {} if self._neighbors is None else {"neighbors": self._neighbors}

    def restore(self, state: dict[str, Tensor]) -> None:
        """Take the neighbors up; an epoch 0 begun again does not mine them anew."""
        self._neighbors = state.get("neighbors")
        self._taken_up = self._neighbors is not None


def neighbor_loss(
    anchors: Tensor, neighbors: Tensor, *, entropy_weight: float, weights: Tensor | None = None
) -> Tensor:
    """Return ``mean -ln σ_a·σ_n - w H(σ̄_a)`` of rows and a neighbor of each, logits ``(n, K)``.

    It is ``-w ln K`` (agreed, certain, balanced) or more; gradients reach both logits.

    Examples
    --------
    >>> certain = 100 * torch.eye(3)
    >>> neighbor_loss(certain, certain, entropy_weight=5.0)
    tensor(-5.4931)
    """
    rows = collision_cross_entropy(anchors, neighbors.softmax(1), reduction="none")
    # A cluster without any mass: the gradient of 0 ln 0 would be NaN.
    mean = mean_probs(anchors.softmax(1), weights).clamp(min=torch.finfo(anchors.dtype).tiny)
    return weighted_mean(rows, weights) - entropy_weight * entropy(mean)


def balanced_cross_entropy(logits: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
    """Return the mean over the labels that occur of their rows' mean cross-entropy.

    That is cross-entropy with class weights ``n / count``, as torch averages it. A row of weight 0
    does not count, nor occur; where none counts it is 0, with a gradient of zeros.

    Examples
    --------
    >>> logits = torch.tensor([[2.0, 0.0], [2.0, 0.0], [0.0, 0.0]])
    >>> balanced_cross_entropy(logits, torch.tensor([0, 0, 1]), torch.ones(3))
    tensor(0.4100)
    """
    counts = weights.new_zeros(logits.shape[1]).index_add(0, labels, weights)
    shares = weights / torch.where(counts > 0, counts, 1.0)[labels]
    rows = F.cross_entropy(logits, labels, reduction="none")
    return (shares * rows).sum() / (counts > 0).sum().clamp(min=1)
