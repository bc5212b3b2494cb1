"""MIADM: cross-entropy to soft targets that are the predictions, balanced.

labels   y_ik ∝ σ_ik (Σ_j σ_jk / u_k)^(-1/2)                σ from the plain view
or       y  = argmin_y  mean H(y, σ) + λ KL(ȳ ‖ u)          σ from the plain view    (5)
loss         mean_i H(y_i, σ'_i)                            σ' from the changed view  (8)

The first rule is the published one. It is a sweep of unbalanced Sinkhorn with exponent ½, whose
fixed point minimizes (5) at λ = 1 *minus* ``mean H(y)``; (5) itself has no closed form.

Source: Jabi, Pedersoli, Mitiche & Ben Ayed, *Deep Clustering: On the Link Between
Discriminative Models and K-Means*, TPAMI 43 (2021). Equation numbers: Zhang & Boykov, arXiv
2303.07321.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from coincide._checks import check_integer, check_option, check_prior, check_real
from coincide.methods.method import Batch, BatchLoss, Method, weighted_mean
from coincide.pseudolabels import ClosedForm, PseudoLabels, solve_pseudo_labels
from coincide.pseudolabels.objectives import Vector
from coincide.pseudolabels.problem import Problem
from coincide.pseudolabels.rules import RuleState

_LABELS = ("sweep", "exact")


@dataclass
class MIADM(Method):
    """Self-labeling by cross-entropy to balanced predictions.

    Parameters
    ----------
    n_clusters : int
    prior : array of shape (K,), float64
        ``u``; uniform in the source.
    labels : {"sweep", "exact"}
        The published rule, or the certified solution of (5).
    n_sweeps : int
        How often the rule is applied; once in the source. For ``"exact"`` it must be 1.
    fairness : float
        ``λ`` of (5), relative to the mean loss. For ``"sweep"``, whose exponent belongs to
        ``λ = 1``, it must be 1.
    label_tol : float
        The exact labels are certified to a gap of ``label_tol · max(1, |objective|)``.
    """

    n_clusters: int
    prior: Vector
    labels: str = "sweep"
    n_sweeps: int = 1
    fairness: float = 1.0
    label_tol: float = 1e-4

    def __post_init__(self) -> None:
        owner = type(self).__name__
        check_integer(self.n_clusters, "n_clusters", owner, low=2)
        self.prior = check_prior(self.prior, self.n_clusters, owner)
        check_option(self.labels, "labels", owner, _LABELS)
        check_integer(self.n_sweeps, "n_sweeps", owner, low=1)
        check_real(self.fairness, "fairness", owner)
        check_real(self.label_tol, "label_tol", owner, open_low=True)
        if self.labels == "exact" and self.n_sweeps != 1:
            raise ValueError(f"The 'n_sweeps' parameter of {owner} goes with labels='sweep' only.")
        if self.labels == "sweep" and self.fairness != 1:
            raise ValueError(f"The 'fairness' parameter of {owner} goes with labels='exact' only.")

    def loss(self, network: nn.Module, batch: Batch) -> BatchLoss:
        """Return the loss of a batch, the logits of its changed view and the gap of (5)."""
        with torch.no_grad():
            probs = torch.softmax(network(batch.plain).float(), 1)
        found = self.targets(probs, batch.known, batch.weights)
        logits = network(batch.views[0]).float()
        rows = F.cross_entropy(logits, found.labels, reduction="none")
        return BatchLoss(weighted_mean(rows, batch.weights), logits, {"gap": found.gap})

    def targets(
        self, probs: Tensor, known: Tensor | None = None, weights: Tensor | None = None
    ) -> PseudoLabels[Tensor]:
        """Return the labels of predictions, judged by (5).

        Parameters
        ----------
        probs : Tensor of shape (n, K)
        known : Tensor of shape (n,), int64, optional
            The class of each row, held; -1 where it is unknown.
        weights : Tensor of shape (n,), optional
            Non-negative row weights.
        """
        exact = self.labels == "exact"
        return solve_pseudo_labels(
            probs,
            prior=torch.from_numpy(self.prior),
            fairness=self.fairness,
            objective="ce+kl",
            solver="interior-point" if exact else _Sweeps(),
            known=known,
            tol=self.label_tol,
            max_iter=None if exact else self.n_sweeps,
            sample_weight=weights,
        )


@dataclass(frozen=True)
class _Sweeps(ClosedForm):
    """Unbalanced Sinkhorn with exponent ½: ``y_ik ∝ (σ_ik y_ik u_k / ȳ_k)^(1/2)``, again and again.

    From ``y = σ`` the first sweep is the closed form.
    """

    def step(self, problem: Problem, state: RuleState) -> RuleState:
        """Apply the rule to the labels so far."""
        before = state.labels
        labels = super().step(dataclasses.replace(problem, probs=before), state).labels
        labels = labels * torch.where(before > 0, problem.probs / before, 0.0).sqrt()
        return RuleState(labels / labels.sum(1, keepdim=True))
