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
    available_backends,
    candidate_kernels,
    near_candidates,
    row_kernels,
    row_minimizers,
)
from coincide.pseudolabels.problem import Problem
from coincide.pseudolabels.reduction import reduce_problem
from coincide.pseudolabels.working_set import WorkingSet, working_set
from problems import Array, degenerate_problems, random_labels, random_probs, skewed_prior

LAWS = settings(max_examples=25, deadline=None)
seeds = st.integers(0, 2**31 - 1)
BACKENDS = available_backends()


@pytest.fixture
def three_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


def random_candidates(n_rows: int, width: int, n_classes: int, seed: int) -> tuple[Tensor, ...]:
    """Return the predictions, weights, classes, labels and slacks of an interior iterate."""
    rng = np.random.default_rng(seed)
    classes = rng.permuted(np.tile(np.arange(n_classes), (n_rows, 1)), axis=1)[:, :width].copy()
    probs = np.take_along_axis(random_probs(n_rows, n_classes, scale=3, seed=seed), classes, 1)
    labels = random_labels(n_rows, width, seed=seed + 1)
    slacks = np.exp(rng.normal(size=(n_rows, width)) * 3)
    weights = rng.uniform(0.1, 2, n_rows) / n_rows
    return tuple(torch.from_numpy(a) for a in (probs, weights, classes, labels, slacks))


def trace(kernels: RowKernels, labels: Tensor, slacks: Tensor, shifts: Array) -> list[Array]:
    """Return everything that the kernels say over a step along each of the shifts."""
    kernels.load(labels, slacks)
    off_diagonal = 1 - np.eye(shifts.shape[1])
    said: list[Array] = []
    for shift in shifts:
        factors = kernels.factor()
        prediction = kernels.predict(shift)
        extents = kernels.correct(shift / 2, 1e-3)
        length = 0.9 * min(1.0, -1 / min(extents.primal, -1), -1 / min(extents.dual, -1))
        arrays = kernels.advance(length)
        said += [factors.gram * off_diagonal, *factors[1:], *prediction, *extents]
        said += [arrays.y.numpy().copy(), arrays.zeta.numpy().copy()]
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
def test_all_classes_are_the_dense_rows(
    backend: str, seed: int, n_rows: int, width: int
) -> None:
    probs, weights, classes, labels, slacks = random_candidates(n_rows, width, width, seed)
    shifts = np.random.default_rng(seed).normal(size=(4, width))
    order = classes.argsort(1)
    dense = row_kernels("torch", probs.gather(1, order), weights, collision=True)
    expected = trace(dense, labels.gather(1, order), slacks.gather(1, order), shifts)
    found = trace(
        candidate_kernels(backend, probs, weights, classes, width), labels, slacks, shifts
    )
    for n, part in enumerate(found):
        if part.shape == (n_rows, width) and expected[n] is not part and n % 13 >= 11:
            found[n] = np.take_along_axis(part, order.numpy(), 1)
    assert_same(found, expected)


@pytest.mark.parametrize(("n_classes", "threads"), [(40, 3), (900, 1)])
@pytest.mark.usefixtures("three_threads")
def test_threads_add_up(n_classes: int, threads: int) -> None:
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
