"""Exact soft labels in a few passes: find the classes that matter, then solve on those alone.

Newton's method climbs the dual (``dual.py``), one unknown a class. Where rows are many to a class
it converges by itself. Where they are few, jumps of single rows stop it near the optimum; then the
classes that can still matter are known (``working_set.py``), two or three a row, and the interior
point solves for those entries. One pass over all rows certifies what it found; what the
certificate leaves open, the next working set, around better multipliers, closes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from coincide.pseudolabels.dual import Ascent, answer_labels, evaluate
from coincide.pseudolabels.interior_point import InteriorPoint, InteriorPointState
from coincide.pseudolabels.kernels import RowMinimizers, row_minimizers
from coincide.pseudolabels.objectives import Vector
from coincide.pseudolabels.problem import Certificate, Problem, certify
from coincide.pseudolabels.working_set import WorkingSet, working_set

_MOST_CLASSES = 10_000
_PATIENCE = 8  # Newton steps in which the gap must fall to a tenth, or the dual rise clearly
_CLEARLY = 1e-2
_MOST_SLACK = 8.0
_SMALL = 20_000  # entries: up to here the interior point on all is as quick as choosing some
_CANDIDATES = 4  # a row at most, and as many more in every round as _MORE_CANDIDATES
_MORE_CANDIDATES = 2
_MOST_ROUNDS = 12
_REACH = 2.0  # slack of a working set, in units of the multipliers' last change
_SHARE_OF_TOL = 0.25  # that the interior point may leave on the working set


@dataclass
class ActiveSetState:
    """Newton's ascent, and from some point on the interior point on a working set.

    ``goal`` is the gap that renews the patience with Newton's steps; ``rounds`` counts the working
    sets.
    """

    problem: Problem
    search: RowMinimizers
    tol: float
    ascent: Ascent
    goal: float
    expected_gap: float
    patience: int
    rounds: int = 0
    center: Vector | None = None
    working: Problem | None = None
    interior: InteriorPointState | None = None
    bound: float = float("-inf")
    stalled: bool = False

    @property
    def multipliers(self) -> Vector:
        """The last multipliers."""
        return self.ascent.trial.multipliers if self.interior is None else self.interior.multipliers

    @property
    def certificate(self) -> Certificate:
        """The objective of the last labels, before rounding to their type, and the bound."""
        if self.interior is None:
            trial = self.ascent.trial
            return Certificate(trial.value + trial.gap, trial.value)
        assert self.working is not None
        if isinstance(self.working, WorkingSet):
            return Certificate(self.working.value(self.interior.labels), self.bound)
        return certify(self.working, self.interior.labels, self.interior.multipliers)

    @property
    def labels(self) -> Tensor:
        """The last labels, ``(M, K)``."""
        if self.interior is None:
            return answer_labels(self.problem, self.ascent.trial)
        if isinstance(self.working, WorkingSet):
            return self.working.expand(self.interior.labels, self.problem.probs.dtype)
        return self.interior.labels.to(self.problem.probs)


@dataclass(frozen=True)
class ActiveSet:
    """Newton's method on the dual, finished by the interior point on a working set."""

    name: ClassVar[str] = "active-set"
    objectives: ClassVar[tuple[str, ...]] = ("cce+", "cce")
    minimizes: ClassVar[bool] = True
    estimates_gap: ClassVar[bool] = True
    any_precision: ClassVar[bool] = True
    max_iter: ClassVar[int] = 2000
    check_every: ClassVar[int] = 1

    def start(self, problem: Problem, labels: Tensor | None, tol: float) -> ActiveSetState:
        """Evaluate the dual at the problem's guess, at what labels propose, or at the prior."""
        classes = problem.probs.shape[1]
        if classes > _MOST_CLASSES:
            raise ValueError(
                f"The 'active-set' solver solves a dense system of K×K, and K = {classes:,} is"
                f" more than {_MOST_CLASSES:,}. Take 'projected-gradient', or 'em' for 'cce+'."
            )
        search = row_minimizers(problem.backend, problem.probs)
        ascent = Ascent(problem, search, _first_multipliers(problem, labels))
        gap = ascent.trial.gap
        return ActiveSetState(problem, search, tol, ascent, gap / 10, gap, _PATIENCE)

    def step(self, problem: Problem, state: ActiveSetState) -> ActiveSetState:
        """Take one Newton step, or one step of the interior point."""
        del problem
        if state.interior is None and state.patience > 0:
            return _climb(state)
        if state.interior is None:
            _open(state, state.ascent.point.multipliers, _REACH * state.ascent.reach)
        return _solve(state)


def _first_multipliers(problem: Problem, labels: Tensor | None) -> Vector:
    if problem.guess is not None and problem.bounded_by(problem.guess):
        return problem.guess
    indifferent = problem.multipliers(problem.prior)
    if labels is None:
        return indifferent
    proposed = problem.multipliers(problem.mean_label(labels))
    # Labels far from the optimum propose multipliers that are worse than none.
    if not np.isfinite(proposed).all():
        return indifferent
    return max(proposed, indifferent, key=problem.lower_bound)


def _climb(state: ActiveSetState) -> ActiveSetState:
    before = state.ascent.point.value
    trial = state.ascent.step()
    state.expected_gap = trial.gap
    state.patience -= 1
    if trial.value > before + _CLEARLY:
        state.patience = _PATIENCE
    if trial.gap < state.goal:
        state.goal, state.patience = trial.gap / 10, _PATIENCE
    return state


def _open(state: ActiveSetState, multipliers: Vector, slack: float) -> None:
    """Start the interior point on the classes within ``slack``; in the end, on all of them."""
    (entries,) = state.problem.summed(np.array(float(state.problem.probs.numel())))
    state.rounds += 1
    if entries <= _SMALL or state.rounds > _MOST_ROUNDS or not np.isfinite(slack):
        state.working = state.problem.to(torch.float64)
    else:
        point = evaluate(state.problem, state.search, multipliers)
        most = _CANDIDATES + _MORE_CANDIDATES * state.rounds
        state.working = working_set(state.problem, point, min(slack, _MOST_SLACK), most)
    state.center, state.bound = multipliers, float("-inf")
    state.interior = InteriorPoint().start(state.working, None, state.tol * _SHARE_OF_TOL)


def _solve(state: ActiveSetState) -> ActiveSetState:
    """Step on the working set; once it is solved, certify on all rows or open another."""
    assert state.interior is not None
    assert state.working is not None
    assert state.center is not None
    state.interior = InteriorPoint().step(state.working, state.interior)
    if not isinstance(state.working, WorkingSet):
        state.expected_gap, state.stalled = state.interior.expected_gap, state.interior.stalled
        return state
    if state.interior.expected_gap > _SHARE_OF_TOL * state.tol and not state.interior.stalled:
        return state
    found = state.interior.multipliers
    state.bound = state.problem.lower_bound(found)
    state.expected_gap = state.working.value(state.interior.labels) - state.bound
    if not state.expected_gap <= state.tol:
        _open(state, found, _REACH * float(np.abs(found - state.center).max()))
    return state
