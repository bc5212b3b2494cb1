"""The public function: against cvxpy, by its own certificate, and by the laws of the problem."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from coincide import PseudoLabels, solve_pseudo_labels
from coincide.pseudolabels import SOLVERS
from problems import (
    OBJECTIVE_NAMES,
    cvxpy_optimum,
    degenerate_problems,
    objective_of,
    prior_with_first,
    random_labels,
    random_probs,
    skewed_prior,
)

LAWS = settings(max_examples=15, deadline=None)
seeds = st.integers(0, 2**31 - 1)
PAIRS = [(name, objective) for name, solver in SOLVERS.items() for objective in solver.objectives]
EXACT_SOLVERS = ("active-set", "interior-point")
CONVERGENT = [pair for pair in PAIRS if pair[0] not in ("closed-form", "sinkhorn")]
FIRST_ORDER = [pair for pair in CONVERGENT if pair[0] not in EXACT_SOLVERS]
EXACT = 1e-8


def uniform(n_classes: int) -> NDArray[np.float64]:
    return np.full(n_classes, 1 / n_classes)


def assert_feasible(labels: Any, tol: float = 1e-12) -> None:
    values = np.asarray(labels, dtype=np.float64)
    assert np.isfinite(values).all()
    assert (values >= 0).all()
    np.testing.assert_allclose(values.sum(1), 1, rtol=0, atol=tol)


def assert_certified(found: PseudoLabels[Any], tol: float) -> None:
    """The gap is small, is what it says it is, and is a gap (not below rounding)."""
    assert np.isfinite([found.objective, found.lower_bound]).all()
    scale = max(1.0, abs(found.objective))
    assert found.gap == found.objective - found.lower_bound
    assert -1e-10 * scale <= found.gap <= tol * scale
    assert found.converged


def assert_honest(found: PseudoLabels[Any], tol: float) -> None:
    """``converged`` says that the gap is small, and an infinite gap is not."""
    small = np.isfinite(found.gap) and found.gap <= tol * max(1.0, abs(found.objective))
    assert found.converged == small


# --- against an independent solver ----------------------------------------------------------


@pytest.mark.parametrize("objective", OBJECTIVE_NAMES)
@pytest.mark.parametrize("skewed", [False, True], ids=["uniform", "skewed"])
@pytest.mark.parametrize("fairness", [0.3, 5.0])
@pytest.mark.parametrize("shape", [(1, 3), (4, 6), (12, 4)])
def test_optimum_of_cvxpy(
    objective: str, skewed: bool, fairness: float, shape: tuple[int, int]
) -> None:
    probs = random_probs(*shape, seed=shape[0])
    prior = skewed_prior(shape[1]) if skewed else uniform(shape[1])
    given_prior = prior if skewed else None
    found = solve_pseudo_labels(
        probs, prior=given_prior, fairness=fairness, objective=objective, tol=EXACT
    )
    arguments = {"prior": prior, "fairness": fairness, "objective": objective}
    assert found.objective == pytest.approx(cvxpy_optimum(probs, **arguments), abs=1e-6)
    assert objective_of(found.labels, probs, **arguments) == pytest.approx(
        found.objective, rel=1e-10
    )
    assert_certified(found, EXACT)


@pytest.mark.parametrize("objective", OBJECTIVE_NAMES)
def test_optimum_of_cvxpy_with_known_rows_and_weights(objective: str) -> None:
    probs = random_probs(12, 4, seed=3)
    known = np.full(12, -1)
    known[[0, 5, 7]] = [3, 0, 3]
    arguments: dict[str, Any] = {
        "prior": skewed_prior(4),
        "fairness": 2.0,
        "objective": objective,
    }
    weights = np.random.default_rng(0).uniform(0.1, 3, 12)
    found = solve_pseudo_labels(probs, known=known, sample_weight=weights, tol=EXACT, **arguments)
    expected = cvxpy_optimum(probs, known=known, weights=weights, **arguments)
    assert found.objective == pytest.approx(expected, abs=1e-6)
    assert objective_of(found.labels, probs, weights=weights, **arguments) == pytest.approx(
        found.objective, rel=1e-10
    )
    assert found.lower_bound == pytest.approx(expected, abs=1e-6)
    assert_certified(found, EXACT)
    np.testing.assert_array_equal(found.labels[[0, 5, 7]], np.eye(4)[[3, 0, 3]])
    np.testing.assert_allclose(found.mean_label, weights / weights.sum() @ found.labels)


# --- the certified gap ----------------------------------------------------------------------


@pytest.mark.parametrize("objective", OBJECTIVE_NAMES)
@pytest.mark.parametrize("fairness", [0.0, 0.1, 1.0, 100.0, 1000.0])
@pytest.mark.parametrize("shape", [(250, 10), (60, 2), (50, 40)])
def test_the_default_is_exact_on_random_problems(
    objective: str, fairness: float, shape: tuple[int, int]
) -> None:
    probs = random_probs(*shape, seed=5)
    found = solve_pseudo_labels(probs, fairness=fairness, objective=objective, tol=EXACT)
    assert_certified(found, EXACT)
    assert_feasible(found.labels)


PRIORS = {
    "uniform": uniform,
    "zero entry": lambda n_classes: prior_with_first(n_classes, 0.0),
    "entry of 1e-12": lambda n_classes: prior_with_first(n_classes, 1e-12),
}


def has_finite_objective(probs: NDArray[np.float64], prior: NDArray[np.float64], name: str) -> bool:
    """Under KL(ȳ ‖ u) a row that predicts only classes of prior 0 makes the objective infinite."""
    return name == "cce+" or bool((probs[:, prior > 0].max(1) > 0).all())


@pytest.mark.parametrize("objective", OBJECTIVE_NAMES)
@pytest.mark.parametrize("fairness", [0.0, 1.0, 1000.0])
@pytest.mark.parametrize("prior_name", PRIORS)
@pytest.mark.parametrize("name", degenerate_problems())
def test_the_default_is_exact_on_degenerate_problems(
    name: str, prior_name: str, fairness: float, objective: str
) -> None:
    probs = degenerate_problems()[name]
    prior = PRIORS[prior_name](probs.shape[1])
    arguments: dict[str, Any] = {"prior": prior, "fairness": fairness, "objective": objective}
    if fairness > 0 and not has_finite_objective(probs, prior, objective):
        with pytest.raises(ValueError, match="the objective is infinite"):
            solve_pseudo_labels(probs, **arguments)
        return
    found = solve_pseudo_labels(probs, tol=EXACT, **arguments)
    assert_feasible(found.labels)
    assert_certified(found, EXACT)
    assert objective_of(found.labels, probs, **arguments) == pytest.approx(
        found.objective, rel=1e-9, abs=1e-9
    )


@pytest.mark.parametrize("objective", OBJECTIVE_NAMES)
@pytest.mark.parametrize("tol", [1e-10, 1e-12, 0.0])
def test_asking_for_more_than_rounding_allows_costs_nothing(objective: str, tol: float) -> None:
    """The gap may stop above ``tol``, but not above what a looser ``tol`` reaches."""
    probs = random_probs(60, 3)
    found = solve_pseudo_labels(probs, objective=objective, tol=tol)
    assert abs(found.gap) <= EXACT
    assert_honest(found, tol)


def test_uniform_prediction_costs_ln_k() -> None:
    found = solve_pseudo_labels(np.full((6, 4), 0.25))
    assert found.objective == pytest.approx(np.log(4))
    np.testing.assert_allclose(found.mean_label, 0.25, atol=1e-6)


def test_without_fairness_every_row_is_its_argmax() -> None:
    probs = random_probs(30, 5)
    for objective in OBJECTIVE_NAMES:
        found = solve_pseudo_labels(probs, fairness=0, objective=objective, tol=EXACT)
        assert found.objective == pytest.approx(-np.log(probs.max(1)).mean(), abs=1e-7)


def test_equal_rows_share_the_labels_of_their_mean() -> None:
    """With equal rows the optimum is one scalar at K = 2, whose grid minimum we know."""
    probs = np.tile([0.9, 0.1], (50, 1))
    found = solve_pseudo_labels(probs, fairness=0.5, tol=1e-10)
    first = np.linspace(1e-6, 1 - 1e-6, 2_000_001)
    fairness = -0.25 * (np.log(2 * first) + np.log(2 * (1 - first)))
    values = -np.log(0.9 * first + 0.1 * (1 - first)) + fairness
    assert found.objective == pytest.approx(values.min(), abs=1e-10)
    assert found.mean_label[0] == pytest.approx(first[values.argmin()], abs=1e-5)


# --- solvers against each other -------------------------------------------------------------


@pytest.mark.parametrize(("solver", "objective"), PAIRS)
@pytest.mark.parametrize("fairness", [0.1, 10.0])
def test_no_solver_is_below_the_exact_bound(solver: str, objective: str, fairness: float) -> None:
    probs = random_probs(40, 4, seed=9)
    arguments: dict[str, Any] = {
        "fairness": fairness,
        "objective": objective,
        "prior": skewed_prior(4),
    }
    exact = solve_pseudo_labels(probs, tol=EXACT, **arguments)
    found = solve_pseudo_labels(probs, solver=solver, max_iter=200, **arguments)
    assert_feasible(found.labels)
    assert found.objective >= exact.lower_bound - 1e-12
    assert found.lower_bound <= exact.objective + 1e-12
    assert found.solver == solver
    assert objective_of(found.labels, probs, **arguments) == pytest.approx(found.objective)


@pytest.mark.parametrize(("solver", "objective"), CONVERGENT)
def test_iterative_solvers_converge(solver: str, objective: str) -> None:
    probs = random_probs(40, 4, seed=9)
    arguments: dict[str, Any] = {"fairness": 0.5, "objective": objective}
    exact = solve_pseudo_labels(probs, tol=EXACT, **arguments)
    found = solve_pseudo_labels(probs, solver=solver, tol=1e-3, max_iter=5000, **arguments)
    assert_certified(found, 1e-3)
    assert found.objective == pytest.approx(exact.objective, abs=1e-3)


@pytest.mark.parametrize(("solver", "objective"), FIRST_ORDER)
@pytest.mark.parametrize("name", degenerate_problems())
def test_first_order_solvers_survive_degenerate_problems(
    solver: str, objective: str, name: str
) -> None:
    probs = degenerate_problems()[name]
    for fairness in (0.0, 1.0, 100.0):
        arguments: dict[str, Any] = {"fairness": fairness, "objective": objective}
        exact = solve_pseudo_labels(probs, tol=EXACT, **arguments)
        found = solve_pseudo_labels(probs, solver=solver, max_iter=10, **arguments)
        assert_feasible(found.labels)
        assert np.isfinite(found.objective)
        assert found.objective >= exact.lower_bound - 1e-12 * max(1, abs(exact.lower_bound))
        assert_honest(found, 1e-6)


@pytest.mark.parametrize(("solver", "objective"), CONVERGENT)
def test_one_step_reports_its_gap_honestly(solver: str, objective: str) -> None:
    probs = random_probs(50, 5, seed=2)
    exact = solve_pseudo_labels(probs, objective=objective, tol=EXACT)
    found = solve_pseudo_labels(probs, objective=objective, solver=solver, max_iter=1)
    assert found.n_iter == 1
    assert not found.converged
    assert found.gap == found.objective - found.lower_bound
    assert found.gap > 1e-6
    assert found.lower_bound <= exact.objective + 1e-10
    assert found.objective >= exact.lower_bound - 1e-10


# --- laws -----------------------------------------------------------------------------------


@pytest.mark.parametrize(("solver", "objective"), PAIRS)
def test_permutations_of_rows_and_classes(solver: str, objective: str) -> None:
    probs, prior = random_probs(30, 5, seed=4), skewed_prior(5)
    rng = np.random.default_rng(0)
    rows, classes = rng.permutation(30), rng.permutation(5)
    arguments: dict[str, Any] = {"objective": objective, "solver": solver, "fairness": 1.0}
    # The same few steps: near an optimum where rows tie, rounding alone moves the labels.
    plain = solve_pseudo_labels(probs, prior=prior, max_iter=4, **arguments)
    moved = solve_pseudo_labels(
        probs[rows][:, classes], prior=prior[classes], max_iter=4, **arguments
    )
    np.testing.assert_allclose(moved.labels, plain.labels[rows][:, classes], atol=1e-9)
    np.testing.assert_allclose(moved.mean_label, plain.mean_label[classes], atol=1e-10)
    assert moved.objective == pytest.approx(plain.objective, rel=1e-10)


@LAWS
@given(
    seed=seeds,
    n_rows=st.integers(1, 12),
    n_classes=st.integers(2, 6),
    fairness=st.floats(0, 200),
    objective=st.sampled_from(OBJECTIVE_NAMES),
)
def test_random_labels_are_never_better(
    seed: int, n_rows: int, n_classes: int, fairness: float, objective: str
) -> None:
    probs = random_probs(n_rows, n_classes, seed=seed)
    prior = random_labels(1, n_classes, seed=seed + 1)[0]
    arguments: dict[str, Any] = {"prior": prior, "fairness": fairness, "objective": objective}
    found = solve_pseudo_labels(probs, **arguments)
    assert_feasible(found.labels)
    other = objective_of(random_labels(n_rows, n_classes, seed=seed + 2), probs, **arguments)
    assert found.lower_bound <= min(other, found.objective) + 1e-9 * max(1, abs(other))


@pytest.mark.parametrize(("solver", "objective"), PAIRS)
def test_inputs_stay_untouched(solver: str, objective: str) -> None:
    probs = torch.from_numpy(random_probs(20, 4)).requires_grad_()
    prior, init = torch.from_numpy(skewed_prior(4)), torch.from_numpy(random_labels(20, 4))
    known = torch.full((20,), -1)
    known[3] = 2
    weights = torch.linspace(0.5, 2, 20, dtype=torch.float64)
    given_ones = (probs, prior, init, known, weights)
    copies = [tensor.detach().clone() for tensor in given_ones]
    found = solve_pseudo_labels(
        probs, prior=prior, init=init, known=known, sample_weight=weights,
        objective=objective, solver=solver, max_iter=5,
    )  # fmt: skip
    for tensor, copy in zip(given_ones, copies, strict=True):
        assert torch.equal(tensor, copy)
    assert not found.labels.requires_grad
    assert probs.grad is None


DTYPES = {
    torch.float64: torch.float64,
    torch.float32: torch.float32,
    torch.bfloat16: torch.float32,
    torch.float16: torch.float32,
}


@pytest.mark.parametrize(("dtype", "expected"), DTYPES.items(), ids=str)
def test_tensor_in_tensor_out(dtype: torch.dtype, expected: torch.dtype) -> None:
    probs = torch.from_numpy(random_probs(20, 4)).to(dtype)
    found = solve_pseudo_labels(probs)
    assert found.labels.dtype == expected
    assert found.labels.device == probs.device
    assert found.mean_label.dtype == torch.float64
    assert_certified(found, 1e-6)
    assert_feasible(found.labels, 1e-5 if expected == torch.float32 else 1e-12)


@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.float16])
def test_array_in_array_out(dtype: type) -> None:
    probs = random_probs(20, 4).astype(dtype)
    found = solve_pseudo_labels(probs)
    twin = solve_pseudo_labels(torch.from_numpy(probs))
    assert isinstance(found.labels, np.ndarray)
    assert isinstance(found.mean_label, np.ndarray)
    assert found.labels.dtype == (np.float64 if dtype is np.float64 else np.float32)
    np.testing.assert_array_equal(found.labels, twin.labels.numpy())
    np.testing.assert_array_equal(found.mean_label, twin.mean_label.numpy())
    assert found.objective == twin.objective


def test_memory_layout_does_not_matter() -> None:
    probs = random_probs(20, 4)
    plain = solve_pseudo_labels(probs)
    for other in (np.asfortranarray(probs), np.repeat(probs, 2, axis=0)[::2]):
        np.testing.assert_allclose(solve_pseudo_labels(other).labels, plain.labels, atol=1e-10)


# --- starts ---------------------------------------------------------------------------------


@pytest.mark.parametrize(("solver", "objective"), CONVERGENT)
def test_the_solution_stops_at_once(solver: str, objective: str) -> None:
    probs = random_probs(40, 4, seed=6)
    arguments: dict[str, Any] = {"objective": objective, "fairness": 1.0}
    exact = solve_pseudo_labels(probs, tol=EXACT, **arguments)
    for init in (exact, exact.labels):
        again = solve_pseudo_labels(probs, init=init, solver=solver, tol=1e-5, **arguments)
        assert again.n_iter == 0
        assert_certified(again, 1e-5)


@pytest.mark.parametrize(("solver", "objective"), CONVERGENT)
@pytest.mark.parametrize("start", ["hard", "soft", "one class"])
def test_any_start_leads_to_feasible_labels(solver: str, objective: str, start: str) -> None:
    probs = random_probs(30, 4, seed=6)
    init = {
        "hard": np.eye(4)[probs.argmax(1)],
        "soft": random_labels(30, 4),
        "one class": np.eye(4)[np.zeros(30, int)],
    }[start]
    found = solve_pseudo_labels(
        probs, init=init, objective=objective, solver=solver, fairness=1.0, max_iter=200
    )
    assert_feasible(found.labels)
    assert_honest(found, 1e-6)
    if solver in EXACT_SOLVERS:
        assert_certified(found, 1e-6)


# --- weights, known rows, priors ------------------------------------------------------------


@pytest.mark.parametrize("objective", OBJECTIVE_NAMES)
def test_integer_weights_repeat_rows(objective: str) -> None:
    probs, counts = random_probs(12, 4, seed=8), np.array([1, 2, 3] * 4)
    arguments: dict[str, Any] = {"objective": objective, "fairness": 1.0, "tol": EXACT}
    weighted = solve_pseudo_labels(probs, sample_weight=counts, **arguments)
    repeated = solve_pseudo_labels(np.repeat(probs, counts, axis=0), **arguments)
    assert weighted.objective == pytest.approx(repeated.objective, abs=3e-8)
    np.testing.assert_allclose(weighted.mean_label, repeated.mean_label, atol=1e-4)


@pytest.mark.parametrize(("solver", "objective"), CONVERGENT)
def test_rows_of_weight_zero_do_not_count(solver: str, objective: str) -> None:
    probs = random_probs(12, 4, seed=8)
    weights = np.array([1.0, 0.0, 2.0] * 4)
    arguments: dict[str, Any] = {
        "objective": objective,
        "fairness": 1.0,
        "solver": solver,
        "max_iter": 100,
    }
    kept = weights > 0
    weighted = solve_pseudo_labels(probs, sample_weight=weights, **arguments)
    absent = solve_pseudo_labels(probs[kept], sample_weight=weights[kept], **arguments)
    assert weighted.objective == pytest.approx(absent.objective, abs=3e-6)
    np.testing.assert_allclose(weighted.mean_label, absent.mean_label, atol=1e-3)
    np.testing.assert_allclose(
        weighted.mean_label, weights[kept] / weights.sum() @ weighted.labels[kept], atol=1e-12
    )
    assert_feasible(weighted.labels)


def test_scale_of_weights_does_not_matter() -> None:
    probs, weights = random_probs(12, 4), np.linspace(1, 3, 12)
    one = solve_pseudo_labels(probs, sample_weight=weights)
    other = solve_pseudo_labels(probs, sample_weight=weights * 1e9)
    np.testing.assert_allclose(one.labels, other.labels, atol=1e-6)


@pytest.mark.parametrize(("solver", "objective"), PAIRS)
def test_known_rows_are_held(solver: str, objective: str) -> None:
    probs = random_probs(20, 4)
    known = np.where(np.arange(20) % 3 == 0, np.arange(20) % 4, -1)
    found = solve_pseudo_labels(probs, known=known, solver=solver, objective=objective, max_iter=50)
    held = known >= 0
    np.testing.assert_array_equal(found.labels[held], np.eye(4)[known[held]])
    assert_feasible(found.labels)
    np.testing.assert_allclose(found.mean_label, found.labels.mean(0))
    arguments: dict[str, Any] = {"prior": uniform(4), "fairness": 100.0, "objective": objective}
    assert objective_of(found.labels, probs, **arguments) == pytest.approx(found.objective)


@pytest.mark.parametrize(("solver", "objective"), PAIRS)
def test_every_row_known(solver: str, objective: str) -> None:
    probs, known = random_probs(8, 4), np.arange(8) % 4
    found = solve_pseudo_labels(probs, known=known, solver=solver, objective=objective)
    np.testing.assert_array_equal(found.labels, np.eye(4)[known])
    assert found.objective == pytest.approx(-np.log(probs[np.arange(8), known]).mean())
    assert found.gap == 0
    assert found.converged
    assert found.n_iter == 0


def test_no_row_known_changes_nothing() -> None:
    probs = random_probs(8, 4)
    plain, marked = (solve_pseudo_labels(probs, known=k) for k in (None, np.full(8, -1)))
    np.testing.assert_array_equal(plain.labels, marked.labels)


@pytest.mark.parametrize("objective", ["cce", "ce+kl"])
def test_class_of_prior_zero_stays_empty(objective: str) -> None:
    probs, prior = random_probs(20, 4), prior_with_first(4, 0.0)
    found = solve_pseudo_labels(
        probs, prior=prior, objective=objective, init=random_labels(20, 4), fairness=1.0
    )
    assert (found.labels[:, 0] == 0).all()
    assert_certified(found, 1e-6)


def test_mean_label_approaches_the_prior_as_fairness_grows() -> None:
    probs, prior = random_probs(60, 4), skewed_prior(4)
    for objective in OBJECTIVE_NAMES:
        distances = [
            np.abs(
                solve_pseudo_labels(
                    probs, prior=prior, fairness=fairness, objective=objective
                ).mean_label
                - prior
            ).sum()
            for fairness in (0.0, 1.0, 10.0, 100.0)
        ]
        assert all(later < earlier for earlier, later in itertools.pairwise(distances))
        assert distances[-1] < 0.02
