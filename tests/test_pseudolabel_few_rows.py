"""The active set where rows are few to a class: its working sets, and where they lead."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from coincide.pseudolabels.active_set import ActiveSet, ActiveSetState
from coincide.pseudolabels.dual import Point, evaluate
from coincide.pseudolabels.interior_point import InteriorPoint, InteriorPointState
from coincide.pseudolabels.kernels import row_minimizers
from coincide.pseudolabels.kernels.candidates import Pairs, nearest_rows, still_near
from coincide.pseudolabels.kernels.contract import StepArrays
from coincide.pseudolabels.problem import Problem
from coincide.pseudolabels.reduction import reduce_problem
from coincide.pseudolabels.working_set import (
    WorkingSet,
    carry_over,
    first_working_set,
    next_working_set,
)
from devices import quick_backends
from problems import Array, random_probs

BACKENDS = quick_backends()


def problem_of(
    n_rows: int,
    n_classes: int,
    *,
    scale: float = 2.0,
    fairness: float = 100.0,
    objective: str = "cce+",
    backend: str = "torch",
) -> Problem:
    return reduce_problem(
        torch.from_numpy(random_probs(n_rows, n_classes, scale=scale)),
        prior=np.full(n_classes, 1 / n_classes),
        fairness=fairness,
        objective=objective,
        backend=backend,
    ).problem


def point_at(problem: Problem, multipliers: Array) -> Point:
    return evaluate(problem, row_minimizers(problem.backend, problem.probs), multipliers)


def indifferent(problem: Problem) -> Point:
    return point_at(problem, problem.multipliers(problem.prior))


def solve(problem: Problem, tol: float) -> InteriorPointState:
    solver = InteriorPoint()
    state = solver.start(problem, None, tol)
    while not state.stalled and state.expected_gap > tol:
        state = solver.step(problem, state)
    return state


def distances_to_envelope(problem: Problem, point: Point) -> Array:
    """Return how far every line lies below its row's envelope, straight from the definition."""
    rows = np.arange(len(problem.probs))
    p, answer = problem.probs.numpy(), point.rows
    steep, flat, share = (part.numpy() for part in (answer.steep, answer.flat, answer.share))
    lines = point.multipliers + p / (share * p[rows, steep] + (1 - share) * p[rows, flat])[:, None]
    distances: Array = lines.max(1, keepdims=True) - lines
    return distances


def candidates_of(working: WorkingSet) -> Array:
    """Return which classes the rows may end in, ``(M, K)``."""
    return working.expand(torch.ones_like(working.probs), torch.float64).numpy()


# --- the choice -----------------------------------------------------------------------------


def test_nearest_rows_against_their_definition() -> None:
    problem = problem_of(40, 9)
    point = point_at(problem, np.random.default_rng(0).normal(size=9) + 10)
    distances = distances_to_envelope(problem, point)
    counts = np.array([0, 1, 5, 40, 99, 0, 7, 2, 3], float)
    pairs = nearest_rows(problem.probs, point.multipliers, point.rows, counts)
    rows, classes, found = (part.numpy() for part in pairs)
    np.testing.assert_array_equal(np.bincount(classes, minlength=9), np.minimum(counts, 40))
    for k in range(9):
        expected = np.sort(distances[:, k])[: int(counts[k])]
        np.testing.assert_allclose(np.sort(found[classes == k]), expected, atol=1e-12)
        np.testing.assert_allclose(
            np.sort(distances[rows[classes == k], k]), expected, rtol=0, atol=1e-12
        )


def test_still_near_against_its_definition() -> None:
    problem = problem_of(30, 6)
    point = point_at(problem, np.random.default_rng(1).normal(size=6) + 10)
    rows, classes = torch.cartesian_prod(torch.arange(30), torch.arange(6)).T
    far = torch.full((180,), torch.inf, dtype=torch.float64)
    distances = distances_to_envelope(problem, point)
    far[int(distances.argmax())] = -torch.inf  # in use
    pairs = Pairs(rows, classes, far)
    kept = still_near(problem.probs, point.multipliers, point.rows, pairs, 0.4)
    expected = distances <= 0.4
    assert expected.sum() > 30
    expected.flat[distances.argmax()] = True
    found = np.zeros((30, 6), bool)
    found[kept.rows, kept.classes] = True
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("backend", BACKENDS)
def test_every_class_gets_the_rows_it_chooses(backend: str) -> None:
    """What one class adds to a row never takes the place of what another one added."""
    problem = problem_of(300, 60, backend=backend)
    point = indifferent(problem)
    working = first_working_set(problem, point, 8.0, 3, 4.0)
    candidates, distances = candidates_of(working), distances_to_envelope(problem, point)
    wanted = int(np.ceil(5 + 4 * np.sqrt(5)))
    nearest = np.argsort(distances, axis=0)[:wanted]
    assert np.take_along_axis(candidates, nearest, 0).all()
    nearest = np.argsort(distances, axis=1)[:, :3]
    assert np.take_along_axis(candidates, nearest, 1).all()
    assert all(len(set(row)) == len(row) for row in working.classes.tolist())


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_next_working_set_is_no_worse(backend: str) -> None:
    problem = problem_of(300, 60, scale=5, backend=backend)
    first = first_working_set(problem, indifferent(problem), 8.0, 6, 2.0)
    state = solve(first, 1e-6)
    kept = first.candidates(state.labels)
    used = first.expand(state.labels, torch.float64).numpy() > 1e-3
    elsewhere = point_at(problem, state.multipliers + np.linspace(0, 3, 60))
    assert candidates_of(next_working_set(problem, elsewhere, 0.0, 2, kept))[used].all()
    point = point_at(problem, state.multipliers)
    working = next_working_set(problem, point, 0.5, 6, kept)
    better = solve(working, 1e-6)
    assert working.value(better.labels) < first.value(state.labels)
    assert problem.lower_bound(better.multipliers) > point.value


# --- going on -------------------------------------------------------------------------------


def test_an_iterate_is_carried_over_as_it_is() -> None:
    problem = problem_of(300, 60)
    working = first_working_set(problem, indifferent(problem), 8.0, 6, 2.0)
    state = solve(working, 1e-3)
    arrays = carry_over(working, state.arrays, working, state.multipliers, 1e-12)
    for found, expected in zip(arrays, state.arrays, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-9)


def test_what_is_new_starts_inside() -> None:
    problem = problem_of(300, 60, scale=5)
    first = first_working_set(problem, indifferent(problem), 8.0, 6, 2.0)
    state = solve(first, 1e-3)
    kept = first.candidates(state.labels)
    point = point_at(problem, state.multipliers)
    working = next_working_set(problem, point, 1.0, 8, kept)
    labels, slacks = carry_over(first, state.arrays, working, state.multipliers, 1e-4)
    assert (candidates_of(working) > candidates_of(first)).any()
    assert bool((labels > 0).all())
    assert float((labels * slacks).min()) > 1e-5
    torch.testing.assert_close(labels.sum(1), torch.ones(len(labels), dtype=torch.float64))
    last = first.expand(state.labels, torch.float64)
    now = working.expand(labels, torch.float64)
    assert float((now - last).abs().max()) < 0.1


def test_settled_rows_are_carried_over() -> None:
    """A row that was settled opens with its class as its label, but for what is new."""
    problem = problem_of(300, 60)
    point = indifferent(problem)
    first = first_working_set(problem, point, 1e-3, 2)
    assert bool(first.closed.any())
    arrays = StepArrays(first.uniform_labels(), torch.ones_like(first.probs))
    working = first_working_set(problem, point, 8.0, 6)
    labels, _ = carry_over(first, arrays, working, point.multipliers, 1e-8)
    opened = first.closed[working.rows]
    on_settled = working.classes[opened] == first.settled[working.rows][opened, None]
    assert bool(opened.any())
    assert float(labels[opened][on_settled].min()) > 0.99


# --- the solver -----------------------------------------------------------------------------


def run(problem: Problem, tol: float) -> ActiveSetState:
    solver = ActiveSet()
    state = solver.start(problem, None, tol)
    for _ in range(solver.max_iter):
        if state.stalled or state.expected_gap <= tol:
            break
        state = solver.step(problem, state)
    return state


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("objective", ["cce+", "cce"])
@pytest.mark.parametrize(("fairness", "scale"), [(1.0, 2.0), (100.0, 2.0), (100.0, 5.0)])
def test_few_rows_to_a_class_need_no_dense_solve(
    backend: str, objective: str, fairness: float, scale: float
) -> None:
    problem = problem_of(
        480, 80, scale=scale, fairness=fairness, objective=objective, backend=backend
    )
    state = run(problem, 1e-7)
    assert state.few
    assert isinstance(state.working, WorkingSet)  # not all classes
    assert state.rounds <= 8
    labels = state.labels.numpy()
    np.testing.assert_allclose(labels.sum(1), 1, atol=1e-9)
    dense = solve(problem, 1e-9)
    optimum = problem.value(dense.labels)
    assert problem.value(state.labels) - optimum < 2e-7
    assert optimum - state.certificate.lower_bound < 2e-7
    assert problem.value(state.labels) == pytest.approx(state.certificate.objective, abs=1e-9)


@pytest.mark.parametrize("backend", BACKENDS)
def test_rows_that_all_tie_are_solved_too(backend: str) -> None:
    """Equal rows are the nearest of every class at once: no few of them can serve all classes."""
    equal = torch.from_numpy(np.repeat(random_probs(1, 150, scale=1), 200, axis=0))
    problem = reduce_problem(
        equal,
        prior=np.full(150, 1 / 150),
        fairness=100.0,
        objective="cce+",
        backend=backend,
    ).problem
    state = run(problem, 1e-6)
    assert state.expected_gap <= 1e-6
    value = problem.value(state.labels)
    assert value - problem.lower_bound(state.multipliers) <= 1e-5 * max(1, value)
