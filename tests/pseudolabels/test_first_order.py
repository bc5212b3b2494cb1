"""The first-order solvers: EM's M-step, the projected gradient, and that neither ever rises."""

from __future__ import annotations

import mpmath
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize

from coincide.pseudolabels import SOLVERS, ExpectationMaximization, ProjectedGradient
from coincide.pseudolabels.em import EMState, solve_rows
from coincide.pseudolabels.problem import Problem
from coincide.pseudolabels.projected_gradient import project_to_simplex, row_gradient
from problems import (
    OBJECTIVE_NAMES,
    Array,
    degenerate_problems,
    objective_of,
    prior_with_first,
    random_labels,
    random_probs,
    skewed_prior,
)
from small_problems import problem_of

LAWS = settings(max_examples=30, deadline=None)
seeds = st.integers(0, 2**31 - 1)
sizes = st.tuples(st.integers(1, 8), st.integers(2, 7))


def m_step_residual(probs: Array, coefficients: Array, labels: Array) -> Array:
    """KKT: ``y_k (1 + a - σ_k/x) = c_k`` everywhere, and ``σ_k/x <= 1 + a`` where ``y_k = 0``."""
    level = 1 + coefficients.sum(1, keepdims=True)
    pull = probs / (probs * labels).sum(1, keepdims=True)
    stationary = np.abs(labels * (level - pull) - coefficients) / level
    optimal = np.where(labels == 0, np.maximum(pull - level, 0) / level, 0)
    return np.maximum(stationary, optimal).max(1)


@LAWS
@given(seed=seeds, size=sizes, scale=st.floats(0, 10), spread=st.floats(0, 12))
def test_m_step_satisfies_kkt(
    seed: int, size: tuple[int, int], scale: float, spread: float
) -> None:
    rng = np.random.default_rng(seed)
    probs = random_probs(*size, scale=scale, seed=seed)
    coefficients = np.exp(rng.normal(size=size) * spread)
    coefficients[rng.random(size) < 0.3] = 0  # the cases of the supplement
    labels = solve_rows(torch.from_numpy(probs), torch.from_numpy(coefficients)).numpy()
    np.testing.assert_allclose(labels.sum(1), 1, atol=1e-12)
    assert (labels >= 0).all()
    assert m_step_residual(probs, coefficients, labels).max() <= 1e-10


@LAWS
@given(
    seed=seeds,
    size=st.tuples(st.integers(1, 60), st.integers(2, 9)),
    sharpness=st.floats(0, 20),
    spread=st.floats(0, 12),
    zeros=st.sampled_from([0.0, 0.3, 0.9]),
)
def test_m_step_with_zeros_and_tiny_labels(
    seed: int, size: tuple[int, int], sharpness: float, spread: float, zeros: float
) -> None:
    """Coefficients as a sweep has them: the labels times a factor for each class."""
    rng = np.random.default_rng(seed)
    probs = random_probs(*size, scale=sharpness, seed=seed)
    labels = np.exp(spread * rng.normal(size=size))
    labels[rng.random(size) < zeros] = 0
    labels[np.arange(len(labels)), rng.integers(0, size[1], len(labels))] = 1
    labels /= labels.sum(1, keepdims=True)
    scale = np.exp(rng.normal(size=size[1])) * (rng.random(size[1]) > zeros / 3)
    coefficients = labels * scale
    found = solve_rows(torch.from_numpy(probs), torch.from_numpy(coefficients)).numpy()
    np.testing.assert_allclose(found.sum(1), 1, atol=1e-12)
    assert (found >= 0).all()
    assert m_step_residual(probs, coefficients, found).max() <= 1e-7


@pytest.mark.parametrize("scale", [0.0, 5.0])
def test_the_leftover_goes_to_the_leading_class(scale: float) -> None:
    """Without coefficients the best answer is the largest probability."""
    probs = torch.tensor([[0.6, 0.3, 0.1]], dtype=torch.float64)
    coefficients = torch.tensor([[0.0, 0.1, 0.9]]) * torch.tensor([scale, 0.0, 0.0])
    labels = solve_rows(probs, coefficients.double())
    assert labels.tolist() == [[1, 0, 0]]


def m_step_objective(probs: Array, coefficients: Array, labels: Array) -> float:
    positive = coefficients > 0
    with np.errstate(divide="ignore"):
        pulls = coefficients[positive] @ np.log(labels[positive])
    return float(-np.log(probs @ labels) - pulls)


@pytest.mark.parametrize(
    "coefficients",
    [[0.3, 0.2, 0.4], [50.0, 1.0, 3.0], [0.5, 0.0, 0.5], [0.0, 0.1, 0.1], [0.0, 0.0, 0.2]],
)
@pytest.mark.parametrize("probs", [[0.6, 0.3, 0.1], [0.1, 0.8, 0.1], [0.2, 0.2, 0.6]])
def test_m_step_against_scipy(probs: list[float], coefficients: list[float]) -> None:
    sigma, c = np.array(probs), np.array(coefficients)
    found = solve_rows(torch.from_numpy(sigma[None]), torch.from_numpy(c[None])).numpy()[0]
    other = minimize(
        lambda y: m_step_objective(sigma, c, y),
        np.full(3, 1 / 3),
        method="SLSQP",
        bounds=[(1e-12, 1)] * 3,
        constraints={"type": "eq", "fun": lambda y: y.sum() - 1},
        options={"ftol": 1e-14, "maxiter": 500},
    )
    value = m_step_objective(sigma, c, found)
    assert value == pytest.approx(other.fun, abs=1e-8)
    assert value <= other.fun + 1e-9
    np.testing.assert_allclose(found, other.x, atol=1e-4)


def m_step_in_many_digits(probs: Array, coefficients: Array) -> Array:
    """Solve ``Σ_k c_k / (1 + a - σ_k/x) = 1`` by bisection on ``ln d`` with 400 digits."""
    with mpmath.workdps(400):
        ratio = [mpmath.mpf(p) / mpmath.mpf(max(probs)) for p in probs]
        c = [mpmath.mpf(value) for value in coefficients]
        level = 1 + mpmath.fsum(c)

        def labels(d: mpmath.mpf) -> list[mpmath.mpf]:
            return [ck / ((1 - rk) * level + rk * d) for ck, rk in zip(c, ratio, strict=True)]

        low, high = mpmath.log(min(c)) - 1, mpmath.log(level)
        for _ in range(120):
            middle = (low + high) / 2
            above = mpmath.fsum(labels(mpmath.exp(middle))) > 1
            low, high = (middle, high) if above else (low, middle)
        return np.array([float(value) for value in labels(mpmath.exp(low))])


@pytest.mark.parametrize("smallest", [1e-300, 1e-100, 1e-20, 1e-3])
@pytest.mark.parametrize("probs", [[0.7, 0.2, 0.1], [0.5, 0.5, 0.0], [1 - 2e-38, 1e-38, 1e-38]])
def test_m_step_keeps_its_digits_with_tiny_coefficients(
    probs: list[float], smallest: float
) -> None:
    sigma = np.array(probs)
    for order in ([0, 1, 2], [1, 2, 0], [2, 0, 1]):
        c = np.array([smallest, 1e-2, 2.0])[order]
        found = solve_rows(torch.from_numpy(sigma[None]), torch.from_numpy(c[None])).numpy()[0]
        np.testing.assert_allclose(found, m_step_in_many_digits(sigma, c), rtol=1e-9)


def test_m_step_with_all_coefficients_tiny_or_zero() -> None:
    probs = torch.tensor([[0.7, 0.2, 0.1]] * 2, dtype=torch.float64)
    coefficients = torch.tensor([[1e-300] * 3, [0.0] * 3], dtype=torch.float64)
    labels = solve_rows(probs, coefficients)
    torch.testing.assert_close(labels, torch.tensor([[1.0, 0, 0]] * 2).double(), atol=1e-14, rtol=0)


@LAWS
@given(seed=seeds, size=sizes, scale=st.floats(0, 6), spread=st.floats(0, 6))
def test_m_step_in_float32(seed: int, size: tuple[int, int], scale: float, spread: float) -> None:
    rng = np.random.default_rng(seed)
    probs = random_probs(*size, scale=scale, seed=seed).astype(np.float32)
    coefficients = np.exp(rng.normal(size=size) * spread).astype(np.float32)
    coefficients[rng.random(size) < 0.2] = 0
    labels = solve_rows(torch.from_numpy(probs), torch.from_numpy(coefficients))
    assert labels.dtype == torch.float32
    assert bool((labels >= 0).all())
    torch.testing.assert_close(labels.sum(1), torch.ones(size[0]), atol=1e-5, rtol=0)
    exact = solve_rows(
        torch.from_numpy(probs).double(), torch.from_numpy(coefficients).double()
    ).numpy()
    for row in range(size[0]):
        values = [
            m_step_objective(probs[row].astype(float), coefficients[row].astype(float), y)
            for y in (labels[row].double().numpy() / labels[row].double().sum().item(), exact[row])
        ]
        assert values[0] - values[1] <= 1e-5 * (1 + coefficients[row].sum())


# --- sweeps -----------------------------------------------------------------------------------


def swept_without_rising(problem: Problem, state: EMState, steps: int) -> EMState:
    value = problem.value(state.labels)
    rounding = 1e-11 + 1e-14 * problem.coupling.fairness
    for _ in range(steps):
        state = ExpectationMaximization().step(problem, state)
        new = problem.value(state.labels)
        assert new <= value + rounding * max(1, abs(value))
        value = new
    return state


@LAWS
@given(
    seed=seeds,
    size=st.tuples(st.integers(1, 40), st.integers(2, 9)),
    sharpness=st.floats(0, 10),
    # Coefficients λu/ȳ that underflow to 0 are another problem: λ = 0.
    fairness=st.just(0.0) | st.floats(1e-100, 1000),
    hard=st.booleans(),
)
def test_em_never_rises(
    seed: int, size: tuple[int, int], sharpness: float, fairness: float, hard: bool
) -> None:
    probs = random_probs(*size, scale=sharpness, seed=seed)
    prior = random_labels(1, size[1], seed=seed + 1)[0]
    problem = problem_of(probs, prior=prior, fairness=fairness)
    start = torch.from_numpy(random_labels(*size, seed=seed + 2)) if hard else None
    state = ExpectationMaximization().start(problem, start, 1e-6)
    swept_without_rising(problem, state, 12)


@pytest.mark.parametrize("name", degenerate_problems())
@pytest.mark.parametrize("fairness", [0.1, 100.0])
@pytest.mark.parametrize("first", [1e-12, 0.25])
def test_em_on_degenerate_problems(name: str, fairness: float, first: float) -> None:
    probs = degenerate_problems()[name]
    prior = prior_with_first(probs.shape[1], first)
    problem = problem_of(probs, prior=prior, fairness=fairness)
    state = ExpectationMaximization().start(problem, None, 0.0)
    labels = swept_without_rising(problem, state, 30).labels.numpy()
    np.testing.assert_allclose(labels.sum(1), 1, atol=1e-13)
    expected = objective_of(labels, probs, prior=prior, fairness=fairness, objective="cce+")
    assert np.isfinite(expected)
    assert problem.value(torch.from_numpy(labels)) == pytest.approx(expected, rel=1e-10, abs=1e-12)


def test_a_sweep_is_the_e_step_and_the_m_step() -> None:
    probs, labels, prior = random_probs(50, 4), random_labels(50, 4), skewed_prior(4)
    problem = problem_of(probs, prior=prior, fairness=3.0)
    start = torch.from_numpy(labels)
    found = ExpectationMaximization().step(problem, EMState(start)).labels.numpy()
    coefficients = 3.0 * prior * labels / labels.mean(0)
    assert m_step_residual(probs, coefficients, found).max() <= 1e-10
    np.testing.assert_array_equal(start, labels)  # the caller's


def test_labels_that_vanish_stay_harmless() -> None:
    """At λ = 1 they decay geometrically."""
    problem = problem_of(random_probs(100, 5, scale=5.0))
    solver = ExpectationMaximization()
    state = solver.start(problem, None, 0.0)
    for _ in range(600):
        state = solver.step(problem, state)
    labels = state.labels
    assert float(labels.min()) < 1e-40
    assert bool(torch.isfinite(labels).all())
    multipliers = problem.coupling.multipliers(problem.mean_label(labels))
    assert problem.value(labels) - problem.lower_bound(multipliers) <= 1e-4


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
