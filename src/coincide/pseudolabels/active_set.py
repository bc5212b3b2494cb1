"""Exact soft labels in a few passes: find the classes that matter, then solve on those alone.

Newton's method climbs the dual (``dual.py``), one unknown a class. Where rows are many to a class
it converges by itself. Where they are few, jumps of single rows stop it near the optimum, and with
very few at once; when its steps no longer pay (``pace.py``), the interior point starts from what
they have found and solves for the entries that can still matter (``working_set.py``), or for all
where these are few, or most of them can. With many classes to a row it starts at once, from equal
multipliers, on more candidates. Where predictions favor some classes by far, Newton's method starts
from the multipliers of a sample, or is left out. Each solution is certified on all rows. What the
certificate leaves open, the next working set closes: it keeps what is in use or still near, adds
what has come near the better multipliers, and goes on from the last labels (column generation).
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from coincide.pseudolabels.coupling import check_unknowns
from coincide.pseudolabels.dual import Ascent, Point, answer_labels, evaluate, newton_change
from coincide.pseudolabels.interior_point import InteriorPoint, InteriorPointState
from coincide.pseudolabels.kernels import RowMinimizers, row_minimizers
from coincide.pseudolabels.objectives import Vector
from coincide.pseudolabels.pace import LOPSIDED, Pace, pace_of
from coincide.pseudolabels.problem import Certificate, Problem, certify
from coincide.pseudolabels.solver import run_uncertified
from coincide.pseudolabels.working_set import (
    WorkingSet,
    first_working_set,
    next_working_set,
    start_near,
)

_FAR = 0.05  # share of the mass in the wrong class, from which equal multipliers are better
_FAR_OF_EQUAL = 0.25  # unless it is no more than so much of what equal ones leave there
_ROWS_TO_SAMPLE = 500  # to a class, from which a sample is solved first where most have to move;
_SAMPLE = 10  # it has so many times fewer
_SAMPLE_GAP = 1e-2
_MOST_SLACK = 8.0
_REACH = 2.0  # slack of the first working set, in units of the multipliers' last change
_NEAR = 0.2  # slack of the next ones, at most
_PROGRESS = 0.5  # of the certified gap: where a set leaves more of it,
_WIDER = 4.0  # the slack is so many times as large from then on
_SPARE = 8.0  # rows that a class chooses from beside those it asks for, for each of them misplaced
_CANDIDATES = 4  # that a row chooses at most, and as many more in every round as the following
_MORE_CANDIDATES = 2
_IN_A_CROWD = 16, 8, 16.0  # candidates, more of them, and spare rows with many classes to a row
_MOST_ROUNDS = 12
_WIDE = 0.5  # share of the classes that a row would have far from the optimum, and
_MANY = 0.6  # of all entries, from which it is quicker to solve for all at once
_SHARE_OF_SLOPE = 0.2  # complementarity of the first iterate, for the mass in the wrong class
_SHARE_ON_CANDIDATES = 0.05  # the same where some classes are candidates more often than others
_FIRST_AIM = 1e-3  # gap that the interior point may leave on the first working set
_SHARE_OF_GAP = 0.1  # of the certified gap, that it may leave next
_SHARE_OF_TOL = 0.25  # that it may leave in the end
_MOSTLY_OWN = 3.0  # times the interior point's own gap: up to here the working set is good
_MOST_STEPS = 100  # on a working set


@dataclass
class ActiveSetState:
    """Newton's ascent, and from some point on the interior point on a working set.

    ``ascent`` is missing where the interior point starts at once. ``rounds`` counts the working
    sets and ``steps`` those on the last, which is solved to a gap of ``aim``; the next has a slack
    of at most ``near``. ``bound`` is the best so far, ``value`` that of the last labels if known.
    """

    problem: Problem
    tol: float
    pace: Pace
    ascent: Ascent | None = None
    expected_gap: float = float("inf")
    aim: float = 0.0
    near: float = _NEAR
    rounds: int = 0
    steps: int = 0
    working: Problem | None = None
    interior: InteriorPointState | None = None
    bound: float = float("-inf")
    value: float | None = None
    stalled: bool = False

    @cached_property
    def search(self) -> RowMinimizers:
        """The search for the rows' answers."""
        return row_minimizers(self.problem.backend, self.problem.probs)

    @property
    def multipliers(self) -> Vector:
        """The last multipliers."""
        return self.trial.multipliers if self.interior is None else self.interior.multipliers

    @property
    def trial(self) -> Point:
        """The last point of the ascent."""
        assert self.ascent is not None
        return self.ascent.trial

    @property
    def certificate(self) -> Certificate:
        """The objective of the last labels, before rounding to their type, and the bound."""
        if self.interior is None:
            return Certificate(self.trial.value + self.trial.gap, self.trial.value)
        assert self.working is not None
        if isinstance(self.working, WorkingSet):
            value = self.working.value(self.interior.labels) if self.value is None else self.value
            return Certificate(value, self.bound)
        return certify(self.working, self.interior.labels, self.interior.multipliers)

    @property
    def labels(self) -> Tensor:
        """The last labels, ``(M, K)``."""
        if self.interior is None:
            return answer_labels(self.problem, self.trial)
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
        check_unknowns(problem, self.name)
        state = ActiveSetState(problem, tol, pace_of(problem, tol))
        proposed = _proposed(problem, labels)
        if proposed is not None or not state.pace.at_once:
            state.ascent = _first_ascent(state, proposed)
            state.expected_gap = state.trial.gap
            state.pace.start(state.ascent.point.off, even=state.ascent.point.even)
        if state.pace.at_once and not state.pace.climbs and not state.expected_gap <= tol:
            _open_all(state)
        return state

    def step(self, problem: Problem, state: ActiveSetState) -> ActiveSetState:
        """Take one Newton step, or one step of the interior point."""
        if state.interior is not None:
            return _solve(state)
        assert state.ascent is not None
        if state.pace.climbs:
            state.expected_gap = state.ascent.step().gap
            state.pace.judge(state.ascent.point.off)
            return state
        point = state.ascent.point
        state.bound = point.value
        if not state.pace.whole and point.off > _FAR and not point.even:
            equal = evaluate(problem, state.search, problem.multipliers(problem.prior))
            point = equal if point.off > _FAR_OF_EQUAL * equal.off else point
        gap = _SHARE_OF_GAP * state.expected_gap
        state.aim = max(_SHARE_OF_TOL * state.tol, min(_FIRST_AIM, gap))
        _open(state, point)
        return _solve(state)


def _proposed(problem: Problem, labels: Tensor | None) -> Vector | None:
    """Return the guess, or what labels propose, if it is of any use."""
    proposed = problem.guess
    if proposed is None and labels is not None:
        proposed = problem.multipliers(problem.mean_label(labels))
    usable = proposed is not None and np.isfinite(proposed).all() and problem.bounded_by(proposed)
    return proposed if usable else None


def _first_ascent(state: ActiveSetState, proposed: Vector | None) -> Ascent:
    """Start at the multipliers proposed, or at the prior's where these are higher.

    Labels far from the optimum, and the multipliers of few other rows, are worse than none. Where
    the prior's are far off and rows are many, those of a sample are proposed.
    """
    problem, search = state.problem, state.search
    indifferent = problem.multipliers(problem.prior)
    if proposed is not None:
        ascent = Ascent(problem, search, proposed)
        point = ascent.point
        # The dual is concave: it is no higher there unless it rises on the way.
        rises = point.gap > state.tol and float(point.slope @ (indifferent - proposed)) > 0
        if state.pace.at_once or not rises or problem.lower_bound(indifferent) <= point.value:
            return ascent
    ascent = Ascent(problem, search, indifferent)
    many = problem.entries() >= _ROWS_TO_SAMPLE * len(problem.prior) ** 2
    if many and ascent.point.off > LOPSIDED:
        sampled = _solve_sample(problem)
        if sampled is not None and problem.bounded_by(sampled):
            other = Ascent(problem, search, sampled)
            ascent = other if other.point.value > ascent.point.value else ascent
    return ascent


def _solve_sample(problem: Problem) -> Vector | None:
    """Return multipliers of some of the rows, drawn with a seed."""
    n_rows = len(problem.probs)
    drawn = torch.randint(
        max(1, n_rows), (n_rows // _SAMPLE,), generator=torch.Generator().manual_seed(0)
    )
    rows = drawn.sort().values.to(problem.probs.device)
    sample = dataclasses.replace(
        problem, probs=problem.probs[rows], weights=problem.weights[rows], guess=None
    )
    mass = sample.mass()
    if not mass > 0:
        return None
    weights = sample.weights * (problem.mass() / mass)
    sample = dataclasses.replace(sample, weights=weights)
    solver = ActiveSet()
    return run_uncertified(solver, sample, tol=_SAMPLE_GAP, max_iter=solver.max_iter).multipliers


def _open(state: ActiveSetState, point: Point) -> None:
    """Open the next working set, or in the end all classes, with an iterate near the point."""
    last = None
    if isinstance(state.working, WorkingSet) and state.interior is not None:
        last = state.working, state.interior.labels
    chosen = _choose(state, point, last)
    if chosen is None and last is None and point.even and not state.pace.whole:
        _open_all(state)
        return
    if chosen is None:
        last, state.aim = None, _SHARE_OF_TOL * state.tol
    working = state.problem.to(torch.float64) if chosen is None else chosen
    width = working.probs.shape[1]
    if last is not None and np.isfinite(state.expected_gap):
        target = state.expected_gap / (last[0].mass() * last[1].shape[1])
    else:
        share = _SHARE_OF_SLOPE if state.pace.whole or point.even else _SHARE_ON_CANDIDATES
        target = share * point.off
    arrays = start_near(state.problem, working, point, max(target, state.aim / width), last)
    kernels = working.kernels()
    state.working, state.steps, state.value = working, 0, None
    state.interior = InteriorPointState(
        kernels.load(*arrays), 0.0, point.multipliers, kernels, state.aim, working.mass()
    )
    state.interior.set_multipliers(0.0, point.multipliers)


def _open_all(state: ActiveSetState) -> None:
    """Let the interior point solve for all classes from its own first iterate."""
    state.working, state.aim = state.problem.to(torch.float64), _SHARE_OF_TOL * state.tol
    state.interior = InteriorPoint().start(state.working, None, state.aim)


def _choose(
    state: ActiveSetState, point: Point, last: tuple[WorkingSet, Tensor] | None
) -> WorkingSet | None:
    """Return a working set, or None where all classes are as quick or have to be tried."""
    state.rounds += 1
    if state.pace.whole or state.rounds > _MOST_ROUNDS or not np.isfinite(point.value):
        return None
    crowded = state.pace.crowded
    usual = _CANDIDATES, _MORE_CANDIDATES, _SPARE
    first, more, spare = _IN_A_CROWD if crowded else usual
    most = first + more * state.rounds
    if last is None:
        assert state.ascent is not None
        if point.even and most + spare * point.off > _WIDE * len(point.multipliers):
            return None
        slack = _MOST_SLACK if point.even else min(_REACH * state.ascent.reach, _MOST_SLACK)
        working = first_working_set(state.problem, point, slack, most, spare)
        if not crowded and working.entries() > _MANY * state.problem.entries():
            return None
    else:
        slack = state.near
        if not crowded:
            change = newton_change(point.curvature, point.slope)
            slack = min(float(np.abs(change).max()), slack)
        kept = last[0].candidates(last[1])
        working = next_working_set(state.problem, point, slack, most, kept)
    return working if working.can_move else None


def _solve(state: ActiveSetState) -> ActiveSetState:
    """Take a step of the interior point; certify where it is done, and see what is left to do."""
    assert state.interior is not None
    assert state.working is not None
    interior = state.interior = InteriorPoint().step(state.working, state.interior)
    state.steps, state.value = state.steps + 1, None
    if isinstance(state.working, WorkingSet):
        ends = interior.expected_gap <= state.aim or interior.stalled or state.steps >= _MOST_STEPS
        return _price(state, state.working) if ends else state
    state.expected_gap, state.stalled = interior.expected_gap, interior.stalled
    return state


def _price(state: ActiveSetState, working: WorkingSet) -> ActiveSetState:
    """Certify a working set's labels on all rows; go on with it while it is good, else open one."""
    assert state.interior is not None
    interior = state.interior
    point = evaluate(state.problem, state.search, interior.multipliers)
    state.bound = max(state.bound, point.value)
    state.value = working.value(interior.labels)
    before, gap = state.expected_gap, state.value - state.bound
    state.expected_gap = gap
    if gap <= state.tol:
        return state
    if np.isfinite(gap):
        state.aim = max(_SHARE_OF_TOL * state.tol, _SHARE_OF_GAP * gap)
    usable = not interior.stalled and state.steps < _MOST_STEPS
    if usable and gap <= _MOSTLY_OWN * interior.expected_gap:
        interior.tol = state.aim
    else:
        if not gap <= _PROGRESS * before:
            state.near = min(_WIDER * state.near, _MOST_SLACK)
        _open(state, point)
    return state
