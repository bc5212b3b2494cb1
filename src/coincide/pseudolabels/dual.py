"""The dual of the pseudo-label problem, and Newton's steps up it.

One unknown a class, the multipliers ``w`` of the mean label:

    maximize  D(w) = Σ_i ω_i g_i(w) - w·held - conjugate(w),   g_i(w) = min_y [-ln σ_i·y - w·y]

It is concave, and it is the certificate itself. Its slope is the mean label that the multipliers
ask for minus the one that the rows answer with. An answering row has at most two classes: on one
it does not move; split between ``k`` and ``l`` it moves mass at the rate ``1/(w_k - w_l)²``,
whatever its predictions are. So the curvature is a weighted graph of the classes, counted in the
same pass as the slope; a step costs one or two reads of the predictions and no array of their
size.

``D`` is smooth only in pieces: rows whose best classes nearly tie jump from one to the other. The
model of its curvature is therefore an average over the last points, made to fit the last step
(BFGS) and damped while steps fail (Levenberg-Marquardt); where one point's own curvature explains
the step, it takes over.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from scipy.linalg import lapack
from torch import Tensor

from coincide.pseudolabels.objectives import Vector
from coincide.pseudolabels.problem import Problem
from coincide.pseudolabels.rows import Minimizers, RowMinimizers

_AVERAGED = 0.5  # weight of the past in the model of the curvature
_TAKEN = 1e-3  # least rise of the dual, relative to the model's, for a step to be taken
_TRUSTED = 0.5  # rise that says the model is right
_EXPLAINED = 0.8  # of the change of the slope, by the curvature at the new point alone
_LEAST_DAMPING, _FIRST_DAMPING, _MORE_DAMPING, _LESS_DAMPING = 1e-3, 0.15, 3.0, 0.25
_TURNING = 0.25  # multipliers' change over which the first curvature is the mean
_LONGEST = 2.0  # a multiplier's change that turns most rows over
_TINY = 1e-300
_RIDGE = 1e-12
_ROUNDING = 1e-14


@dataclass(frozen=True)
class Point:
    """The dual at one point: its value and slope, the rows' answer and the gap of that."""

    problem: Problem
    multipliers: Vector
    value: float
    slope: Vector
    gap: float
    rows: Minimizers

    @property
    def off(self) -> float:
        """How much mass the classes have too much or too little, in all."""
        return float(np.abs(self.slope).sum())

    @property
    def even(self) -> bool:
        """Whether all multipliers are equal, so that they say nothing about the rows."""
        return bool(self.multipliers.min() == self.multipliers.max())

    @cached_property
    def curvature(self) -> Vector:
        """Minus the second derivative, ``(K, K)``."""
        problem, w = self.problem, self.multipliers
        own = problem.passes.answer_curvature(self.rows, problem.weights, w)
        stiffness = problem.coupling.stiffness(w)
        stiffness += problem.summed(own)[0]
        return stiffness


class Ascent:
    """Newton's steps up the dual.

    Attributes
    ----------
    point : Point
        The highest point reached.
    trial : Point
        The last point tried.
    reach : float
        The largest change of a multiplier in the last step.
    """

    def __init__(self, problem: Problem, search: RowMinimizers, multipliers: Vector) -> None:
        self._problem, self.search = problem, search
        self.point = self.trial = evaluate(problem, search, multipliers)
        self.reach = float("inf")
        self._model: Vector | None = None
        self._damping = 0.0
        self._longest = _LONGEST

    def step(self) -> Point:
        """Try a Newton step; take it where the dual rises, else damp the next."""
        point = self.point
        if self._model is None:
            self._model = point.curvature + _turning(self._problem, point)
        model = self._model
        change = newton_change(model, point.slope, self._damping)
        if not np.isfinite(change).all():  # a curvature out of range has no direction to offer
            change = np.zeros_like(change)
        change *= min(1.0, self._longest / max(float(np.abs(change).max()), _TINY))
        while not self._problem.coupling.bounded(point.multipliers + change):
            change /= 2
        trial = evaluate(self._problem, self.search, point.multipliers + change)
        predicted = float(point.slope @ change - change @ model @ change / 2)
        negligible = predicted <= _ROUNDING * (1 + abs(point.value))
        risen = 1.0 if negligible else (trial.value - point.value) / predicted
        self._damping = _next_damping(self._damping, risen)
        self._model = _next_model(model, point, trial, trusted=risen > _TRUSTED)
        self.trial, self.reach = trial, float(np.abs(change).max())
        if risen <= _TAKEN:
            self._longest = self.reach / 2
            return trial
        if risen > _TRUSTED:
            self._longest = min(_LONGEST, max(self._longest, 2 * self.reach))
        self.point = trial
        return trial


def _next_model(model: Vector, point: Point, trial: Point, *, trusted: bool) -> Vector:
    """Average in the curvature of the trial and make the model fit the last change of slope."""
    change = trial.multipliers - point.multipliers
    turned = point.slope - trial.slope
    along = float(change @ turned)
    own = float(change @ trial.curvature @ change)
    if trusted and _EXPLAINED * own < along < own / _EXPLAINED:
        return trial.curvature
    model = _AVERAGED * model + (1 - _AVERAGED) * trial.curvature
    if along > 0:
        pushed = model @ change
        model -= np.outer(pushed, pushed) / (change @ pushed)
        model += np.outer(turned, turned) / along
    return model


def evaluate(problem: Problem, search: RowMinimizers, multipliers: Vector) -> Point:
    """Return the dual at ``w``: ``D``, ``a(w) - ȳ(w)``, and the gap.

    The gap is what Fenchel's inequality leaves open between ``w`` and the mean label.
    """
    coupling, rows = problem.coupling, search.minimize(multipliers)
    summed = problem.passes.summed_answer(rows, problem.weights, problem.n_classes)
    free, own_value = problem.summed(*summed)
    mean_label = free + problem.held
    value = float(own_value) - float(multipliers @ problem.held) - coupling.conjugate(multipliers)
    return Point(
        problem=problem,
        multipliers=multipliers,
        value=value + problem.held_loss,
        slope=coupling.proposal(multipliers) - mean_label,
        gap=coupling.divergence(mean_label, multipliers),
        rows=rows,
    )


def answer_labels(problem: Problem, point: Point) -> Tensor:
    """Return the labels that the rows answer with, ``(M, K)``: at most two classes each."""
    rows = point.rows
    labels = torch.zeros_like(problem.probs)
    labels.scatter_(1, rows.flat[:, None], (1 - rows.share)[:, None].to(labels))
    return labels.scatter_add_(1, rows.steep[:, None], rows.share[:, None].to(labels))


def _turning(problem: Problem, point: Point) -> Vector:
    """Return the mean curvature over some way from multipliers where all rows are on one class.

    Equal multipliers split no row, so the curvature there is none of the rows'. But a row whose
    second line is near turns over when the multipliers have moved by as much.
    """
    if not point.even:
        return np.zeros_like(point.curvature)
    own = np.zeros((problem.n_classes, problem.n_classes))
    if len(problem.probs):
        rows, classes = problem.passes.near_candidates(
            problem.probs, point.multipliers, point.rows, slack=_TURNING, most=2
        )
        weights = problem.weights[rows] / _TURNING
        pair = classes[:, 0].contiguous(), classes[:, -1].contiguous()
        own = problem.passes.laplacian(*pair, weights, problem.n_classes)
    return problem.summed(own)[0]


def newton_change(model: Vector, slope: Vector, damping: float = 0.0) -> Vector:
    """Solve the damped Newton system over the classes that can move."""
    diagonal = model.diagonal()
    moving = diagonal > 0
    if not moving.all():
        change = np.zeros_like(slope)
        if moving.any():
            part = model[np.ix_(moving, moving)]
            change[moving] = newton_change(part, slope[moving], damping)
        return change
    system = model.copy()
    system.flat[:: len(slope) + 1] += damping * diagonal + _RIDGE * diagonal.max()
    _, change, info = lapack.dposv(system, slope, overwrite_a=1)
    return change if info == 0 else slope / diagonal


def _next_damping(damping: float, risen: float) -> float:
    """Damp more after a step that failed, less after one that went as expected."""
    if risen <= _TAKEN:
        return max(_MORE_DAMPING * damping, _FIRST_DAMPING)
    less = damping * _LESS_DAMPING if risen > _TRUSTED else damping
    return less if less > _LEAST_DAMPING else 0.0
