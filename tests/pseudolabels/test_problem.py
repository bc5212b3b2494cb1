"""A problem's couplings, bounds and certificates, what leaves it beforehand, and shared sums."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from coincide.pseudolabels import OBJECTIVES, SOLVERS
from coincide.pseudolabels.objectives import ForwardKL, ReverseKL
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


COUPLINGS = [ReverseKL, ForwardKL]


def slopes(of: Callable[[Array], Any], at: Array) -> Array:
    """Return central differences along every axis."""
    steps = 1e-5 * np.eye(len(at))
    return np.array([(of(at + step) - of(at - step)) / 2e-5 for step in steps])


def test_the_objectives_are_those_of_the_paper() -> None:
    parts = {name: (o.collision, o.coupling) for name, o in OBJECTIVES.items()}
    assert parts == {
        "cce+": (True, ReverseKL),
        "cce": (True, ForwardKL),
        "ce+kl": (False, ForwardKL),
    }


@pytest.mark.parametrize("kind", COUPLINGS)
@pytest.mark.parametrize("fairness", [0.0, 0.7])
def test_couplings_against_finite_differences(kind: type, fairness: float) -> None:
    coupling = kind(skewed_prior(4), fairness)
    mean_label = random_labels(1, 4)[0] * 0.8 + 0.05
    multipliers = coupling.multipliers(mean_label)
    np.testing.assert_allclose(
        multipliers, -slopes(coupling.value, mean_label), rtol=1e-7, atol=1e-8
    )
    bends = slopes(coupling.multipliers, mean_label)
    np.testing.assert_allclose(
        -bends, np.diag(coupling.curvature(mean_label)), rtol=1e-6, atol=1e-8
    )
    if fairness > 0:
        # Fenchel-Young with equality: Φ(ȳ) = -w·ȳ - conjugate(w) where w = -Φ'(ȳ).
        mean_label = mean_label / mean_label.sum()
        multipliers = coupling.multipliers(mean_label)
        expected = -multipliers @ mean_label - coupling.conjugate(multipliers)
        assert coupling.value(mean_label) == pytest.approx(expected, abs=1e-12)
        assert coupling.divergence(mean_label, multipliers) == pytest.approx(0, abs=1e-14)


@pytest.mark.parametrize("kind", COUPLINGS)
def test_the_proposal_is_the_slope_of_the_conjugate(kind: type) -> None:
    coupling = kind(skewed_prior(4), 0.7)
    multipliers = coupling.multipliers(random_labels(1, 4)[0])
    proposal = coupling.proposal(multipliers)
    np.testing.assert_allclose(proposal, -slopes(coupling.conjugate, multipliers), rtol=1e-6)
    stiffness = coupling.stiffness(multipliers)
    np.testing.assert_allclose(
        stiffness, -slopes(coupling.proposal, multipliers), rtol=1e-6, atol=1e-9
    )
    free = dataclasses.replace(coupling, fairness=0.0)
    assert not free.stiffness(0 * multipliers).any()


@pytest.mark.parametrize("kind", COUPLINGS)
@pytest.mark.parametrize("fairness", [0.0, 1e-300, 0.7, 1e5])
def test_the_divergence_is_what_fenchel_leaves_open(kind: type, fairness: float) -> None:
    coupling = kind(skewed_prior(4), fairness)
    mean_label = random_labels(1, 4)[0]
    multipliers = coupling.multipliers(random_labels(1, 4, seed=2)[0])
    conjugate = coupling.conjugate(multipliers)
    expected = coupling.value(mean_label) + multipliers @ mean_label + conjugate
    found = coupling.divergence(mean_label, multipliers)
    assert found == pytest.approx(expected, rel=1e-9, abs=1e-12 * fairness)
    assert found >= 0
    assert coupling.divergence(-mean_label, multipliers) == np.inf
    assert coupling.divergence(mean_label, multipliers * np.nan) == np.inf


def test_an_empty_class_leaves_an_infinite_divergence_where_the_prior_wants_it() -> None:
    multipliers, empty = np.array([1.0, 2.0]), np.array([0.0, 1.0])
    assert ReverseKL(np.array([0.5, 0.5]), 1.0).divergence(empty, multipliers) == np.inf
    assert np.isfinite(ReverseKL(np.array([0.0, 1.0]), 1.0).divergence(empty, multipliers))


@pytest.mark.parametrize("kind", COUPLINGS)
def test_multipliers_are_bounded_where_the_conjugate_is_finite(kind: type) -> None:
    coupling = kind(np.array([0.5, 0.5, 0.0]), 1.0)
    with np.errstate(divide="ignore", invalid="ignore"):
        for multipliers in ([1.0, 2.0, 0.0], [0.0, 1.0, 0.0], [np.nan, 1.0, 0.0]):
            w = np.array(multipliers)
            assert coupling.bounded(w) == np.isfinite(coupling.conjugate(w))
