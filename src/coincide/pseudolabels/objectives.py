"""The objectives over soft labels: a row loss, and a coupling of the mean label to the prior.

Every objective here is convex and reads, with row weights ``ω_i`` summing to 1,

    Σ_i ω_i f_i(y_i) + Φ(ȳ),     ȳ = Σ_i ω_i y_i,     y_i in the simplex,

where the row loss ``f_i`` is collision cross-entropy ``-ln σ_i·y_i`` or Shannon's
``-Σ_k y_ik ln σ_ik``, and the separable coupling ``Φ`` is a Kullback-Leibler divergence to the
prior ``u`` times the fairness ``λ``. The solvers need of a coupling its value, its slope, its
curvature and its conjugate; an objective is nothing more than the two names put together.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from scipy.special import logsumexp, softmax, xlogy

Vector = NDArray[np.float64]


class Coupling(Protocol):
    """A separable convex function ``Φ`` of the mean label ``ȳ``, with ``λ Φ`` in the objective.

    Vectors are float64 arrays of shape ``(K,)``: whatever has K entries lives on the CPU.
    """

    def value(self, mean_label: Vector, prior: Vector, fairness: float) -> float:
        """Return ``Φ(ȳ)``."""
        ...

    def multipliers(self, mean_label: Vector, prior: Vector, fairness: float) -> Vector:
        """Return ``w = -Φ'(ȳ)``, the dual variables that a mean label proposes."""
        ...

    def curvature(self, mean_label: Vector, prior: Vector, fairness: float) -> Vector:
        """Return ``Φ''(ȳ)``, the diagonal of the Hessian."""
        ...

    def conjugate(self, multipliers: Vector, prior: Vector, fairness: float) -> float:
        """Return ``sup_a [-w·a - Φ(a)]``, so that ``Φ(ȳ) >= -w·ȳ - conjugate(w)``."""
        ...

    def proposal(self, multipliers: Vector, prior: Vector, fairness: float) -> Vector:
        """Return the ``ȳ`` that the multipliers ask for, where the conjugate is attained."""
        ...

    def stiffness(self, multipliers: Vector, prior: Vector, fairness: float) -> Vector:
        """Return minus the derivative of :meth:`proposal`, ``(K, K)``, positive semidefinite."""
        ...

    def bounded(self, multipliers: Vector, prior: Vector, fairness: float) -> bool:
        """Whether the conjugate is finite there."""
        ...

    def divergence(
        self, mean_label: Vector, multipliers: Vector, prior: Vector, fairness: float
    ) -> float:
        """Return ``Φ(ȳ) + w·ȳ + conjugate(w)``, at least 0: what Fenchel's inequality leaves open.

        It is infinite where one of the three is.
        """
        ...


_TINY = np.finfo(np.float64).tiny


def _where_positive(prior: Vector, above: Vector, below: Vector) -> Vector:
    """Return ``above/below`` where the prior is positive, 0 elsewhere; infinite for 1/0.

    Above there is 0 where the prior is.
    """
    if below.all():
        return above / below
    with np.errstate(divide="ignore"):
        return np.divide(above, below, out=np.zeros_like(prior), where=prior > 0)


@dataclass(frozen=True)
class ReverseKL:
    """``λ KL(u ‖ ȳ)``, the fairness term of (11): infinite as soon as a class is empty."""

    def value(self, mean_label: Vector, prior: Vector, fairness: float) -> float:
        """Return ``λ Σ u ln(u/ȳ)``; classes with ``u = 0`` count nothing."""
        if fairness == 0:
            return 0.0
        return fairness * float((xlogy(prior, prior) - xlogy(prior, mean_label)).sum())

    def multipliers(self, mean_label: Vector, prior: Vector, fairness: float) -> Vector:
        """Return ``w = λ u/ȳ``; 0 where ``u = 0``."""
        if fairness == 0:
            return np.zeros_like(prior)
        return _where_positive(prior, fairness * prior, mean_label)

    def curvature(self, mean_label: Vector, prior: Vector, fairness: float) -> Vector:
        """Return ``λ u/ȳ²``; 0 where ``u = 0``."""
        if fairness == 0:
            return np.zeros_like(prior)
        return _where_positive(prior, fairness * prior, mean_label**2)

    def conjugate(self, multipliers: Vector, prior: Vector, fairness: float) -> float:
        """Return ``-λ (1 + Σ u ln(w/λ))`` for ``w > 0``, and 0 when ``λ = 0``."""
        if fairness == 0:
            return 0.0
        # ln w - ln λ, not ln(w/λ): the quotient overflows for a tiny λ.
        logs = xlogy(prior, multipliers) - prior * np.log(fairness)
        return -fairness * (1 + float(logs.sum()))

    def proposal(self, multipliers: Vector, prior: Vector, fairness: float) -> Vector:
        """Return ``ȳ = λ u/w``; 0 where ``u = 0`` or ``λ = 0``."""
        if fairness == 0:
            return np.zeros_like(prior)
        return _where_positive(prior, fairness * prior, multipliers)

    def stiffness(self, multipliers: Vector, prior: Vector, fairness: float) -> Vector:
        """Return ``diag(λ u/w²)``; 0 where ``u = 0`` or ``λ = 0``."""
        if fairness == 0:
            return np.zeros((len(prior), len(prior)))
        return np.diag(_where_positive(prior, fairness * prior, multipliers**2))

    def bounded(self, multipliers: Vector, prior: Vector, fairness: float) -> bool:
        """Whether ``w > 0``, or 0 where ``λ u = 0``."""
        positive = multipliers > 0
        if positive.all():
            return True
        return bool((positive | ((fairness * prior == 0) & (multipliers == 0))).all())

    def divergence(
        self, mean_label: Vector, multipliers: Vector, prior: Vector, fairness: float
    ) -> float:
        """Return ``Σ λ u (t - 1 - ln t)`` for ``t = w ȳ/(λ u)``, and ``w ȳ`` where ``λ u = 0``."""
        if not (self.bounded(multipliers, prior, fairness) and (mean_label >= 0).all()):
            return float("inf")
        wanted, given = fairness * prior, multipliers * mean_label
        return float((given - wanted - xlogy(wanted, _where_positive(wanted, given, wanted))).sum())


@dataclass(frozen=True)
class ForwardKL:
    """``λ KL(ȳ ‖ u)``, the fairness term of (10) and (5): a class may stay empty."""

    def value(self, mean_label: Vector, prior: Vector, fairness: float) -> float:
        """Return ``λ Σ ȳ ln(ȳ/u)``; infinite where ``ȳ > 0 = u``, if ``λ > 0``."""
        if fairness == 0:
            return 0.0
        return fairness * float((xlogy(mean_label, mean_label) - xlogy(mean_label, prior)).sum())

    def multipliers(self, mean_label: Vector, prior: Vector, fairness: float) -> Vector:
        """Return ``w = -λ (ln(ȳ/u) + 1)``; finite for every mean label."""
        if fairness == 0:
            return np.zeros_like(prior)
        return -fairness * (np.log(np.maximum(mean_label, _TINY) / prior) + 1)

    def curvature(self, mean_label: Vector, prior: Vector, fairness: float) -> Vector:
        """Return ``λ/ȳ``."""
        return fairness / mean_label

    def conjugate(self, multipliers: Vector, prior: Vector, fairness: float) -> float:
        """Return ``λ ln Σ u e^(-w/λ)``, the conjugate over the simplex."""
        if fairness == 0:
            return float((-multipliers).max())
        least = float(multipliers.min())
        # Taken out of the sum, so that a tiny λ leaves the limit, -min w, and not 0 · ∞.
        with np.errstate(over="ignore"):
            exponents = np.log(prior) - (multipliers - least) / fairness
        return fairness * float(logsumexp(exponents)) - least

    def proposal(self, multipliers: Vector, prior: Vector, fairness: float) -> Vector:
        """Return ``ȳ ∝ u e^(-w/λ)``; with ``λ = 0`` whatever is cheapest, ``u``."""
        if fairness == 0:
            return prior
        share: Vector = softmax(np.log(prior) - (multipliers - multipliers.min()) / fairness)
        return share

    def stiffness(self, multipliers: Vector, prior: Vector, fairness: float) -> Vector:
        """Return ``(diag(ȳ) - ȳ ȳᵀ)/λ``."""
        if fairness == 0:
            return np.zeros((len(prior), len(prior)))
        share = self.proposal(multipliers, prior, fairness)
        return (np.diag(share) - np.outer(share, share)) / fairness

    def bounded(self, multipliers: Vector, prior: Vector, fairness: float) -> bool:
        """Whether every ``w`` is finite."""
        del prior, fairness
        return bool(np.isfinite(multipliers).all())

    def divergence(
        self, mean_label: Vector, multipliers: Vector, prior: Vector, fairness: float
    ) -> float:
        """Return ``Φ(ȳ) + w·ȳ + conjugate(w)``."""
        if not (self.bounded(multipliers, prior, fairness) and (mean_label >= 0).all()):
            return float("inf")
        value = self.value(mean_label, prior, fairness)
        conjugate = self.conjugate(multipliers, prior, fairness)
        return value + float(multipliers @ mean_label) + conjugate


@dataclass(frozen=True)
class Objective:
    """A named sum of a row loss and a coupling."""

    name: str
    formula: str
    collision: bool  # the row loss: collision cross-entropy, or Shannon's
    coupling: Coupling


OBJECTIVES: dict[str, Objective] = {
    "cce+": Objective("cce+", "mean H₂(y, σ) + λ KL(u ‖ ȳ)  (11)", True, ReverseKL()),
    "cce": Objective("cce", "mean H₂(y, σ) + λ KL(ȳ ‖ u)  (10)", True, ForwardKL()),
    "ce+kl": Objective("ce+kl", "mean H(y, σ) + λ KL(ȳ ‖ u)  (5)", False, ForwardKL()),
}
