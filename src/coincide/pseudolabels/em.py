"""The paper's EM for (11): monotone, simple, and slow near the optimum.

E-step (14): ``S_ik = ω_i y_ik/ȳ_k``. M-step: every row minimizes ``-ln σ·y - Σ_k c_k ln y_k`` with
``c_k = λ u_k y_k/ȳ_k`` (λ relative to the mean loss). With ``a = Σ_k c_k`` and
``r_k = σ_k/σ_max`` its solution is ``y_k = c_k / ((1 - r_k)(1 + a) + r_k d)`` for the one root of

    F(d) = Σ_k c_k / ((1 - r_k)(1 + a) + r_k d) = 1,       0 < d <= a                   (16, 17)

``d = 1 + a - σ_max/x`` is the well-conditioned unknown: the printed form in ``x = σ·y`` loses all
its digits when a ``c_k`` is small. Newton runs on ``1 - 1/F`` from Lemma 1's start.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from coincide.pseudolabels.objectives import Vector
from coincide.pseudolabels.problem import Problem
from coincide.pseudolabels.rows import row_parts

_NEWTON_STEPS = 60


@dataclass
class EMState:
    """The labels after a sweep; EM expects nothing of its gap and asks for the certificate."""

    labels: Tensor
    expected_gap: float = 0.0
    stalled: bool = False
    multipliers: Vector | None = None


@dataclass(frozen=True)
class ExpectationMaximization:
    """EM with the well-conditioned Newton M-step, every case of the supplement included."""

    name: ClassVar[str] = "em"
    objectives: ClassVar[tuple[str, ...]] = ("cce+",)
    minimizes: ClassVar[bool] = True
    estimates_gap: ClassVar[bool] = False
    max_iter: ClassVar[int] = 1000
    check_every: ClassVar[int] = 10

    def start(self, problem: Problem, labels: Tensor | None, tol: float) -> EMState:
        """Start from the given labels, or from uniform ones (positive, so no class is lost)."""
        del tol
        return EMState(problem.uniform_labels() if labels is None else labels.double())

    def step(self, problem: Problem, state: EMState) -> EMState:
        """One sweep: E-step and M-step, some rows at a time."""
        multipliers = problem.coupling.multipliers(problem.mean_label(state.labels))
        # A class that nobody holds any more has infinite multipliers and no labels to scale.
        scale = torch.from_numpy(np.where(np.isinf(multipliers), 0.0, multipliers))
        scale = scale.to(state.labels)
        labels = torch.empty_like(state.labels, memory_format=torch.contiguous_format)
        for part in row_parts(labels):
            probs = problem.probs[part].double()
            labels[part] = solve_rows(probs, state.labels[part] * scale)
        return EMState(labels)


def solve_rows(probs: Tensor, coefficients: Tensor) -> Tensor:
    """Minimize ``-ln σ·y - Σ_k c_k ln y_k`` over the simplex, row by row.

    Parameters
    ----------
    probs : Tensor of shape (M, K)
        ``σ``; every row has a positive entry.
    coefficients : Tensor of shape (M, K)
        ``c >= 0``. Where ``c_k = 0`` the left-over mass may go to the one such class with the
        largest ``σ``; the others get exactly 0 (supplement, section 9).

    Returns
    -------
    Tensor of shape (M, K)
        Rows on the simplex.
    """
    positive = coefficients > 0
    total = coefficients.sum(1)
    labels = _interior_rows(torch.where(positive, probs, 0.0), coefficients, total)
    if bool(positive.all()):
        return labels
    return _with_leftover(probs, coefficients, total, positive, labels)


def _interior_rows(probs: Tensor, coefficients: Tensor, total: Tensor) -> Tensor:
    """Solve the rows over the classes with ``c > 0``; the others get 0."""
    largest = probs.amax(1, keepdim=True)
    ratio = torch.where(largest > 0, probs / largest, 0.0)
    base = (1 - ratio) * (1 + total)[:, None]
    # Lemma 1: below this d some class alone would hold more than all the mass.
    start = torch.where(ratio > 0, (coefficients - base) / ratio, -torch.inf).amax(1)
    root = torch.maximum(start, torch.finfo(probs.dtype).tiny * torch.ones_like(start))
    for _ in range(_NEWTON_STEPS):
        below = torch.addcmul(base, ratio, root[:, None])
        terms = coefficients / below
        value = terms.sum(1)
        slope = -(terms * ratio / below).sum(1)
        root = root + torch.where(slope < 0, (1 - value) * value / slope, 0.0)
        if bool((value - 1 <= 16 * torch.finfo(probs.dtype).eps).all()):
            break
    labels = coefficients / torch.addcmul(base, ratio, root[:, None])
    labels = torch.where(coefficients > 0, labels, 0.0)
    return labels / labels.sum(1, keepdim=True)


def _with_leftover(
    probs: Tensor, coefficients: Tensor, total: Tensor, positive: Tensor, labels: Tensor
) -> Tensor:
    """Give the left-over mass to the best class with ``c = 0``, in rows where that is optimal."""
    outside = torch.where(positive, -1.0, probs)
    best, chosen = outside.max(1)
    # There x = σ_best/(1 + a), which needs every class with c > 0 to have a smaller σ.
    margin = 1 - probs / best.clamp_min(torch.finfo(probs.dtype).tiny)[:, None]
    fits = (best > 0) & (torch.where(positive, margin, 1.0) > 0).all(1)
    shares = torch.where(
        positive & fits[:, None], coefficients / (1 + total)[:, None] / margin, 0.0
    )
    leftover = 1 - shares.sum(1)
    takes = fits & (leftover > 0)
    shares = shares.scatter_add(1, chosen[:, None], torch.where(takes, leftover, 0.0)[:, None])
    return torch.where(takes[:, None], shares, labels)
