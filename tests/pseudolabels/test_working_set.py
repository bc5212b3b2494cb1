"""Working sets: what they choose, that they are the problem, and how the next step starts."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from coincide.pseudolabels import InteriorPoint
from coincide.pseudolabels.dual import Point, answer_labels
from coincide.pseudolabels.interior_point import InteriorPointState
from coincide.pseudolabels.problem import Problem
from coincide.pseudolabels.solver import run_solver
from coincide.pseudolabels.working_set import WorkingSet, enough_rows, start_near, working_set
from problems import Array, degenerate_problems, random_labels, random_probs, skewed_prior
from small_problems import (
    PASSES,
    on_device,
    point_at,
    problem_of,
    solve_working_set,
    stepped,
)


def uneven_problem(probs: Array, backend: str, *, fairness: float = 1.0) -> Problem:
    """Return a problem with weights, a skewed prior and, where there are many rows, known ones."""
    known = np.full(len(probs), -1)
    if len(probs) > 20:
        known[:3] = probs[:3].argmax(1)
    return problem_of(
        probs, prior=skewed_prior(probs.shape[1]), fairness=fairness, backend=backend,
        known=known, weights=np.linspace(1, 2, len(probs)),
    )  # fmt: skip


def few_rows(n_rows: int, n_classes: int, *, scale: float = 2.0, **changes: Any) -> Problem:
    return problem_of(random_probs(n_rows, n_classes, scale=scale), fairness=100.0, **changes)


def first_set(
    problem: Problem, point: Point, *, slack: float = 8.0, most: int = 6, spare: float = 2.0
) -> WorkingSet:
    """Return a set in which every class has enough rows."""
    working = working_set(problem, point, slack=slack, most=most)
    within, first = enough_rows(problem, point, working, spare)
    if not first:
        return working
    return working_set(problem, point, slack=slack, most=most + first, within=within)


def distances_to_envelope(problem: Problem, point: Point) -> Array:
    """Return how far every line lies below its row's envelope, straight from the definition."""
    p, rows = problem.probs.double().cpu().numpy(), np.arange(len(problem.probs))
    _, steep, flat, share = (part.cpu().numpy() for part in point.rows)
    lines = point.multipliers + p / (share * p[rows, steep] + (1 - share) * p[rows, flat])[:, None]
    distances: Array = lines.max(1, keepdims=True) - lines
    return distances


def candidates_of(working: WorkingSet) -> Array:
    """Return which classes the rows may end in, ``(M, K)``."""
    full: Array = working.expand(torch.ones_like(working.probs), torch.float64).cpu().numpy()
    return full


# --- the choice -------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", PASSES)
def test_every_class_gets_the_rows_it_needs(backend: str) -> None:
    """What one class adds to a row never takes the place of what another one added."""
    problem = few_rows(300, 60, backend=backend)
    point = point_at(problem)
    working = first_set(problem, point, most=3, spare=8.0)
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


@pytest.mark.parametrize("backend", PASSES)
@pytest.mark.parametrize("unwanted", [0.0, 5.0])
def test_a_class_out_of_every_rows_reach_gets_candidates_all_the_same(
    backend: str, unwanted: float
) -> None:
    problem = uneven_problem(random_probs(300, 8, scale=0.3), backend)
    point = point_at(problem, 10 - unwanted * np.eye(8)[5])
    working = first_set(problem, point, slack=0.0, most=2, spare=0.0)
    assert len(working.rows) > 0
    assert working.can_move
    counts = np.bincount(working.classes.flatten().cpu(), minlength=8) + working.held
    assert (counts > 0).all()
    state = solve_working_set(problem, working, 1e-10)
    assert np.isfinite(state.multipliers).all()
    assert np.isfinite(problem.value(working.expand(state.labels, torch.float64)))


def test_a_set_without_open_rows_cannot_move() -> None:
    problem = few_rows(30, 4)
    point = point_at(problem)
    nothing = working_set(problem, point, slack=0.0, most=1)
    assert not len(nothing.rows)
    assert not nothing.can_move


@pytest.mark.parametrize("backend", PASSES)
def test_what_the_last_labels_use_stays_in(backend: str) -> None:
    problem = few_rows(300, 60, scale=5, backend=backend)
    first = first_set(problem, point_at(problem))
    state = solve_working_set(problem, first, 1e-6)
    labels = first.expand(state.labels, torch.float64).cpu().numpy()
    used = first.used(state.labels)
    # Exactly the classes with a label worth mention, and the class of every settled row.
    expected, found = labels > 1e-3, np.zeros_like(labels, bool)
    np.put_along_axis(found, used.cpu().numpy(), values=True, axis=1)
    settled = first.settled.cpu().numpy()
    assert found[expected].all()
    extra = np.argwhere(found & ~expected)
    assert all(settled[row] == k for row, k in extra)
    elsewhere = point_at(problem, state.multipliers + np.linspace(0, 3, 60))
    room = int(found.sum(1).max()) + 1
    far = working_set(problem, elsewhere, slack=0.0, most=room, kept=used)
    assert candidates_of(far)[expected].all()


@pytest.mark.parametrize("backend", PASSES)
def test_the_next_working_set_is_no_worse(backend: str) -> None:
    problem = few_rows(300, 60, scale=5, backend=backend)
    first = first_set(problem, point_at(problem))
    state = solve_working_set(problem, first, 1e-6)
    point = point_at(problem, state.multipliers)
    working = working_set(problem, point, slack=0.5, most=10, kept=first.used(state.labels))
    better = solve_working_set(problem, working, 1e-6)
    assert working.value(better.labels) < first.value(state.labels)
    assert problem.lower_bound(better.multipliers) > point.value


# --- the working set as a problem -------------------------------------------------------------


@pytest.mark.parametrize("backend", PASSES)
@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**31 - 1), slack=st.floats(0.01, 3))
def test_a_working_set_is_the_problem_with_the_settled_rows_held(
    backend: str, seed: int, slack: float
) -> None:
    problem = uneven_problem(random_probs(40, 6, seed=seed), backend)
    multipliers = np.exp(np.random.default_rng(seed).normal(size=6) * 0.3)
    working = first_set(problem, point_at(problem, multipliers), slack=slack, most=4)
    labels = on_device(random_labels(*working.probs.shape, seed=seed), backend)
    full = working.expand(labels, torch.float64)
    np.testing.assert_allclose(full.sum(1).cpu(), 1, atol=1e-12)
    assert torch.equal(full[working.rows].gather(1, working.classes), labels)
    np.testing.assert_allclose(working.mean_label(labels), problem.mean_label(full), atol=1e-14)
    if np.isfinite(working.value(labels)):
        assert working.value(labels) == pytest.approx(problem.value(full), rel=1e-12)
    looked_up = working.look_up(labels, working.rows, working.classes)
    torch.testing.assert_close(looked_up, labels, rtol=0, atol=0)


@pytest.mark.parametrize("backend", PASSES)
@pytest.mark.parametrize("fairness", [0.5, 100.0])
def test_candidates_with_the_optimal_supports_give_the_dense_optimum(
    backend: str, fairness: float
) -> None:
    problem = uneven_problem(random_probs(200, 12, scale=4), backend, fairness=fairness)
    multipliers = run_solver(InteriorPoint(), problem, tol=1e-10, max_iter=200).multipliers
    assert multipliers is not None
    working = working_set(problem, point_at(problem, multipliers), slack=0.1, most=4)
    assert len(working.rows) < len(problem.probs) // 2
    labels = solve_working_set(problem, working, 1e-10).labels
    optimum = problem.lower_bound(multipliers)
    assert problem.value(working.expand(labels, torch.float64)) == pytest.approx(optimum, abs=1e-8)


@pytest.mark.parametrize("backend", PASSES)
@pytest.mark.parametrize("name", degenerate_problems())
def test_a_set_of_everything_solves_degenerate_rows(backend: str, name: str) -> None:
    probs = degenerate_problems()[name]
    n_classes = probs.shape[1]
    problem = uneven_problem(probs, backend, fairness=100.0)
    point = point_at(problem, np.ones(n_classes))
    everything = working_set(problem, point, slack=np.inf, most=n_classes)
    assert everything.probs.shape == problem.probs.shape
    state = solve_working_set(problem, everything, 1e-10)
    value = problem.value(everything.expand(state.labels, torch.float64))
    assert value - problem.lower_bound(state.multipliers) <= 1e-8 * max(1, value)


# --- where the interior point starts ----------------------------------------------------------


def assert_interior(labels: torch.Tensor, slacks: torch.Tensor, target: float) -> None:
    assert bool((labels > 0).all())
    assert float((labels * slacks).min()) >= target * (1 - 1e-12)
    torch.testing.assert_close(labels.sum(1), torch.ones(len(labels), dtype=torch.float64))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_near_the_answer(dtype: torch.dtype) -> None:
    """With almost no complementarity, the labels are the answer and the slacks the distances."""
    problem = few_rows(40, 9, dtype=dtype)
    point = point_at(problem, np.random.default_rng(0).normal(size=9) + 10)
    labels, slacks = start_near(problem, problem, point, 1e-12)
    assert_interior(labels, slacks, 1e-12)
    torch.testing.assert_close(
        labels, answer_labels(problem, point).double(), rtol=0, atol=1e-5, check_dtype=False
    )
    np.testing.assert_allclose(slacks, distances_to_envelope(problem, point), rtol=0, atol=1e-5)


def test_near_the_answer_on_a_working_set() -> None:
    problem = few_rows(300, 60)
    point = point_at(problem, np.random.default_rng(3).normal(size=60) / 10 + 100)
    whole = start_near(problem, problem, point, 1e-12)
    working = first_set(problem, point)
    labels, slacks = start_near(problem, working, point, 1e-12)
    assert_interior(labels, slacks, 1e-12)
    places = working.rows[:, None], working.classes
    torch.testing.assert_close(labels, whole.y[places], rtol=0, atol=1e-5)
    torch.testing.assert_close(slacks, whole.zeta[places], rtol=0, atol=1e-5)


@pytest.mark.parametrize("target", [1e-8, 1e-3])
def test_the_last_labels_are_kept(target: float) -> None:
    """What is new starts inside, and labels change by little more than what was not used."""
    problem = few_rows(300, 60, scale=5)
    first = first_set(problem, point_at(problem))
    state = solve_working_set(problem, first, 1e-3)
    point = point_at(problem, state.multipliers)
    working = working_set(problem, point, slack=1.0, most=10, kept=first.used(state.labels))
    labels, slacks = start_near(problem, working, point, target, (first, state.labels))
    assert (candidates_of(working) > candidates_of(first)).any()
    assert_interior(labels, slacks, target)
    last = first.expand(state.labels, torch.float64)
    left_out = torch.where(torch.from_numpy(candidates_of(working)) > 0, 0.0, last)
    assert float(left_out.max()) <= 1e-3
    change = (working.expand(labels, torch.float64) - last).abs().amax(1)
    assert bool((change < 10 * target**0.5 + left_out.sum(1)).all())


def test_settled_rows_open_with_their_class() -> None:
    problem = few_rows(300, 60)
    point = point_at(problem)
    first = working_set(problem, point, slack=1e-3, most=2)
    closed = torch.ones(300, dtype=torch.bool)
    closed[first.rows] = False
    working = first_set(problem, point)
    labels, _ = start_near(problem, working, point, 1e-8, (first, first.uniform_labels()))
    opened = closed[working.rows]
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
    problem = few_rows(400, 20, scale=scale)
    cold = InteriorPoint().start(problem, None, 1e-3)
    point = point_at(problem, stepped(problem, cold, 1e-3).multipliers)
    rows = problem.newton_rows()
    arrays = rows.load(*start_near(problem, problem, point, 0.05 * point.off))
    near = InteriorPointState(arrays, 0.0, point.multipliers, rows, 1e-7, problem.mass())
    cold = InteriorPoint().start(problem, None, 1e-7)
    assert steps_to(problem, near, 1e-6) <= 0.7 * steps_to(problem, cold, 1e-6)
