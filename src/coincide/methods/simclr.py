"""SimCLR: two views of a row find each other among all the views of the batch.

    loss = mean_i -ln exp(s_ij/τ) / Σ_{l≠i} exp(s_il/τ)        j the other view of the same row

with ``s`` the cosines of projected features, over the 2 n views (NT-Xent). A pretext: it trains
the features that another method, such as SCAN, starts from. Source: Chen, Kornblith, Norouzi &
Hinton, *A Simple Framework for Contrastive Learning of Visual Representations*, ICML 2020.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from coincide._checks import check_integer, check_real, parameter_message
from coincide.methods.method import Batch, BatchLoss, Method, weighted_mean


@dataclass
class SimCLR(Method):
    """Contrastive learning of features.

    Parameters
    ----------
    n_clusters : int
        ``K``, of the linear classifier beside the projection. Only known classes train it.
    temperature : float
        ``τ``.
    projection_width : int
        Number of the projected features.

    Attributes
    ----------
    clusters : bool
        False: the logits say nothing of clusters, so there is nothing to count or to call a
        collapse.
    """

    clusters = False

    n_clusters: int
    temperature: float = 0.1
    projection_width: int = 128
    n_views = 2

    def __post_init__(self) -> None:
        check_integer(self.n_clusters, "n_clusters", "SimCLR", low=2)
        check_real(self.temperature, "temperature", "SimCLR", open_low=True)
        check_integer(self.projection_width, "projection_width", "SimCLR", low=1)

    def head(self, width: int) -> Callable[[], nn.Module]:
        """Return how to build the :class:`ProjectionHead` on ``width`` features."""
        return partial(ProjectionHead, width, self.n_clusters, self.projection_width)

    def loss(self, network: nn.Module, batch: Batch) -> BatchLoss:
        """Return the loss of the two views, and the classifier's logits of the first."""
        backbone, head = network.get_submodule("backbone"), network.get_submodule("head")
        if not isinstance(head, ProjectionHead):
            expected = "a network with the head that SimCLR.head builds"
            raise TypeError(parameter_message("network", "SimCLR.loss", expected, type(head)))
        features = backbone(torch.cat(batch.views))
        first, second = head.projection(features).chunk(2)
        rows = nt_xent(first, second, temperature=self.temperature)
        logits = head(features[: len(first)]).float()
        return BatchLoss(weighted_mean(rows, batch.weights), logits)


class ProjectionHead(nn.Module):
    """A linear classifier on the features, and beside it the projection that they are compared in.

    The projection is a perceptron with one hidden layer of ``width``.
    """

    def __init__(self, width: int, n_clusters: int, projection_width: int) -> None:
        super().__init__()
        self.classifier = nn.Linear(width, n_clusters)
        self.projection = nn.Sequential(
            nn.Linear(width, width), nn.ReLU(), nn.Linear(width, projection_width)
        )

    def forward(self, features: Tensor) -> Tensor:
        """Return the logits ``(n, K)`` of the classifier."""
        logits: Tensor = self.classifier(features)
        return logits


def nt_xent(first: Tensor, second: Tensor, *, temperature: float = 0.1) -> Tensor:
    """Return the normalized, temperature-scaled cross-entropy of every row's two views, ``(n,)``.

    The views are projected features ``(n, D)``, of which only the directions count. It is 0 for a
    single row, which has no others to be told from. Computed in float32, under autocast, too.

    Examples
    --------
    >>> nt_xent(torch.eye(2), torch.eye(2), temperature=1.0)
    tensor([0.5514, 0.5514])
    """
    # A matrix product: autocast would take it in half precision.
    with torch.autocast(first.device.type, enabled=False):
        unit = F.normalize(torch.cat([first, second]).float(), dim=1)
        logits = unit @ unit.T / temperature
    views = torch.arange(len(unit), device=unit.device)
    logits = logits.masked_fill(views == views.unsqueeze(1), -torch.inf)
    others = views.roll(len(first))
    return F.cross_entropy(logits, others, reduction="none").view(2, -1).mean(0)
