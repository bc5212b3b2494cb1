"""A structured interior-point method: exact soft labels for (11), (10) and (5).

Primal-dual steps on the KKT conditions, with row gradients ``-g_i - w``, ``w = -Φ'(ȳ)``,

    -g_ik - w_k + ν_i - ζ_ik = 0,   Σ_k y_ik = 1,   y_ik ζ_ik = μ -> 0.

All coupling between rows goes through the mean label. Every row's Hessian is diagonal plus rank
one and is eliminated in O(K) (``rows/contract.py``); what remains is one positive definite K×K
system for ``s = -Δw``, and ``Δy_i = P_i (r_i - s)``. With ``h = Φ''(ȳ)``,

    s/h + (Σ_i ω_i P_i) s = Σ_i ω_i P_i r_i + (w + Φ'(ȳ))/h.

The multipliers ``w`` are iterated beside the labels: near the optimum rounding moves ``ȳ`` far more
than them, and they give the better lower bound. Mehrotra's predictor-corrector chooses the
centering; its second-order term is limited entry by entry where the predictor goes farther than it
can be trusted (``rows/contract.py``), and labels and multipliers take steps of their own length.
The row multipliers ``ν`` never appear: the projections ``P_i`` remove every row constant.

The first iterate has every row near its own central path, ``y_ik ζ_ik = μ_k`` for a gap ``Σμ`` of a
few units of the loss: one secular equation a row, as in EM's M-step.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
import torch
from scipy.linalg import blas, lapack
from torch import Tensor

from coincide.pseudolabels.objectives import Vector
from coincide.pseudolabels.problem import Problem
from coincide.pseudolabels.rows import NewtonRows, StepArrays, row_parts

MOST_CLASSES = 10_000  # of the dense system
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
_LEVEL_STEPS = 3  # for the level of each row at the start, which needs no digits


@dataclass
class InteriorPointState:
    """The iterate, the passes that hold its work arrays, and the gap it expects."""

    arrays: StepArrays
    level: float  # the multipliers are level + relative: next to a common level of λ the small
    relative: Vector  # differences that steer the rows would lose their last digits
    rows: NewtonRows
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
    max_iter: ClassVar[int] = 200
    check_every: ClassVar[int] = 1
    warmth: float = field(default=1e-2)

    def start(self, problem: Problem, labels: Tensor | None, tol: float) -> InteriorPointState:
        """Return an interior iterate, from the given labels or near the rows' central paths.

        Of a problem with all its classes; on a working set, see ``start_near``.
        """
        check_classes(problem, self.name)
        shares, mass = _first_shares(problem), problem.mass()
        mean_label = mass * shares + problem.held
        if labels is not None:
            mean_label = problem.mean_label(labels)
            mean_label += self.warmth * (problem.mean_label(problem.uniform_labels()) - mean_label)
        multipliers = problem.coupling.multipliers(mean_label)
        own, relative = problem.newton_input, multipliers - multipliers.max()
        # Entry by entry, as the compiled passes take them without a copy.
        empty = (own.new_empty(own.T.shape, dtype=torch.float64).T for _ in range(2))
        arrays = StepArrays(*empty)
        collision = problem.objective.collision
        for part in row_parts(own):
            if labels is None:
                gap = _first_gap(problem)
                near = near_central_path(own[part], relative, shares, gap, collision=collision)
            else:
                warm = labels[part], self.warmth
                near = near_labels(own[part], relative, *warm, collision=collision)
            arrays.y[part], arrays.zeta[part] = near
        rows = problem.newton_rows()
        state = InteriorPointState(rows.load(*arrays), 0.0, multipliers, rows, tol, mass)
        state.set_multipliers(0.0, multipliers)
        return state

    def step(self, problem: Problem, state: InteriorPointState) -> InteriorPointState:
        """Take one predictor-corrector step; mark the state when the system breaks down."""
        rows, arrays, relative = state.rows, state.arrays, state.relative
        factors = rows.factor()
        if not math.isfinite(factors.complementarity):  # predictions of a network that diverged
            state.stalled = True
            return state
        mean_label = factors.mean_label + problem.held
        off = state.multipliers - problem.coupling.multipliers(mean_label)
        curvature = problem.coupling.curvature(mean_label)
        system = _System(factors.gram, curvature, off)
        if system.broken:
            state.stalled = True
            return state

        gradient = factors.gradient + system.apply(relative)
        affine = rows.predict(relative - system.solve(gradient))
        primal, dual = min(1.0, _limit(-affine.low)), min(1.0, _limit(1 + affine.high))
        # Σ ω (y + αΔy)(ζ + βΔζ) with Δζ/ζ = -1 - Δy/y
        now = factors.complementarity
        ahead = (1 - dual) * now + (primal - dual - primal * dual) * affine.first
        ahead -= primal * dual * affine.second
        width = arrays.y.shape[1]
        mean = now / (width * state.mass)
        target = mean * min(_MOST_CENTERING, max(ahead / now, 0.0) ** _CENTERING_POWER)
        # Closer to the boundary than the tolerance asks, rounding would be all that moves.
        rounding = _ROUNDING * (1 + problem.coupling.fairness)
        target = max(target, max(_SHARE_OF_TOL * state.tol, rounding) / width)

        change = system.solve(gradient + target * affine.center + affine.correction)
        extents = rows.correct(relative - change, target)
        primal = min(1.0, _TO_BOUNDARY * _limit(-extents.primal))
        dual = min(1.0, _TO_BOUNDARY * _limit(-extents.dual))
        if not (primal > 0 and dual > 0):
            state.stalled = True
            return state
        state.arrays = rows.advance(primal, dual)
        state.set_multipliers(state.level, relative - dual * change)
        moved = mean_label + primal * _quotient(change - off, curvature)
        open_gap = problem.coupling.divergence(moved, state.multipliers)
        if math.isinf(open_gap) and not problem.coupling.bounded(state.multipliers):
            state.set_multipliers(
                0.0, problem.coupling.multipliers(problem.mean_label(state.labels))
            )
            open_gap = problem.coupling.divergence(moved, state.multipliers)
        length = (primal + dual) / 2
        expected_gap = (1 - length) * now + length * target * width + open_gap
        # What rounding leaves no step will close: better to certify than to wait for less.
        state.expected_gap = max(expected_gap - rounding, 0.0)
        return state


class _System:
    """The system of one step, in ``(I + √h (Σ_i ω_i P_i) √h) s/√h = √h Σ_i ω_i P_i r_i + off/√h``.

    This form holds for ``h = 0`` too: ``s = 0`` there. It is ``broken`` where it is not positive
    definite, as rounding leaves it very close to the boundary.

    Parameters
    ----------
    gram : array of shape (K, K)
        See :class:`coincide.pseudolabels.rows.Factors`; its diagonal is overwritten.
    curvature : array of shape (K,)
        ``h``.
    off : array of shape (K,)
        ``w + Φ'(ȳ)``.
    """

    def __init__(self, gram: Vector, curvature: Vector, off: Vector) -> None:
        gram.flat[:: len(off) + 1] = 0
        # BLAS and LAPACK order matrices by columns: there it is the lower triangle that counts.
        self._gram = gram.T
        # The rows of Σ P_i sum to 0: their diagonal follows from the rest without cancellation.
        self._diagonal = blas.dsymv(1.0, self._gram, np.ones_like(off), lower=1)
        self._root = np.sqrt(curvature)
        self._off = _quotient(off, self._root)
        system = gram * -self._root[:, None]
        system *= self._root
        system.flat[:: len(off) + 1] = 1 + self._diagonal * curvature
        self._factor, info = lapack.dpotrf(system.T, lower=1, overwrite_a=1, clean=0)
        self.broken = info != 0

    def apply(self, vector: Vector) -> Vector:
        """Return ``(Σ_i ω_i P_i) vector``."""
        product: Vector = self._diagonal * vector
        product -= blas.dsymv(1.0, self._gram, vector, lower=1)
        return product

    def solve(self, summed: Vector) -> Vector:
        """Return ``s = -Δw``, from ``Σ_i ω_i P_i r_i``."""
        scaled, _ = lapack.dpotrs(self._factor, self._root * summed + self._off, lower=1)
        change: Vector = self._root * scaled
        return change


def check_classes(problem: Problem, solver: str) -> None:
    """Refuse a problem whose system would be too large, in the name of a solver."""
    if problem.n_classes > MOST_CLASSES:
        raise ValueError(
            f"The {solver!r} solver solves a dense system with an unknown a class, at most"
            f" {MOST_CLASSES:,}. Got {problem.n_classes:,} classes: take 'projected-gradient', or"
            " 'em' for 'cce+'."
        )


def near_central_path(
    rows: Tensor, multipliers: Vector, shares: Vector, gap: float, *, collision: bool
) -> StepArrays:
    """Return labels and slacks with ``y ζ = μ``, and a small dual residual.

    ``y_k = μ_k/(d + max_j g_j - g_k)`` for the one ``d`` at which they sum to 1: one secular
    equation a row, as in EM's M-step. Of collision cross-entropy ``g = σ/x``, where ``x`` is at
    least ``σ_max/(1 + Σμ)`` (EM's M-step) and about that of the shares.

    Parameters
    ----------
    rows : Tensor of shape (n, K)
        Probabilities for collision cross-entropy, their logarithms for Shannon's.
    multipliers : array of shape (K,)
    shares : array of shape (K,)
        ``μ/Σμ``, positive.
    gap : float
        ``Σμ``.
    collision : bool
    """
    # Class by class, where sums over the classes are quick for few of them, too.
    own = rows.T.double().contiguous()
    w, shared = (torch.from_numpy(vector).to(own)[:, None] for vector in (multipliers, shares))
    target = gap * shared
    coincidence = torch.maximum((own * shared).sum(0), own.amax(0) / (1 + gap))
    below = _ascent(own, w, coincidence, collision=collision).neg_()
    below -= below.amin(0)
    least = torch.where(below == 0, target, 0.0).amax(0)
    level, y = least, torch.empty_like(below)
    for _ in range(_LEVEL_STEPS):
        torch.add(below, level, out=y).reciprocal_()
        slope = (y * y).mul_(target).sum(0)
        mass = y.mul_(target).sum(0)
        # A step on 1 - 1/mass.
        level = torch.maximum(level + (mass - 1) * mass / slope, least).clamp_max(gap)
    torch.add(below, level, out=y).reciprocal_().mul_(target)
    y /= y.sum(0)
    return StepArrays(y.T, (target / y).T)


def near_labels(
    rows: Tensor, multipliers: Vector, labels: Tensor, warmth: float, *, collision: bool
) -> StepArrays:
    """Return ``(1 - warmth) y + warmth/K``, and slacks of at least 1 without a dual residual.

    Parameters
    ----------
    rows, multipliers, collision
        As in :func:`near_central_path`.
    labels : Tensor of shape (n, K)
    warmth : float
    """
    own, n_classes = rows.T.double().contiguous(), rows.shape[1]
    w = torch.from_numpy(multipliers).to(own)[:, None]
    y = torch.lerp(labels.T.double(), 1 / own.new_tensor(n_classes), warmth)
    rise = _ascent(own, w, (own * y).sum(0), collision=collision)
    return StepArrays(y.T, (1 + rise.amax(0) - rise).T)


def _ascent(rows: Tensor, w: Tensor, coincidence: Tensor, *, collision: bool) -> Tensor:
    """Return minus the row gradients of loss and coupling, ``g_i + w``, class by class."""
    return rows / coincidence + w if collision else rows + w


def _first_gap(problem: Problem) -> float:
    """Return the complementarity of the first iterate."""
    classes = problem.n_classes
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


def _quotient(above: Vector, below: Vector) -> Vector:
    """Return ``above/below``; 0 where ``below`` is 0."""
    quotient: Vector = np.divide(above, below, out=np.zeros_like(above), where=below > 0)
    return quotient
