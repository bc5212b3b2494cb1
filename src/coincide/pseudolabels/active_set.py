"""Exact soft labels in a few passes: find the classes that matter, then solve on those alone.

Newton's method climbs the dual (``dual.py``), one unknown a class. Where rows are many to a class
it converges by itself. Where they are few, jumps of single rows stop it near the optimum, and with
very few at once; the interior point solves for the entries that can still matter
(``working_set.py``). Each of its solutions is certified on all rows. What the certificate leaves
open, the next working set closes: it keeps what is in use or still near, adds what has come near
the better multipliers, and goes on from the last iterate (column generation).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from coincide.pseudolabels.dual import Ascent, Point, answer_labels, evaluate
from coincide.pseudolabels.interior_point import InteriorPoint, InteriorPointState
from coincide.pseudolabels.kernels import RowMinimizers, row_minimizers
from coincide.pseudolabels.objectives import Vector
from coincide.pseudolabels.problem import Certificate, Problem, certify
from coincide.pseudolabels.working_set import (
    WorkingSet,
    carry_over,
    first_working_set,
    next_working_set,
)

_MOST_CLASSES = 10_000
_PATIENCE = 8  # Newton steps in which the gap must fall to a tenth, or the dual rise clearly
_CLEARLY = 1e-2
_MOST_SLACK = 8.0
_SMALL = 20_000  # entries: up to here the interior point on all is as quick as choosing some
_FEW_ROWS = 10  # to a class: with no more of them Newton's steps gain nothing
_SPARE = 8.0  # rows a class then chooses from at first, beyond those it asks for, times their root
_CANDIDATES_OF_FEW = 14  # that a row then chooses at most
_CANDIDATES = 4  # otherwise; and in both cases as many more in every round as _MORE_CANDIDATES
_MORE_CANDIDATES = 2
_MOST_ROUNDS = 12
_REACH = 2.0  # slack of a working set, in units of the multipliers' last change
_SHARE_OF_TOL = 0.25  # that the interior point may leave on the last working set
_SHARE_OF_GAP = 0.1  # of the certified gap, that it may leave on the next
_FIRST_AIM = 1e-3  # what it may leave where nothing is known of the multipliers yet
_LEAST_STEPS = 3  # on a working set, before the gap that it expects is believed


@dataclass
class ActiveSetState:
    """Newton's ascent, and from some point on the interior point on a working set.

    ``goal`` is the gap that renews the patience with Newton's steps, ``few`` says that there are
    too few rows for any. ``rounds`` counts the working sets and ``steps`` those on the last, which
    is chosen around ``center`` and solved to a gap of ``aim``. ``bound`` is the best so far.
    """

    problem: Problem
    search: RowMinimizers
    tol: float
    ascent: Ascent
    goal: float
    expected_gap: float
    patience: int
    few: bool
    aim: float
    rounds: int = 0
    steps: int = 0
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
        (rows,) = problem.summed(np.array(float(len(problem.probs))))
        few = bool(_SMALL < rows * classes <= _FEW_ROWS * classes**2)
        patience, aim = (0, _FIRST_AIM) if few else (_PATIENCE, 0.0)
        aim = max(aim, _SHARE_OF_TOL * tol)
        return ActiveSetState(problem, search, tol, ascent, gap / 10, gap, patience, few, aim)

    def step(self, problem: Problem, state: ActiveSetState) -> ActiveSetState:
        """Take one Newton step, or one step of the interior point."""
        if state.interior is None and state.patience > 0:
            return _climb(state)
        if state.interior is None:
            highest = state.ascent.point
            state.bound = highest.value
            point = evaluate(problem, state.search, highest.multipliers)
            _open(state, point, _REACH * state.ascent.reach)
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


def _open(state: ActiveSetState, point: Point, slack: float) -> None:
    """Open the next working set and go on there; in the end, start on all classes."""
    last, before = state.working, state.interior
    working = _choose(state, point, slack)
    state.center, state.steps = point.multipliers, 0
    if working is None:
        state.working = state.problem.to(torch.float64)
        state.interior = InteriorPoint().start(state.working, None, _SHARE_OF_TOL * state.tol)
        return
    state.working = working
    if isinstance(last, WorkingSet) and before is not None and np.isfinite(state.expected_gap):
        gap = max(state.expected_gap, before.expected_gap)
        target = gap / (before.mass * before.labels.shape[1])
        arrays = carry_over(last, before.arrays, working, before.multipliers, target)
        kernels = working.kernels()
        state.interior = InteriorPointState(
            kernels.load(*arrays), before.level, before.relative, kernels, state.aim, working.mass()
        )
    else:
        state.interior = InteriorPoint().start(working, None, state.aim)


def _choose(state: ActiveSetState, point: Point, slack: float) -> WorkingSet | None:
    """Return a working set, or None where all classes are as quick or have to be tried."""
    (entries,) = state.problem.summed(np.array(float(state.problem.probs.numel())))
    state.rounds += 1
    if entries <= _SMALL or state.rounds > _MOST_ROUNDS:
        return None
    most = (_CANDIDATES_OF_FEW if state.few else _CANDIDATES) + _MORE_CANDIDATES * state.rounds
    slack = min(slack, _MOST_SLACK)
    if isinstance(state.working, WorkingSet) and state.interior is not None:
        kept = state.working.candidates(state.interior.labels)
        working = next_working_set(state.problem, point, slack, most, kept)
    else:
        working = first_working_set(
            state.problem, point, slack, most, _SPARE if state.few else None
        )
    return working if working.can_move else None


def _solve(state: ActiveSetState) -> ActiveSetState:
    """Step on the working set; once it is solved, certify on all rows or open another."""
    assert state.interior is not None
    assert state.working is not None
    assert state.center is not None
    interior = state.interior = InteriorPoint().step(state.working, state.interior)
    state.steps += 1
    if not isinstance(state.working, WorkingSet):
        state.expected_gap, state.stalled = interior.expected_gap, interior.stalled
        return state
    solved = state.steps >= _LEAST_STEPS and interior.expected_gap <= state.aim
    if not solved and not interior.stalled:
        return state
    point = evaluate(state.problem, state.search, interior.multipliers)
    state.bound = max(state.bound, point.value)
    state.expected_gap = state.working.value(interior.labels) - state.bound
    if not state.expected_gap <= state.tol:
        if np.isfinite(state.expected_gap):
            state.aim = max(_SHARE_OF_TOL * state.tol, _SHARE_OF_GAP * state.expected_gap)
        _open(state, point, _REACH * float(np.abs(point.multipliers - state.center).max()))
    return state
