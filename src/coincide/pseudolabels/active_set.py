"""Exact soft labels in a few passes: find the classes that matter, then solve on those alone.

Newton's method climbs the dual (``dual.py``), one unknown a class. Where rows are many to a class
it converges by itself; else jumps of single rows stop it near the optimum. When its steps no longer
pay, the interior point starts from what they have found and solves for the entries that can still
matter (``working_set.py``), or for all where these are few, or most of them can. Each solution is
certified on all rows. What the certificate leaves open, the next working set closes: it is chosen
at the better multipliers, and starts from the last labels (column generation).

Where predictions favor some classes by far, most rows have to move: with many rows Newton's method
starts from the multipliers of a sample of them, with few the interior point solves for all at once.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from coincide.pseudolabels.dual import Ascent, Point, answer_labels, evaluate, newton_change
from coincide.pseudolabels.interior_point import InteriorPoint, InteriorPointState, check_classes
from coincide.pseudolabels.objectives import Vector
from coincide.pseudolabels.problem import Certificate, Problem, certify
from coincide.pseudolabels.rows import RowMinimizers
from coincide.pseudolabels.solver import run_uncertified
from coincide.pseudolabels.working_set import (
    WorkingSet,
    enough_rows,
    start_near,
    working_set,
)

SMALL = 10_000  # entries up to which the interior point on all is quicker than choosing some
FEW_ROWS = 10  # to a class, up to which jumps of single rows make Newton's steps useless
WORTH_OF_A_TENTH = 7.0  # of Newton's steps: what a slope ten times smaller saves later on, and
WORTH_ON_ALL = 3.0  # the same where the interior point runs on all entries
PATIENCE = 4.0  # Newton's steps that may be lost, and
PATIENCE_OF_CONVERGING = 8.0  # the same where they can converge
SHARE_OF_JUMPS = 0.2  # of the gap that jumps of single rows leave, that they may still reach
ABSORBING = 4.0  # fairness up to which the multipliers take up most of a jump
LOPSIDED = 0.5  # share of the mass in the wrong class at equal multipliers: most rows have to move
FEW_CLASSES = 64  # then the interior point starts on all at once, with no more classes and
ROWS_TO_MOVE = 200  # no more rows to a class than these
ROWS_TO_SAMPLE = 500  # to a class, from which then a sample is solved first;
SAMPLE = 10  # it has so many times fewer
SAMPLE_GAP = 1e-2
REACH = 2.0  # slack of the first working set, in units of the multipliers' last change
MOST_SLACK = 8.0
NEAR = 0.2  # slack of the next ones, at most
WIDER = 4.0  # times as large after a set that left more than half of the gap
FAR = 0.05  # share of the mass in the wrong class, from which equal multipliers mislead less,
FAR_OF_EQUAL = 0.25  # if it is more than so much of what those leave there
CANDIDATES = 6  # that a row may have in the first working set, and
MOST_ADDED = 32  # so many more where some class would have too few rows;
MORE_CANDIDATES = 4  # in every round so many more
SPARE = 8.0  # rows that a class needs beside those it asks for, for each of them misplaced
WIDE = 0.5  # share of all entries in a working set, from which it is quicker to solve for all
MOST_ROUNDS = 12
FIRST_AIM = 1e-3  # gap that the interior point may leave on the first working set,
AIM = 0.1  # on the next ones relative to the certified gap,
SHARE_OF_TOL = 0.25  # and in the end
SHARE_OF_SLOPE = 0.2  # complementarity of the first iterate, for the mass in the wrong class,
SHARE_ON_CANDIDATES = 0.05  # and where some classes are candidates more often than others
MOSTLY_OWN = 3.0  # times the interior point's own gap: up to here the working set is good
MOST_STEPS = 100  # on a working set
_TINY = 1e-300


@dataclass
class ActiveSetState:
    """Newton's ascent, and from some point on the interior point on a working set or on all.

    ``rounds`` counts the working sets and ``steps`` those on the last, which is solved to a gap of
    ``aim``; the next has a slack of at most ``near``. ``bound`` is the best so far, ``value`` that
    of the last labels if known.
    """

    problem: Problem
    tol: float
    ascent: Ascent
    climb: Climb
    expected_gap: float
    aim: float = 0.0
    near: float = NEAR
    rounds: int = 0
    steps: int = 0
    working: Problem | None = None
    interior: InteriorPointState | None = None
    bound: float = -math.inf
    value: float | None = None
    stalled: bool = False

    @property
    def multipliers(self) -> Vector:
        """The last multipliers."""
        last = self.ascent.trial if self.interior is None else self.interior
        return last.multipliers

    @property
    def certificate(self) -> Certificate:
        """The objective of the last labels, before rounding to their type, and the bound."""
        if self.interior is None:
            trial = self.ascent.trial
            return Certificate(trial.value + trial.gap, trial.value)
        assert self.working is not None
        if isinstance(self.working, WorkingSet):
            value = self.working.value(self.interior.labels) if self.value is None else self.value
            return Certificate(value, self.bound)
        return certify(self.working, self.interior.labels, self.interior.multipliers)

    @property
    def labels(self) -> Tensor:
        """The last labels, ``(M, K)``."""
        if self.interior is None:
            return answer_labels(self.problem, self.ascent.trial)
        if isinstance(self.working, WorkingSet):
            return self.working.expand(self.interior.labels, self.problem.probs.dtype)
        return self.interior.labels.to(self.problem.probs)


@dataclass
class Climb:
    """Whether Newton's steps go on, and whether the interior point then runs on all entries.

    A step reads the predictions once, and is worth what it takes off the slope's logarithm: the
    interior point starts so much closer to its end.
    """

    goes_on: bool
    whole: bool
    patience: float = PATIENCE
    _spent: float = 0.0
    _least: float = math.inf

    @staticmethod
    def of(problem: Problem, first: Point, tol: float) -> Climb:
        """Decide from the sizes, the gap asked, and how much mass has to move."""
        classes, entries = problem.n_classes, problem.entries()
        rows = entries / classes
        if first.off > LOPSIDED and 2 < classes <= FEW_CLASSES and rows <= ROWS_TO_MOVE * classes:
            return Climb(goes_on=False, whole=True)
        whole = entries <= SMALL or classes >= 2 * rows
        # The gap that the jump of one row in every class leaves; two classes alone have no jumps.
        fairness = problem.coupling.fairness
        jumps = fairness**2 / (fairness + ABSORBING) * (classes / rows) ** 2 if classes > 2 else 0.0
        converges = tol >= SHARE_OF_JUMPS * jumps
        pays = converges or not first.even or (rows > FEW_ROWS * classes and not whole)
        patience = PATIENCE_OF_CONVERGING if converges else PATIENCE
        return Climb(goes_on=pays, whole=whole, patience=patience)

    def judge(self, slope: float) -> None:
        """Count a step that led to this slope; stop when too many are lost."""
        self._spent += 1
        worth = WORTH_ON_ALL if self.whole else WORTH_OF_A_TENTH
        level = self._spent + worth * math.log10(max(slope, _TINY))
        self._least = min(self._least, level)
        self.goes_on = level <= self._least + self.patience


@dataclass(frozen=True)
class ActiveSet:
    """Newton's method on the dual, finished by the interior point on a working set."""

    name: ClassVar[str] = "active-set"
    objectives: ClassVar[tuple[str, ...]] = ("cce+", "cce")
    minimizes: ClassVar[bool] = True
    estimates_gap: ClassVar[bool] = True
    max_iter: ClassVar[int] = 2000
    check_every: ClassVar[int] = 1

    def start(self, problem: Problem, labels: Tensor | None, tol: float) -> ActiveSetState:
        """Evaluate the dual at the problem's guess, at what labels propose, or at the prior."""
        check_classes(problem, self.name)
        search = problem.passes.minimizers(problem.probs)
        ascent = _first_ascent(problem, search, _proposed(problem, labels), tol)
        climb = Climb.of(problem, ascent.point, tol)
        return ActiveSetState(problem, tol, ascent, climb, ascent.point.gap)

    def step(self, problem: Problem, state: ActiveSetState) -> ActiveSetState:
        """Take one Newton step, or one step of the interior point."""
        if state.interior is not None:
            return _solve(state)
        if state.climb.goes_on:
            state.expected_gap = state.ascent.step().gap
            state.climb.judge(state.ascent.point.off)
            return state
        point = state.ascent.point
        state.bound = point.value
        if point.off > FAR and not point.even and not state.climb.whole:
            indifferent = problem.coupling.multipliers(problem.prior)
            equal = evaluate(problem, state.ascent.search, indifferent)
            point = equal if point.off > FAR_OF_EQUAL * equal.off else point
        state.aim = max(SHARE_OF_TOL * state.tol, min(FIRST_AIM, AIM * state.expected_gap))
        _open(state, point)
        return _solve(state)


def _proposed(problem: Problem, labels: Tensor | None) -> Vector | None:
    """Return the guess, or what labels propose, if it is of any use."""
    proposed = problem.guess
    if proposed is None and labels is not None:
        proposed = problem.coupling.multipliers(problem.mean_label(labels))
    if proposed is None or not np.isfinite(proposed).all():
        return None
    return proposed if problem.coupling.bounded(proposed) else None


def _first_ascent(
    problem: Problem, search: RowMinimizers, proposed: Vector | None, tol: float
) -> Ascent:
    """Start at the multipliers proposed, or at the prior's where these are higher.

    Labels far from the optimum, and the multipliers of few other rows, are worse than none. Where
    the prior's are far off and rows are many, those of a sample are proposed.
    """
    indifferent = problem.coupling.multipliers(problem.prior)
    if proposed is not None:
        ascent = Ascent(problem, search, proposed)
        point = ascent.point
        # The dual is concave: it is no higher there unless it rises on the way.
        rises = point.gap > tol and float(point.slope @ (indifferent - proposed)) > 0
        if not rises or problem.lower_bound(indifferent) <= point.value:
            return ascent
    ascent = Ascent(problem, search, indifferent)
    many = problem.entries() >= ROWS_TO_SAMPLE * problem.n_classes**2
    if many and ascent.point.off > LOPSIDED:
        sampled = _solve_sample(problem)
        if sampled is not None and problem.coupling.bounded(sampled):
            other = Ascent(problem, search, sampled)
            ascent = other if other.point.value > ascent.point.value else ascent
    return ascent


def _solve_sample(problem: Problem) -> Vector | None:
    """Return multipliers of some of the rows, drawn with a seed."""
    n_rows = len(problem.probs)
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randint(max(1, n_rows), (n_rows // SAMPLE,), generator=generator)
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
    return run_uncertified(solver, sample, tol=SAMPLE_GAP, max_iter=solver.max_iter).multipliers


def _open(state: ActiveSetState, point: Point) -> None:
    """Open the next working set, or in the end all entries, with an iterate near the point."""
    problem, last = state.problem, None
    if isinstance(state.working, WorkingSet) and state.interior is not None:
        last = state.working, state.interior.labels
    working: Problem | None = _choose(state, point, last)
    state.steps, state.value = 0, None
    if working is None:
        working, state.aim = problem, SHARE_OF_TOL * state.tol
        if point.even:
            state.working, state.interior = problem, InteriorPoint().start(problem, None, state.aim)
            return
        last = None
    width = working.probs.shape[1]
    if last is not None and math.isfinite(state.expected_gap):
        target = state.expected_gap / (last[0].mass() * last[1].shape[1])
    else:
        whole = point.even or working is problem
        target = (SHARE_OF_SLOPE if whole else SHARE_ON_CANDIDATES) * point.off
    arrays = start_near(problem, working, point, max(target, state.aim / width), last)
    rows = working.newton_rows()
    state.working = working
    state.interior = InteriorPointState(
        rows.load(*arrays), 0.0, point.multipliers, rows, state.aim, working.mass()
    )
    state.interior.set_multipliers(0.0, point.multipliers)


def _choose(
    state: ActiveSetState, point: Point, last: tuple[WorkingSet, Tensor] | None
) -> WorkingSet | None:
    """Return a working set, or None where all entries are as quick or have to be tried."""
    problem = state.problem
    state.rounds += 1
    if state.climb.whole or state.rounds > MOST_ROUNDS or not math.isfinite(point.value):
        return None
    if last is None:
        slack = MOST_SLACK if point.even else min(REACH * state.ascent.reach, MOST_SLACK)
        working = working_set(problem, point, slack=slack, most=CANDIDATES)
        within, first = enough_rows(problem, point, working, SPARE)
        if first:
            most = CANDIDATES + min(first, MOST_ADDED)
            working = working_set(problem, point, slack=slack, most=most, within=within)
        if working.entries() > WIDE * problem.entries():
            return None
    else:
        change = float(np.abs(newton_change(point.curvature, point.slope)).max())
        most, kept = CANDIDATES + MORE_CANDIDATES * state.rounds, last[0].used(last[1])
        slack = min(change, state.near)
        working = working_set(problem, point, slack=slack, most=most, kept=kept)
    return working if working.can_move else None


def _solve(state: ActiveSetState) -> ActiveSetState:
    """Take a step of the interior point; certify where it is done, and see what is left to do."""
    assert state.interior is not None
    assert state.working is not None
    interior = state.interior = InteriorPoint().step(state.working, state.interior)
    state.steps, state.value = state.steps + 1, None
    if isinstance(state.working, WorkingSet):
        ends = interior.expected_gap <= state.aim or interior.stalled or state.steps >= MOST_STEPS
        return _price(state, state.working) if ends else state
    state.expected_gap, state.stalled = interior.expected_gap, interior.stalled
    return state


def _price(state: ActiveSetState, working: WorkingSet) -> ActiveSetState:
    """Certify a working set's labels on all rows; go on with it while it is good, else open one."""
    assert state.interior is not None
    interior = state.interior
    point = evaluate(state.problem, state.ascent.search, interior.multipliers)
    state.bound = max(state.bound, point.value)
    state.value = working.value(interior.labels)
    before, gap = state.expected_gap, state.value - state.bound
    state.expected_gap = gap
    if gap <= state.tol:
        return state
    if math.isfinite(gap):
        state.aim = max(SHARE_OF_TOL * state.tol, AIM * gap)
    usable = not interior.stalled and state.steps < MOST_STEPS
    if usable and gap <= MOSTLY_OWN * interior.expected_gap:
        interior.tol = state.aim
        return state
    if not gap <= before / 2:
        state.near = min(WIDER * state.near, MOST_SLACK)
    _open(state, point)
    return state
