"""The rules of other methods: MIADM's closed form and SeLa's Sinkhorn, against their sources."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.optimize import linear_sum_assignment, linprog

from coincide import solve_pseudo_labels
from coincide.pseudolabels import Sinkhorn
from problems import Array, random_probs, skewed_prior


def test_closed_form_is_the_published_formula() -> None:
    """MIADM: ``y_ik ∝ σ_ik / sqrt(Σ_j σ_jk)``."""
    probs = random_probs(25, 4)
    expected = probs / np.sqrt(probs.sum(0))
    expected /= expected.sum(1, keepdims=True)
    found = solve_pseudo_labels(probs, objective="ce+kl", solver="closed-form")
    np.testing.assert_allclose(found.labels, expected, rtol=1e-12)
    assert found.n_iter == 1


def test_closed_form_with_prior_and_weights() -> None:
    probs, prior, weights = random_probs(25, 4), skewed_prior(4), np.linspace(1, 2, 25)
    expected = probs * np.sqrt(prior / (weights @ probs))
    expected /= expected.sum(1, keepdims=True)
    found = solve_pseudo_labels(
        probs, prior=prior, sample_weight=weights, objective="ce+kl", solver="closed-form"
    )
    np.testing.assert_allclose(found.labels, expected, rtol=1e-12)


def test_closed_form_skips_a_class_nobody_predicts() -> None:
    probs = np.c_[random_probs(10, 3), np.zeros(10)]
    found = solve_pseudo_labels(probs, objective="ce+kl", solver="closed-form")
    assert (found.labels[:, 3] == 0).all()
    np.testing.assert_allclose(found.labels.sum(1), 1)


@pytest.mark.parametrize("skewed", [False, True])
@pytest.mark.parametrize("sharpness", [1.0, 10.0])
def test_sinkhorn_reaches_the_marginals(skewed: bool, sharpness: float) -> None:
    probs = random_probs(60, 5)
    prior = skewed_prior(5) if skewed else np.full(5, 0.2)
    found = solve_pseudo_labels(
        probs, prior=prior, objective="ce+kl", solver=Sinkhorn(sharpness, marginal_tol=1e-9)
    )
    np.testing.assert_allclose(found.mean_label, prior, rtol=1e-8)
    np.testing.assert_allclose(found.labels.sum(1), 1, atol=1e-12)
    # A scaling of σ^sharpness: ln y - sharpness · ln σ is a row term plus a column term.
    free = np.log(found.labels) - sharpness * np.log(probs)
    free -= free.mean(1, keepdims=True)
    np.testing.assert_allclose(free - free.mean(0), 0, atol=1e-7)


def transport_cost(probs: Array, prior: Array) -> float:
    """Return the least mean cost ``-ln σ`` with ``ȳ = u``, as a linear program."""
    n_rows, n_classes = probs.shape
    rows = np.kron(np.eye(n_rows), np.ones(n_classes))
    columns = np.kron(np.ones(n_rows) / n_rows, np.eye(n_classes))
    found = linprog(
        -np.log(probs).ravel() / n_rows,
        A_eq=np.vstack((rows, columns)),
        b_eq=np.r_[np.ones(n_rows), prior],
    )
    return float(found.fun)


@pytest.mark.parametrize("sharpness", [5.0, 50.0, 200.0])
def test_sinkhorn_approaches_the_transport_optimum(sharpness: float) -> None:
    """The entropy it adds is at most ln K, so the cost is within ln K / sharpness."""
    probs, prior = random_probs(24, 4), skewed_prior(4)
    found = solve_pseudo_labels(
        probs, prior=prior, objective="ce+kl", fairness=0.0, max_iter=20_000,
        solver=Sinkhorn(sharpness, marginal_tol=1e-6),
    )  # fmt: skip
    np.testing.assert_allclose(found.mean_label, prior, rtol=2e-6)
    cost = -(found.labels * np.log(probs)).sum(1).mean()
    optimum = transport_cost(probs, prior)
    assert optimum - 1e-4 <= cost <= optimum + np.log(4) / sharpness + 1e-4


def test_sharp_sinkhorn_is_the_balanced_assignment() -> None:
    probs = random_probs(12, 3, scale=1.0, seed=1)
    found = solve_pseudo_labels(
        probs, objective="ce+kl", solver=Sinkhorn(400.0, marginal_tol=1e-4), max_iter=20_000
    )
    rows, seats = linear_sum_assignment(-np.log(np.repeat(probs, 4, axis=1)))
    np.testing.assert_array_equal(found.labels[rows].argmax(1), seats // 4)
    assert np.bincount(found.labels.argmax(1)).tolist() == [4, 4, 4]


def test_sinkhorn_refuses_a_class_it_cannot_fill() -> None:
    probs = np.c_[random_probs(10, 3), np.zeros(10)]
    with pytest.raises(ValueError, match=r"Got none in class 3; use 'interior-point'"):
        solve_pseudo_labels(probs, objective="ce+kl", solver="sinkhorn")


def test_sinkhorn_fills_a_class_that_all_but_vanished() -> None:
    """``σ^10`` of a class at ``e^-80`` is ``e^-800``, beyond float64."""
    logits = torch.randn(40, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    logits[:, 0] -= 80
    probs = torch.softmax(logits, 1)
    for dtype in (torch.float32, torch.float64):
        found = solve_pseudo_labels(probs.to(dtype), objective="ce+kl", solver="sinkhorn")
        torch.testing.assert_close(
            found.labels.mean(0), torch.full((3,), 1 / 3, dtype=dtype), atol=1e-3, rtol=0
        )
        near = solve_pseudo_labels(
            torch.softmax(logits + torch.tensor([80.0, 0, 0]), 1).to(dtype),
            objective="ce+kl",
            solver="sinkhorn",
        )
        # A factor common to a column makes no difference.
        torch.testing.assert_close(found.labels, near.labels, atol=1e-2, rtol=0)


def test_sinkhorn_with_known_rows_still_reaches_the_prior() -> None:
    probs, known = random_probs(40, 4), np.where(np.arange(40) < 4, 0, -1)
    found = solve_pseudo_labels(probs, known=known, objective="ce+kl", solver="sinkhorn")
    np.testing.assert_allclose(found.mean_label, 0.25, rtol=2e-3)


def test_interior_point_beats_the_rules_on_their_own_objective() -> None:
    probs = random_probs(60, 5)
    exact = solve_pseudo_labels(probs, objective="ce+kl")
    for name in ("closed-form", "sinkhorn"):
        rule = solve_pseudo_labels(probs, objective="ce+kl", solver=name)
        assert exact.objective <= rule.objective + 1e-6
        assert rule.gap >= -1e-12
