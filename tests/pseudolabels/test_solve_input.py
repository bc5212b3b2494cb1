"""What the solver refuses, and the sentence that says so."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from array_layouts import LAYOUTS
from coincide import solve_pseudo_labels
from coincide.pseudolabels import SOLVERS, ProjectedGradient
from coincide.pseudolabels.solve import check_solver
from problems import prior_with_first, random_labels, random_probs

PROBS = random_probs(6, 3)
NAN, INF = float("nan"), float("inf")


def with_row(row: int, values: list[float]) -> Any:
    probs = PROBS.copy()
    probs[row] = values
    return probs


@pytest.mark.parametrize(
    ("probs", "message"),
    [
        (with_row(2, [NAN, 0.5, 0.5]), r"'probs' .* Row 2 has NaN or infinite entries \(1 of 6"),
        (with_row(5, [INF, 0.5, 0.5]), "Row 5 has NaN or infinite entries"),
        (with_row(1, [-0.25, 0.75, 0.5]), "Row 1 has a negative entry, -0.25"),
        (with_row(3, [0.5, 0.75, 0.5]), r"Row 3 sums to 1\.75"),
        (with_row(0, [0.0, 0.0, 0.0]), "Row 0 sums to 0"),
        (2 * PROBS, r"Row 0 sums to 2 \(6 of 6 rows are not probabilities\)"),
        (PROBS[0], r"'probs' .* of shape \(n_rows, n_classes\)\. Got \(3,\) instead"),
        (PROBS[None], r"Got \(1, 6, 3\) instead"),
        (PROBS[:, :1] * 0 + 1, r"at least 1 row and 2 classes\. Got \(6, 1\)"),
        (PROBS[:0], r"at least 1 row and 2 classes\. Got \(0, 3\)"),
        (np.empty((0, 0)), r"Got \(0, 0\)"),
        (0.5, r"Got \(\) instead"),
    ],
)
def test_bad_predictions(probs: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        solve_pseudo_labels(probs)
    if isinstance(probs, np.ndarray):
        with pytest.raises(ValueError, match=message):
            solve_pseudo_labels(torch.from_numpy(probs))


@pytest.mark.parametrize("probs", [PROBS + 0j, PROBS > 0.5], ids=["complex", "bool"])
def test_predictions_of_the_wrong_type(probs: Any) -> None:
    with pytest.raises(TypeError, match=r"'probs' .* must be an array of real numbers"):
        solve_pseudo_labels(probs)


@pytest.mark.parametrize("probs", ["a name", None, [["a", "b"]]], ids=["str", "none", "strings"])
def test_predictions_that_are_no_array(probs: Any) -> None:
    with pytest.raises((TypeError, ValueError), match="'probs' parameter of solve_pseudo_labels"):
        solve_pseudo_labels(probs)


CASES: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "prior too short": ({"prior": np.ones(2) / 2}, ValueError, r"'prior' .* \(3,\).*Got \(2,\)"),
    "prior a matrix": ({"prior": np.ones((1, 3)) / 3}, ValueError, r"'prior' .* Got \(1, 3\)"),
    "prior sums to 1.5": ({"prior": np.full(3, 0.5)}, ValueError, r"'prior' .* sums to 1\.5"),
    "prior negative": ({"prior": np.array([-0.5, 1, 0.5])}, ValueError, "negative entry, -0.5"),
    "prior NaN": ({"prior": np.array([NAN, 1, 0])}, ValueError, "'prior' .* NaN"),
    "prior bool": ({"prior": np.array([True, False, False])}, TypeError, "'prior' .* real numbers"),
    "fairness negative": ({"fairness": -1}, ValueError, r"'fairness' .* >= 0\. Got -1 instead"),
    "fairness NaN": ({"fairness": NAN}, ValueError, r"'fairness' .* Got nan"),
    "fairness infinite": ({"fairness": INF}, ValueError, r"'fairness' .* Got inf"),
    "fairness bool": ({"fairness": True}, TypeError, r"'fairness' .* Got True"),
    "fairness text": ({"fairness": "1"}, TypeError, r"'fairness' .* Got '1'"),
    "fairness none": ({"fairness": None}, TypeError, r"'fairness' .* Got None"),
    "unknown solver": (
        {"solver": "newton"},
        ValueError,
        "'solver' .* one of 'auto', 'active-set', ",
    ),
    "solver a number": ({"solver": 3}, TypeError, "'solver' .* a name or a solver. Got 3"),
    "unknown objective": ({"objective": "ce"}, ValueError, "'objective' .* 'cce.', 'cce', 'ce.kl'"),
    "objective none": ({"objective": None}, ValueError, "'objective' .* Got None"),
    "known too large": ({"known": np.array([-1, 3, -1, 0, 0, 0])}, ValueError, "Got 3 in row 1"),
    "known too small": ({"known": np.array([0, 0, -2, 0, 0, 0])}, ValueError, "Got -2 in row 2"),
    "known float": ({"known": np.zeros(6)}, TypeError, "'known' .* integer class ids. Got 't"),
    "known bool": ({"known": np.zeros(6, bool)}, TypeError, "'known' .* integer class ids"),
    "known too short": ({"known": np.zeros(5, int)}, ValueError, r"'known' .* \(6,\).*Got \(5,\)"),
    "init wrong shape": ({"init": PROBS[:5]}, ValueError, r"'init' .* \(6, 3\)\. Got \(5, 3\)"),
    "init unnormalized": ({"init": PROBS * 2}, ValueError, "'init' .* Row 0 sums to 2"),
    "init NaN": ({"init": with_row(4, [NAN, 0, 1])}, ValueError, "'init' .* Row 4 has NaN"),
    "tol negative": ({"tol": -1e-6}, ValueError, r"'tol' .* >= 0"),
    "tol NaN": ({"tol": NAN}, ValueError, r"'tol' .* Got nan"),
    "tol text": ({"tol": "small"}, TypeError, "'tol' .* Got 'small'"),
    "max_iter 0": ({"max_iter": 0}, ValueError, r"'max_iter' .* integer >= 1\. Got 0"),
    "max_iter 2.5": ({"max_iter": 2.5}, TypeError, r"'max_iter' .* Got 2\.5"),
    "max_iter bool": ({"max_iter": True}, TypeError, r"'max_iter' .* Got True"),
    "weights negative": ({"sample_weight": np.r_[-1, np.ones(5)]}, ValueError, "'sample_weight'"),
    "weights zero": ({"sample_weight": np.zeros(6)}, ValueError, "'sample_weight' .* not all zero"),
    "weights NaN": ({"sample_weight": np.r_[NAN, np.ones(5)]}, ValueError, "'sample_weight'"),
    "weights infinite": ({"sample_weight": np.r_[INF, np.ones(5)]}, ValueError, "'sample_weight'"),
    "weights too few": ({"sample_weight": np.ones(5)}, ValueError, r"'sample_weight' .*Got \(5,\)"),
}


@pytest.mark.parametrize("case", CASES)
def test_bad_argument(case: str) -> None:
    arguments, error, message = CASES[case]
    with pytest.raises(error, match=message) as caught:
        solve_pseudo_labels(PROBS, **arguments)
    sentence = str(caught.value)
    assert "solve_pseudo_labels" in sentence
    assert sentence.endswith((".", "probabilities)."))
    assert "tensor(" not in sentence
    assert "array(" not in sentence


ALL_OBJECTIVES = ("cce+", "cce", "ce+kl")
UNFIT = [
    (name, objective)
    for name, solver in SOLVERS.items()
    for objective in ALL_OBJECTIVES
    if objective not in solver.objectives
]


def test_the_unfit_pairs_are_those_documented() -> None:
    assert set(UNFIT) == {
        ("active-set", "ce+kl"),
        ("em", "cce"),
        ("em", "ce+kl"),
        ("closed-form", "cce+"),
        ("closed-form", "cce"),
        ("sinkhorn", "cce+"),
        ("sinkhorn", "cce"),
    }


@pytest.mark.parametrize(("name", "objective"), UNFIT)
@pytest.mark.parametrize("as_object", [False, True])
def test_unfit_pairs_are_refused_by_name(name: str, objective: str, as_object: bool) -> None:
    solver = SOLVERS[name] if as_object else name
    with pytest.raises(ValueError, match="does not fit the objective") as caught:
        solve_pseudo_labels(PROBS, solver=solver, objective=objective)
    sentence = str(caught.value)
    assert repr(name) in sentence
    assert repr(objective) in sentence
    assert "'interior-point'" in sentence  # the way out


@pytest.mark.parametrize("objective", ["cce", "ce+kl"])
def test_known_row_of_a_forbidden_class(objective: str) -> None:
    known = np.array([-1, 0, -1, -1, -1, -1])
    with pytest.raises(ValueError, match="'known' parameter names a class whose prior is 0"):
        solve_pseudo_labels(PROBS, prior=prior_with_first(3, 0.0), known=known, objective=objective)


@pytest.mark.parametrize("objective", ["cce", "ce+kl"])
def test_row_that_predicts_only_forbidden_classes(objective: str) -> None:
    probs = with_row(4, [1.0, 0.0, 0.0])
    with pytest.raises(ValueError, match=r"Row 4 .* 0 in every class that the prior allows"):
        solve_pseudo_labels(probs, prior=prior_with_first(3, 0.0), objective=objective)


@pytest.mark.parametrize("objective", ["cce", "ce+kl"])
def test_row_number_counts_all_rows_when_some_are_known(objective: str) -> None:
    probs, known = with_row(4, [1.0, 0.0, 0.0]), np.array([1, 2, -1, -1, -1, -1])
    with pytest.raises(ValueError, match=r"Row 4 "):
        solve_pseudo_labels(probs, prior=prior_with_first(3, 0.0), objective=objective, known=known)


# --- what is accepted -----------------------------------------------------------------------


def test_a_known_row_that_is_predicted_impossible_is_an_honest_infinity() -> None:
    probs, known = with_row(2, [0.0, 0.5, 0.5]), np.array([-1, -1, 0, -1, -1, -1])
    found = solve_pseudo_labels(probs, known=known)
    assert found.objective == INF
    assert found.gap == 0  # no labels of the free rows are better: all are infinite


def test_lists_and_integers_are_read_as_numbers() -> None:
    from_lists = solve_pseudo_labels(PROBS.tolist(), prior=[0.5, 0.25, 0.25], fairness=1)  # type: ignore[call-overload]
    from_array = solve_pseudo_labels(PROBS, prior=np.array([0.5, 0.25, 0.25]), fairness=1.0)
    np.testing.assert_array_equal(from_lists.labels, from_array.labels)
    one_hot = solve_pseudo_labels(np.eye(3, dtype=int)[[0, 1, 2]])
    assert one_hot.objective == pytest.approx(0, abs=1e-6)


def test_a_solver_object_is_accepted() -> None:
    found = solve_pseudo_labels(
        PROBS, solver=ProjectedGradient(step_size=0.1), fairness=0.1, tol=1e-2
    )
    assert found.solver == "projected-gradient"
    assert found.converged


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rows_rounded_to_their_dtype_are_accepted(dtype: torch.dtype) -> None:
    probs = torch.from_numpy(random_probs(200, 50)).to(dtype)
    assert solve_pseudo_labels(probs).converged


def test_prior_and_weights_of_other_dtypes_and_kinds() -> None:
    plain = solve_pseudo_labels(PROBS, prior=np.array([0.5, 0.25, 0.25]))
    mixed = solve_pseudo_labels(
        PROBS,
        prior=torch.tensor([0.5, 0.25, 0.25]),
        sample_weight=np.full(6, 2),
        known=torch.full((6,), -1, dtype=torch.int32),
        init=torch.from_numpy(random_labels(6, 3)),
    )  # type: ignore[arg-type]
    assert isinstance(mixed.labels, np.ndarray)
    assert mixed.objective == pytest.approx(plain.objective, abs=2e-6)


@pytest.mark.parametrize("solver", ["active-set", "interior-point"])
def test_too_many_classes_for_a_dense_system_name_the_way_out(solver: str) -> None:
    probs = np.full((1, 100_000), 1e-5)
    with pytest.raises(ValueError, match=rf"'{solver}' .* 100,000 classes: take 'projected-grad"):
        solve_pseudo_labels(probs, solver=solver)


@pytest.mark.parametrize(
    ("objective", "expected"),
    [("cce+", "em"), ("cce", "projected-gradient"), ("ce+kl", "projected-gradient")],
)
def test_more_classes_than_a_dense_system_takes(objective: str, expected: str) -> None:
    """The gap that is left is an honest one."""
    probs = random_probs(2, 20_000)
    found = solve_pseudo_labels(probs, objective=objective, fairness=10.0, max_iter=10)
    assert found.solver == expected
    assert found.labels.sum(1) == pytest.approx(1)
    assert found.gap == found.objective - found.lower_bound >= -1e-12
    assert found.converged == (found.gap <= 1e-6 * max(1.0, abs(found.objective)))
    equal = np.full((1, 100_000), 1e-5)
    settled = solve_pseudo_labels(equal, objective=objective, fairness=1.0)
    assert settled.converged
    assert settled.objective == pytest.approx(np.log(100_000))


def test_the_automatic_solver_is_the_fastest_exact_one() -> None:
    chosen = {
        (objective, n_classes): check_solver("auto", objective, "test", n_classes).name
        for objective in ALL_OBJECTIVES
        for n_classes in (2, 10_000, 10_001)
    }
    assert chosen == {
        ("cce+", 2): "active-set", ("cce+", 10_000): "active-set", ("cce+", 10_001): "em",
        ("cce", 2): "active-set", ("cce", 10_000): "active-set",
        ("cce", 10_001): "projected-gradient",
        ("ce+kl", 2): "interior-point", ("ce+kl", 10_000): "interior-point",
        ("ce+kl", 10_001): "projected-gradient",
    }  # fmt: skip


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("layout", LAYOUTS)
def test_arrays_of_any_layout_are_taken_as_they_are(layout: str) -> None:
    change = LAYOUTS[layout]
    known = np.array([0, -1, 2, -1, -1, -1])
    weights, prior, init = np.arange(1.0, 7), np.array([0.5, 0.3, 0.2]), random_labels(6, 3)
    expected = solve_pseudo_labels(
        PROBS, prior=prior, known=known, sample_weight=weights, init=init, solver="em"
    )
    found = solve_pseudo_labels(
        change(PROBS),
        prior=change(prior),
        known=change(known),
        sample_weight=change(weights),
        init=change(init),
        solver="em",
    )
    np.testing.assert_array_equal(found.labels, expected.labels)
