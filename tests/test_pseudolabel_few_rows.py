"""The active set where rows are few to a class: its working sets, and where they lead."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from coincide.pseudolabels.active_set import ActiveSet, ActiveSetState
from coincide.pseudolabels.dual import Point, answer_labels, evaluate
from coincide.pseudolabels.interior_point import InteriorPoint, InteriorPointState
from coincide.pseudolabels.kernels import row_minimizers
from coincide.pseudolabels.kernels.candidates import Pairs, nearest_rows, still_near
from coincide.pseudolabels.problem import Problem
from coincide.pseudolabels.reduction import reduce_problem
from coincide.pseudolabels.working_set import (
    WorkingSet,
    first_working_set,
    next_working_set,
    start_near,
)
from devices import cpu_backends
from problems import Array, random_probs
from working_sets import solve_working_set

BACKENDS = cpu_backends()


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
def test_every_class_gets_the_rows_it_needs(backend: str) -> None:
    """What one class adds to a row never takes the place of what another one added."""
    problem = problem_of(300, 60, backend=backend)
    point = indifferent(problem)
    working = first_working_set(problem, point, 8.0, 3, 8.0)
    candidates, distances = candidates_of(working), distances_to_envelope(problem, point)
    misplaced = np.abs(point.slope)
    wanted = np.ceil(5 + 300 * 8.0 * (misplaced + misplaced.mean()) / 2)
    chosen = np.take_along_axis(candidates, np.argsort(distances, axis=1)[:, :3], 1)
    assert chosen.all()
    by_rows = np.zeros_like(candidates, bool)
    np.put_along_axis(by_rows, np.argsort(distances, axis=1)[:, :3], values=True, axis=1)
    lacking = np.flatnonzero(by_rows.sum(0) < wanted - 1)
    assert len(lacking) > 10
    for k in lacking:
        nearest = np.argsort(distances[:, k])[: int(wanted[k])]
        assert candidates[nearest, k].all()
    assert all(len(set(row)) == len(row) for row in working.classes.tolist())


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_next_working_set_is_no_worse(backend: str) -> None:
    problem = problem_of(300, 60, scale=5, backend=backend)
    first = first_working_set(problem, indifferent(problem), 8.0, 6, 2.0)
    state = solve_working_set(problem, first, 1e-6)
    kept = first.candidates(state.labels)
    used = first.expand(state.labels, torch.float64).numpy() > 1e-3
    elsewhere = point_at(problem, state.multipliers + np.linspace(0, 3, 60))
    assert candidates_of(next_working_set(problem, elsewhere, 0.0, 2, kept))[used].all()
    point = point_at(problem, state.multipliers)
    working = next_working_set(problem, point, 0.5, 6, kept)
    better = solve_working_set(problem, working, 1e-6)
    assert working.value(better.labels) < first.value(state.labels)
    assert problem.lower_bound(better.multipliers) > point.value


# --- where the interior point starts ----------------------------------------------------------


def assert_interior(labels: torch.Tensor, slacks: torch.Tensor, target: float) -> None:
    assert bool((labels > 0).all())
    assert float((labels * slacks).min()) >= target * (1 - 1e-12)
    torch.testing.assert_close(labels.sum(1), torch.ones(len(labels), dtype=torch.float64))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_near_the_answer(dtype: torch.dtype) -> None:
    """With almost no complementarity, the labels are the answer and the slacks the distances."""
    problem = problem_of(40, 9).to(dtype)
    point = point_at(problem, np.random.default_rng(0).normal(size=9) + 10)
    labels, slacks = start_near(problem, problem.to(torch.float64), point, 1e-12)
    assert_interior(labels, slacks, 1e-12)
    torch.testing.assert_close(
        labels, answer_labels(problem, point).double(), rtol=0, atol=1e-5, check_dtype=False
    )
    distances = distances_to_envelope(problem.to(torch.float64), point)
    np.testing.assert_allclose(slacks, distances, rtol=0, atol=1e-5)


def test_near_the_answer_on_a_working_set() -> None:
    problem = problem_of(300, 60)
    point = point_at(problem, np.random.default_rng(3).normal(size=60) / 10 + 100)
    whole = start_near(problem, problem, point, 1e-12)
    working = first_working_set(problem, point, 8.0, 6, 2.0)
    labels, slacks = start_near(problem, working, point, 1e-12)
    assert_interior(labels, slacks, 1e-12)
    places = working.rows[:, None], working.classes
    torch.testing.assert_close(labels, whole.y[places], rtol=0, atol=1e-5)
    torch.testing.assert_close(slacks, whole.zeta[places], rtol=0, atol=1e-5)


@pytest.mark.parametrize("target", [1e-8, 1e-3])
def test_the_last_labels_are_kept(target: float) -> None:
    """What is new starts inside, and the labels of what was there hardly change."""
    problem = problem_of(300, 60, scale=5)
    first = first_working_set(problem, indifferent(problem), 8.0, 6, 2.0)
    state = solve_working_set(problem, first, 1e-3)
    point = point_at(problem, state.multipliers)
    working = next_working_set(problem, point, 1.0, 8, first.candidates(state.labels))
    labels, slacks = start_near(problem, working, point, target, (first, state.labels))
    assert (candidates_of(working) > candidates_of(first)).any()
    assert_interior(labels, slacks, target)
    last = first.expand(state.labels, torch.float64)
    now = working.expand(labels, torch.float64)
    assert float((now - last).abs().max()) < 10 * target**0.5


def test_settled_rows_open_with_their_class() -> None:
    problem = problem_of(300, 60)
    point = indifferent(problem)
    first = first_working_set(problem, point, 1e-3, 2)
    assert bool(first.closed.any())
    working = first_working_set(problem, point, 8.0, 6)
    last = first, first.uniform_labels()
    labels, _ = start_near(problem, working, point, 1e-8, last)
    opened = first.closed[working.rows]
    on_settled = working.classes[opened] == first.settled[working.rows][opened, None]
    assert bool(opened.any())
    assert float(labels[opened][on_settled].min()) > 0.99


def steps_to(problem: Problem, state: InteriorPointState, gap: float) -> int:
    for taken in range(100):
        if problem.value(state.labels) - problem.lower_bound(state.multipliers) <= gap:
            return taken
        state = InteriorPoint().step(problem, state)
    raise AssertionError


@pytest.mark.parametrize("scale", [1.0, 5.0])
def test_a_start_near_the_optimum_saves_steps(scale: float) -> None:
    problem = problem_of(400, 20, scale=scale)
    point = point_at(problem, solve(problem, 1e-3).multipliers)
    kernels = problem.kernels()
    arrays = start_near(problem, problem, point, 0.05 * point.off)
    near = InteriorPointState(
        kernels.load(*arrays), 0.0, point.multipliers, kernels, 1e-7, problem.mass()
    )
    cold = InteriorPoint().start(problem, None, 1e-7)
    assert steps_to(problem, near, 1e-6) <= 0.7 * steps_to(problem, cold, 1e-6)


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
