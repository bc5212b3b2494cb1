"""Rules that other methods use for pseudo-labels: MIADM's closed form and SeLa's Sinkhorn.

Neither minimizes (5): MIADM's rule minimizes (5) minus ``H(y)``, SeLa's the entropy-regularized
transport problem behind (4). They answer at once and are judged like every solver, by the
certified gap of (5).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from coincide.pseudolabels.objectives import Vector
from coincide.pseudolabels.problem import Problem


@dataclass
class RuleState:
    """Labels that a rule proposed."""

    labels: Tensor
    expected_gap: float = 0.0
    stalled: bool = False
    multipliers: Vector | None = None


@dataclass(frozen=True)
class ClosedForm:
    """MIADM's rule: ``y_ik ∝ σ_ik (Σ_j ω_j σ_jk / u_k)^(-1/2)``.

    One sweep of unbalanced Sinkhorn with exponent ½. The prior is uniform in the source; any
    prior here.
    """

    name: ClassVar[str] = "closed-form"
    objectives: ClassVar[tuple[str, ...]] = ("ce+kl",)
    minimizes: ClassVar[bool] = False
    estimates_gap: ClassVar[bool] = False
    max_iter: ClassVar[int] = 1
    check_every: ClassVar[int] = 1

    def start(self, problem: Problem, labels: Tensor | None, tol: float) -> RuleState:
        """Start from the predictions themselves; given labels are not used by the rule."""
        del labels, tol
        return RuleState(problem.probs.double())

    def step(self, problem: Problem, state: RuleState) -> RuleState:
        """Apply the rule once."""
        probs = problem.probs.double()
        column = problem.mean_label(probs)
        ratio = np.divide(problem.prior, column, out=np.zeros_like(column), where=column > 0)
        scaled = probs * torch.from_numpy(np.sqrt(ratio)).to(probs)
        return RuleState(scaled / scaled.sum(1, keepdim=True), stalled=True)


@dataclass(frozen=True)
class Sinkhorn:
    """SeLa's rule: scale the rows and columns of ``σ^sharpness`` until the mean label is ``u``.

    Parameters
    ----------
    sharpness : float
        The exponent of the predictions (λ in SeLa: 10 for CIFAR, 25 for ImageNet).
    marginal_tol : float
        Largest allowed ``max_k |ȳ_k/u_k - 1|``.
    """

    sharpness: float = 10.0
    marginal_tol: float = 1e-3
    name: ClassVar[str] = "sinkhorn"
    objectives: ClassVar[tuple[str, ...]] = ("ce+kl",)
    minimizes: ClassVar[bool] = False
    estimates_gap: ClassVar[bool] = False
    max_iter: ClassVar[int] = 1000
    check_every: ClassVar[int] = 50

    def start(self, problem: Problem, labels: Tensor | None, tol: float) -> RuleState:
        """Start from the sharpened predictions; given labels are not used by the rule."""
        del labels, tol
        empty = (problem.probs.amax(0) <= 0).cpu().numpy() & (problem.prior > 0)
        if empty.any():
            raise ValueError(
                "The 'sinkhorn' solver needs a positive prediction in every class that the prior"
                f" wants. Got none in class {empty.argmax()}; use 'interior-point'."
            )
        return _scaled(self.sharpness * problem.probs.double().log())

    def step(self, problem: Problem, state: RuleState) -> RuleState:
        """Scale the columns to the prior, then the rows to 1, in the log domain."""
        assert isinstance(state, _Scaled)
        wanted = problem.prior > 0
        free = torch.logsumexp((state.logs + problem.weights.log()[:, None]).double(), 0)
        with np.errstate(divide="ignore"):
            column = np.logaddexp(free.cpu().numpy(), np.log(problem.held))
            scale = np.log(problem.prior) - np.where(wanted, column, 0)
        found = _scaled(state.logs + torch.from_numpy(scale).to(state.logs))
        off = np.abs(problem.mean_label(found.labels)[wanted] / problem.prior[wanted] - 1)
        found.stalled = bool(off.max() <= self.marginal_tol)
        return found


@dataclass
class _Scaled(RuleState):
    """Labels with their logarithms, which hold what the labels themselves would round to 0."""

    logs: Tensor = field(kw_only=True)


def _scaled(logs: Tensor) -> _Scaled:
    """Return labels whose logarithms are these, up to a constant for each row."""
    logs = torch.log_softmax(logs, 1)
    return _Scaled(logs.exp(), logs=logs)
