"""EM and its compiled sweeps: the M-step's optimality conditions, descent, and the same path."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from coincide.pseudolabels.accelerated_em import AcceleratedEM, TensorSquarem
from coincide.pseudolabels.em import EMState, ExpectationMaximization, TensorSweep
from coincide.pseudolabels.kernels import available_backends
from coincide.pseudolabels.problem import Problem
from coincide.pseudolabels.reduction import reduce_problem
from devices import device_of
from problems import (
    Array,
    degenerate_problems,
    objective_of,
    prior_with_first,
    random_labels,
    random_probs,
    skewed_prior,
)

if "numba" not in available_backends():
    pytest.skip("the compiled sweeps need Numba", allow_module_level=True)
from coincide.pseudolabels.kernels.numba_em import NumbaSweep
from coincide.pseudolabels.kernels.numba_squarem import NumbaSquarem

SWEEPS = {"numba": NumbaSweep}
if "triton" in available_backends():
    from coincide.pseudolabels.kernels.triton_em import TritonSweep

    SWEEPS["triton"] = TritonSweep

LAWS = settings(max_examples=60, deadline=None)
EXACT = 1e-8  # the tolerance at which rows are solved to what the objective can tell
seeds = st.integers(0, 2**31 - 1)
sizes = st.tuples(st.integers(1, 150), st.integers(2, 9))
# Around the 64 rows of a tile, and beyond.
SHAPES = [(1, 2), (5, 3), (63, 4), (64, 5), (65, 33), (200, 7)]


def problem_of(
    probs: Array,
    *,
    prior: Array | None = None,
    fairness: float = 1.0,
    backend: str = "numba",
    known: Array | None = None,
) -> Problem:
    uniform = np.full(probs.shape[1], 1 / probs.shape[1])
    return reduce_problem(
        torch.from_numpy(probs),
        prior=uniform if prior is None else prior,
        fairness=fairness,
        objective="cce+",
        backend=backend,
        known=None if known is None else torch.from_numpy(known),
    ).problem


def swept(
    probs: Array,
    labels: Array,
    scale: Array,
    dtype: torch.dtype,
    backend: str,
) -> Array:
    """Return the labels after sweeps with given multipliers, in float64."""
    device = device_of(backend)
    rows, start = (torch.from_numpy(part).to(device, dtype) for part in (probs, labels))
    weights = torch.full((len(probs),), 1 / len(probs), dtype=dtype, device=device)
    sweep = SWEEPS[backend](rows, weights, start)
    mean = sweep.sweep(scale, EXACT)
    found = sweep.labels.cpu()
    assert found.dtype == dtype
    np.testing.assert_allclose(mean, found.double().mean(0).numpy(), rtol=1e-5, atol=1e-12)
    return found.double().numpy()


def residual(probs: Array, coefficients: Array, labels: Array) -> float:
    """KKT: ``y_k (1 + a - σ_k/x) = c_k``, and ``σ_k/x <= 1 + a`` where ``y_k = 0``."""
    level = 1 + coefficients.sum(1, keepdims=True)
    pull = probs / (probs * labels).sum(1, keepdims=True)
    stationary = np.abs(labels * (level - pull) - coefficients) / level
    optimal = np.where(labels == 0, np.maximum(pull - level, 0) / level, 0)
    return float(np.maximum(stationary, optimal).max())


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float64, 1e-8), (torch.float32, 1e-4)])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("size", [1e-3, 1.0, 100.0])
@pytest.mark.parametrize("backend", SWEEPS)
def test_a_sweep_solves_every_row(
    shape: tuple[int, int], size: float, dtype: torch.dtype, bound: float, backend: str
) -> None:
    probs, labels = random_probs(*shape, seed=1), random_labels(*shape, seed=2)
    scale = size * np.random.default_rng(3).uniform(0.1, 2, shape[1])
    found = swept(probs, labels, scale, dtype, backend)
    np.testing.assert_allclose(found.sum(1), 1, atol=1e-6 if dtype == torch.float32 else 1e-14)
    assert (found >= 0).all()
    assert residual(probs, labels * scale, found) <= bound


@pytest.mark.parametrize("backend", SWEEPS)
@LAWS
@given(
    seed=seeds,
    size=sizes,
    sharpness=st.floats(0, 20),
    spread=st.floats(0, 12),
    zeros=st.sampled_from([0.0, 0.3, 0.9]),
)
def test_a_sweep_solves_rows_with_zeros_and_tiny_labels(
    *, backend: str, seed: int, size: tuple[int, int], sharpness: float, spread: float, zeros: float
) -> None:
    rng = np.random.default_rng(seed)
    probs = random_probs(*size, scale=sharpness, seed=seed)
    labels = np.exp(spread * rng.normal(size=size))
    labels[rng.random(size) < zeros] = 0
    labels[np.arange(len(labels)), rng.integers(0, size[1], len(labels))] = 1
    labels /= labels.sum(1, keepdims=True)
    scale = np.exp(rng.normal(size=size[1])) * (rng.random(size[1]) > zeros / 3)
    found = swept(probs, labels, scale, torch.float64, backend)
    assert residual(probs, labels * scale, found) <= 1e-7


@pytest.mark.parametrize("scale", [0.0, 5.0])
@pytest.mark.parametrize("backend", SWEEPS)
def test_the_leftover_goes_to_the_leading_class(scale: float, backend: str) -> None:
    """Without coefficients the best answer is the largest probability."""
    probs, labels = np.array([[0.6, 0.3, 0.1]]), np.array([[0.0, 0.1, 0.9]])
    found = swept(probs, labels, np.array([scale, 0.0, 0.0]), torch.float64, backend)
    np.testing.assert_array_equal(found, [[1, 0, 0]])


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("fairness", [1.0, 100.0])
def test_both_backends_take_the_same_path(shape: tuple[int, int], fairness: float) -> None:
    probs, known = random_probs(*shape, seed=5), np.full(shape[0], -1)
    known[1::4] = 1
    solver = ExpectationMaximization()
    values = []
    for backend in ("torch", "numba"):
        problem = problem_of(
            probs, prior=skewed_prior(shape[1]), fairness=fairness, backend=backend, known=known
        )
        state = solver.start(problem, None, 0.0)
        assert isinstance(state.sweeper, TensorSweep) == (backend == "torch")
        for _ in range(40):
            state = solver.step(problem, state)
        np.testing.assert_allclose(state.mean_label, problem.mean_label(state.labels), rtol=1e-12)
        values.append(problem.value(state.labels))
    start = problem.value(problem.uniform_labels())
    assert values[0] - values[1] == pytest.approx(0, abs=1e-2 * (start - values[0]) + 1e-12)


def never_rises(
    solver: ExpectationMaximization | AcceleratedEM,
    problem: Problem,
    state: EMState,
    steps: int,
) -> None:
    value = problem.value(state.labels)
    rounding = 1e-12 + 1e-14 * problem.fairness
    for _ in range(steps):
        state = solver.step(problem, state)
        new = problem.value(state.labels)
        assert new <= value + rounding * max(1, abs(value))
        value = new


@LAWS
@given(
    seed=seeds,
    size=sizes,
    sharpness=st.floats(0, 10),
    fairness=st.just(0.0) | st.floats(1e-100, 1000),
    hard=st.booleans(),
)
def test_compiled_em_never_rises(
    seed: int, size: tuple[int, int], sharpness: float, fairness: float, hard: bool
) -> None:
    probs = random_probs(*size, scale=sharpness, seed=seed)
    prior = random_labels(1, size[1], seed=seed + 1)[0]
    problem = problem_of(probs, prior=prior, fairness=fairness)
    start = torch.from_numpy(random_labels(*size, seed=seed + 2)) if hard else None
    solver = ExpectationMaximization()
    never_rises(solver, problem, solver.start(problem, start, 0.0), 60)


@pytest.mark.parametrize("name", degenerate_problems())
@pytest.mark.parametrize("fairness", [0.1, 100.0])
@pytest.mark.parametrize("first", [1e-12, 0.25])
@pytest.mark.parametrize("solver", [ExpectationMaximization(), AcceleratedEM()])
def test_compiled_em_on_degenerate_problems(
    solver: ExpectationMaximization | AcceleratedEM, name: str, fairness: float, first: float
) -> None:
    probs = degenerate_problems()[name]
    prior = prior_with_first(probs.shape[1], first)
    problem = problem_of(probs, prior=prior, fairness=fairness)
    state = solver.start(problem, None, 0.0)
    never_rises(solver, problem, state, 50)
    labels = solver.step(problem, state).labels.numpy()
    np.testing.assert_allclose(labels.sum(1), 1, atol=1e-13)
    expected = objective_of(labels, probs, prior=prior, fairness=fairness, objective="cce+")
    assert np.isfinite(expected)
    assert problem.value(torch.from_numpy(labels)) == pytest.approx(expected, rel=1e-10, abs=1e-12)


def test_labels_that_vanish_in_float32_stay_harmless() -> None:
    """At λ = 1 they decay geometrically: below the smallest normal number within 600 sweeps."""
    problem = problem_of(random_probs(100, 5, scale=5.0)).to(torch.float32)
    solver = ExpectationMaximization()
    state = solver.start(problem, None, 0.0)
    for _ in range(600):
        state = solver.step(problem, state)
    labels = state.labels
    positive = labels[labels > 0]
    assert len(positive) < labels.numel()
    assert float(positive.min()) >= torch.finfo(torch.float32).tiny
    exact = problem.to(torch.float64)
    rows = labels.double() / labels.double().sum(1, keepdim=True)
    multipliers = exact.multipliers(exact.mean_label(rows))
    assert exact.value(rows) - exact.lower_bound(multipliers) <= 1e-4


def test_the_start_stays_untouched() -> None:
    probs, labels = torch.from_numpy(random_probs(70, 3)), torch.from_numpy(random_labels(70, 3))
    weights, kept = torch.full((70,), 1 / 70, dtype=torch.float64), labels.clone()
    sweep = NumbaSweep(probs, weights, labels)
    before = sweep.labels
    sweep.sweep(np.ones(3), EXACT)
    torch.testing.assert_close(labels, kept, rtol=0, atol=0)
    torch.testing.assert_close(before, kept)
    assert bool((sweep.labels != kept).any())


# --- acceleration ---------------------------------------------------------------------------


@LAWS
@given(
    seed=seeds,
    size=sizes,
    sharpness=st.floats(0, 10),
    fairness=st.just(0.0) | st.floats(1e-100, 1000),
    backend=st.sampled_from(["torch", "numba"]),
)
def test_accelerated_em_never_rises(
    seed: int, size: tuple[int, int], sharpness: float, fairness: float, backend: str
) -> None:
    probs = random_probs(*size, scale=sharpness, seed=seed)
    prior = random_labels(1, size[1], seed=seed + 1)[0]
    problem = problem_of(probs, prior=prior, fairness=fairness, backend=backend)
    solver = AcceleratedEM()
    never_rises(solver, problem, solver.start(problem, None, 0.0), 25)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("doublings", [0, 1, 3])
def test_extrapolation_is_the_written_formula(shape: tuple[int, int], doublings: int) -> None:
    probs, start = random_probs(*shape, seed=1), random_labels(*shape, seed=2)
    weights = np.random.default_rng(3).uniform(size=shape[0])
    scales = np.random.default_rng(4).uniform(0.9, 1.1, (2, shape[1]))
    # A sweep solves rows to EXACT, and the errors are raised to a power as well.
    power, rounding = 2.0**doublings, 1e-12 * 100**doublings
    for kind in (TensorSquarem, NumbaSquarem):
        squarem = kind(*(torch.from_numpy(a) for a in (probs, weights, start)))
        path = [start]
        for scale in scales:
            squarem.sweep(scale, 0.0)
            path.append(squarem.labels.numpy().copy())
        logs = np.log(path)
        bend = logs[2] - 2 * logs[1] + logs[0]
        ahead = np.exp(logs[2] + 2 * power * (logs[2] - logs[1]) + power**2 * bend)
        ahead /= ahead.sum(1, keepdims=True)
        mean, before, after = squarem.extrapolate(doublings)
        np.testing.assert_allclose(squarem.labels.numpy(), ahead, rtol=1e-6, atol=rounding)
        np.testing.assert_allclose(mean, weights @ ahead, rtol=1e-6, atol=rounding)
        losses = [-float(weights @ np.log((probs * y).sum(1))) for y in (path[2], ahead)]
        assert after - before == pytest.approx(losses[1] - losses[0], rel=1e-6, abs=1e-10)
        squarem.restore()
        np.testing.assert_allclose(squarem.labels.numpy(), path[2], rtol=1e-14)


@pytest.mark.parametrize("backend", ["torch", "numba"])
@pytest.mark.parametrize("n_classes", [3, 10])
def test_acceleration_saves_four_sweeps_of_five(backend: str, n_classes: int) -> None:
    problem = problem_of(random_probs(130, n_classes), fairness=100.0, backend=backend)
    fast, plain = AcceleratedEM(), ExpectationMaximization()
    state = fast.start(problem, None, 0.0)
    for _ in range(60):
        state = fast.step(problem, state)
    slow: EMState = plain.start(problem, None, 0.0)
    for _ in range(600):
        slow = plain.step(problem, slow)
    assert problem.value(state.labels) <= problem.value(slow.labels)


@pytest.mark.parametrize("kind", [NumbaSweep, NumbaSquarem])
def test_float32_predictions_are_swept_in_the_precision_of_the_labels(kind: type) -> None:
    probs = torch.from_numpy(random_probs(150, 6, scale=4.0)).float()
    weights = torch.full((150,), 1 / 150, dtype=torch.float64)
    start = torch.from_numpy(random_labels(150, 6)).double()
    kept, wide = kind(probs, weights, start), kind(probs.double(), weights, start)
    for _ in range(5):
        multipliers = 10 / (6 * np.asarray(wide.labels.mean(0)))
        means = [sweep.sweep(multipliers, 1e-10) for sweep in (kept, wide)]
        np.testing.assert_allclose(*means, rtol=1e-13)
    assert kept.labels.dtype == torch.float64
    torch.testing.assert_close(kept.labels, wide.labels, rtol=1e-12, atol=1e-300)
