"""Projected gradient on the soft labels: the paper's solver for (10), and a yardstick.

``y_i <- project(y_i - η ∂L/∂y_i)`` with the gradient of the mean objective, whose rows carry the
factor ``1/M``: the step sizes of the paper's Table 1 (1, 10, 20 at K = 2; 0.1, 1, 5 above) are
relative to it. Without a given ``η`` a backtracking line search chooses it, from a
Barzilai-Borwein guess, and the objective never rises.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from coincide.pseudolabels.objectives import Vector
from coincide.pseudolabels.problem import Problem

_SUFFICIENT = 1e-4
_SHRINK = 0.5
_BACKTRACKS = 40


@dataclass
class GradientState:
    """The labels, the step size to try next, and the last point with its gradient."""

    labels: Tensor
    step_size: float
    value: float
    expected_gap: float = 0.0
    stalled: bool = False
    multipliers: Vector | None = None


@dataclass(frozen=True)
class ProjectedGradient:
    """Projected gradient descent, with a fixed step size or a line search.

    Parameters
    ----------
    step_size : float or None
        ``η`` for the gradient of the mean objective; None searches along every step.
    """

    step_size: float | None = None
    name: ClassVar[str] = "projected-gradient"
    objectives: ClassVar[tuple[str, ...]] = ("cce+", "cce", "ce+kl")
    minimizes: ClassVar[bool] = True
    estimates_gap: ClassVar[bool] = False
    max_iter: ClassVar[int] = 2000
    check_every: ClassVar[int] = 10

    def start(self, problem: Problem, labels: Tensor | None, tol: float) -> GradientState:
        """Start from the given labels, or from uniform ones."""
        del tol
        labels = problem.admissible(problem.uniform_labels() if labels is None else labels.double())
        return GradientState(labels, self.step_size or 1.0, problem.value(labels))

    def step(self, problem: Problem, state: GradientState) -> GradientState:
        """Take one projected step; stall where the objective is no longer finite or falls."""
        gradient = row_gradient(problem, state.labels)
        if not bool(torch.isfinite(gradient).all()):
            state.stalled = True
            return state
        if self.step_size is not None:
            labels = project_to_simplex(state.labels - self.step_size * gradient)
            return GradientState(labels, self.step_size, problem.value(labels))
        return _search(problem, state, gradient)


def _search(problem: Problem, state: GradientState, gradient: Tensor) -> GradientState:
    """Backtrack until the objective falls enough, then guess the next step size."""
    size = state.step_size
    for _ in range(_BACKTRACKS):
        labels = project_to_simplex(state.labels - size * gradient)
        change = labels - state.labels
        value = problem.value(labels)
        if value <= state.value + _SUFFICIENT * float((gradient * change).double().sum()):
            break
        size *= _SHRINK
    else:
        state.stalled = True
        return state
    curvature = float((change * (row_gradient(problem, labels) - gradient)).double().sum())
    square = float((change * change).double().sum())
    size = square / curvature if curvature > 0 else 2 * size
    return GradientState(labels, size, value)


def row_gradient(problem: Problem, labels: Tensor) -> Tensor:
    """Return the gradient of the mean objective, ``ω_i (-g_i - w)``, ``(M, K)``."""
    multipliers = problem.coupling.multipliers(problem.mean_label(labels))
    descent = problem.descent(labels) + problem.at_rows(multipliers)
    return -descent * problem.weights[:, None]


def project_to_simplex(points: Tensor) -> Tensor:
    """Return the Euclidean projection of every row on the simplex (Held, Wolfe & Crowder 1974).

    Parameters
    ----------
    points : Tensor of shape (M, K)

    Returns
    -------
    Tensor of shape (M, K)
    """
    ordered = points.sort(1, descending=True).values
    excess = ordered.cumsum(1) - 1
    count = torch.arange(1, points.shape[1] + 1, device=points.device, dtype=points.dtype)
    support = (ordered * count > excess).sum(1, keepdim=True)
    threshold = excess.gather(1, support - 1) / support
    return (points - threshold).clamp_min(0)
