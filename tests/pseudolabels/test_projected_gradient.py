"""Projected gradient: the gradient, the projection, and steps that never rise."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from coincide.pseudolabels import SOLVERS, ProjectedGradient
from coincide.pseudolabels.projected_gradient import project_to_simplex, row_gradient
from problems import OBJECTIVE_NAMES, random_labels, random_probs, skewed_prior
from small_problems import problem_of


@pytest.mark.parametrize("objective", OBJECTIVE_NAMES)
def test_row_gradient_is_that_of_the_objective(objective: str) -> None:
    weights = np.linspace(0.5, 2, 7)
    problem = problem_of(
        random_probs(7, 4), prior=skewed_prior(4), objective=objective, weights=weights
    )
    labels = torch.from_numpy(random_labels(7, 4))
    found = row_gradient(problem, labels).numpy()
    for row, column in [(0, 0), (3, 2), (6, 3)]:
        step = torch.zeros_like(labels)
        step[row, column] = 1e-6
        slope = (problem.value(labels + step) - problem.value(labels - step)) / 2e-6
        assert found[row, column] == pytest.approx(slope, rel=1e-6, abs=1e-8)


@pytest.mark.parametrize("scale", [0.1, 1.0, 100.0])
def test_projection_satisfies_its_optimality_conditions(scale: float) -> None:
    """``y`` projects ``p`` if ``(p - y)·(z - y) <= 0`` for every corner ``z``."""
    points = np.random.default_rng(0).normal(size=(50, 6)) * scale
    labels = project_to_simplex(torch.from_numpy(points)).numpy()
    np.testing.assert_allclose(labels.sum(1), 1, atol=1e-12)
    assert (labels >= 0).all()
    residual = points - labels
    assert (residual.max(1) - (residual * labels).sum(1)).max() <= 1e-11 * (1 + scale)


def test_projection_against_brute_force() -> None:
    points = np.random.default_rng(1).normal(size=(20, 3))
    grid = np.arange(0, 1001) / 1000
    a, b = (g.ravel() for g in np.meshgrid(grid, grid))
    corners = np.stack((a, b, 1 - a - b), 1)[a + b <= 1 + 1e-12]
    for point, label in zip(points, project_to_simplex(torch.from_numpy(points)), strict=True):
        best = np.sqrt(((corners - point) ** 2).sum(1).min())
        distance = float(np.linalg.norm(label.numpy() - point))
        assert distance <= best + 1e-12
        assert best - distance <= 2e-3


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 2**31 - 1),
    size=st.tuples(st.integers(1, 8), st.integers(2, 7)),
)
def test_projection_is_idempotent(seed: int, size: tuple[int, int]) -> None:
    points = torch.from_numpy(np.random.default_rng(seed).normal(size=size) * 3)
    once = project_to_simplex(points)
    torch.testing.assert_close(project_to_simplex(once), once, atol=1e-14, rtol=0)
    inside = torch.from_numpy(random_labels(*size, seed=seed))
    torch.testing.assert_close(project_to_simplex(inside), inside, atol=1e-14, rtol=0)
    # A row constant moves nothing.
    torch.testing.assert_close(project_to_simplex(points + 5), once, atol=1e-13, rtol=0)


@pytest.mark.parametrize("objective", OBJECTIVE_NAMES)
def test_line_search_never_rises(objective: str) -> None:
    problem = problem_of(random_probs(30, 4), prior=skewed_prior(4), objective=objective)
    solver = SOLVERS["projected-gradient"]
    state = solver.start(problem, None, 1e-6)
    values = [problem.value(state.labels)]
    for _ in range(30):
        state = solver.step(problem, state)
        values.append(problem.value(state.labels))
    assert (np.diff(values) <= 1e-14).all()
    assert values[-1] < values[0] - 1e-2


def test_fixed_step_is_the_written_formula() -> None:
    problem = problem_of(random_probs(5, 3), objective="cce")
    labels = torch.from_numpy(random_labels(5, 3))
    solver = ProjectedGradient(step_size=0.1)
    state = solver.step(problem, solver.start(problem, labels, 1e-6))
    expected = project_to_simplex(labels - 0.1 * row_gradient(problem, labels))
    torch.testing.assert_close(state.labels, expected)
