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

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from coincide.pseudolabels.coupling import answer_to, check_unknowns, coupling_of
from coincide.pseudolabels.kernels import (
    RowKernels,
    StepArrays,
    near_central_path,
    near_labels,
    row_parts,
)
from coincide.pseudolabels.objectives import Vector
from coincide.pseudolabels.problem import Problem

_TO_BOUNDARY = 0.995
_CENTERING_POWER = 3
_MOST_CENTERING = 0.4  # more, and steps that center and steps that advance can go in circles
_SHARE_OF_TOL = 0.1
_ROUNDING = 1e-12  # of the gap, for each unit of fairness
_FIRST_GAP = 5.0  # of the first iterate under Shannon's loss; under collision cross-entropy it is
_FIRST_GAP_OF_COLLISION = 1.0  # this at least,
_FIRST_GAP_OF_A_CLASS = 0.1  # and so much for each class up to the same; or, if that is more,
_FIRST_GAP_OF_MANY = 0.04  # so much for each: many get stuck nearer to the boundary
_EVEN = 0.1  # of its labels that are shared equally, whatever the prior


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
        """Return an interior iterate, from the given labels or near the rows' central paths.

        Of a problem with all its classes; on a working set, see ``start_near``.
        """
        check_unknowns(problem, self.name)
        shares, mass = _first_shares(problem), problem.mass()
        mean_label = mass * shares + problem.held
        if labels is not None:
            mean_label = problem.mean_label(labels)
            mean_label += self.warmth * (problem.mean_label(problem.uniform_labels()) - mean_label)
        multipliers = problem.multipliers(mean_label)
        rows, relative = problem.kernel_rows, multipliers - multipliers.max()
        gap, collision = _first_gap(problem), problem.objective.collision

        def near(part: slice) -> StepArrays:
            own = rows[part]
            if labels is not None:
                return near_labels(own, relative, labels[part], self.warmth, collision=collision)
            backend = problem.backend
            return near_central_path(backend, own, relative, shares, gap, collision=collision)

        kernels = problem.kernels()
        arrays = kernels.load(*_part_by_part(rows, near, by_class=kernels.by_class))
        state = InteriorPointState(arrays, 0.0, multipliers, kernels, tol, mass)
        state.set_multipliers(0.0, multipliers)
        return state

    def step(self, problem: Problem, state: InteriorPointState) -> InteriorPointState:
        """Take one predictor-corrector step; mark the state when the system breaks down."""
        kernels, arrays, relative = state.kernels, state.arrays, state.relative
        factors = kernels.factor()
        if not math.isfinite(factors.complementarity):  # predictions of a network that diverged
            state.stalled = True
            return state
        mean_label = factors.mean_label + problem.held
        off = state.multipliers - problem.multipliers(mean_label)
        curvature = problem.curvature(mean_label)
        coupling = coupling_of(factors.gram, curvature, off)
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
        width = arrays.y.shape[1]
        mean = now / (width * state.mass)
        target = mean * min(_MOST_CENTERING, max(ahead / now, 0.0) ** _CENTERING_POWER)
        # Closer to the boundary than the tolerance asks, rounding would be all that moves.
        rounding = _ROUNDING * (1 + problem.fairness)
        target = max(target, max(_SHARE_OF_TOL * state.tol, rounding) / width)

        change = coupling.solve(pull + target * affine.center + affine.bend)
        extents = kernels.correct(relative - change, target)
        primal = min(1.0, _TO_BOUNDARY * _limit(-extents.primal))
        dual = min(1.0, _TO_BOUNDARY * _limit(-extents.dual))
        if not (primal > 0 and dual > 0):
            state.stalled = True
            return state
        state.arrays = kernels.advance(primal, dual)
        state.set_multipliers(state.level, relative - dual * change)
        moved = mean_label + primal * answer_to(change, curvature, off)
        open_gap = problem.coupling_gap(moved, state.multipliers)
        if math.isinf(open_gap) and not problem.bounded_by(state.multipliers):
            state.set_multipliers(0.0, problem.multipliers(problem.mean_label(state.labels)))
            open_gap = problem.coupling_gap(moved, state.multipliers)
        length = (primal + dual) / 2
        expected_gap = (1 - length) * now + length * target * width + open_gap
        # What rounding leaves no step will close: better to certify than to wait for less.
        state.expected_gap = max(expected_gap - rounding, 0.0)
        return state


def _part_by_part(
    rows: Tensor, near: Callable[[slice], StepArrays], *, by_class: bool
) -> StepArrays:
    """Return the first iterate of all rows, as the kernels take it without a copy."""
    first, *others = row_parts(rows)
    if by_class and not others:
        return near(first)  # which lies class by class
    shape = rows.T.shape if by_class else rows.shape
    empty = (torch.empty(shape, dtype=torch.float64, device=rows.device) for _ in range(2))
    arrays = StepArrays(*(array.T if by_class else array for array in empty))
    for part in (first, *others):
        arrays.y[part], arrays.zeta[part] = near(part)
    return arrays


def _first_gap(problem: Problem) -> float:
    """Return the complementarity of the first iterate."""
    classes = len(problem.prior)
    least = _FIRST_GAP_OF_COLLISION if problem.objective.collision else _FIRST_GAP
    few = min(_FIRST_GAP_OF_A_CLASS * classes, _FIRST_GAP)
    return max(least, few, _FIRST_GAP_OF_MANY * classes)


def _first_shares(problem: Problem) -> Vector:
    """Return what the prior leaves to the free rows, as shares; no class gets far less."""
    left = np.maximum(problem.prior - problem.held, 0)
    total, classes = left.sum(), len(left)
    if not total > 0:
        return np.full(classes, 1 / classes)
    shares: Vector = (1 - _EVEN) * left / total + _EVEN / classes
    return shares


def _limit(rate: float) -> float:
    """Return the longest step along which ``1 - step · rate`` stays non-negative."""
    return 1 / rate if rate > 0 else float("inf")
