"""When the active set takes Newton's steps, and that it takes no more of them than pay."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.special import softmax

from coincide import solve_pseudo_labels
from coincide.pseudolabels.active_set import ActiveSet
from coincide.pseudolabels.dual import Ascent, evaluate
from coincide.pseudolabels.interior_point import InteriorPoint
from coincide.pseudolabels.kernels import row_minimizers
from coincide.pseudolabels.pace import Pace, pace_of
from coincide.pseudolabels.problem import Problem
from coincide.pseudolabels.reduction import reduce_problem
from coincide.pseudolabels.solver import Outcome, run_solver, run_uncertified
from devices import cpu_backends
from problems import Array, random_probs

BACKENDS = cpu_backends()


def problem_of(
    probs: Array, fairness: float, guess: Array | None = None, backend: str = "torch"
) -> Problem:
    n_classes = probs.shape[1]
    return reduce_problem(
        torch.from_numpy(probs),
        prior=np.full(n_classes, 1 / n_classes),
        fairness=fairness,
        objective="cce+",
        backend=backend,
        guess=guess,
    ).problem


def solve(solver: ActiveSet | InteriorPoint, problem: Problem, tol: float) -> Outcome:
    outcome = run_solver(solver, problem, tol=tol, max_iter=solver.max_iter)
    assert outcome.converged
    return outcome


# --- how many steps ---------------------------------------------------------------------------


@pytest.mark.parametrize("tol", [1e-4, 1e-9])
@pytest.mark.parametrize("fairness", [1.0, 100.0])
@pytest.mark.parametrize(("n_rows", "n_classes"), [(100, 10), (250, 10), (250, 20), (100, 50)])
def test_small_problems_take_hardly_more_steps_than_the_interior_point(
    n_rows: int, n_classes: int, fairness: float, tol: float
) -> None:
    for scale in (1.0, 2.0, 5.0):
        problem = problem_of(random_probs(n_rows, n_classes, scale=scale), fairness)
        taken = solve(ActiveSet(), problem, tol).n_iter
        assert taken <= solve(InteriorPoint(), problem, tol).n_iter + 5


@pytest.mark.parametrize("fairness", [1.0, 100.0])
@pytest.mark.parametrize("n_rows", [1000, 5000])
def test_classes_of_unequal_weight_take_hardly_more_steps_than_the_interior_point(
    n_rows: int, fairness: float
) -> None:
    """Every row may then end in most classes: working sets as wide took three times as many."""
    logits = np.log(random_probs(n_rows, 20)) + 2 * np.random.default_rng(1).normal(size=20)
    problem = problem_of(softmax(logits, axis=1), fairness)
    taken = solve(ActiveSet(), problem, 1e-6).n_iter
    assert taken <= 1.5 * solve(InteriorPoint(), problem, 1e-6).n_iter + 10


def test_many_rows_need_no_interior_point() -> None:
    problem = problem_of(random_probs(4000, 5), 10.0)
    solver = ActiveSet()
    state = solver.start(problem, None, 1e-6)
    for _ in range(20):
        if state.expected_gap <= 1e-6:
            break
        state = solver.step(problem, state)
    assert state.expected_gap <= 1e-6
    assert state.interior is None


def test_more_classes_than_rows() -> None:
    """Each row is shared out among many classes: no few candidates would do."""
    problem = problem_of(random_probs(25, 150, scale=5), 100.0)
    taken = solve(ActiveSet(), problem, 1e-6).n_iter
    assert taken <= solve(InteriorPoint(), problem, 1e-6).n_iter


def test_a_cycle_of_the_interior_point_is_broken() -> None:
    """On this working set, steps that center and steps that advance went round and round."""
    rng = np.random.default_rng(0)
    offset = 0.3 * np.random.default_rng(99).standard_normal(10)
    problem = problem_of(softmax(rng.standard_normal((1000, 10)) + offset, 1), 1.0)
    assert solve(ActiveSet(), problem, 1e-6).n_iter < 60
    search = row_minimizers(problem.backend, problem.probs)
    ascent = Ascent(problem, search, problem.multipliers(problem.prior))
    for _ in range(12):
        ascent.step()
    assert problem.lower_bound(ascent.point.multipliers) > 0


# --- the pace ---------------------------------------------------------------------------------


def test_the_pace_follows_from_sizes_and_tolerance() -> None:
    few = problem_of(random_probs(100, 10), 100.0)
    assert pace_of(few, 1e-6).at_once
    assert not pace_of(few, 1e-6).climbs
    assert pace_of(few, 10.0).climbs  # what the jumps of single rows leave is good enough
    two = problem_of(random_probs(100, 2), 100.0)
    assert pace_of(two, 1e-9).climbs  # two classes have no jumps
    many = problem_of(random_probs(3000, 10), 100.0)
    assert pace_of(many, 1e-9).climbs
    assert not pace_of(many, 1e-9).whole


def test_where_most_rows_have_to_move_few_are_left_to_the_interior_point_at_once() -> None:
    for rows, at_once in ((2_000, True), (2_001, False)):
        pace = pace_of(problem_of(random_probs(rows, 10), 1.0), 1e-2)
        pace.start(0.6, even=False)
        assert pace.climbs
        pace.start(0.4, even=True)
        assert pace.climbs
        pace.start(0.6, even=True)
        assert pace.at_once is at_once
        assert pace.climbs is not at_once


def test_steps_stop_when_their_worth_falls_behind_their_price() -> None:
    pace = Pace(whole=True, climbs=True, price=0.5, worth=3.0, patience=1.0)
    for slope in (1.0, 0.5, 0.25, 0.1):  # each is worth more than it costs
        pace.judge(slope)
        assert pace.climbs
    pace.judge(0.1)
    pace.judge(0.1)
    assert pace.climbs
    pace.judge(0.1)
    assert not pace.climbs


def test_no_step_is_wasted_at_a_slope_of_zero() -> None:
    pace = Pace(whole=True, climbs=True, price=1.0, worth=3.0, patience=1.0)
    pace.judge(0.0)
    assert pace.climbs


# --- warm starts ------------------------------------------------------------------------------


def test_multipliers_that_are_worse_than_none_are_dropped() -> None:
    probs = random_probs(1500, 10)
    cold = solve(ActiveSet(), problem_of(probs, 100.0), 1e-4)
    bad = 100 + 3 * np.random.default_rng(0).standard_normal(10)
    started = ActiveSet().start(problem_of(probs, 100.0, guess=bad), None, 1e-4)
    np.testing.assert_allclose(started.multipliers, 100)
    warm = solve(ActiveSet(), problem_of(probs, 100.0, guess=bad), 1e-4)
    assert warm.n_iter == cold.n_iter


def test_multipliers_of_many_similar_rows_are_used() -> None:
    offset = np.linspace(0, 1.5, 10)
    logits = [2 * np.random.default_rng(s).standard_normal((4000, 10)) + offset for s in (0, 1)]
    first, second = (softmax(z, 1) for z in logits)
    guess = solve(ActiveSet(), problem_of(first, 100.0), 1e-4).multipliers
    cold = solve(ActiveSet(), problem_of(second, 100.0), 1e-2)
    warm = solve(ActiveSet(), problem_of(second, 100.0, guess=guess), 1e-2)
    assert warm.n_iter < cold.n_iter


def test_multipliers_of_another_fairness_do_no_harm() -> None:
    probs = random_probs(300, 40)
    light = solve_pseudo_labels(probs, fairness=1.0)
    heavy = solve_pseudo_labels(probs, fairness=100.0, init=light, tol=1e-9)
    assert heavy.converged
    assert heavy.objective == pytest.approx(solve_pseudo_labels(probs, tol=1e-9).objective)


# --- what is said of the gap ------------------------------------------------------------------


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("tol", [5e-2, 1e-4])
def test_the_uncertified_gap_is_honest(backend: str, tol: float) -> None:
    """Labels inside a training step are as good as the solver says without a certificate."""
    guess = None
    for seed, (n_rows, n_classes) in enumerate([(250, 10)] * 6 + [(120, 30)] * 6):
        probs = random_probs(n_rows, n_classes, seed=seed, scale=1 + seed % 5)
        guess = None if guess is None or len(guess) != n_classes else guess
        problem = problem_of(probs, 100.0, guess, backend)
        outcome = run_uncertified(ActiveSet(), problem, tol=tol, max_iter=200)
        assert outcome.converged
        guess = outcome.multipliers
        assert guess is not None
        best = solve(InteriorPoint(), problem_of(probs, 100.0), 1e-9)
        assert best.certificate is not None
        assert problem.value(outcome.labels) - best.certificate.lower_bound <= 1.5 * tol


# --- Newton's first step ----------------------------------------------------------------------


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_first_step_from_equal_multipliers_is_a_good_one(backend: str) -> None:
    """Equal multipliers split no row, so the curvature there says nothing of the rows."""
    problem = problem_of(random_probs(2000, 10), 100.0, backend=backend)
    search = row_minimizers(backend, problem.probs)
    start = evaluate(problem, search, problem.multipliers(problem.prior))
    np.testing.assert_allclose(start.curvature, np.eye(10) * 0.1 / 100, rtol=1e-9)
    ascent = Ascent(problem, search, start.multipliers)
    ascent.step()
    best = solve(InteriorPoint(), problem, 1e-9).certificate
    assert best is not None
    assert best.lower_bound - ascent.point.value < 0.5 * (best.lower_bound - start.value)


def test_steps_shorten_where_they_fail() -> None:
    """Next to a tie of two classes the slope jumps; steps over it must not go on for ever."""
    problem = problem_of(random_probs(100, 2, scale=1), 100.0)
    ascent = Ascent(
        problem, row_minimizers("torch", problem.probs), problem.multipliers(problem.prior)
    )
    for _ in range(40):
        ascent.step()
    best = solve(InteriorPoint(), problem, 1e-10).certificate
    assert best is not None
    assert best.lower_bound - ascent.point.value < 1e-6
