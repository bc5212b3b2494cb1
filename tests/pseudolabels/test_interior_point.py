"""The interior point's first iterate, its steps, and what it says of its gap."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from coincide.pseudolabels import InteriorPoint
from coincide.pseudolabels.interior_point import MOST_CLASSES
from coincide.pseudolabels.problem import Problem, certify
from coincide.pseudolabels.solver import run_solver, run_uncertified
from problems import OBJECTIVE_NAMES, random_labels, random_probs, skewed_prior
from small_problems import PASSES, on_device, problem_of

pytestmark = pytest.mark.parametrize("objective", OBJECTIVE_NAMES)


def random_problem(shape: tuple[int, int], *, scale: float = 2.0, **changes: Any) -> Problem:
    return problem_of(random_probs(*shape, scale=scale), **{"fairness": 100.0, **changes})


# --- the first iterate ------------------------------------------------------------------------


@pytest.mark.parametrize("backend", PASSES)
def test_the_first_iterate_is_centered(objective: str, backend: str) -> None:
    problem = random_problem((40, 6), objective=objective, backend=backend, prior=skewed_prior(6))
    state = InteriorPoint().start(problem, None, 1e-6)
    y, zeta = state.arrays
    torch.testing.assert_close(y.sum(1), torch.ones_like(y[:, 0]))
    # In proportion to nearly the prior, the same in every row.
    products = y * zeta
    torch.testing.assert_close(products, products[:1].expand(40, 6))
    shares = (products[0] / products[0].sum()).cpu()
    np.testing.assert_allclose(shares, 0.9 * skewed_prior(6) + 0.1 / 6)
    # The dual residual, whose row constants are free, is small next to the slacks.
    residual = problem.descent(y) + problem.at_rows(state.multipliers) + zeta
    residual -= residual.mean(1, keepdim=True)
    assert float(residual.norm() / zeta.norm()) < 0.5


@pytest.mark.parametrize("backend", PASSES)
@pytest.mark.parametrize("shape", [(1, 2), (300, 9), (40, 300)])
def test_every_backend_starts_at_the_same_iterate(
    backend: str, objective: str, shape: tuple[int, int]
) -> None:
    found, expected = (
        InteriorPoint()
        .start(random_problem(shape, scale=5.0, objective=objective, backend=name), None, 1e-6)
        .arrays
        for name in (backend, "torch")
    )
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one.cpu(), other, rtol=1e-11, atol=0)


@pytest.mark.parametrize("backend", PASSES)
def test_a_warm_start_is_near_the_labels_given(objective: str, backend: str) -> None:
    problem = random_problem((40, 6), objective=objective, backend=backend)
    labels = on_device(random_labels(40, 6), backend)
    state = InteriorPoint(warmth=0.1).start(problem, labels, 1e-6)
    y, zeta = state.arrays
    torch.testing.assert_close(y, 0.9 * labels + 0.1 / 6)
    assert float(zeta.min()) == pytest.approx(1)
    residual = problem.descent(y) + problem.at_rows(state.multipliers) + zeta
    torch.testing.assert_close(residual, residual[:, :1].expand_as(residual))


# --- its steps --------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", PASSES)
@pytest.mark.parametrize("shape", [(250, 200), (1000, 40)])
def test_sharp_predictions_with_few_rows_to_a_class_take_few_iterations(
    backend: str, objective: str, shape: tuple[int, int]
) -> None:
    """Common steps with unlimited corrections from uniform labels take half as many again."""
    problem = random_problem(shape, scale=5.0, objective=objective, backend=backend)
    outcome = run_solver(InteriorPoint(), problem, tol=1e-6, max_iter=100)
    assert outcome.converged
    assert outcome.n_iter <= 25


@pytest.mark.parametrize("backend", PASSES)
def test_float32_predictions_are_solved_in_float64(objective: str, backend: str) -> None:
    probs = torch.from_numpy(random_probs(80, 5)).float()
    outcome, double = (
        run_solver(
            InteriorPoint(),
            problem_of(
                probs.double().numpy(), fairness=100.0, objective=objective, backend=backend,
                dtype=dtype,
            ),
            tol=1e-9,
            max_iter=60,
        )
        for dtype in (torch.float32, torch.float64)
    )  # fmt: skip
    assert outcome.converged
    assert outcome.labels.dtype == torch.float32
    assert outcome.certificate is not None
    assert double.certificate is not None
    assert outcome.certificate.objective == pytest.approx(double.certificate.objective, abs=1e-8)


@pytest.mark.parametrize("fairness", [0.0, 1.0, 100.0])
def test_more_classes_than_rows(objective: str, fairness: float) -> None:
    problem = random_problem((60, 200), fairness=fairness, objective=objective)
    outcome = run_solver(InteriorPoint(), problem, tol=1e-6, max_iter=200)
    assert outcome.converged
    torch.testing.assert_close(outcome.labels.sum(1), torch.ones(60, dtype=torch.float64))


def test_too_large_a_system_is_refused_by_name(objective: str) -> None:
    n_classes = MOST_CLASSES + 1
    probs = np.full((2, n_classes), 1 / n_classes)
    problem = problem_of(probs, objective=objective)
    with pytest.raises(ValueError, match=r"'interior-point' .* Got 10,001 classes: take 'proj"):
        InteriorPoint().start(problem, None, 1e-6)


# --- the gap ----------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", PASSES)
def test_the_expected_gap_is_that_of_the_certificate(objective: str, backend: str) -> None:
    """Within a factor of five near the optimum: rows and coupling both count."""
    problem = random_problem((300, 8), objective=objective, backend=backend)
    solver = InteriorPoint()
    state = solver.start(problem, None, 1e-9)
    for _ in range(30):
        state = solver.step(problem, state)
        gap = certify(problem, state.labels, state.multipliers).gap
        if gap < 1e-3:
            assert 0.2 * state.expected_gap < gap < 5 * state.expected_gap
        if gap < 1e-7:
            return
    pytest.fail("It has not come near the optimum.")


@pytest.mark.parametrize("tol", [1e-3, 1e-6])
def test_without_a_certificate_the_gap_is_as_expected(objective: str, tol: float) -> None:
    problem = problem_of(random_probs(80, 5), objective=objective)
    outcome = run_uncertified(InteriorPoint(), problem, tol=tol, max_iter=50)
    assert outcome.converged
    assert outcome.certificate is None
    assert certify(problem, outcome.labels).gap <= 10 * tol


@pytest.mark.parametrize("fairness", [1e5, 1e6])
def test_it_does_not_wait_for_what_rounding_leaves(objective: str, fairness: float) -> None:
    problem = random_problem((300, 4), objective=objective, fairness=fairness)
    outcome = run_solver(InteriorPoint(), problem, tol=1e-7, max_iter=200)
    assert outcome.certificate is not None
    assert outcome.certificate.gap < 1e-11 * fairness
    assert outcome.n_iter < 60


@pytest.mark.parametrize("fairness", [0.0, 1e-300, 1e-12])
def test_without_fairness_it_knows_that_it_is_done(objective: str, fairness: float) -> None:
    """The multipliers are 0 then, and bound the objective all the same."""
    problem = random_problem((250, 10), objective=objective, fairness=fairness)
    outcome = run_solver(InteriorPoint(), problem, tol=1e-6, max_iter=200)
    assert outcome.converged
    assert outcome.n_iter <= 15
