"""The couplings against finite differences and Fenchel's inequality."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from coincide.pseudolabels import OBJECTIVES
from coincide.pseudolabels.objectives import ForwardKL, ReverseKL
from problems import Array, random_labels, skewed_prior

COUPLINGS = [ReverseKL, ForwardKL]


def slopes(of: Callable[[Array], Any], at: Array) -> Array:
    """Return central differences along every axis."""
    steps = 1e-5 * np.eye(len(at))
    return np.array([(of(at + step) - of(at - step)) / 2e-5 for step in steps])


def test_the_objectives_are_those_of_the_paper() -> None:
    parts = {name: (o.collision, o.coupling) for name, o in OBJECTIVES.items()}
    assert parts == {
        "cce+": (True, ReverseKL),
        "cce": (True, ForwardKL),
        "ce+kl": (False, ForwardKL),
    }


@pytest.mark.parametrize("kind", COUPLINGS)
@pytest.mark.parametrize("fairness", [0.0, 0.7])
def test_couplings_against_finite_differences(kind: type, fairness: float) -> None:
    coupling = kind(skewed_prior(4), fairness)
    mean_label = random_labels(1, 4)[0] * 0.8 + 0.05
    multipliers = coupling.multipliers(mean_label)
    np.testing.assert_allclose(
        multipliers, -slopes(coupling.value, mean_label), rtol=1e-7, atol=1e-8
    )
    bends = slopes(coupling.multipliers, mean_label)
    np.testing.assert_allclose(
        -bends, np.diag(coupling.curvature(mean_label)), rtol=1e-6, atol=1e-8
    )
    if fairness > 0:
        # Fenchel-Young with equality: Φ(ȳ) = -w·ȳ - conjugate(w) where w = -Φ'(ȳ).
        mean_label = mean_label / mean_label.sum()
        multipliers = coupling.multipliers(mean_label)
        expected = -multipliers @ mean_label - coupling.conjugate(multipliers)
        assert coupling.value(mean_label) == pytest.approx(expected, abs=1e-12)
        assert coupling.divergence(mean_label, multipliers) == pytest.approx(0, abs=1e-14)


@pytest.mark.parametrize("kind", COUPLINGS)
def test_the_proposal_is_the_slope_of_the_conjugate(kind: type) -> None:
    coupling = kind(skewed_prior(4), 0.7)
    multipliers = coupling.multipliers(random_labels(1, 4)[0])
    proposal = coupling.proposal(multipliers)
    np.testing.assert_allclose(proposal, -slopes(coupling.conjugate, multipliers), rtol=1e-6)
    stiffness = coupling.stiffness(multipliers)
    np.testing.assert_allclose(
        stiffness, -slopes(coupling.proposal, multipliers), rtol=1e-6, atol=1e-9
    )
    free = dataclasses.replace(coupling, fairness=0.0)
    assert not free.stiffness(0 * multipliers).any()


@pytest.mark.parametrize("kind", COUPLINGS)
@pytest.mark.parametrize("fairness", [0.0, 1e-300, 0.7, 1e5])
def test_the_divergence_is_what_fenchel_leaves_open(kind: type, fairness: float) -> None:
    coupling = kind(skewed_prior(4), fairness)
    mean_label = random_labels(1, 4)[0]
    multipliers = coupling.multipliers(random_labels(1, 4, seed=2)[0])
    conjugate = coupling.conjugate(multipliers)
    expected = coupling.value(mean_label) + multipliers @ mean_label + conjugate
    found = coupling.divergence(mean_label, multipliers)
    assert found == pytest.approx(expected, rel=1e-9, abs=1e-12 * fairness)
    assert found >= 0
    assert coupling.divergence(-mean_label, multipliers) == np.inf
    assert coupling.divergence(mean_label, multipliers * np.nan) == np.inf


def test_an_empty_class_leaves_an_infinite_divergence_where_the_prior_wants_it() -> None:
    multipliers, empty = np.array([1.0, 2.0]), np.array([0.0, 1.0])
    assert ReverseKL(np.array([0.5, 0.5]), 1.0).divergence(empty, multipliers) == np.inf
    assert np.isfinite(ReverseKL(np.array([0.0, 1.0]), 1.0).divergence(empty, multipliers))


@pytest.mark.parametrize("kind", COUPLINGS)
def test_multipliers_are_bounded_where_the_conjugate_is_finite(kind: type) -> None:
    coupling = kind(np.array([0.5, 0.5, 0.0]), 1.0)
    with np.errstate(divide="ignore", invalid="ignore"):
        for multipliers in ([1.0, 2.0, 0.0], [0.0, 1.0, 0.0], [np.nan, 1.0, 0.0]):
            w = np.array(multipliers)
            assert coupling.bounded(w) == np.isfinite(coupling.conjugate(w))
