"""The active set: certified optima wherever rows and classes are few, many, or far from even."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from scipy.special import softmax

from coincide import solve_pseudo_labels
from coincide.pseudolabels.active_set import ActiveSet, ActiveSetState, Climb
from coincide.pseudolabels.interior_point import MOST_CLASSES, InteriorPoint
from coincide.pseudolabels.problem import Problem
from coincide.pseudolabels.solver import Outcome, run_solver, run_uncertified
from coincide.pseudolabels.working_set import WorkingSet
from problems import Array, random_probs, skewed_prior
from small_problems import PASSES, indifferent, point_at, problem_of

OBJECTIVES = ["cce+", "cce"]


def favored(n_rows: int, n_classes: int, *, most: float = 6.0, seed: int = 0) -> Array:
    """Return predictions that favor some classes by far."""
    logits = 2 * np.random.default_rng(seed).normal(size=(n_rows, n_classes))
    return softmax(logits + np.linspace(0, most, n_classes), axis=1)


def solve(solver: ActiveSet | InteriorPoint, problem: Problem, tol: float) -> Outcome:
    outcome = run_solver(solver, problem, tol=tol, max_iter=solver.max_iter)
    assert outcome.converged
    return outcome


def run(problem: Problem, tol: float) -> ActiveSetState:
    """Step until the solver itself expects a gap of ``tol``; it may not give up."""
    solver = ActiveSet()
    state = solver.start(problem, None, tol)
    for _ in range(200):
        if state.expected_gap <= tol:
            break
        assert not state.stalled
        state = solver.step(problem, state)
    assert state.expected_gap <= tol
    return state


def assert_optimum_of_the_interior_point(problem: Problem, tol: float) -> Outcome:
    """Both end at a certified gap, so neither is better than the other by more."""
    found, best = solve(ActiveSet(), problem, tol), solve(InteriorPoint(), problem, tol)
    assert found.certificate is not None
    assert best.certificate is not None
    scale = max(1.0, abs(best.certificate.objective))
    assert found.certificate.objective - best.certificate.lower_bound <= 2 * tol * scale
    assert best.certificate.objective - found.certificate.lower_bound <= 2 * tol * scale
    torch.testing.assert_close(found.labels.sum(1), torch.ones_like(found.labels[:, 0]))
    return found


# --- the optimum ------------------------------------------------------------------------------

# Few rows to a class, rows fewer than classes, many rows, and predictions that favor some classes.
PROBLEMS = {
    "few rows": random_probs(300, 60),
    "few rows, sharp": random_probs(300, 60, scale=5),
    "fewer rows than classes": random_probs(40, 150),
    "many rows": random_probs(4000, 5),
    "lopsided": favored(3000, 5),
    "lopsided, more classes": favored(600, 20),
    "all rows equal": np.repeat(random_probs(1, 30, scale=1), 60, axis=0),
}


@pytest.mark.parametrize("name", PROBLEMS)
@pytest.mark.parametrize("fairness", [0.0, 1.0, 100.0])
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_the_optimum_is_certified(objective: str, fairness: float, name: str) -> None:
    probs = PROBLEMS[name]
    for backend in PASSES:
        problem = problem_of(probs, fairness=fairness, objective=objective, backend=backend)
        assert_optimum_of_the_interior_point(problem, 1e-7)


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("shape", [(40, 150), (300, 60)])
def test_uneven_priors(shape: tuple[int, int], objective: str) -> None:
    """Classes that hardly anything is asked of have labels too small to count as used."""
    prior = np.random.default_rng(0).dirichlet(np.full(shape[1], 0.2)) + 1e-9
    problem = problem_of(
        random_probs(*shape), fairness=100.0, objective=objective, prior=prior / prior.sum()
    )
    assert_optimum_of_the_interior_point(problem, 1e-6)


@pytest.mark.parametrize("size", [(60, 300), (10, 400), (300, 60)])
@pytest.mark.parametrize("backend", PASSES)
def test_rows_without_weight_change_nothing(backend: str, size: tuple[int, int]) -> None:
    probs, weights = random_probs(*size), np.ones(size[0])
    weights[::2] = 0
    found = []
    for kept in (slice(None), weights > 0):
        problem = problem_of(
            probs[kept], prior=skewed_prior(size[1]), fairness=10.0, backend=backend,
            weights=weights[kept],
        )  # fmt: skip
        outcome = solve(ActiveSet(), problem, 1e-8)
        assert bool(outcome.labels.isfinite().all())
        assert outcome.certificate is not None
        found.append(outcome.certificate.objective)
    assert found[0] == pytest.approx(found[1], abs=1e-7)


def test_too_large_a_system_is_refused_by_name() -> None:
    n_classes = MOST_CLASSES + 1
    problem = problem_of(np.full((1, n_classes), 1 / n_classes))
    with pytest.raises(ValueError, match=r"'active-set' .* Got 10,001 classes: take 'proj"):
        ActiveSet().start(problem, None, 1e-6)


# --- the way there ----------------------------------------------------------------------------


@pytest.mark.parametrize("backend", PASSES)
@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize(("fairness", "scale"), [(1.0, 2.0), (100.0, 2.0), (100.0, 5.0)])
def test_few_rows_to_a_class_need_no_dense_solve(
    backend: str, objective: str, fairness: float, scale: float
) -> None:
    problem = problem_of(
        random_probs(360, 60, scale=scale), fairness=fairness, objective=objective, backend=backend
    )
    state = run(problem, 1e-7)
    assert isinstance(state.working, WorkingSet)  # not all classes
    labels = state.labels.cpu().numpy()
    np.testing.assert_allclose(labels.sum(1), 1, atol=1e-9)
    assert problem.value(state.labels) == pytest.approx(state.certificate.objective, abs=1e-9)
    assert state.certificate.lower_bound == pytest.approx(problem.lower_bound(state.multipliers))


@pytest.mark.parametrize("backend", PASSES)
def test_many_rows_need_no_interior_point(backend: str) -> None:
    problem = problem_of(random_probs(4000, 5), fairness=10.0, backend=backend)
    assert run(problem, 1e-6).interior is None


@pytest.mark.parametrize("fairness", [1.0, 100.0])
@pytest.mark.parametrize(("n_rows", "n_classes"), [(100, 10), (250, 20), (25, 150)])
def test_small_problems_take_hardly_more_steps_than_the_interior_point(
    n_rows: int, n_classes: int, fairness: float
) -> None:
    for scale in (1.0, 2.0, 5.0):
        problem = problem_of(random_probs(n_rows, n_classes, scale=scale), fairness=fairness)
        for tol in (1e-4, 1e-9):
            taken = solve(ActiveSet(), problem, tol).n_iter
            assert taken <= solve(InteriorPoint(), problem, tol).n_iter + 5


@pytest.mark.parametrize("fairness", [1.0, 100.0])
def test_classes_of_unequal_weight_take_hardly_more_steps_than_the_interior_point(
    fairness: float,
) -> None:
    """Every row may then end in most classes: working sets as wide took three times as many."""
    logits = np.log(random_probs(2000, 20)) + 2 * np.random.default_rng(1).normal(size=20)
    problem = problem_of(softmax(logits, axis=1), fairness=fairness)
    taken = solve(ActiveSet(), problem, 1e-6).n_iter
    assert taken <= 1.5 * solve(InteriorPoint(), problem, 1e-6).n_iter + 10


def test_a_cycle_of_the_interior_point_is_broken() -> None:
    """On this working set, steps that center and steps that advance went round and round."""
    rng = np.random.default_rng(0)
    offset = 0.3 * np.random.default_rng(99).standard_normal(10)
    problem = problem_of(softmax(rng.standard_normal((1000, 10)) + offset, 1))
    assert solve(ActiveSet(), problem, 1e-6).n_iter <= 60


@pytest.mark.parametrize("backend", PASSES)
@pytest.mark.parametrize("shape", [(100, 10), (250, 400), (20, 1000), (2000, 20), (4000, 5)])
def test_predictions_that_are_no_numbers_do_not_hold_it_up(
    shape: tuple[int, int], backend: str
) -> None:
    """Those of a network that diverged: it ran through all its steps."""
    probs = random_probs(*shape)
    probs[0] = np.nan
    problem = problem_of(probs, fairness=100.0, backend=backend)
    for solver in (ActiveSet(), InteriorPoint()):
        outcome = run_uncertified(solver, problem, tol=0.05, max_iter=solver.max_iter)
        assert outcome.n_iter < 30


# --- whether to climb -------------------------------------------------------------------------


def climb_of(probs: Array, tol: float, fairness: float = 100.0) -> Climb:
    problem = problem_of(probs, fairness=fairness)
    return Climb.of(problem, point_at(problem), tol)


def test_newtons_steps_are_taken_where_they_can_converge() -> None:
    few = random_probs(100, 10)
    assert not climb_of(few, 1e-6).goes_on
    assert climb_of(few, 10.0).goes_on  # what the jumps of single rows leave is good enough
    assert climb_of(random_probs(100, 2), 1e-9).goes_on  # two classes have no jumps
    many = climb_of(random_probs(3000, 10), 1e-9)
    assert many.goes_on
    assert not many.whole


def test_where_most_of_few_rows_have_to_move_the_interior_point_starts_at_once() -> None:
    climb = climb_of(favored(300, 10), 1e-2, fairness=1.0)
    assert climb.whole
    assert not climb.goes_on


def test_steps_stop_when_they_are_not_worth_their_price() -> None:
    climb = Climb(goes_on=True, whole=True)
    for exponent in range(20):  # a slope ten times smaller every time
        climb.judge(10.0**-exponent)
        assert climb.goes_on
    for _ in range(int(climb.patience)):
        climb.judge(1e-19)
    assert climb.goes_on
    climb.judge(1e-19)
    assert not climb.goes_on


def test_no_step_is_wasted_at_a_slope_of_zero() -> None:
    climb = Climb(goes_on=True, whole=True)
    climb.judge(0.0)
    assert climb.goes_on


# --- a sample of the rows ---------------------------------------------------------------------


@pytest.mark.parametrize("backend", PASSES)
@pytest.mark.parametrize("fairness", [1.0, 100.0])
def test_a_sample_says_where_to_start(backend: str, fairness: float) -> None:
    problem = problem_of(favored(20_000, 5), backend=backend, fairness=fairness)
    equal = point_at(problem)
    assert equal.off > 0.5
    state, again = (ActiveSet().start(problem, None, 1e-6) for _ in range(2))
    assert state.ascent.point.off < 0.2 * equal.off
    assert state.ascent.point.value > equal.value
    np.testing.assert_array_equal(state.multipliers, again.multipliers)


def test_few_rows_are_no_base_for_a_sample() -> None:
    state = ActiveSet().start(problem_of(favored(500, 5), fairness=100.0), None, 1e-6)
    assert state.ascent.point.even


def test_a_sample_without_weight_is_no_sample() -> None:
    weights = np.zeros(20_000)
    weights[:3] = 1.0
    solve(ActiveSet(), problem_of(favored(20_000, 5), fairness=100.0, weights=weights), 1e-6)


# --- warm starts ------------------------------------------------------------------------------


def test_multipliers_that_are_worse_than_none_are_dropped() -> None:
    probs = random_probs(1500, 10)
    cold = solve(ActiveSet(), problem_of(probs, fairness=100.0), 1e-4)
    bad = 100 + 3 * np.random.default_rng(0).standard_normal(10)
    problem = problem_of(probs, fairness=100.0, guess=bad)
    started = ActiveSet().start(problem, None, 1e-4)
    np.testing.assert_allclose(started.multipliers, indifferent(problem))
    assert solve(ActiveSet(), problem, 1e-4).n_iter == cold.n_iter


@pytest.mark.parametrize("guess", [np.full(10, np.nan), np.full(10, -1.0), np.full(10, np.inf)])
def test_multipliers_that_are_none_are_dropped(guess: Array) -> None:
    problem = problem_of(random_probs(1500, 10), fairness=100.0, guess=guess)
    started = ActiveSet().start(problem, None, 1e-4)
    np.testing.assert_allclose(started.multipliers, indifferent(problem))


def test_multipliers_of_many_similar_rows_are_used() -> None:
    first, second = (favored(4000, 10, most=1.5, seed=seed) for seed in (0, 1))
    guess = solve(ActiveSet(), problem_of(first, fairness=100.0), 1e-4).multipliers
    cold = solve(ActiveSet(), problem_of(second, fairness=100.0), 1e-2)
    warm = solve(ActiveSet(), problem_of(second, fairness=100.0, guess=guess), 1e-2)
    assert warm.n_iter < cold.n_iter


def test_multipliers_of_another_fairness_do_no_harm() -> None:
    probs = random_probs(300, 40)
    light = solve_pseudo_labels(probs, fairness=1.0)
    heavy = solve_pseudo_labels(probs, fairness=100.0, init=light, tol=1e-9)
    assert heavy.converged
    assert heavy.objective == pytest.approx(solve_pseudo_labels(probs, tol=1e-9).objective)


# --- what is said of the gap ------------------------------------------------------------------


@pytest.mark.parametrize("backend", PASSES)
@pytest.mark.parametrize("tol", [5e-2, 1e-4])
def test_the_uncertified_gap_is_honest(backend: str, tol: float) -> None:
    """Labels inside a training step are as good as the solver says without a certificate."""
    guess: Any = None
    for seed, (n_rows, n_classes) in enumerate([(250, 10)] * 5 + [(120, 30)] * 5):
        probs = random_probs(n_rows, n_classes, seed=seed, scale=1 + seed % 5)
        guess = None if guess is None or len(guess) != n_classes else guess
        problem = problem_of(probs, fairness=100.0, guess=guess, backend=backend)
        outcome = run_uncertified(ActiveSet(), problem, tol=tol, max_iter=200)
        assert outcome.converged
        guess = outcome.multipliers
        assert guess is not None
        best = solve(InteriorPoint(), problem_of(probs, fairness=100.0), 1e-9)
        assert best.certificate is not None
        assert problem.value(outcome.labels) - best.certificate.lower_bound <= 1.5 * tol
