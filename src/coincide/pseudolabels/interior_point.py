"""A structured interior-point method: exact soft labels for (11), (10) and (5).

Primal-dual steps on the KKT conditions, with row gradients ``-g_i - w``, ``w = -Φ'(ȳ)``,

    -g_ik - w_k + ν_i - ζ_ik = 0,   Σ_k y_ik = 1,   y_ik ζ_ik = μ -> 0.

All coupling between rows goes through the mean label. Every row's Hessian is diagonal plus rank
one and is eliminated in O(K) by the row kernels; what remains is one positive definite system for
``s = -Δw`` (``coupling.py``), and ``Δy_i = P_i (r_i - s)``.

The multipliers ``w`` are iterated beside the labels: near the optimum rounding moves ``ȳ`` far more
than them, and they give the better lower bound. Mehrotra's predictor-corrector chooses the
centering; its second-order term is limited entry by entry where the predictor goes farther than it
can be trusted (see the kernels' contract), and labels and multipliers take steps of their own
length. The row multipliers ``ν`` never appear: the projections ``P_i`` remove every row constant.

The first iterate has every row near its own central path, ``y_ik ζ_ik = μ_k`` for a gap ``Σμ`` of a
few units of the loss: one secular equation a row, as in EM's M-step.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from coincide.pseudolabels.coupling import check_unknowns, coupling_of
from coincide.pseudolabels.kernels import RowKernels, StepArrays
from coincide.pseudolabels.objectives import Vector
from coincide.pseudolabels.problem import Problem, row_parts

_TO_BOUNDARY = 0.995
_CENTERING_POWER = 3
_MOST_CENTERING = 0.4  # more, and steps that center and steps that advance can go in circles
_SHARE_OF_TOL = 0.1
_ROUNDING = 1e-12  # of the gap, for each unit of fairness
_FIRST_GAP = 5.0  # of the first iterate, at least
_FIRST_GAP_OF_A_CLASS = 0.04  # the same, for each: many of them get stuck nearer to the boundary
_EVEN = 0.1  # of its labels that are shared equally, whatever the prior
_NEWTON_STEPS = 3  # for the level of each of its rows, which needs no digits


@dataclass
class InteriorPointState:
    """The iterate, the kernels that hold its work arrays, and the gap it expects."""

    arrays: StepArrays
    level: float  # the multipliers are level + relative: next to a common level of λ the small
    relative: Vector  # differences that steer the rows would lose their last digits
    kernels: RowKernels
    tol: float
    mass: float  # of the free rows
    expected_gap: float = float("inf")
    stalled: bool = False

    @property
    def multipliers(self) -> Vector:
        """The current multipliers ``w``, ``(K,)``."""
        return self.level + self.relative

    def set_multipliers(self, level: float, relative: Vector) -> None:
        """Store ``w = level + relative`` with the largest of ``relative`` moved to the level."""
        common = float(relative.max())
        self.level, self.relative = level + common, relative - common

    @property
    def labels(self) -> Tensor:
        """The current labels, strictly inside the simplex."""
        return self.arrays.y


@dataclass(frozen=True)
class InteriorPoint:
    """Mehrotra's predictor-corrector on the structured KKT system.

    Parameters
    ----------
    warmth : float
        How far a warm start is moved inside the simplex: ``(1 - warmth) y + warmth/K``.
    """

    name: ClassVar[str] = "interior-point"
    objectives: ClassVar[tuple[str, ...]] = ("cce+", "cce", "ce+kl")
    minimizes: ClassVar[bool] = True
    estimates_gap: ClassVar[bool] = True
    any_precision: ClassVar[bool] = True
    max_iter: ClassVar[int] = 200
    check_every: ClassVar[int] = 1
    warmth: float = field(default=1e-2)

    def start(self, problem: Problem, labels: Tensor | None, tol: float) -> InteriorPointState:
        """Return an interior iterate, from the given labels or near the rows' central paths."""
        check_unknowns(problem, self.name)
        shares = _first_shares(problem)
        mean_label = problem.mass * shares + problem.held
        if labels is not None:
            mean_label = problem.mean_label(labels)
            mean_label += self.warmth * (problem.mean_label(problem.uniform_labels()) - mean_label)
        multipliers = problem.multipliers(mean_label)
        rows, kernels = problem.kernel_rows, problem.kernels()
        arrays = _empty_arrays(rows, by_class=kernels.by_class)
        beside, wanted = (
            problem.at_rows(vector).expand(rows.shape)
            for vector in (multipliers - multipliers.max(), shares)
        )
        for part in row_parts(rows):
            # Class by class, where sums over the classes are quick for few of them, too.
            own, w = rows[part].T.double().contiguous(), beside[part].T.double()
            if labels is None:
                v = wanted[part].T.double()
                y, zeta = _centered(own, w, v, collision=problem.objective.collision)
            else:
                y = torch.lerp(labels[part].T.double(), 1 / w.new_tensor(len(w)), self.warmth)
                zeta = _slacks(own, w, y, collision=problem.objective.collision)
            arrays.y[part], arrays.zeta[part] = y.T, zeta.T
        state = InteriorPointState(
            kernels.load(*arrays), 0.0, multipliers, kernels, tol, problem.mass
        )
        state.set_multipliers(0.0, multipliers)
        return state

    def step(self, problem: Problem, state: InteriorPointState) -> InteriorPointState:
        """Take one predictor-corrector step; mark the state when the system breaks down."""
        kernels, arrays, relative = state.kernels, state.arrays, state.relative
        factors = kernels.factor()
        if not np.isfinite(factors.complementarity):  # predictions of a network that diverged
            state.stalled = True
            return state
        mean_label = factors.mean_label + problem.held
        off = state.multipliers - problem.multipliers(mean_label)
        coupling = coupling_of(factors.gram, problem.curvature(mean_label), off)
        if coupling.broken:
            state.stalled = True
            return state

        pull = factors.pull + coupling.apply(relative)
        affine = kernels.predict(relative - coupling.solve(pull))
        primal, dual = min(1.0, _limit(-affine.low)), min(1.0, _limit(1 + affine.high))
        # Σ ω (y + αΔy)(ζ + βΔζ) with Δζ/ζ = -1 - Δy/y
        now = factors.complementarity
        ahead = (1 - dual) * now + (primal - dual - primal * dual) * affine.first
        ahead -= primal * dual * affine.second
        mean = now / (arrays.y.shape[1] * state.mass)
        target = mean * min(_MOST_CENTERING, max(ahead / now, 0.0) ** _CENTERING_POWER)
        # Closer to the boundary than the tolerance asks, rounding would be all that moves.
        floor = max(_SHARE_OF_TOL * state.tol, _ROUNDING * (1 + problem.fairness))
        target = max(target, floor / arrays.y.shape[1])

        change = coupling.solve(pull + target * affine.center + affine.bend)
        extents = kernels.correct(relative - change, target)
        primal = min(1.0, _TO_BOUNDARY * _limit(-extents.primal))
        dual = min(1.0, _TO_BOUNDARY * _limit(-extents.dual))
        if not (primal > 0 and dual > 0):
            state.stalled = True
            return state
        state.arrays = kernels.advance(primal, dual)
        state.set_multipliers(state.level, relative - dual * change)
        if not problem.bounded_by(state.multipliers):
            state.set_multipliers(0.0, problem.multipliers(problem.mean_label(state.labels)))
        length = (primal + dual) / 2
        state.expected_gap = (1 - length) * now + length * target * arrays.y.shape[1]
        moved = mean_label + primal * coupling.answer(change)
        state.expected_gap += problem.coupling_gap(moved, state.multipliers)
        return state


def _empty_arrays(rows: Tensor, *, by_class: bool) -> StepArrays:
    """Return room for labels and slacks, float64, row by row or class by class.

    The kernels take arrays that lie as they want them without a copy.
    """
    shape = rows.T.shape if by_class else rows.shape
    arrays = (torch.empty(shape, dtype=torch.float64, device=rows.device) for _ in range(2))
    return StepArrays(*(array.T if by_class else array for array in arrays))


def _pull(rows: Tensor, w: Tensor, coincidence: Tensor, *, collision: bool) -> Tensor:
    """Return minus the row gradients of loss and coupling, ``g_i + w``; all are ``(K, n)``."""
    return rows / coincidence + w if collision else rows + w


def _slacks(rows: Tensor, w: Tensor, y: Tensor, *, collision: bool) -> Tensor:
    """Return slacks of at least 1 that leave no dual residual at the labels ``y``, ``(K, n)``."""
    pull = _pull(rows, w, (rows * y).sum(0), collision=collision)
    return 1 + pull.amax(0) - pull


def _first_shares(problem: Problem) -> Vector:
    """Return what the prior leaves to the free rows, as shares; no class gets far less."""
    left = np.maximum(problem.prior - problem.held, 0)
    total, classes = left.sum(), len(left)
    if not total > 0:
        return np.full(classes, 1 / classes)
    shares: Vector = (1 - _EVEN) * left / total + _EVEN / classes
    return shares


def _centered(rows: Tensor, w: Tensor, shares: Tensor, *, collision: bool) -> tuple[Tensor, Tensor]:
    """Return labels and slacks with ``y ζ = μ``, near ``shares``, and a small dual residual.

    ``y_k = μ_k/(d + max_j g_j - g_k)`` for the one ``d`` at which they sum to 1. Of collision
    cross-entropy ``g = σ/x``, where ``x`` is at least ``σ_max/(1 + Σμ)`` (EM's M-step) and about
    that of the shares. All are ``(K, n)``; ``μ`` is in proportion to the shares.
    """
    gap = max(_FIRST_GAP, _FIRST_GAP_OF_A_CLASS * len(rows))
    target = gap / shares.sum(0) * shares
    coincidence = torch.maximum((rows * shares).sum(0) / shares.sum(0), rows.amax(0) / (1 + gap))
    below = _pull(rows, w, coincidence, collision=collision).neg_()
    below -= below.amin(0)
    least = torch.where(below == 0, target, 0.0).amax(0)
    level, y = least, torch.empty_like(below)
    for _ in range(_NEWTON_STEPS):
        torch.add(below, level, out=y).reciprocal_()
        slope = (y * y).mul_(target).sum(0)
        mass = y.mul_(target).sum(0)
        # A step on 1 - 1/mass.
        level = torch.maximum(level + (mass - 1) * mass / slope, least).clamp_max(gap)
    torch.add(below, level, out=y).reciprocal_().mul_(target)
    y /= y.sum(0)
    return y, target / y


def _limit(rate: float) -> float:
    """Return the longest step along which ``1 - step · rate`` stays non-negative."""
    return 1 / rate if rate > 0 else float("inf")
