"""IIC: two views of a row tell as much as possible of each other's cluster.

    P = (1/n) Σ_i σ(x_i) σ(g x_i)ᵀ , symmetrized and normalized;  P_k its marginal
    loss = -Σ_kl P_kl (ln P_kl - λ ln P_k - λ ln P_l) = H(P) - 2 λ H(P_k)

At λ = 1 that is minus the mutual information. Several linear heads share the network, each on
its own loss; in alternate epochs they give way to as many over-clustering heads, whose finer
clusters keep the features rich. Source: Ji, Henriques & Vedaldi, *Invariant Information
Clustering for Unsupervised Image Classification and Segmentation*, ICCV 2019.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor, nn

from coincide._checks import check_integer, check_real, parameter_message
from coincide.losses import entropy
from coincide.methods.method import AllRows, Batch, BatchLoss, Method

_LEAST = sys.float_info.epsilon  # of an entry of P, as published
_OVER_CLUSTERS = 5  # over-clusters a cluster
_MEMORY = 0.99  # of the running losses of the sub-heads, a step


@dataclass
class IIC(Method):
    """Invariant information clustering.

    Parameters
    ----------
    n_clusters : int
        ``K``.
    sub_heads : int
        Linear heads on the same features, of each kind. The one with the lowest running loss
        speaks for the network; no label has a say in it.
    n_over : int, optional
        Clusters of an over-clustering head; 5 K by default. The source takes 70 and 140 for the
        10 and 20 classes of its color images (7 K), and 50 for MNIST (5 K).
    entropy_weight : float
        ``λ``, the weight of the marginal entropies.
    n_views : int
        Changed views of a row, each of them paired with the row as it is. The source repeats an
        image 3 to 5 times in a batch.

    Notes
    -----
    Epochs alternate from the end, so that the last one trains the clusters. The clusters are
    drawn towards equal sizes: there is no prior.

    Where classes are known, their cross-entropy ties the clusters of one sub-head to them, so
    batches with known classes leave the choice of the sub-head as it is.
    """

    n_clusters: int
    sub_heads: int = 5
    n_over: int | None = None
    entropy_weight: float = 1.0
    n_views: int = 1
    _over_clustering: bool = field(default=False, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        check_integer(self.n_clusters, "n_clusters", "IIC", low=2)
        check_integer(self.sub_heads, "sub_heads", "IIC", low=1)
        if self.n_over is not None:
            check_integer(self.n_over, "n_over", "IIC", low=self.n_clusters)
        check_real(self.entropy_weight, "entropy_weight", "IIC")
        check_integer(self.n_views, "n_views", "IIC", low=1)

    def head(self, width: int) -> Callable[[], nn.Module]:
        """Return how to build the :class:`SubHeads` on ``width`` features."""
        n_over = _OVER_CLUSTERS * self.n_clusters if self.n_over is None else self.n_over
        return partial(SubHeads, width, self.n_clusters, n_over, self.sub_heads)

    def begin_epoch(self, epoch: int, n_epochs: int, data: AllRows | None) -> None:
        """Take the other kind of heads; the last epoch is the clusters'."""
        del data
        self._over_clustering = (n_epochs - 1 - epoch) % 2 == 1

    def loss(self, network: nn.Module, batch: Batch) -> BatchLoss:
        """Return the mean loss of the sub-heads, and the logits of the plain rows."""
        backbone, head = network.get_submodule("backbone"), network.get_submodule("head")
        if not isinstance(head, SubHeads):
            expected = "a network with the head that IIC.head builds"
            raise TypeError(parameter_message("network", "IIC.loss", expected, type(head)))
        plain, changed = backbone(batch.plain), backbone(torch.cat(batch.views))
        logits = head(plain).float()
        kind = head.over if self._over_clustering else head.all
        losses = iic_loss(
            kind(plain).repeat(1, self.n_views, 1),
            kind(changed),
            entropy_weight=self.entropy_weight,
            weights=None if batch.weights is None else batch.weights.repeat(self.n_views),
        )
        if not self._over_clustering and batch.known is None:
            head.compare(losses.detach())
        return BatchLoss(losses.mean(), logits, {"sub_head": float(head.chosen)})


class SubHeads(nn.Module):
    """Linear heads for the clusters, as many for over-clustering, and which of them to believe.

    Their random starts make them differ. ``running`` is the moving average of their losses, from 0
    for all, as only their order is of use, and ``chosen`` the head with the lowest of them.
    """

    running: Tensor
    chosen: Tensor

    def __init__(self, width: int, n_clusters: int, n_over: int, n_heads: int) -> None:
        super().__init__()
        self.n_heads = n_heads
        self.clusters = nn.Linear(width, n_heads * n_clusters)
        self.over_clusters = nn.Linear(width, n_heads * n_over)
        for layer in (self.clusters, self.over_clusters):
            # Not near zero: the loss has a saddle there, which takes epochs to leave.
            nn.init.normal_(layer.weight, std=width**-0.5)
            nn.init.zeros_(layer.bias)
        self.register_buffer("running", torch.zeros(n_heads))
        self.register_buffer("chosen", torch.zeros((), dtype=torch.int64))

    def forward(self, features: Tensor) -> Tensor:
        """Return the logits ``(n, K)`` of the chosen head."""
        return self.all(features).index_select(0, self.chosen).squeeze(0)

    def all(self, features: Tensor) -> Tensor:
        """Return the logits of every head, ``(heads, n, K)``."""
        return self._of_heads(self.clusters(features))

    def over(self, features: Tensor) -> Tensor:
        """Return the logits of every over-clustering head, ``(heads, n, n_over)``."""
        return self._of_heads(self.over_clusters(features))

    def compare(self, losses: Tensor) -> None:
        """Take the losses of the heads on a batch, ``(heads,)``, into account."""
        self.running = losses.to(self.running).lerp(self.running, _MEMORY)
        # A new tensor: the forward pass before it holds on to the old one.
        self.chosen = self.running.argmin()

    def _of_heads(self, logits: Tensor) -> Tensor:
        return torch.stack(logits.chunk(self.n_heads, dim=1))


def iic_loss(
    first: Tensor, second: Tensor, *, entropy_weight: float = 1.0, weights: Tensor | None = None
) -> Tensor:
    """Return ``H(P) - 2 λ H(P_k)`` of the joint distribution of two views' clusters.

    The views are logits ``(..., n, K)`` of the same rows; neither the rows' order nor that of the
    views matters. At ``λ = 1`` it is from ``-ln K`` (equal, certain, balanced) to 0 (independent,
    or collapsed). Computed in float32, under autocast, too. Entries of ``P`` below 2.2e-16 are set
    to it, as published; no gradient goes through them.

    Examples
    --------
    >>> certain = 100 * torch.eye(3)
    >>> iic_loss(certain, certain)
    tensor(-1.0986)
    """
    # A matrix product: autocast would take it in half precision.
    with torch.autocast(first.device.type, enabled=False):
        probs = first.float().softmax(-1)
        if weights is not None:
            probs = probs * weights.float().unsqueeze(-1)
        joint = probs.mT @ second.float().softmax(-1)
    joint = joint + joint.mT
    joint = (joint / joint.sum((-2, -1), keepdim=True)).clamp(min=_LEAST)
    return entropy(joint.flatten(-2)) - 2 * entropy_weight * entropy(joint.sum(-1))
