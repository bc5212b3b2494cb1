"""EM extrapolated: two sweeps, then as far along their path as the objective falls.

A sweep multiplies every label by a factor, ``y₁ = g₁ y₀``, ``y₂ = g₂ y₁``. With ``h = g₂/g₁`` the
extrapolation of SQUAREM (Varadhan and Roland, 2008) on ``ln y`` is, rows normalized,

    y ∝ y₂ g₂^(2m) h^(m²),       m = ‖ln g₁‖/‖ln h‖ - 1 rounded to a power of two,

which is worth about ``2m`` more sweeps where the path bends little. Powers of two are squarings:
compiled, no logarithm of an M×K array is taken. A step that would raise the objective is taken
back, so the method is as monotone as EM.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Protocol

import torch
from torch import Tensor

from coincide.pseudolabels.em import (
    EMState,
    ExpectationMaximization,
    Sweeper,
    TensorSweep,
    first_labels,
)
from coincide.pseudolabels.kernels import em_squarem
from coincide.pseudolabels.objectives import Vector
from coincide.pseudolabels.problem import Problem

_LEEWAY = 2  # doublings that the longest extrapolation gains when it succeeds, or loses
_LEAST_LOG = math.log(1e-30)  # no label dies of an extrapolation


class Squarem(Sweeper, Protocol):
    """Labels, sweeps over them, and the extrapolation of the last two sweeps."""

    def length(self) -> float:
        """Return ``‖ln g₁‖/‖ln h‖`` with the labels as weights."""
        ...

    def extrapolate(self, doublings: int) -> tuple[Vector, float, float]:
        """Continue the path, ``m = 2^doublings``; return ``Σ ω y``, row losses before and after.

        The losses share an unknown constant: only their difference counts.
        """
        ...

    def restore(self) -> None:
        """Return to the labels before the extrapolation."""
        ...


class TensorSquarem(TensorSweep):
    """The extrapolation in plain tensor operations, for any device."""

    def __init__(self, probs: Tensor, weights: Tensor, labels: Tensor) -> None:
        super().__init__(probs, weights, labels)
        self._path: tuple[Tensor, ...] = (labels,)
        self._kept = labels

    def sweep(self, multipliers: Vector, tolerance: float) -> Vector:
        """Take a sweep, return ``Σ_i ω_i y_i``, and remember the way."""
        mean = super().sweep(multipliers, tolerance)
        self._path = (*self._path[-2:], self.labels)
        return mean

    def _logs(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return ``ln y₂``, ``ln g₂`` and ``ln h``; labels of 0 stay there."""
        tiny = torch.finfo(self.labels.dtype).tiny
        first, second, third = (labels.clamp_min(tiny).log() for labels in self._path)
        return third, third - second, third - 2 * second + first

    def length(self) -> float:
        """Return ``‖ln g₁‖/‖ln h‖`` with the labels as weights."""
        labels, growth, bend = self._logs()
        shares = labels.exp() * self._weights[:, None]
        squares = [float((shares * part**2).sum()) for part in (growth - bend, bend)]
        return math.sqrt(squares[0] / squares[1]) if squares[1] > 0 else 1.0

    def extrapolate(self, doublings: int) -> tuple[Vector, float, float]:
        """Continue the path; return ``Σ_i ω_i y_i``, the row losses before and after."""
        labels, growth, bend = self._logs()
        power = 2.0**doublings
        ahead = labels + 2 * power * growth + power**2 * bend
        self._kept, self.labels = self.labels, ahead.clamp_min(_LEAST_LOG).softmax(1)
        self._path = (self.labels,)
        before, after = (
            -float(self._weights.double() @ torch.linalg.vecdot(self._probs, y).double().log())
            for y in (self._kept, self.labels)
        )
        return self._mean(), before, after

    def restore(self) -> None:
        """Return to the labels before the extrapolation."""
        self.labels = self._kept
        self._path = (self.labels,)


@dataclass
class AcceleratedState(EMState):
    """The labels after a step, and how long the next extrapolation may be."""

    most_doublings: int = 0


@dataclass(frozen=True)
class AcceleratedEM:
    """SQUAREM with a monotonicity guard; one step takes two sweeps of EM."""

    name: ClassVar[str] = "accelerated-em"
    objectives: ClassVar[tuple[str, ...]] = ("cce+",)
    minimizes: ClassVar[bool] = True
    estimates_gap: ClassVar[bool] = False
    any_precision: ClassVar[bool] = True
    max_iter: ClassVar[int] = 1000
    check_every: ClassVar[int] = 5

    def start(self, problem: Problem, labels: Tensor | None, tol: float) -> AcceleratedState:
        """Start from the given labels, or from uniform ones."""
        del tol
        labels = first_labels(problem, labels)
        rows = (problem.probs, problem.weights, labels)
        squarem: Squarem = em_squarem(problem.backend, *rows) or TensorSquarem(*rows)
        return AcceleratedState(squarem, problem.mean_label(labels))

    def step(self, problem: Problem, state: AcceleratedState) -> AcceleratedState:
        """Two sweeps, and their extrapolation unless it raises the objective."""
        plain = ExpectationMaximization()
        swept: EMState = state
        for _ in range(2):
            swept = plain.step(problem, swept)
        squarem: Squarem = swept.sweeper  # type: ignore[assignment]  # what start put there
        wanted = round(math.log2(max(1.0, squarem.length() - 1)))
        doublings = min(wanted, state.most_doublings)
        free, before, after = squarem.extrapolate(doublings)
        mean_label = free + problem.held
        fall = (
            before - after + _coupling(problem, swept.mean_label) - _coupling(problem, mean_label)
        )
        if not fall >= 0:
            squarem.restore()
            fewer = max(0, state.most_doublings - _LEEWAY)
            return AcceleratedState(squarem, swept.mean_label, most_doublings=fewer)
        most = state.most_doublings + (_LEEWAY if doublings == state.most_doublings else 0)
        return AcceleratedState(squarem, mean_label, most_doublings=most)


def _coupling(problem: Problem, mean_label: Vector) -> float:
    return problem.objective.coupling.value(mean_label, problem.prior, problem.fairness)
