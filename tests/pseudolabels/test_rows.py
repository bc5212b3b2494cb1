"""The passes over the rows: every backend against brute force and against the others."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from coincide.pseudolabels import SOLVERS
from coincide.pseudolabels.rows import NewtonRows, choose_passes
from coincide.pseudolabels.rows.torch_dual import nearest_rows
from coincide.pseudolabels.solver import run_solver
from problems import (
    OBJECTIVE_NAMES,
    Array,
    degenerate_problems,
    dual_row_by_enumeration,
    objective_of,
    random_labels,
    random_probs,
    skewed_prior,
)
from small_problems import PASSES, on_device, point_at, problem_of

LAWS = settings(max_examples=20, deadline=None)
seeds = st.integers(0, 2**31 - 1)
sizes = st.tuples(st.integers(1, 8), st.integers(2, 7))


@pytest.fixture
def three_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


def test_passes_are_chosen_by_size_and_device_alone() -> None:
    assert choose_passes(10, torch.device("cpu")).name == "torch"
    assert choose_passes(10**9, torch.device("cpu")).name == "numba"
    for device in ("cuda", "meta"):
        assert choose_passes(10**9, torch.device(device)).name == "torch"


# --- conformance: every solver x objective x backend x dtype --------------------------------

# Reachable gap of each solver after the given steps; rules promise feasibility only.
PROMISES = {
    "active-set": 1e-8,
    "interior-point": 1e-8,
    "em": 1e-2,
    "projected-gradient": 1e-2,
}
CASES = [
    pytest.param(name, objective, backend, dtype, id=f"{name}-{objective}-{backend}-{dtype}")
    for name, solver in SOLVERS.items()
    for objective in solver.objectives
    for backend in PASSES
    for dtype in (torch.float64, torch.float32)
]


@pytest.mark.parametrize(("name", "objective", "backend", "dtype"), CASES)
@pytest.mark.parametrize("shape", [(1, 2), (4, 9), (150, 7)])
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
def test_backends_find_the_same_optimum(objective: str, fairness: float) -> None:
    probs, prior = random_probs(70, 6, scale=4.0), skewed_prior(6)
    weights = np.random.default_rng(2).uniform(0, 3, 70)
    values = []
    for backend in PASSES:
        problem = problem_of(
            probs, objective=objective, fairness=fairness, backend=backend, prior=prior,
            weights=weights,
        )  # fmt: skip
        outcome = run_solver(SOLVERS["interior-point"], problem, tol=1e-9, max_iter=100)
        assert outcome.converged
        assert outcome.certificate is not None
        values.append(outcome.certificate.objective)
    np.testing.assert_allclose(values, values[0], rtol=0, atol=1e-8)


@pytest.mark.parametrize("solver", ["active-set", "interior-point"])
@pytest.mark.parametrize("backend", PASSES)
@pytest.mark.parametrize("name", degenerate_problems())
def test_backends_on_degenerate_problems(backend: str, name: str, solver: str) -> None:
    problem = problem_of(degenerate_problems()[name], backend=backend, fairness=100.0)
    outcome = run_solver(SOLVERS[solver], problem, tol=1e-8, max_iter=500)
    assert outcome.converged
    assert bool(torch.isfinite(outcome.labels).all())


@pytest.mark.parametrize("objective", OBJECTIVE_NAMES)
@pytest.mark.parametrize("backend", PASSES)
@pytest.mark.parametrize("by_class", [False, True])
def test_values_agree_however_labels_lie(objective: str, backend: str, by_class: bool) -> None:
    probs, labels, prior = random_probs(300, 6), random_labels(300, 6), skewed_prior(6)
    weights = np.random.default_rng(1).uniform(0.1, 2, 300)
    problem = problem_of(probs, objective=objective, backend=backend, prior=prior, weights=weights)
    rows = on_device(labels, backend)
    found = problem.value(rows.T.contiguous().T if by_class else rows)
    expected = objective_of(
        labels, probs, prior=prior, fairness=1.0, objective=objective, weights=weights
    )
    assert found == pytest.approx(expected, rel=1e-12)


# --- the interior point's passes ------------------------------------------------------------


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


def rows_of(
    backend: str, probs: Tensor, weights: Tensor, classes: Tensor | None, n_classes: int
) -> NewtonRows:
    """Return the passes over candidates under collision cross-entropy."""
    passes, device = PASSES[backend]
    classes = None if classes is None else classes.to(device)
    return passes.newton_rows(
        probs.to(device), weights.to(device), n_classes, collision=True, classes=classes
    )


def trace(
    rows: NewtonRows, labels: Tensor, slacks: Tensor, shifts: Array, order: Tensor | None = None
) -> list[Array]:
    """Return all that the passes say over a step along each shift, entries in the given order."""
    rows.load(labels, slacks)
    said: list[Array] = []
    for shift in shifts:
        factors = rows.factor()
        prediction = rows.predict(shift)
        extents = rows.correct(shift / 2, 1e-3)
        primal, dual = (0.9 * min(1.0, -1 / min(extent, -1)) for extent in extents)
        arrays = rows.advance(primal, dual)
        said += [np.triu(factors.gram, 1), *factors[1:], *prediction, *extents]
        said += [(a if order is None else a.gather(1, order)).cpu().numpy().copy() for a in arrays]
    return [np.asarray(part) for part in said]


def assert_same(found: list[Array], expected: list[Array]) -> None:
    for one, other in zip(found, expected, strict=True):
        scale = max(1.0, float(np.abs(other).max()))
        np.testing.assert_allclose(one, other, rtol=1e-10, atol=1e-10 * scale)


def projection_by_inversion(q: Array, d: Array) -> Array:
    """Return the inverse of ``diag(1/d) + q qᵀ`` on the vectors that sum to 0, ``(C, C)``."""
    size = len(q)
    kkt = np.zeros((size + 1, size + 1))
    kkt[:size, :size] = np.diag(1 / d) + np.outer(q, q)
    kkt[size, :size] = kkt[:size, size] = 1
    inverse: Array = np.linalg.inv(kkt)[:size, :size]
    return inverse


@pytest.mark.parametrize(("width", "collision"), [(3, True), (6, True), (6, False)])
@pytest.mark.parametrize("backend", PASSES)
def test_a_step_against_dense_inverses(backend: str, width: int, collision: bool) -> None:
    """The four passes, row by row with the Hessian written out."""
    probs, weights, classes, y, zeta = (part.numpy() for part in random_candidates(15, width, 6, 4))
    whole = width == 6
    if whole:
        classes = np.tile(np.arange(6), (15, 1))
    given_rows = probs if collision else np.log(probs)
    coincidence = (probs * y).sum(1, keepdims=True)
    g = probs / coincidence if collision else np.log(probs)
    shift, target = np.random.default_rng(0).normal(size=6), 1e-3
    projections = [
        projection_by_inversion(row if collision else 0 * row, ratio)
        for row, ratio in zip(g, y / zeta, strict=True)
    ]

    def project(r: Array) -> Array:
        return np.stack([p @ row for p, row in zip(projections, r, strict=True)])

    def collect(entries: Array) -> Array:
        return np.bincount(classes.ravel(), (weights[:, None] * entries).ravel(), 6)

    rows = PASSES[backend][0].newton_rows(
        *(on_device(part, backend) for part in (given_rows, weights)), 6,
        collision=collision, classes=None if whole else on_device(classes, backend),
    )  # fmt: skip
    rows.load(*(on_device(part, backend).clone() for part in (y, zeta)))
    factors = rows.factor()
    gram = np.zeros((6, 6))
    for p, own, weight in zip(projections, classes, weights, strict=True):
        gram[np.ix_(own, own)] -= weight * p
    np.testing.assert_allclose(np.triu(factors.gram, 1), np.triu(gram, 1), rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(factors.gradient, collect(project(g)), rtol=1e-8, atol=1e-11)
    np.testing.assert_allclose(factors.mean_label, collect(y), rtol=1e-12)
    assert factors.complementarity == pytest.approx((weights[:, None] * y * zeta).sum())

    prediction, ratio = rows.predict(shift), project(g + shift[classes]) / y
    assert prediction[:2] == pytest.approx((ratio.min(), ratio.max()), rel=1e-8)
    for power, found in ((1, prediction.first), (2, prediction.second)):
        assert found == pytest.approx((weights[:, None] * y * zeta * ratio**power).sum(), rel=1e-8)
    bent = zeta * np.minimum(ratio * (1 + ratio), 10)
    np.testing.assert_allclose(prediction.center, collect(project(1 / y)), rtol=1e-7, atol=1e-9)
    np.testing.assert_allclose(prediction.correction, collect(project(bent)), rtol=1e-7, atol=1e-9)

    extents = rows.correct(shift / 2, target)
    primal = project(g + shift[classes] / 2 + target / y + bent) / y
    dual = target / (y * zeta) + bent / zeta - 1 - primal
    assert tuple(extents) == pytest.approx((primal.min(), dual.min()), rel=1e-7)
    lengths = 0.9 / max(1, -primal.min()), 0.9 / max(1, -dual.min())
    labels, slacks = (array.cpu().numpy() for array in rows.advance(*lengths))
    np.testing.assert_allclose(labels, y * (1 + lengths[0] * primal), rtol=1e-7, atol=1e-12)
    np.testing.assert_allclose(slacks, zeta * (1 + lengths[1] * dual), rtol=1e-7, atol=1e-12)


@LAWS
@given(seed=seeds, n_rows=st.integers(1, 20), width=st.integers(2, 7), more=st.integers(0, 9))
def test_backends_agree_on_candidates(seed: int, n_rows: int, width: int, more: int) -> None:
    n_classes = width + more
    probs, weights, classes, labels, slacks = random_candidates(n_rows, width, n_classes, seed)
    shifts = np.random.default_rng(seed).normal(size=(4, n_classes))
    found = [
        trace(
            rows_of(backend, probs, weights, classes, n_classes),
            *(part.to(device) for part in (labels, slacks)),
            shifts,
        )
        for backend, (_, device) in PASSES.items()
    ]
    for other in found[1:]:
        assert_same(other, found[0])


@pytest.mark.parametrize("backend", PASSES)
@LAWS
@given(seed=seeds, n_rows=st.integers(1, 20), width=st.integers(2, 7))
def test_all_classes_are_the_dense_rows(backend: str, seed: int, n_rows: int, width: int) -> None:
    probs, weights, classes, labels, slacks = random_candidates(n_rows, width, width, seed)
    shifts = np.random.default_rng(seed).normal(size=(4, width))
    order, device = classes.argsort(1), PASSES[backend][1]
    dense = rows_of("torch", probs.gather(1, order), weights, None, width)
    expected = trace(dense, labels.gather(1, order), slacks.gather(1, order), shifts)
    found = rows_of(backend, probs, weights, classes, width)
    given_ones = (part.to(device) for part in (labels, slacks))
    assert_same(trace(found, *given_ones, shifts, order.to(device)), expected)


@pytest.mark.parametrize("n_classes", [40, 900])  # sums of its own for every thread, or one
@pytest.mark.usefixtures("three_threads")
def test_threads_add_up(n_classes: int) -> None:
    probs, weights, classes, labels, slacks = random_candidates(9000, 6, n_classes, 5)
    shifts = np.random.default_rng(0).normal(size=(2, n_classes))
    expected, found = (
        trace(rows_of(backend, probs, weights, classes, n_classes), labels, slacks, shifts)
        for backend in ("torch", "numba")
    )
    assert_same(found, expected)


@pytest.mark.usefixtures("three_threads")
def test_threads_over_all_classes_add_up() -> None:
    probs, weights, _, labels, slacks = random_candidates(40_000, 9, 9, 5)
    shifts = np.random.default_rng(0).normal(size=(1, 9))
    expected, found = (
        trace(rows_of(backend, probs, weights, None, 9), labels, slacks, shifts)
        for backend in ("torch", "numba")
    )
    assert_same(found, expected)


@pytest.mark.parametrize("backend", PASSES)
def test_the_callers_tensors_stay_untouched(backend: str) -> None:
    tensors = [part.to(PASSES[backend][1]) for part in random_candidates(12, 3, 6, 2)]
    before = [tensor.clone() for tensor in tensors]
    probs, weights, classes, labels, slacks = tensors
    trace(rows_of(backend, probs, weights, classes, 6), labels, slacks, np.eye(6)[:3])
    for one, other in zip(tensors, before, strict=True):
        assert torch.equal(one, other)


def test_compiled_passes_keep_the_arrays_they_are_given() -> None:
    probs = torch.from_numpy(random_probs(50, 4))
    weights = torch.full((50,), 1 / 50, dtype=torch.float64)
    rows = rows_of("numba", probs, weights, None, 4)
    given_ones = [torch.full((4, 50), value, dtype=torch.float64).T for value in (0.25, 1.0)]
    taken = rows.load(*given_ones)
    assert [array.data_ptr() for array in taken] == [array.data_ptr() for array in given_ones]
    by_rows = rows.load(*(array.contiguous() for array in given_ones))
    assert all(torch.equal(one, other) for one, other in zip(by_rows, given_ones, strict=True))


@pytest.mark.parametrize("collision", [True, False])
@pytest.mark.parametrize("backend", PASSES)
def test_sums_over_split_rows_add_up(backend: str, collision: bool) -> None:
    """What a distributed run relies on: halves of the rows give halves of the system."""
    probs = on_device(random_probs(40, 5), backend)
    given_rows = probs if collision else probs.log()
    labels = on_device(random_labels(40, 5), backend)
    slacks = torch.rand(40, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    slacks, weights = slacks.to(labels.device), torch.full_like(labels[:, 0], 1 / 40)

    def factors(part: slice) -> tuple[Array, Array, Array, float]:
        rows = PASSES[backend][0].newton_rows(
            given_rows[part].contiguous(), weights[part], 5, collision=collision
        )
        rows.load(labels[part].clone(), slacks[part] + 0.1)
        found = rows.factor()
        return np.triu(found.gram, 1), found.gradient, found.mean_label, found.complementarity

    whole, first, second = (factors(part) for part in (slice(0, 40), slice(0, 13), slice(13, 40)))
    for total, *parts in zip(whole, first, second, strict=True):
        np.testing.assert_allclose(parts[0] + parts[1], total, rtol=1e-11, atol=1e-13)


# --- the rows' answers to multipliers -------------------------------------------------------


@pytest.mark.parametrize("backend", PASSES)
@LAWS
@given(seed=seeds, size=sizes, scale=st.floats(0, 12), spread=st.floats(0, 50))
def test_row_duals_against_enumeration(
    backend: str, seed: int, size: tuple[int, int], scale: float, spread: float
) -> None:
    probs = random_probs(*size, scale=scale, seed=seed)
    multipliers = np.random.default_rng(seed + 1).normal(size=size[1]) * spread
    search = PASSES[backend][0].minimizers(on_device(probs, backend))
    found = search.minimize(multipliers).values
    expected = [dual_row_by_enumeration(row, multipliers) for row in probs]
    np.testing.assert_allclose(found.cpu().numpy(), expected, rtol=1e-12, atol=1e-11)


@pytest.mark.parametrize("name", degenerate_problems())
@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("backend", PASSES)
def test_row_duals_of_degenerate_rows(backend: str, name: str, ties: bool) -> None:
    probs = degenerate_problems()[name]
    n_classes = probs.shape[1]
    multipliers = np.zeros(n_classes) if ties else np.linspace(-3, 40, n_classes)
    search = PASSES[backend][0].minimizers(on_device(probs, backend))
    found = search.minimize(multipliers).values
    expected = [dual_row_by_enumeration(row, multipliers) for row in probs]
    np.testing.assert_allclose(found.cpu().numpy(), expected, rtol=1e-12, atol=1e-11)


@pytest.mark.parametrize("backend", PASSES)
@LAWS
@given(seed=seeds, size=sizes, scale=st.floats(0, 12), spread=st.floats(0, 5))
def test_row_minimizers_attain_the_dual_from_cold_and_from_warm(
    backend: str, seed: int, size: tuple[int, int], scale: float, spread: float
) -> None:
    probs = random_probs(*size, scale=scale, seed=seed)
    rng = np.random.default_rng(seed + 1)
    search = PASSES[backend][0].minimizers(on_device(probs, backend))
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


@pytest.mark.parametrize("backend", PASSES)
def test_row_duals_drop_by_a_common_constant(backend: str) -> None:
    probs, multipliers = on_device(random_probs(9, 4), backend), np.array([0.3, -2, 5, 0])
    plain, moved = (
        PASSES[backend][0].minimizers(probs).minimize(multipliers + shift).values
        for shift in (0.0, 1000.0)
    )
    torch.testing.assert_close(moved, plain - 1000, rtol=1e-12, atol=0)


@pytest.mark.parametrize("backend", PASSES)
@pytest.mark.parametrize("shape", [(1, 2), (40, 5), (3, 9)])
def test_sums_over_the_answers_agree_with_dense_ones(backend: str, shape: tuple[int, int]) -> None:
    n_rows, n_classes = shape
    probs, rng = random_probs(*shape, scale=3), np.random.default_rng(5)
    multipliers, weights = rng.normal(size=n_classes), rng.uniform(0.1, 2, n_rows)
    passes, on_rows = PASSES[backend][0], on_device(weights, backend)
    answer = passes.minimizers(on_device(probs, backend)).minimize(multipliers)
    mean_label, value = passes.summed_answer(answer, on_rows, n_classes)
    values, steep, flat, share = (part.cpu().numpy() for part in answer)
    labels = np.zeros_like(probs)
    rates, edges = np.zeros((2, n_classes, n_classes))
    for i, (one, other, s) in enumerate(zip(steep, flat, share, strict=True)):
        labels[i, one] += s
        labels[i, other] += 1 - s
        edge = np.eye(n_classes)[one] - np.eye(n_classes)[other]
        edges += weights[i] * np.outer(edge, edge)
        if 0 < s < 1:
            rates += weights[i] * np.outer(edge, edge) / (edge @ multipliers) ** 2
    np.testing.assert_allclose(mean_label, weights @ labels, rtol=1e-12, atol=1e-15)
    assert float(value) == pytest.approx(weights @ values, rel=1e-12)
    curvature = passes.answer_curvature(answer, on_rows, multipliers)
    np.testing.assert_allclose(curvature, rates, rtol=1e-9, atol=1e-12)
    graph = passes.laplacian(answer.steep, answer.flat, on_rows, n_classes)
    np.testing.assert_allclose(graph, edges, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("backend", PASSES)
def test_the_curvature_is_how_the_mean_answer_moves(backend: str) -> None:
    probs, multipliers = random_probs(200, 4), np.array([0.3, -0.2, 0.5, 0])
    passes, weights = PASSES[backend][0], on_device(np.full(200, 1 / 200), backend)
    search = passes.minimizers(on_device(probs, backend))
    curvature = passes.answer_curvature(search.minimize(multipliers), weights, multipliers)
    for step in 1e-7 * np.eye(4):
        ahead, behind = (
            passes.summed_answer(search.minimize(multipliers + s * step), weights, 4)[0]
            for s in (1, -1)
        )
        np.testing.assert_allclose((ahead - behind) / 2, curvature @ step, rtol=1e-5, atol=1e-14)


# --- the classes that can matter ------------------------------------------------------------


def distances_to_envelope(probs: Array, labels: Array, multipliers: Array) -> Array:
    """Return how far every line lies below its row's envelope, straight from the definition."""
    lines = probs / (probs * labels).sum(1, keepdims=True) + multipliers
    distances: Array = lines.max(1, keepdims=True) - lines
    return distances


@pytest.mark.parametrize(
    ("backend", "dtype"), [*itertools.product(PASSES, (torch.float64, torch.float32))]
)
@LAWS
@given(
    seed=seeds,
    size=st.tuples(st.integers(1, 15), st.integers(2, 9)),
    near_as=st.tuples(st.floats(1e-3, 4), st.integers(2, 9)),
    forced=st.booleans(),
)
def test_near_candidates_against_their_definition(
    *, backend: str, dtype: torch.dtype, seed: int, size: tuple[int, int],
    near_as: tuple[float, int], forced: bool,
) -> None:  # fmt: skip
    slack, most = near_as[0], min(near_as[1], size[1])
    passes, rng = PASSES[backend][0], np.random.default_rng(seed)
    probs = on_device(random_probs(*size, scale=3, seed=seed), backend, dtype)
    multipliers = rng.normal(size=size[1]) * 2
    answer = passes.minimizers(probs).minimize(multipliers)
    labels = torch.zeros(size, dtype=torch.float64, device=probs.device)
    labels.scatter_add_(1, answer.steep[:, None], answer.share[:, None])
    labels.scatter_add_(1, answer.flat[:, None], 1 - answer.share[:, None])
    below = distances_to_envelope(probs.double().cpu().numpy(), labels.cpu().numpy(), multipliers)
    options, first = {}, np.zeros(size, bool)
    if forced:  # one class that each row keeps, and one that comes first for the rows near it
        kept, within = rng.integers(size[1], size=(size[0], 1)), np.full(size[1], -1.0)
        within[0] = 2.0
        options = {"kept": on_device(kept, backend), "within": within}
        first |= below <= within
        np.put_along_axis(first, kept, values=True, axis=1)
    wanted = np.where(first, -1.0, below)
    near = (wanted <= slack).sum(1)

    found, classes = passes.near_candidates(
        probs, multipliers, answer, slack=slack, most=most, **options
    )
    rows = found.cpu().numpy()
    np.testing.assert_array_equal(rows, np.flatnonzero(near > 1))
    assert classes.shape[1] == min(most, near.max())
    picked = np.take_along_axis(wanted[rows], classes.cpu().numpy(), 1)
    np.testing.assert_allclose(picked, np.sort(wanted[rows])[:, : classes.shape[1]], atol=1e-9)
    assert all(len(set(row)) == len(row) for row in classes.tolist())


@pytest.mark.parametrize("backend", PASSES)
def test_nearest_rows_against_their_definition(backend: str) -> None:
    problem = problem_of(random_probs(40, 9), fairness=100.0, backend=backend)
    point = point_at(problem, np.random.default_rng(0).normal(size=9) + 10)
    _, steep, flat, share = (part.cpu().numpy() for part in point.rows)
    labels = np.eye(9)[steep] * share[:, None] + np.eye(9)[flat] * (1 - share)[:, None]
    distances = distances_to_envelope(problem.probs.cpu().numpy(), labels, point.multipliers)
    counts = np.array([0, 1, 5, 40, 99, 0, 7, 2, 3], float)
    nearest = nearest_rows(problem.probs, point.multipliers, point.rows, counts)
    rows, classes, found = (part.cpu().numpy() for part in nearest)
    np.testing.assert_array_equal(np.bincount(classes, minlength=9), np.minimum(counts, 40))
    for k in range(9):
        expected = np.sort(distances[:, k])[: int(counts[k])]
        np.testing.assert_allclose(np.sort(found[classes == k]), expected, atol=1e-12)
        np.testing.assert_allclose(
            np.sort(distances[rows[classes == k], k]), expected, rtol=0, atol=1e-12
        )
