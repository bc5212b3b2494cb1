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

import numpy as np
import torch
from scipy.linalg import lapack
from torch import Tensor

from coincide.pseudolabels.kernels import Minimizers, RowMinimizers
from coincide.pseudolabels.kernels.blas import one_blas_thread
from coincide.pseudolabels.objectives import Vector
from coincide.pseudolabels.problem import Problem

_AVERAGED = 0.5  # weight of the past in the model of the curvature
_TAKEN = 1e-3  # least rise of the dual, relative to the model's, for a step to be taken
_TRUSTED = 0.5  # rise that says the model is right
_EXPLAINED = 0.8  # of the change of the slope, by the curvature at the new point alone
_LEAST_DAMPING, _FIRST_DAMPING, _MORE_DAMPING, _LESS_DAMPING = 1e-3, 0.15, 3.0, 0.25
_LONGEST = 2.0  # a multiplier's change that turns most rows over
_RIDGE = 1e-12
_ROUNDING = 1e-14


@dataclass(frozen=True)
class Point:
    """The dual at one point: its value, slope and curvature, and the gap of the rows' answer."""

    multipliers: Vector
    value: float
    slope: Vector
    curvature: Vector
    gap: float
    rows: Minimizers


class Ascent:
    """Newton's steps up the dual.

    Attributes
    ----------
    point : Point
        The highest point reached.
    trial : Point
        The last point tried; only its ``rows`` are still there.
    reach : float
        The largest change of a multiplier in the last step.
    """

    def __init__(self, problem: Problem, search: RowMinimizers, multipliers: Vector) -> None:
        self._problem, self._search = problem, search
        self.point = self.trial = evaluate(problem, search, multipliers)
        self.reach = float("inf")
        self._model = self.point.curvature
        self._damping = 0.0

    def step(self) -> Point:
        """Try a Newton step; take it where the dual rises, else damp the next."""
        point, model = self.point, self._model
        change = _newton_change(model, point.slope, self._damping)
        change *= min(1.0, _LONGEST / np.abs(change).max(initial=_LONGEST))
        while not self._problem.bounded_by(point.multipliers + change):
            change /= 2
        trial = evaluate(self._problem, self._search, point.multipliers + change)
        predicted = float(point.slope @ change - change @ model @ change / 2)
        negligible = predicted <= _ROUNDING * (1 + abs(point.value))
        risen = 1.0 if negligible else (trial.value - point.value) / predicted
        self._damping = _next_damping(self._damping, risen)
        self._model = _next_model(model, point, trial, trusted=risen > _TRUSTED)
        self.trial, self.reach = trial, float(np.abs(change).max())
        if risen > _TAKEN:
            self.point = trial
        return trial


def evaluate(problem: Problem, search: RowMinimizers, multipliers: Vector) -> Point:
    """Return the dual at ``w``: ``D``, ``a(w) - ȳ(w)``, minus the second derivative, the gap.

    The gap is ``Φ(ȳ) + w·ȳ + conjugate(w)``, what Fenchel's inequality leaves open.
    """
    coupling, prior, fairness = problem.objective.coupling, problem.prior, problem.fairness
    rows = search.minimize(multipliers)
    weights = problem.weights.double()
    classes = len(multipliers)
    answer = torch.bincount(rows.steep, weights * rows.share, classes)
    answer += torch.bincount(rows.flat, weights * (1 - rows.share), classes)
    free, split, own_value = problem.summed(
        answer.double().cpu().numpy(),
        _split_mass(rows, weights, classes),
        (weights @ rows.values).cpu().numpy(),
    )
    mean_label = free + problem.held
    conjugate = coupling.conjugate(multipliers, prior, fairness)
    value = float(own_value) - float(multipliers @ problem.held) - conjugate
    return Point(
        multipliers=multipliers,
        value=value + problem.held_loss,
        slope=coupling.proposal(multipliers, prior, fairness) - mean_label,
        curvature=coupling.stiffness(multipliers, prior, fairness) + _laplacian(split, multipliers),
        gap=coupling.value(mean_label, prior, fairness)
        + float(multipliers @ mean_label)
        + conjugate,
        rows=rows,
    )


def answer_labels(problem: Problem, point: Point) -> Tensor:
    """Return the labels that the rows answer with, ``(M, K)``: at most two classes each."""
    rows = point.rows
    labels = torch.zeros_like(problem.probs)
    labels.scatter_(1, rows.flat[:, None], (1 - rows.share)[:, None].to(labels))
    return labels.scatter_add_(1, rows.steep[:, None], rows.share[:, None].to(labels))


def _split_mass(rows: Minimizers, weights: Tensor, classes: int) -> Vector:
    """Return the weight of the rows split between every two classes, ``(K, K)``."""
    split = (rows.share > 0) & (rows.share < 1)
    edges = rows.steep[split] * classes + rows.flat[split]
    counted = torch.bincount(edges, weights[split], classes**2).double().cpu().numpy()
    mass: Vector = counted.reshape(classes, classes)
    return mass


def _laplacian(mass: Vector, multipliers: Vector) -> Vector:
    """Return the derivative of the mean label by ``w``: edges of weight ``mass/(w_k - w_l)²``."""
    apart = multipliers - multipliers[:, None]
    graph = np.divide(mass, apart**2, out=np.zeros_like(mass), where=mass > 0)
    graph += graph.T
    laplacian: Vector = np.diag(graph.sum(1)) - graph
    return laplacian


def _newton_change(model: Vector, slope: Vector, damping: float) -> Vector:
    """Solve the damped Newton system over the classes that can move."""
    diagonal = np.diag(model)
    moving = diagonal > 0
    if not moving.any():
        return np.zeros_like(slope)
    system = model[np.ix_(moving, moving)]
    own = diagonal[moving]
    system.flat[:: len(own) + 1] += damping * own + _RIDGE * own.max()
    change = np.zeros_like(slope)
    with one_blas_thread(len(own)):
        _, found, info = lapack.dposv(system, slope[moving])
    change[moving] = found if info == 0 else slope[moving] / own
    return change


def _next_damping(damping: float, risen: float) -> float:
    """Damp more after a step that failed, less after one that went as expected."""
    if risen <= _TAKEN:
        return max(_MORE_DAMPING * damping, _FIRST_DAMPING)
    less = damping * _LESS_DAMPING if risen > _TRUSTED else damping
    return less if less > _LEAST_DAMPING else 0.0


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
