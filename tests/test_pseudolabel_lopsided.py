"""Predictions that favor some classes by far: the active set starts from a sample of the rows."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.special import softmax

from coincide.pseudolabels.active_set import ActiveSet
from coincide.pseudolabels.dual import evaluate
from coincide.pseudolabels.interior_point import InteriorPoint
from coincide.pseudolabels.kernels import row_minimizers
from coincide.pseudolabels.problem import Problem
from coincide.pseudolabels.reduction import reduce_problem
from coincide.pseudolabels.solver import run_solver
from devices import cpu_backends
from problems import Array

BACKENDS = cpu_backends()


def problem_of(
    n_rows: int,
    n_classes: int,
    *,
    fairness: float = 100.0,
    objective: str = "cce+",
    backend: str = "torch",
    weights: Array | None = None,
) -> Problem:
    rng = np.random.default_rng(0)
    logits = 2 * rng.normal(size=(n_rows, n_classes)) + np.linspace(0, 6, n_classes)
    return reduce_problem(
        torch.from_numpy(softmax(logits, axis=1)),
        prior=np.full(n_classes, 1 / n_classes),
        fairness=fairness,
        objective=objective,
        backend=backend,
        weights=None if weights is None else torch.from_numpy(weights),
    ).problem


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("fairness", [1.0, 100.0])
def test_a_sample_says_where_to_start(backend: str, fairness: float) -> None:
    problem = problem_of(20_000, 5, backend=backend, fairness=fairness)
    indifferent = problem.multipliers(problem.prior)
    equal = evaluate(problem, row_minimizers(backend, problem.probs), indifferent)
    assert equal.off > 0.5
    state, again = (ActiveSet().start(problem, None, 1e-6) for _ in range(2))
    assert state.trial.off < 0.2 * equal.off
    assert state.trial.value > equal.value
    np.testing.assert_array_equal(state.multipliers, again.multipliers)


def test_few_rows_are_no_base_for_a_sample() -> None:
    state = ActiveSet().start(problem_of(2_400, 5), None, 1e-6)
    assert state.trial.even


@pytest.mark.parametrize("objective", ["cce+", "cce"])
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("fairness", [0.0, 1.0, 100.0])
def test_lopsided_predictions_are_solved_to_the_certified_optimum(
    backend: str, objective: str, fairness: float
) -> None:
    problem = problem_of(3_000, 5, fairness=fairness, objective=objective, backend=backend)
    outcome = run_solver(ActiveSet(), problem, tol=1e-7, max_iter=500)
    best = run_solver(InteriorPoint(), problem, tol=1e-7, max_iter=200)
    assert outcome.converged
    assert outcome.certificate is not None
    assert best.certificate is not None
    scale = max(1, abs(best.certificate.objective))
    assert abs(outcome.certificate.objective - best.certificate.objective) <= 2e-7 * scale


def test_a_sample_without_weight_is_no_sample() -> None:
    weights = np.zeros(20_000)
    weights[:3] = 1.0
    outcome = run_solver(
        ActiveSet(), problem_of(20_000, 5, weights=weights), tol=1e-6, max_iter=500
    )
    assert outcome.converged
