"""The parts of the solvers, each against brute force, and every backend against the others."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import mpmath
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize

from coincide.pseudolabels import OBJECTIVES, SOLVERS, ProjectedGradient
from coincide.pseudolabels.em import solve_rows
from coincide.pseudolabels.kernels import (
    answer_kernels,
    available_backends,
    choose_backend,
    row_kernels,
    row_minimizers,
)
from coincide.pseudolabels.problem import Problem, certify
from coincide.pseudolabels.projected_gradient import project_to_simplex, row_gradient
from coincide.pseudolabels.reduction import reduce_problem
from coincide.pseudolabels.solver import run_solver
from devices import device_of
from problems import (
    OBJECTIVE_NAMES,
    Array,
    cvxpy_optimum,
    degenerate_problems,
    dual_row_by_enumeration,
    objective_of,
    random_labels,
    random_probs,
    skewed_prior,
)

LAWS = settings(max_examples=30, deadline=None)
seeds = st.integers(0, 2**31 - 1)
sizes = st.tuples(st.integers(1, 8), st.integers(2, 7))


def problem_of(
    probs: Array,
    *,
    fairness: float = 1.0,
    objective: str = "cce+",
    backend: str = "torch",
    dtype: torch.dtype = torch.float64,
    prior: Array | None = None,
    weights: Array | None = None,
) -> Problem:
    n_classes = probs.shape[1]
    prior = np.full(n_classes, 1 / n_classes) if prior is None else prior
    device = device_of(backend)
    return reduce_problem(
        torch.from_numpy(probs).to(device, dtype),
        prior=prior,
        fairness=fairness,
        objective=objective,
        backend=backend,
        weights=None if weights is None else torch.from_numpy(weights).to(device),
    ).problem


# --- conformance: every solver x objective x backend x dtype --------------------------------

# Reachable gap of each solver after the given steps; rules promise feasibility only.
PROMISES = {
    "active-set": 1e-8,
    "interior-point": 1e-8,
    "em": 1e-2,
    "accelerated-em": 1e-2,
    "projected-gradient": 1e-2,
}
CASES = [
    pytest.param(name, objective, backend, dtype, id=f"{name}-{objective}-{backend}-{dtype}")
    for name, solver in SOLVERS.items()
    for objective in solver.objectives
    for backend in available_backends()
    for dtype in (torch.float64, torch.float32)
]


@pytest.mark.parametrize(("name", "objective", "backend", "dtype"), CASES)
@pytest.mark.parametrize("shape", [(33, 5), (1, 2), (4, 9), (300, 7)])
def test_conformance(
    name: str, objective: str, backend: str, dtype: torch.dtype, shape: tuple[int, int]
) -> None:
    probs, prior = random_probs(*shape, seed=3), skewed_prior(shape[1])
    problem = problem_of(
        probs, objective=objective, backend=backend, dtype=dtype, prior=prior, fairness=0.5
    )
    tol = PROMISES.get(name, np.inf)
    if dtype == torch.float32:
        tol = max(tol, 1e-4)
    outcome = run_solver(SOLVERS[name], problem, tol=tol, max_iter=500)
    rounding = 1e-12 if dtype == torch.float64 else 1e-5
    assert outcome.labels.dtype == dtype
    assert outcome.labels.shape == shape
    assert bool((outcome.labels >= 0).all())
    assert float((outcome.labels.double().sum(1) - 1).abs().max()) <= rounding
    assert outcome.certificate is not None
    assert outcome.converged
    assert -rounding <= outcome.certificate.gap <= tol * max(1, outcome.certificate.objective)
    expected = objective_of(
        outcome.labels.double().cpu().numpy(), probs, prior=prior, fairness=0.5, objective=objective
    )
    assert outcome.certificate.objective == pytest.approx(expected, abs=10 * rounding)


@pytest.mark.parametrize("objective", OBJECTIVE_NAMES)
@pytest.mark.parametrize("fairness", [0.0, 1.0, 100.0])
def test_backends_agree(objective: str, fairness: float) -> None:
    probs, prior = random_probs(70, 6, scale=4.0), skewed_prior(6)
    weights = np.random.default_rng(2).uniform(0, 3, 70)
    outcomes = [
        run_solver(
            SOLVERS["interior-point"],
            problem_of(
                probs, objective=objective, fairness=fairness, backend=backend, prior=prior,
                weights=weights,
            ),
            tol=1e-9,
            max_iter=100,
        )
        for backend in available_backends()
    ]  # fmt: skip
    for outcome in outcomes:
        assert outcome.converged
        assert outcome.certificate is not None
        assert outcomes[0].certificate is not None
        assert outcome.certificate.objective == pytest.approx(
            outcomes[0].certificate.objective, abs=1e-8
        )


@pytest.mark.parametrize("backend", available_backends())
@pytest.mark.parametrize("name", degenerate_problems())
def test_backends_on_degenerate_problems(backend: str, name: str) -> None:
    problem = problem_of(degenerate_problems()[name], backend=backend, fairness=100.0)
    outcome = run_solver(SOLVERS["interior-point"], problem, tol=1e-8, max_iter=200)
    assert outcome.converged
    assert bool(torch.isfinite(outcome.labels).all())


@pytest.mark.parametrize("collision", [True, False])
@pytest.mark.parametrize("backend", available_backends())
def test_sums_over_split_rows_add_up(backend: str, collision: bool) -> None:
    """What a distributed run relies on: halves of the rows give halves of the system."""
    device = device_of(backend)
    probs = torch.from_numpy(random_probs(40, 5)).to(device)
    rows = probs if collision else probs.log()
    labels = torch.from_numpy(random_labels(40, 5)).to(device)
    slacks = torch.rand(40, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    slacks, weights = slacks.to(device), torch.full_like(labels[:, 0], 1 / 40)

    def factors(part: slice) -> tuple[Array, Array, Array, float]:
        kernels = row_kernels(backend, rows[part].contiguous(), weights[part], collision=collision)
        kernels.load(labels[part].clone(), slacks[part] + 0.1)
        found = kernels.factor()
        gram = found.gram * (1 - np.eye(5))  # its diagonal is not meant to be used
        return gram, found.pull, found.mean_label, found.complementarity

    whole, first, second = (factors(part) for part in (slice(0, 40), slice(0, 13), slice(13, 40)))
    for total, *parts in zip(whole, first, second, strict=True):
        np.testing.assert_allclose(parts[0] + parts[1], total, rtol=1e-11, atol=1e-13)


def test_backend_is_chosen_by_size_and_device_alone() -> None:
    assert choose_backend(10, torch.device("cpu")) == "torch"
    for device, compiled in (("cpu", "numba"), ("cuda", "triton")):
        expected = compiled if compiled in available_backends() else "torch"
        assert choose_backend(10**9, torch.device(device)) == expected
    assert choose_backend(10**9, torch.device("meta")) == "torch"


# --- the lower bound ------------------------------------------------------------------------


@LAWS
@given(
    seed=seeds,
    size=sizes,
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
    bound = problem.lower_bound(problem.multipliers(problem.mean_label(outcome.labels)))
    optimum = cvxpy_optimum(probs, prior=prior, fairness=1.0, objective=objective)
    assert bound == pytest.approx(optimum, abs=1e-6)


@pytest.mark.parametrize("backend", available_backends())
@LAWS
@given(seed=seeds, size=sizes, scale=st.floats(0, 12), spread=st.floats(0, 50))
def test_row_duals_against_enumeration(
    backend: str, seed: int, size: tuple[int, int], scale: float, spread: float
) -> None:
    probs = random_probs(*size, scale=scale, seed=seed)
    multipliers = np.random.default_rng(seed + 1).normal(size=size[1]) * spread
    rows = torch.from_numpy(probs).to(device_of(backend))
    found = row_minimizers(backend, rows).minimize(multipliers).values
    expected = [dual_row_by_enumeration(row, multipliers) for row in probs]
    np.testing.assert_allclose(found.cpu().numpy(), expected, rtol=1e-12, atol=1e-11)


@pytest.mark.parametrize("name", degenerate_problems())
@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("backend", available_backends())
def test_row_duals_of_degenerate_rows(backend: str, name: str, ties: bool) -> None:
    probs = degenerate_problems()[name]
    n_classes = probs.shape[1]
    multipliers = np.zeros(n_classes) if ties else np.linspace(-3, 40, n_classes)
    rows = torch.from_numpy(probs).to(device_of(backend))
    found = row_minimizers(backend, rows).minimize(multipliers).values
    expected = [dual_row_by_enumeration(row, multipliers) for row in probs]
    np.testing.assert_allclose(found.cpu().numpy(), expected, rtol=1e-12, atol=1e-11)


@pytest.mark.parametrize("backend", available_backends())
@LAWS
@given(seed=seeds, size=sizes, scale=st.floats(0, 12), spread=st.floats(0, 5))
def test_row_minimizers_attain_the_dual_from_cold_and_from_warm(
    backend: str, seed: int, size: tuple[int, int], scale: float, spread: float
) -> None:
    probs = random_probs(*size, scale=scale, seed=seed)
    rng = np.random.default_rng(seed + 1)
    search = row_minimizers(backend, torch.from_numpy(probs).to(device_of(backend)))
    for _ in range(3):
        multipliers = rng.normal(size=size[1]) * spread
        values, steep, flat, share = (part.cpu().numpy() for part in search.minimize(multipliers))
        assert ((share >= 0) & (share <= 1)).all()
        labels = np.zeros_like(probs)
        rows = np.arange(len(probs))
        np.add.at(labels, (rows, steep), share)
        np.add.at(labels, (rows, flat), 1 - share)
        attained = -np.log((probs * labels).sum(1)) - labels @ multipliers
        expected = [dual_row_by_enumeration(row, multipliers) for row in probs]
        np.testing.assert_allclose(values, expected, rtol=1e-12, atol=1e-11)
        np.testing.assert_allclose(attained, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("backend", available_backends())
def test_the_bound_of_shannon_is_a_mean_over_corners(backend: str) -> None:
    probs, multipliers = random_probs(9, 4), np.array([0.3, -2, 5, 0])
    problem = problem_of(probs, objective="ce+kl", backend=backend)
    conjugate = problem.objective.coupling.conjugate(multipliers, problem.prior, 1.0)
    expected = (-np.log(probs) - multipliers).min(1).mean() - conjugate
    assert problem.lower_bound(multipliers) == pytest.approx(expected, rel=1e-12)


def test_row_duals_drop_by_a_common_constant() -> None:
    probs, multipliers = torch.from_numpy(random_probs(9, 4)), np.array([0.3, -2, 5, 0])
    plain, moved = (
        row_minimizers("torch", probs).minimize(multipliers + shift).values
        for shift in (0.0, 1000.0)
    )
    torch.testing.assert_close(moved, plain - 1000, rtol=1e-12, atol=0)


@pytest.mark.parametrize("backend", available_backends())
@pytest.mark.parametrize("shape", [(1, 2), (40, 5), (3, 9)])
def test_sums_over_the_answers_agree_with_dense_ones(backend: str, shape: tuple[int, int]) -> None:
    n_rows, n_classes = shape
    probs, rng = random_probs(*shape, scale=3), np.random.default_rng(5)
    multipliers, weights = rng.normal(size=n_classes), rng.uniform(0.1, 2, n_rows)
    rows = torch.from_numpy(probs).to(device_of(backend))
    answer = row_minimizers(backend, rows).minimize(multipliers)
    kernels, on_device = answer_kernels(backend), torch.from_numpy(weights).to(rows.device)
    mean_label, value = kernels.summed_answer(answer, on_device, n_classes)
    values, steep, flat, share = (part.cpu().numpy() for part in answer)
    labels, rates = np.zeros_like(probs), np.zeros((n_classes, n_classes))
    for i, (one, other, s) in enumerate(zip(steep, flat, share, strict=True)):
        labels[i, one] += s
        labels[i, other] += 1 - s
        if 0 < s < 1:
            edge = np.eye(n_classes)[one] - np.eye(n_classes)[other]
            rates += weights[i] * np.outer(edge, edge) / (edge @ multipliers) ** 2
    np.testing.assert_allclose(mean_label, weights @ labels, rtol=1e-12, atol=1e-15)
    assert float(value) == pytest.approx(weights @ values, rel=1e-12)
    curvature = kernels.answer_curvature(answer, on_device, multipliers)
    np.testing.assert_allclose(curvature, rates, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("backend", available_backends())
def test_the_curvature_is_how_the_mean_answer_moves(backend: str) -> None:
    probs, multipliers = random_probs(200, 4), np.array([0.3, -0.2, 0.5, 0])
    search = row_minimizers(backend, torch.from_numpy(probs).to(device_of(backend)))
    kernels, weights = answer_kernels(backend), torch.full((200,), 1 / 200, dtype=torch.float64)
    weights = weights.to(device_of(backend))
    curvature = kernels.answer_curvature(search.minimize(multipliers), weights, multipliers)
    for step in 1e-7 * np.eye(4):
        ahead, behind = (
            kernels.summed_answer(search.minimize(multipliers + s * step), weights, 4)[0]
            for s in (1, -1)
        )
        np.testing.assert_allclose((ahead - behind) / 2, curvature @ step, rtol=1e-5, atol=1e-14)


@pytest.mark.parametrize("objective", OBJECTIVE_NAMES)
@pytest.mark.parametrize("backend", available_backends())
@pytest.mark.parametrize("by_class", [False, True])
def test_values_agree_however_labels_lie(objective: str, backend: str, by_class: bool) -> None:
    probs, labels, prior = random_probs(300, 6), random_labels(300, 6), skewed_prior(6)
    weights = np.random.default_rng(1).uniform(0.1, 2, 300)
    problem = problem_of(probs, objective=objective, backend=backend, prior=prior, weights=weights)
    rows = torch.from_numpy(labels).to(problem.probs.device)
    found = problem.value(rows.T.contiguous().T if by_class else rows)
    expected = objective_of(
        labels, probs, prior=prior, fairness=1.0, objective=objective, weights=weights
    )
    assert found == pytest.approx(expected, rel=1e-12)


# --- gradients and curvatures against differences ---------------------------------------------


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


@pytest.mark.parametrize("objective", OBJECTIVE_NAMES)
@pytest.mark.parametrize("fairness", [0.0, 0.7])
def test_couplings_against_finite_differences(objective: str, fairness: float) -> None:
    coupling = OBJECTIVES[objective].coupling
    prior, mean_label = skewed_prior(4), random_labels(1, 4)[0] * 0.8 + 0.05
    multipliers = coupling.multipliers(mean_label, prior, fairness)
    steps = 1e-5 * np.eye(4)

    def slope(of: Callable[[Array, Array, float], Any], step: Array) -> Any:
        ahead, behind = (of(mean_label + sign * step, prior, fairness) for sign in (1, -1))
        return (ahead - behind) / 2e-5

    slopes = [slope(coupling.value, step) for step in steps]
    np.testing.assert_allclose(multipliers, -np.array(slopes), rtol=1e-7, atol=1e-8)
    bends = np.array([slope(coupling.multipliers, step) for step in steps])
    curvature = coupling.curvature(mean_label, prior, fairness)
    np.testing.assert_allclose(-bends, np.diag(curvature), rtol=1e-6, atol=1e-8)
    if fairness > 0:
        # Fenchel-Young with equality: Φ(ȳ) = -w·ȳ - conjugate(w) where w = -Φ'(ȳ).
        mean_label = mean_label / mean_label.sum()
        multipliers = coupling.multipliers(mean_label, prior, fairness)
        conjugate = coupling.conjugate(multipliers, prior, fairness)
        expected = -multipliers @ mean_label - conjugate
        assert coupling.value(mean_label, prior, fairness) == pytest.approx(expected, abs=1e-12)
        closed = coupling.divergence(mean_label, multipliers, prior, fairness)
        assert closed == pytest.approx(0, abs=1e-14)


@pytest.mark.parametrize("objective", OBJECTIVE_NAMES)
@pytest.mark.parametrize("fairness", [0.0, 1e-300, 0.7, 1e5])
def test_the_divergence_is_what_fenchel_leaves_open(objective: str, fairness: float) -> None:
    coupling = OBJECTIVES[objective].coupling
    prior, mean_label = skewed_prior(4), random_labels(1, 4)[0]
    multipliers = coupling.multipliers(random_labels(1, 4, seed=2)[0], prior, fairness)
    expected = (
        coupling.value(mean_label, prior, fairness)
        + multipliers @ mean_label
        + coupling.conjugate(multipliers, prior, fairness)
    )
    found = coupling.divergence(mean_label, multipliers, prior, fairness)
    assert found == pytest.approx(expected, rel=1e-9, abs=1e-12 * fairness)
    assert found >= 0
    assert coupling.divergence(-mean_label, multipliers, prior, fairness) == np.inf
    assert coupling.divergence(mean_label, multipliers * np.nan, prior, fairness) == np.inf


def test_an_empty_class_leaves_an_infinite_divergence_where_the_prior_wants_it() -> None:
    coupling, multipliers = OBJECTIVES["cce+"].coupling, np.array([1.0, 2.0])
    empty = np.array([0.0, 1.0])
    assert coupling.divergence(empty, multipliers, np.array([0.5, 0.5]), 1.0) == np.inf
    assert np.isfinite(coupling.divergence(empty, multipliers, np.array([0.0, 1.0]), 1.0))


# --- the M-step -----------------------------------------------------------------------------


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


@LAWS
@given(
    seed=seeds,
    size=sizes,
    # Coefficients λu/ȳ that underflow to 0 are another problem: λ = 0.
    fairness=st.just(0.0) | st.floats(1e-100, 100),
    hard=st.booleans(),
)
def test_em_never_rises(seed: int, size: tuple[int, int], fairness: float, hard: bool) -> None:
    probs = random_probs(*size, seed=seed)
    prior = random_labels(1, size[1], seed=seed + 1)[0]
    problem = problem_of(probs, prior=prior, fairness=fairness)
    start = torch.from_numpy(random_labels(*size, seed=seed + 2)) if hard else None
    solver = SOLVERS["em"]
    state = solver.start(problem, start, 1e-6)
    value = problem.value(state.labels)
    for _ in range(8):
        state = solver.step(problem, state)
        new = problem.value(state.labels)
        assert new <= value + 1e-11 * max(1, abs(value))
        value = new


# --- projected gradient ---------------------------------------------------------------------


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


@LAWS
@given(seed=seeds, size=sizes)
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


def test_certificate_of_labels_that_empty_a_wanted_class() -> None:
    problem = problem_of(random_probs(6, 3))
    certificate = certify(problem, torch.eye(3, dtype=torch.float64)[[0, 0, 1, 1, 0, 1]])
    assert certificate.objective == np.inf
    assert not certificate.within(1e-3)
