"""Working sets and their kernels: against the dense problem, brute force, and each other."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from coincide.pseudolabels import InteriorPoint
from coincide.pseudolabels.dual import Point, evaluate
from coincide.pseudolabels.kernels import (
    RowKernels,
    candidate_kernels,
    near_candidates,
    row_kernels,
    row_minimizers,
)
from coincide.pseudolabels.problem import Problem
from coincide.pseudolabels.reduction import reduce_problem
from coincide.pseudolabels.solver import run_solver
from coincide.pseudolabels.working_set import WorkingSet, first_working_set
from devices import cpu_backends
from problems import Array, degenerate_problems, random_labels, random_probs, skewed_prior
from working_sets import solve_working_set

LAWS = settings(max_examples=25, deadline=None)
seeds = st.integers(0, 2**31 - 1)
BACKENDS = cpu_backends()


@pytest.fixture
def three_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


def random_candidates(n_rows: int, width: int, n_classes: int, seed: int) -> tuple[Tensor, ...]:
    """Return the predictions, weights, classes, labels and slacks of an interior iterate."""
    rng = np.random.default_rng(seed)
    classes = rng.permuted(np.tile(np.arange(n_classes), (n_rows, 1)), axis=1)[:, :width]
    classes = -np.sort(-classes, axis=1)
    probs = np.take_along_axis(random_probs(n_rows, n_classes, scale=3, seed=seed), classes, 1)
    labels = random_labels(n_rows, width, seed=seed + 1)
    # Near the central path, as iterates are: far from it single steps amplify rounding.
    slacks = 1e-2 * np.exp(rng.normal(size=(n_rows, width))) / labels
    weights = rng.uniform(0.1, 2, n_rows) / n_rows
    return tuple(torch.from_numpy(a) for a in (probs, weights, classes, labels, slacks))


def trace(
    kernels: RowKernels, labels: Tensor, slacks: Tensor, shifts: Array, order: Tensor | None = None
) -> list[Array]:
    """Return all that the kernels say over a step along each shift, rows in the given order."""
    kernels.load(labels, slacks)
    said: list[Array] = []
    for shift in shifts:
        factors = kernels.factor()
        prediction = kernels.predict(shift)
        extents = kernels.correct(shift / 2, 1e-3)
        primal, dual = (0.9 * min(1.0, -1 / min(extent, -1)) for extent in extents)
        arrays = kernels.advance(primal, dual)
        said += [np.triu(factors.gram, 1), *factors[1:], *prediction, *extents]
        said += [a.numpy().copy() if order is None else a.gather(1, order).numpy() for a in arrays]
    return [np.asarray(part) for part in said]


def assert_same(found: list[Array], expected: list[Array]) -> None:
    for one, other in zip(found, expected, strict=True):
        scale = max(1.0, float(np.abs(other).max()))
        np.testing.assert_allclose(one, other, rtol=1e-10, atol=1e-10 * scale)


# --- the kernels ----------------------------------------------------------------------------


@LAWS
@given(seed=seeds, n_rows=st.integers(1, 20), width=st.integers(2, 7), more=st.integers(0, 9))
def test_backends_agree(seed: int, n_rows: int, width: int, more: int) -> None:
    n_classes = width + more
    probs, weights, classes, labels, slacks = random_candidates(n_rows, width, n_classes, seed)
    shifts = np.random.default_rng(seed).normal(size=(4, n_classes))
    found = [
        trace(candidate_kernels(name, probs, weights, classes, n_classes), labels, slacks, shifts)
        for name in BACKENDS
    ]
    for other in found[1:]:
        assert_same(other, found[0])


@pytest.mark.parametrize("backend", BACKENDS)
@LAWS
@given(seed=seeds, n_rows=st.integers(1, 20), width=st.integers(2, 7))
def test_all_classes_are_the_dense_rows(backend: str, seed: int, n_rows: int, width: int) -> None:
    probs, weights, classes, labels, slacks = random_candidates(n_rows, width, width, seed)
    shifts = np.random.default_rng(seed).normal(size=(4, width))
    order = classes.argsort(1)
    dense = row_kernels("torch", probs.gather(1, order), weights, collision=True)
    expected = trace(dense, labels.gather(1, order), slacks.gather(1, order), shifts)
    kernels = candidate_kernels(backend, probs, weights, classes, width)
    assert_same(trace(kernels, labels, slacks, shifts, order), expected)


@pytest.mark.parametrize("n_classes", [40, 900])  # sums of its own for every thread, or one
@pytest.mark.usefixtures("three_threads")
def test_threads_add_up(n_classes: int) -> None:
    if "numba" not in BACKENDS:
        pytest.skip("Numba is not installed.")
    probs, weights, classes, labels, slacks = random_candidates(9000, 6, n_classes, 5)
    shifts = np.random.default_rng(0).normal(size=(2, n_classes))
    expected, found = (
        trace(candidate_kernels(name, probs, weights, classes, n_classes), labels, slacks, shifts)
        for name in ("torch", "numba")
    )
    assert_same(found, expected)


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_callers_tensors_stay_untouched(backend: str) -> None:
    tensors = random_candidates(12, 3, 6, 2)
    before = [tensor.clone() for tensor in tensors]
    probs, weights, classes, labels, slacks = tensors
    trace(candidate_kernels(backend, probs, weights, classes, 6), labels, slacks, np.eye(6)[:3])
    for one, other in zip(tensors, before, strict=True):
        assert torch.equal(one, other)


# --- the choice of candidates ---------------------------------------------------------------


def problem_of(probs: Array, backend: str, *, fairness: float = 1.0) -> Problem:
    """Return a problem with weights, a skewed prior and, where there are many rows, known ones."""
    known = torch.full((len(probs),), -1)
    if len(probs) > 20:
        known[:3] = torch.from_numpy(probs[:3].argmax(1))
    return reduce_problem(
        torch.from_numpy(probs),
        prior=skewed_prior(probs.shape[1]),
        fairness=fairness,
        objective="cce+",
        backend=backend,
        known=known,
        weights=torch.linspace(1, 2, len(probs), dtype=torch.float64),
    ).problem


def point_at(problem: Problem, multipliers: Array) -> Point:
    return evaluate(problem, row_minimizers(problem.backend, problem.probs), multipliers)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("backend", BACKENDS)
@LAWS
@given(
    seed=seeds,
    size=st.tuples(st.integers(1, 15), st.integers(2, 9)),
    near_as=st.tuples(st.floats(1e-3, 4), st.integers(2, 9)),
)
def test_near_candidates_against_their_definition(
    backend: str, dtype: torch.dtype, seed: int, size: tuple[int, int], near_as: tuple[float, int]
) -> None:
    slack, most = near_as[0], min(near_as[1], size[1])
    probs = torch.from_numpy(random_probs(*size, scale=3, seed=seed)).to(dtype)
    multipliers = np.random.default_rng(seed).normal(size=size[1]) * 2
    answer = row_minimizers(backend, probs).minimize(multipliers)
    labels = torch.zeros(size, dtype=torch.float64)
    labels.scatter_add_(1, answer.steep[:, None], answer.share[:, None])
    labels.scatter_add_(1, answer.flat[:, None], 1 - answer.share[:, None])
    p = probs.double().numpy()
    below = p / (p * labels.numpy()).sum(1, keepdims=True) + multipliers
    below = below.max(1, keepdims=True) - below
    near = (below <= slack).sum(1)

    found, classes = near_candidates(backend, probs, multipliers, answer, slack=slack, most=most)
    rows = found.numpy()
    np.testing.assert_array_equal(rows, np.flatnonzero(near > 1))
    assert classes.shape[1] == min(most, near.max())
    picked = np.take_along_axis(below[rows], classes.numpy(), 1)
    np.testing.assert_allclose(picked, np.sort(below[rows])[:, : classes.shape[1]], atol=1e-9)
    assert all(len(set(row)) == len(row) for row in classes.tolist())


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("unwanted", [0.0, 5.0])
def test_a_working_set_can_always_move(backend: str, unwanted: float) -> None:
    """Some row is open, and a class out of every row's reach gets candidates all the same."""
    problem = problem_of(random_probs(300, 8, scale=0.3), backend)
    multipliers = 10 - unwanted * np.eye(8)[5]
    working = first_working_set(problem, point_at(problem, multipliers), 0.0, 2)
    assert len(working.rows) > 0
    counts = np.bincount(working.classes.flatten(), minlength=8) + working.held
    assert (counts > 0).all()
    state = solve_working_set(problem, working, 1e-10)
    assert np.isfinite(state.multipliers).all()
    assert np.isfinite(problem.value(working.expand(state.labels, torch.float64)))


# --- the working set as a problem -----------------------------------------------------------


@pytest.mark.parametrize("backend", BACKENDS)
@LAWS
@given(seed=seeds, slack=st.floats(0.01, 3))
def test_a_working_set_is_the_problem_with_the_settled_rows_held(
    backend: str, seed: int, slack: float
) -> None:
    problem = problem_of(random_probs(40, 6, seed=seed), backend)
    multipliers = np.exp(np.random.default_rng(seed).normal(size=6) * 0.3)
    working = first_working_set(problem, point_at(problem, multipliers), slack, 4)
    labels = torch.from_numpy(random_labels(*working.probs.shape, seed=seed))
    full = working.expand(labels, torch.float64)
    np.testing.assert_allclose(full.sum(1), 1, atol=1e-12)
    assert torch.equal(full[working.rows].gather(1, working.classes), labels)
    np.testing.assert_allclose(working.mean_label(labels), problem.mean_label(full), atol=1e-14)
    if np.isfinite(working.value(labels)):
        assert working.value(labels) == pytest.approx(problem.value(full), rel=1e-12)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("fairness", [0.5, 100.0])
def test_candidates_with_the_optimal_supports_give_the_dense_optimum(
    backend: str, fairness: float
) -> None:
    problem = problem_of(random_probs(200, 12, scale=4), backend, fairness=fairness)
    multipliers = run_solver(InteriorPoint(), problem, tol=1e-10, max_iter=200).multipliers
    assert multipliers is not None
    working = first_working_set(problem, point_at(problem, multipliers), 0.1, 4)
    assert isinstance(working, WorkingSet)
    assert len(working.rows) < len(problem.probs) // 2
    labels = solve_working_set(problem, working, 1e-10).labels
    optimum = problem.lower_bound(multipliers)
    assert problem.value(working.expand(labels, torch.float64)) == pytest.approx(optimum, abs=1e-8)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", degenerate_problems())
def test_degenerate_rows(backend: str, name: str) -> None:
    probs = degenerate_problems()[name]
    n_classes = probs.shape[1]
    problem = problem_of(probs, backend, fairness=100.0)
    everything = first_working_set(
        problem, point_at(problem, np.ones(n_classes)), np.inf, n_classes
    )
    assert everything.probs.shape == problem.probs.shape
    state = solve_working_set(problem, everything, 1e-10)
    value = problem.value(everything.expand(state.labels, torch.float64))
    assert value - problem.lower_bound(state.multipliers) <= 1e-8 * max(1, value)
