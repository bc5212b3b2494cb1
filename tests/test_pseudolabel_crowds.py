"""Far more classes than rows: two unknowns a row couple them, and a few candidates are enough."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose

from coincide import solve_pseudo_labels
from coincide.pseudolabels.active_set import ActiveSet
from coincide.pseudolabels.coupling import Coupling, answer_to, coupling_of
from coincide.pseudolabels.interior_point import InteriorPoint
from coincide.pseudolabels.kernels import RowKernels, candidate_kernels, pays_apart, row_kernels
from coincide.pseudolabels.pace import pace_of
from coincide.pseudolabels.problem import Problem
from coincide.pseudolabels.reduction import reduce_problem
from coincide.pseudolabels.solver import Solver, run_solver
from coincide.pseudolabels.working_set import WorkingSet
from devices import cpu_backends
from problems import Array, random_labels, random_probs, skewed_prior

BACKENDS = cpu_backends()
COMPILED = [backend for backend in BACKENDS if backend != "triton"]


def problem_of(
    probs: Array,
    fairness: float,
    *,
    objective: str = "cce+",
    backend: str = "torch",
    prior: Array | None = None,
) -> Problem:
    classes = probs.shape[1]
    return reduce_problem(
        torch.from_numpy(probs),
        prior=np.full(classes, 1 / classes) if prior is None else prior,
        fairness=fairness,
        objective=objective,
        backend=backend,
    ).problem


def kernels_of(
    backend: str, n_rows: int, n_classes: int, width: int | None, *, apart: bool
) -> RowKernels:
    """Return kernels with an iterate, of all classes or of ``width`` candidates a row."""
    rng = np.random.default_rng(0)
    weights = torch.from_numpy(rng.dirichlet(np.ones(n_rows)))
    kept = n_classes if width is None else width
    probs = torch.from_numpy(random_probs(n_rows, kept))
    labels = torch.from_numpy(random_labels(n_rows, kept)).clamp_min(1e-9)
    labels /= labels.sum(1, keepdim=True)
    if width is None:
        kernels = row_kernels(backend, probs, weights, collision=True, apart=apart)
    else:
        drawn = [rng.choice(n_classes, width, replace=False) for _ in range(n_rows)]
        classes = torch.from_numpy(np.stack(drawn)).sort(1, descending=True).values
        kernels = candidate_kernels(backend, probs, weights, classes, n_classes, apart=apart)
    kernels.load(labels, 1e-8 / labels)
    return kernels


@pytest.mark.parametrize("width", [None, 6])
@pytest.mark.parametrize("size", [(1, 7), (12, 40), (30, 100)])
@pytest.mark.parametrize("backend", COMPILED)
def test_two_unknowns_a_row_solve_what_one_a_class_does(
    backend: str, size: tuple[int, int], width: int | None
) -> None:
    curvature = np.geomspace(1e-2, 1e6, size[1])
    curvature[2] = 0  # a class without coupling
    off, vector = np.random.default_rng(1).normal(size=(2, size[1]))
    couplings: list[Coupling] = []
    for apart in (False, True):
        factors = kernels_of(backend, *size, width, apart=apart).factor()
        assert isinstance(factors.gram, np.ndarray) != apart
        couplings.append(coupling_of(factors.gram, curvature, off))
        assert not couplings[-1].broken
    by_class, by_row = couplings
    pull = by_class.apply(vector)
    assert_allclose(by_row.apply(vector), pull, rtol=1e-9, atol=1e-9 * np.abs(pull).max())
    change = by_class.solve(pull)
    assert_allclose(by_row.solve(pull), change, rtol=1e-6, atol=1e-6 * np.abs(change).max())
    assert change[2] == by_row.solve(pull)[2] == 0
    answer = np.where(curvature > 0, pull - by_class.apply(change), 0)
    atol = 1e-6 * np.abs(answer).max()
    assert_allclose(answer_to(change, curvature, off), answer, rtol=1e-6, atol=atol)


@pytest.mark.parametrize("objective", ["cce+", "cce"])
@pytest.mark.parametrize("solver", [ActiveSet(), InteriorPoint()])
@pytest.mark.parametrize("backend", BACKENDS)
def test_crowds_are_solved_to_the_certified_optimum(
    backend: str, solver: Solver, objective: str
) -> None:
    prior = skewed_prior(300)
    for fairness in (0.0, 1.0, 100.0):
        problem = problem_of(
            random_probs(60, 300), fairness, objective=objective, backend=backend, prior=prior
        )
        assert problem.unknowns == 120
        found = run_solver(solver, problem, tol=1e-6, max_iter=solver.max_iter)
        assert found.converged
        assert found.labels.sum(1).numpy() == pytest.approx(1)


@pytest.mark.parametrize("scale", [0.2, 2.0, 5.0])
@pytest.mark.parametrize("fairness", [1.0, 100.0])
def test_candidates_are_enough_for_a_crowd(fairness: float, scale: float) -> None:
    """No K×K system, no step on all entries."""
    problem = problem_of(random_probs(100, 500, scale=scale), fairness, backend="numba")
    solver = ActiveSet()
    state = solver.start(problem, None, 1e-6)
    steps = 0
    while not state.expected_gap <= 1e-6:
        state = solver.step(problem, state)
        steps += 1
        assert steps < 120
        assert isinstance(state.working, WorkingSet)
        assert state.working.apart
        assert state.working.entries() < 0.6 * problem.entries()
    assert state.certificate.gap <= 1e-6


@pytest.mark.parametrize("size", [(60, 300), (10, 400), (150, 400)])
@pytest.mark.parametrize("backend", BACKENDS)
def test_rows_without_weight_change_nothing(backend: str, size: tuple[int, int]) -> None:
    probs = torch.from_numpy(random_probs(*size))
    weights = torch.ones(size[0], dtype=torch.float64)
    weights[::2] = 0
    found = []
    for kept in (slice(None), weights > 0):
        problem = reduce_problem(
            probs[kept],
            prior=skewed_prior(size[1]),
            fairness=10.0,
            objective="cce+",
            backend=backend,
            weights=weights[kept],
        ).problem
        assert problem.apart
        outcome = run_solver(ActiveSet(), problem, tol=1e-8, max_iter=500)
        assert outcome.converged
        assert bool(outcome.labels.isfinite().all())
        assert outcome.certificate is not None
        found.append(outcome.certificate.objective)
    assert found[0] == pytest.approx(found[1], abs=1e-7)


def test_every_class_keeps_a_candidate() -> None:
    """Classes that hardly anything is asked of have labels too small to count as used."""
    prior = np.random.default_rng(0).dirichlet(np.full(500, 0.2)) + 1e-9
    prior /= prior.sum()
    problem = problem_of(random_probs(125, 500), 100.0, backend="numba", prior=prior)
    solver = ActiveSet()
    state = solver.start(problem, None, 1e-6)
    while not state.expected_gap <= 1e-6:
        state = solver.step(problem, state)
        assert isinstance(state.working, WorkingSet)
    assert state.rounds > 1


@pytest.mark.parametrize("solver", ["auto", "active-set", "interior-point"])
@pytest.mark.parametrize("n_rows", [1, 3])
def test_a_hundred_thousand_classes(solver: str, n_rows: int) -> None:
    probs = random_probs(n_rows, 100_000)
    found = solve_pseudo_labels(probs, solver=solver, fairness=10.0)
    assert found.converged
    assert found.solver == ("active-set" if solver == "auto" else solver)
    assert found.labels.sum(1) == pytest.approx(1)


def test_the_pace_of_a_crowd() -> None:
    assert pays_apart(40, 100)
    assert not pays_apart(41, 100)
    crowd = pace_of(problem_of(random_probs(100, 400), 1.0), 1e-6)
    assert crowd.crowded
    assert not crowd.whole
    crowd.start(1e-9, even=False)
    assert not crowd.climbs  # however near the start: Newton's system has an unknown a class
    huge = pace_of(problem_of(random_probs(10, 2000), 1.0), 1e-6)
    assert huge.whole
    assert huge.at_once
    assert not pace_of(problem_of(random_probs(100, 150), 1.0), 1e-6).crowded


@pytest.mark.parametrize("solver", [ActiveSet(), InteriorPoint()])
def test_rows_of_several_processes_are_summed_by_class(solver: Solver) -> None:
    class Alone:
        def sum(self, vector: Array) -> Array:
            return vector

        def least(self, value: float) -> float:
            return value

    probs = random_probs(60, 300)
    problem = reduce_problem(
        torch.from_numpy(probs),
        prior=np.full(300, 1 / 300),
        fairness=1.0,
        objective="cce+",
        backend="torch",
        sums=Alone(),
    ).problem
    assert problem.unknowns == 300
    shared = run_solver(solver, problem, tol=1e-8, max_iter=200)
    alone = run_solver(solver, problem_of(probs, 1.0), tol=1e-8, max_iter=200)
    assert shared.converged
    assert alone.converged
    assert shared.certificate is not None
    assert alone.certificate is not None
    assert shared.certificate.objective == pytest.approx(alone.certificate.objective, abs=1e-7)
