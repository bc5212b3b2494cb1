"""Mutual information: sure predictions that use every class, and no pseudo-labels (MIGD, RIM).

loss   mean H(σ) - w H(σ̄)                                  σ from the changed view   (1)

A prior other than the uniform one enters as in RIM, ``-H(σ̄)`` becoming ``KL(σ̄ ‖ u)``. The two
differ by the constant ``ln K`` when it is uniform, so (1) is met up to ``w ln K``.

Sources: Bridle, Heading & MacKay, *Unsupervised Classifiers, Mutual Information and 'Phantom
Targets'*, NIPS 1991; Krause, Perona & Gomes, *Discriminative Clustering by Regularized
Information Maximization*, NIPS 2010. Equation number: Zhang & Boykov, arXiv 2303.07321.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from coincide._checks import check_integer, check_prior, check_real, parameter_message
from coincide.losses.collision import weighted_logsumexp
from coincide.methods.method import Batch, BatchLoss, Method, weighted_mean
from coincide.pseudolabels.objectives import Vector


@dataclass
class MutualInformation(Method):
    """Clustering by the mutual information of inputs and classes, ``mean H(σ) - w H(σ̄)`` (1).

    Parameters
    ----------
    n_clusters : int
    prior : array of shape (K,), float64
        ``u``, positive in every class.
    fairness : float
        ``w``, the weight of the second term. At 1 it is the mutual information itself; the paper
        takes 1.3.
    """

    n_clusters: int
    prior: Vector
    fairness: float = 1.3

    def __post_init__(self) -> None:
        owner = type(self).__name__
        check_integer(self.n_clusters, "n_clusters", owner, low=2)
        self.prior = check_positive_prior(self.prior, self.n_clusters, owner)
        check_real(self.fairness, "fairness", owner)

    def loss(self, network: nn.Module, batch: Batch) -> BatchLoss:
        """Return the loss of a batch and the logits of its changed view."""
        logits = network(batch.views[0]).float()
        return BatchLoss(information_loss(logits, self.prior, self.fairness, batch.weights), logits)


def information_loss(
    logits: Tensor, prior: Vector, fairness: float, weights: Tensor | None = None
) -> Tensor:
    """Return ``mean H(σ) + w KL(σ̄ ‖ u)`` of logits: (1) plus ``w ln K`` for a uniform prior.

    It is at least 0: ``ln K`` for uniform predictions, 0 for sure ones whose mean is the prior,
    ``w ln(1/u_k)`` for a collapse on class ``k``. Weights, ``(n,)``, count in both means.

    Both terms are taken of logarithms. The ``entropy`` and ``kl_divergence`` of probabilities
    have no gradient where a softmax underflows to 0, and these do.
    """
    log_probs = torch.log_softmax(logits, 1)
    entropies = -(log_probs.exp() * log_probs).sum(1)
    shares = torch.ones_like(entropies) if weights is None else weights.to(entropies)
    shares = (shares / shares.sum())[:, None].expand_as(log_probs)
    log_mean = weighted_logsumexp(log_probs, shares, 0)
    divergence = (log_mean.exp() * (log_mean - torch.from_numpy(prior).to(logits).log())).sum()
    return weighted_mean(entropies, weights) + fairness * divergence


def check_positive_prior(prior: object, n_clusters: int, owner: str) -> Vector:
    """Return the prior as float64, or refuse one with a zero: ``KL(σ̄ ‖ u)`` would be infinite."""
    vector = check_prior(prior, n_clusters, owner)
    if not vector.all():
        expected = "positive in every class (leave the class out and lower 'n_clusters')"
        raise ValueError(parameter_message("prior", owner, expected, vector.tolist()))
    return vector
