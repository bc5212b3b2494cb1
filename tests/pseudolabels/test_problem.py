"""A problem's bounds and certificates, what leaves it beforehand, and sums over processes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from coincide.pseudolabels import SOLVERS
from coincide.pseudolabels.problem import certify, reduce_problem
from coincide.pseudolabels.rows import TorchPasses
from coincide.pseudolabels.solver import run_solver
from problems import (
    OBJECTIVE_NAMES,
    Array,
    cvxpy_optimum,
    objective_of,
    prior_with_first,
    random_labels,
    random_probs,
    skewed_prior,
)
from small_problems import PASSES, indifferent, problem_of

LAWS = settings(max_examples=30, deadline=None)


@LAWS
@given(
    seed=st.integers(0, 2**31 - 1),
    size=st.tuples(st.integers(1, 8), st.integers(2, 7)),
    fairness=st.floats(0, 100),
    objective=st.sampled_from(OBJECTIVE_NAMES),
    spread=st.floats(0, 6),
)
def test_bound_holds_for_any_multipliers(
    seed: int, size: tuple[int, int], fairness: float, objective: str, spread: float
) -> None:
    probs, labels = random_probs(*size, seed=seed), random_labels(*size, seed=seed + 1)
    prior = random_labels(1, size[1], seed=seed + 2)[0]
    problem = problem_of(probs, prior=prior, fairness=fairness, objective=objective)
    multipliers = np.random.default_rng(seed).normal(size=size[1]) * spread
    if objective == "cce+":  # its conjugate is finite for positive multipliers
        multipliers = np.exp(multipliers)
    value = objective_of(labels, probs, prior=prior, fairness=fairness, objective=objective)
    assert problem.lower_bound(multipliers) <= value + 1e-10 * max(1, abs(value))
    assert problem.value(torch.from_numpy(labels)) == pytest.approx(value, rel=1e-10)


@pytest.mark.parametrize("objective", OBJECTIVE_NAMES)
def test_bound_is_tight_at_the_optimum(objective: str) -> None:
    probs, prior = random_probs(6, 4), skewed_prior(4)
    problem = problem_of(probs, prior=prior, objective=objective)
    outcome = run_solver(SOLVERS["interior-point"], problem, tol=1e-10, max_iter=100)
    bound = problem.lower_bound(problem.coupling.multipliers(problem.mean_label(outcome.labels)))
    optimum = cvxpy_optimum(probs, prior=prior, fairness=1.0, objective=objective)
    assert bound == pytest.approx(optimum, abs=1e-6)


@pytest.mark.parametrize("backend", PASSES)
def test_the_bound_of_shannon_is_a_mean_over_corners(backend: str) -> None:
    probs, multipliers = random_probs(9, 4), np.array([0.3, -2, 5, 0])
    problem = problem_of(probs, objective="ce+kl", backend=backend)
    conjugate = problem.coupling.conjugate(multipliers)
    expected = (-np.log(probs) - multipliers).min(1).mean() - conjugate
    assert problem.lower_bound(multipliers) == pytest.approx(expected, rel=1e-12)


def test_certificate_of_labels_that_empty_a_wanted_class() -> None:
    problem = problem_of(random_probs(6, 3))
    certificate = certify(problem, torch.eye(3, dtype=torch.float64)[[0, 0, 1, 1, 0, 1]])
    assert certificate.objective == np.inf
    assert not certificate.within(1e-3)


@pytest.mark.parametrize("objective", OBJECTIVE_NAMES)
def test_parts_of_the_rows_give_what_the_whole_gives(
    objective: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    probs, labels = random_probs(37, 5), torch.from_numpy(random_labels(37, 5))
    whole = problem_of(probs, objective=objective)
    expected = certify(whole, labels)
    starts = SOLVERS["interior-point"].start(whole, None, 1e-6).arrays
    monkeypatch.setattr("coincide.pseudolabels.rows.sums._ENTRIES_PER_PART", {"cpu": 20})
    again = problem_of(probs, objective=objective)
    assert certify(again, labels) == pytest.approx(expected, rel=1e-13)
    arrays = SOLVERS["interior-point"].start(again, None, 1e-6).arrays
    for found, start in zip(arrays, starts, strict=True):
        torch.testing.assert_close(found, start)


# --- what is decided beforehand ---------------------------------------------------------------


@pytest.mark.parametrize("objective", OBJECTIVE_NAMES)
def test_free_rows_and_classes_have_the_value_of_the_whole(objective: str) -> None:
    """Labels of the free part, put back, cost what the reduced problem says."""
    probs, weights = random_probs(20, 5), np.linspace(0.5, 2, 20)
    known = np.full(20, -1)
    known[[1, 4]] = [3, 2]
    prior = prior_with_first(5, 0.0)
    reduction = reduce_problem(
        torch.from_numpy(probs),
        prior=prior,
        fairness=2.0,
        objective=objective,
        passes=TorchPasses(),
        known=torch.from_numpy(known),
        weights=torch.from_numpy(weights),
    )
    problem = reduction.problem
    empty = objective != "cce+"
    assert problem.probs.shape == (18, 4 if empty else 5)
    free = torch.from_numpy(random_labels(*problem.probs.shape))
    full = reduction.expand(free)
    np.testing.assert_array_equal(full[[1, 4]], np.eye(5)[[3, 2]])
    assert bool((full[known < 0, 0] == 0).all()) == empty
    expected = objective_of(
        full.numpy(), probs, prior=prior, fairness=2.0, objective=objective, weights=weights
    )
    assert problem.value(free) == pytest.approx(expected, rel=1e-12)
    torch.testing.assert_close(reduction.restrict(full), free)
    mean_label = reduction.expand_vector(problem.mean_label(free))
    np.testing.assert_allclose(mean_label, weights / weights.sum() @ full.numpy(), atol=1e-14)


# --- rows of several processes ----------------------------------------------------------------


class Alone:
    """The sums of a process that has all the rows, and a count of its messages."""

    messages = 0

    def sum(self, vector: Array) -> Array:
        self.messages += 1
        return vector

    def least(self, value: float) -> float:
        return value


@pytest.mark.parametrize("objective", ["cce+", "cce"])
@pytest.mark.parametrize("solver", ["active-set", "interior-point"])
@pytest.mark.parametrize("shape", [(60, 300), (400, 8)])
def test_rows_of_one_process_are_the_whole_problem(
    shape: tuple[int, int], solver: str, objective: str
) -> None:
    probs, sums = random_probs(*shape), Alone()
    found = []
    for given_sums in (sums, None):
        problem = problem_of(probs, objective=objective, sums=given_sums)
        outcome = run_solver(SOLVERS[solver], problem, tol=1e-8, max_iter=500)
        assert outcome.converged
        assert outcome.certificate is not None
        found.append(outcome.certificate.objective)
    assert sums.messages > 0
    assert found[0] == pytest.approx(found[1], abs=1e-7)
    assert np.isfinite(indifferent(problem)).all()
