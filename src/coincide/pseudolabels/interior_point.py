"""A structured interior-point method: exact soft labels for (11), (10) and (5).

Primal-dual steps on the KKT conditions, with row gradients ``-g_i - w``, ``w = -Φ'(ȳ)``,

    -g_ik - w_k + ν_i - ζ_ik = 0,   Σ_k y_ik = 1,   y_ik ζ_ik = μ -> 0.

All coupling between rows goes through the mean label. Every row's Hessian is diagonal plus rank
one and is eliminated in O(K) by the row kernels; what remains is one K×K positive definite
system for ``s = -Δw``, with ``h = Φ''(ȳ)``, here in the symmetric form

    (I + √h (Σ_i ω_i P_i) √h) s/√h = √h Σ_i ω_i P_i r_i + (w + Φ'(ȳ))/√h,   Δy_i = P_i (r_i - s)

that holds for ``h = 0`` too. The multipliers ``w`` are iterated beside the labels: near the
optimum rounding moves ``ȳ`` far more than them, and they give the better lower bound. Mehrotra's
predictor-corrector chooses the centering. The row multipliers ``ν`` never appear: the projections
``P_i`` remove every row constant.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
import torch
from scipy.linalg import lapack
from torch import Tensor

from coincide.pseudolabels.kernels import RowKernels, StepArrays
from coincide.pseudolabels.kernels.blas import one_blas_thread
from coincide.pseudolabels.objectives import Vector
from coincide.pseudolabels.problem import Problem

_MOST_CLASSES = 10_000
_TO_BOUNDARY = 0.995
_CENTERING_POWER = 3
_SHARE_OF_TOL = 0.1
_ROUNDING = 1e-12  # of the gap, for each unit of fairness


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
    any_precision: ClassVar[bool] = False
    max_iter: ClassVar[int] = 200
    check_every: ClassVar[int] = 1
    warmth: float = field(default=1e-2)

    def start(self, problem: Problem, labels: Tensor | None, tol: float) -> InteriorPointState:
        """Return an interior iterate, from the given labels or from uniform ones."""
        classes = len(problem.prior)
        if classes > _MOST_CLASSES:
            raise ValueError(
                f"The 'interior-point' solver solves a dense system of K×K, and K = {classes:,} is"
                f" more than {_MOST_CLASSES:,}. Take 'projected-gradient', or 'em' for 'cce+'."
            )
        y = problem.uniform_labels()
        if labels is not None:
            y = torch.lerp(labels, y, self.warmth)
        multipliers = problem.multipliers(problem.mean_label(y))
        pull = problem.descent(y) + problem.at_rows(multipliers - multipliers.max())
        zeta = 1 + pull.amax(1, keepdim=True) - pull
        kernels = problem.kernels()
        state = InteriorPointState(
            kernels.load(y, zeta), 0.0, multipliers, kernels, tol, problem.mass()
        )
        state.set_multipliers(0.0, multipliers)
        return state

    def step(self, problem: Problem, state: InteriorPointState) -> InteriorPointState:
        """Take one predictor-corrector step; mark the state when the system breaks down."""
        kernels, arrays, relative = state.kernels, state.arrays, state.relative
        factors = kernels.factor()
        mean_label = factors.mean_label + problem.held
        off = state.multipliers - problem.multipliers(mean_label)
        coupling = _Coupling(factors.gram, problem.curvature(mean_label), off)
        if coupling.broken:
            state.stalled = True
            return state

        pull = factors.pull + coupling.apply(relative)
        affine = kernels.predict(relative - coupling.solve(pull))
        length = min(1.0, _limit(-affine.low), _limit(1 + affine.high))
        # Σ ω (y + αΔy)(ζ + αΔζ) with Δζ/ζ = -1 - Δy/y
        now = factors.complementarity
        ahead = (1 - length) * now - length**2 * (affine.first + affine.second)
        mean = now / (arrays.y.shape[1] * state.mass)
        target = mean * min(1.0, max(ahead / now, 0.0)) ** _CENTERING_POWER
        # Closer to the boundary than the tolerance asks, rounding would be all that moves.
        floor = max(_SHARE_OF_TOL * state.tol, _ROUNDING * (1 + problem.fairness))
        target = max(target, floor / arrays.y.shape[1])

        change = coupling.solve(pull + target * affine.center + affine.bend)
        extents = kernels.correct(relative - change, target)
        length = min(
            1.0, _TO_BOUNDARY * _limit(-extents.primal), _TO_BOUNDARY * _limit(-extents.dual)
        )
        if not length > 0:
            state.stalled = True
            return state
        state.arrays = kernels.advance(length)
        state.set_multipliers(state.level, relative - length * change)
        if not problem.bounded_by(state.multipliers):
            state.set_multipliers(0.0, problem.multipliers(problem.mean_label(state.labels)))
        state.expected_gap = (1 - length) * now + length * target * arrays.y.shape[1]
        return state


class _Coupling:
    """The K×K system that ties the rows together through the mean label, on the CPU."""

    def __init__(self, gram: Vector, curvature: Vector, off: Vector) -> None:
        self._gram = gram
        np.fill_diagonal(self._gram, 0)
        # The rows of Σ P_i sum to 0: their diagonal follows from the rest without cancellation.
        self._diagonal = self._gram.sum(1)
        self._root = np.sqrt(curvature)
        self._off = np.divide(off, self._root, out=np.zeros_like(off), where=self._root > 0)
        system = self._gram * -self._root[:, None]
        system *= self._root
        system.flat[:: len(off) + 1] = 1 + self._diagonal * curvature
        with one_blas_thread(len(off)):
            # Symmetric, so its transpose is in the order that LAPACK overwrites.
            self._factor, info = lapack.dpotrf(system.T, lower=1, overwrite_a=1, clean=0)
        self.broken = info != 0

    def apply(self, vector: Vector) -> Vector:
        """Return ``(Σ_i ω_i P_i) vector``."""
        product: Vector = self._diagonal * vector - self._gram @ vector
        return product

    def solve(self, pull: Vector) -> Vector:
        """Return ``s = -Δw``, from ``pull = Σ_i ω_i P_i r_i``."""
        scaled, _ = lapack.dpotrs(self._factor, self._root * pull + self._off, lower=1)
        change: Vector = self._root * scaled
        return change


def _limit(rate: float) -> float:
    """Return the longest step along which ``1 - step · rate`` stays non-negative."""
    return 1 / rate if rate > 0 else float("inf")
