"""Newton's steps up the dual: its value, slope, gap and curvature, and where steps lead."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from coincide.pseudolabels import InteriorPoint
from coincide.pseudolabels.dual import Ascent, answer_labels, newton_change
from coincide.pseudolabels.problem import Problem
from coincide.pseudolabels.solver import run_solver
from problems import random_probs, skewed_prior
from small_problems import PASSES, indifferent, point_at, problem_of

OBJECTIVES = ["cce+", "cce"]


def best_bound(problem: Problem) -> float:
    outcome = run_solver(InteriorPoint(), problem, tol=1e-10, max_iter=200)
    assert outcome.converged
    assert outcome.certificate is not None
    return outcome.certificate.lower_bound


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("backend", PASSES)
def test_a_point_against_the_certificate_and_differences(backend: str, objective: str) -> None:
    known = np.full(200, -1)
    known[:3] = [0, 1, 1]
    problem = problem_of(
        random_probs(200, 4), prior=skewed_prior(4), objective=objective, backend=backend,
        known=known, fairness=5.0, weights=np.linspace(1, 2, 200),
    )  # fmt: skip
    multipliers = indifferent(problem) + np.array([0.3, -0.2, 0.5, 0])
    point = point_at(problem, multipliers)
    assert point.value == pytest.approx(problem.lower_bound(multipliers), rel=1e-12)
    labels = answer_labels(problem, point)
    # The answer's labels attain the rows' minima: what is left open is the coupling's.
    assert point.gap == pytest.approx(problem.value(labels) - point.value, rel=1e-9)
    assert point.off == pytest.approx(np.abs(point.slope).sum())
    for k, step in enumerate(1e-6 * np.eye(4)):
        ahead, behind = (point_at(problem, multipliers + s * step) for s in (1, -1))
        slope = (ahead.value - behind.value) / 2e-6
        assert point.slope[k] == pytest.approx(slope, rel=1e-4, abs=1e-7)
        bend = (behind.slope - ahead.slope) / 2
        np.testing.assert_allclose(bend, point.curvature @ step, rtol=1e-3, atol=1e-11)


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("backend", PASSES)
def test_steps_never_fall_and_reach_the_optimum_of_many_rows(backend: str, objective: str) -> None:
    problem = problem_of(random_probs(3000, 5), fairness=10.0, objective=objective, backend=backend)
    ascent = Ascent(problem, problem.passes.minimizers(problem.probs), indifferent(problem))
    for _ in range(20):
        before = ascent.point.value
        ascent.step()
        assert ascent.point.value >= before - 1e-12
    assert best_bound(problem) - ascent.point.value < 1e-5


@pytest.mark.parametrize("backend", PASSES)
def test_the_first_step_from_equal_multipliers_is_a_good_one(backend: str) -> None:
    """Equal multipliers split no row, so the curvature there says nothing of the rows."""
    problem = problem_of(random_probs(2000, 10), fairness=100.0, backend=backend)
    start = point_at(problem)
    assert start.even
    np.testing.assert_allclose(start.curvature, np.eye(10) * 0.1 / 100, rtol=1e-9)
    ascent = Ascent(problem, problem.passes.minimizers(problem.probs), start.multipliers)
    ascent.step()
    optimum = best_bound(problem)
    assert optimum - ascent.point.value < 0.5 * (optimum - start.value)


def test_steps_shorten_where_they_fail() -> None:
    """Next to a tie of two classes the slope jumps; steps over it must not go on for ever."""
    problem = problem_of(random_probs(100, 2, scale=1), fairness=100.0)
    ascent = Ascent(problem, problem.passes.minimizers(problem.probs), indifferent(problem))
    for _ in range(40):
        ascent.step()
    assert best_bound(problem) - ascent.point.value < 1e-6


def test_steps_stay_where_the_dual_is_finite() -> None:
    problem = problem_of(random_probs(50, 6, scale=5), fairness=0.01, prior=skewed_prior(6))
    ascent = Ascent(problem, problem.passes.minimizers(problem.probs), indifferent(problem))
    for _ in range(20):
        ascent.step()
        assert problem.coupling.bounded(ascent.trial.multipliers)
        assert np.isfinite(ascent.point.value)


def test_newtons_change_solves_for_the_classes_that_can_move() -> None:
    rng = np.random.default_rng(0)
    root = rng.normal(size=(5, 5))
    model, slope = root @ root.T + 0.1 * np.eye(5), rng.normal(size=5)
    np.testing.assert_allclose(
        newton_change(model, slope), np.linalg.solve(model, slope), rtol=1e-6
    )
    damped = model + 0.5 * np.diag(model.diagonal())
    np.testing.assert_allclose(
        newton_change(model, slope, 0.5), np.linalg.solve(damped, slope), rtol=1e-6
    )
    model[2] = model[:, 2] = 0
    change, rest = newton_change(model, slope), [0, 1, 3, 4]
    assert change[2] == 0
    np.testing.assert_allclose(
        change[rest], np.linalg.solve(model[np.ix_(rest, rest)], slope[rest]), rtol=1e-6
    )
    assert not newton_change(np.zeros((3, 3)), slope[:3]).any()


def test_answers_are_labels_of_at_most_two_classes() -> None:
    problem = problem_of(random_probs(60, 7), fairness=100.0, dtype=torch.float32)
    labels = answer_labels(problem, point_at(problem, 100 + np.linspace(0, 1, 7)))
    assert labels.dtype == torch.float32
    assert int((labels > 0).sum(1).max()) <= 2
    torch.testing.assert_close(labels.sum(1), torch.ones(60))
