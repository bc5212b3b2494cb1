"""The interior point's first iterate, its steps, and how little it keeps of the predictions."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from coincide.pseudolabels import InteriorPoint
from coincide.pseudolabels.kernels import row_kernels
from coincide.pseudolabels.problem import Problem, certify
from coincide.pseudolabels.reduction import reduce_problem
from coincide.pseudolabels.solver import run_solver
from devices import cpu_backends
from problems import OBJECTIVE_NAMES, random_labels, random_probs, skewed_prior

BACKENDS = cpu_backends()


def problem_of(
    shape: tuple[int, int],
    *,
    scale: float = 2.0,
    objective: str = "cce+",
    backend: str = "torch",
    dtype: torch.dtype = torch.float64,
    skewed: bool = False,
    fairness: float = 100.0,
) -> Problem:
    n_classes = shape[1]
    prior = skewed_prior(n_classes) if skewed else np.full(n_classes, 1 / n_classes)
    probs = torch.from_numpy(random_probs(*shape, scale=scale)).to(dtype)
    return reduce_problem(
        probs, prior=prior, fairness=fairness, objective=objective, backend=backend
    ).problem


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("shape", [(250, 200), (1000, 100)])
def test_sharp_predictions_with_few_rows_to_a_class_take_few_iterations(
    backend: str, shape: tuple[int, int]
) -> None:
    """Common steps with unlimited corrections from uniform labels take 31 and 36 iterations."""
    problem = problem_of(shape, scale=5.0, backend=backend)
    outcome = run_solver(InteriorPoint(), problem, tol=1e-6, max_iter=100)
    assert outcome.converged
    assert outcome.n_iter <= 25


@pytest.mark.parametrize("objective", OBJECTIVE_NAMES)
@pytest.mark.parametrize("backend", BACKENDS)
def test_the_first_iterate_is_centered(objective: str, backend: str) -> None:
    problem = problem_of((40, 6), objective=objective, backend=backend, skewed=True)
    state = InteriorPoint().start(problem, None, 1e-6)
    y, zeta = state.arrays
    torch.testing.assert_close(y.sum(1), torch.ones(40, dtype=torch.float64))
    # In proportion to nearly the prior, the same in every row.
    products = y * zeta
    torch.testing.assert_close(products, products[:1].expand(40, 6))
    shares = products[0] / products[0].sum()
    np.testing.assert_allclose(shares, 0.9 * skewed_prior(6) + 0.1 / 6)
    # The dual residual, whose row constants are free, is small next to the slacks.
    residual = problem.descent(y) + torch.from_numpy(state.multipliers) + zeta
    residual -= residual.mean(1, keepdim=True)
    assert float(residual.norm() / zeta.norm()) < 0.5


@pytest.mark.parametrize("objective", OBJECTIVE_NAMES)
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("shape", [(1, 2), (300, 9), (40, 300)])
def test_every_backend_starts_at_the_same_iterate(
    backend: str, objective: str, shape: tuple[int, int]
) -> None:
    found, expected = (
        InteriorPoint()
        .start(problem_of(shape, scale=5.0, objective=objective, backend=name), None, 1e-6)
        .arrays
        for name in (backend, "torch")
    )
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-11, atol=0)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_warm_start_is_near_the_labels_given(backend: str) -> None:
    problem = problem_of((40, 6), backend=backend)
    labels = torch.from_numpy(random_labels(40, 6))
    y, zeta = InteriorPoint(warmth=0.1).start(problem, labels, 1e-6).arrays
    torch.testing.assert_close(y, 0.9 * labels + 0.1 / 6)
    assert float(zeta.min()) == pytest.approx(1)


@pytest.mark.parametrize("objective", OBJECTIVE_NAMES)
@pytest.mark.parametrize("backend", BACKENDS)
def test_the_expected_gap_is_that_of_the_certificate(objective: str, backend: str) -> None:
    """Within a factor of five near the optimum: rows and coupling both count."""
    problem = problem_of((300, 8), objective=objective, backend=backend)
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


@pytest.mark.parametrize("objective", OBJECTIVE_NAMES)
@pytest.mark.parametrize("backend", BACKENDS)
def test_float32_predictions_are_solved_in_float64(objective: str, backend: str) -> None:
    problem = problem_of((80, 5), objective=objective, backend=backend, dtype=torch.float32)
    outcome = run_solver(InteriorPoint(), problem, tol=1e-9, max_iter=60)
    double = run_solver(InteriorPoint(), problem.to(torch.float64), tol=1e-9, max_iter=60)
    assert outcome.converged
    assert outcome.labels.dtype == torch.float32
    assert outcome.certificate is not None
    assert double.certificate is not None
    assert outcome.certificate.objective == pytest.approx(double.certificate.objective, abs=1e-8)


@pytest.mark.skipif("numba" not in BACKENDS, reason="Numba is not installed.")
def test_compiled_kernels_keep_the_arrays_they_are_given() -> None:
    probs = torch.from_numpy(random_probs(50, 4))
    weights = torch.full((50,), 1 / 50, dtype=torch.float64)
    kernels = row_kernels("numba", probs, weights, collision=True)
    given = [torch.full((4, 50), value, dtype=torch.float64).T for value in (0.25, 1.0)]
    taken = kernels.load(*given)
    assert [array.data_ptr() for array in taken] == [array.data_ptr() for array in given]
    by_rows = kernels.load(*(array.contiguous() for array in given))
    assert all(torch.equal(one, other) for one, other in zip(by_rows, given, strict=True))


def test_parts_of_the_rows_give_what_the_whole_gives(monkeypatch: pytest.MonkeyPatch) -> None:
    problem = problem_of((37, 5), objective="ce+kl")
    labels = torch.from_numpy(random_labels(37, 5))
    whole = certify(problem, labels)
    y, zeta = InteriorPoint().start(problem, None, 1e-6).arrays
    monkeypatch.setattr("coincide.pseudolabels.kernels.parts._ENTRIES_PER_PART", {"cpu": 20})
    again = problem.to(torch.float64)
    assert certify(again, labels) == pytest.approx(whole, rel=1e-13)
    for found, expected in zip(
        InteriorPoint().start(again, None, 1e-6).arrays, (y, zeta), strict=True
    ):
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("objective", OBJECTIVE_NAMES)
@pytest.mark.parametrize("fairness", [1e5, 1e6])
def test_it_does_not_wait_for_what_rounding_leaves(objective: str, fairness: float) -> None:
    problem = problem_of((300, 4), objective=objective, fairness=fairness)
    outcome = run_solver(InteriorPoint(), problem, tol=1e-7, max_iter=200)
    assert outcome.certificate is not None
    assert outcome.certificate.gap < 1e-11 * fairness
    assert outcome.n_iter < 60


@pytest.mark.parametrize("objective", OBJECTIVE_NAMES)
@pytest.mark.parametrize("fairness", [0.0, 1e-300, 1e-12])
def test_without_fairness_it_knows_that_it_is_done(objective: str, fairness: float) -> None:
    """The multipliers are 0 then, and bound the objective all the same."""
    problem = problem_of((250, 10), objective=objective, fairness=fairness)
    outcome = run_solver(InteriorPoint(), problem, tol=1e-6, max_iter=200)
    assert outcome.converged
    assert outcome.n_iter <= 12
