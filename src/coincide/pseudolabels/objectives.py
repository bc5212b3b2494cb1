"""The objectives over soft labels: a row loss, and a coupling of the mean label to the prior.

Every objective here is convex and reads, with row weights ``ω_i`` summing to 1,

    Σ_i ω_i f_i(y_i) + Φ(ȳ),     ȳ = Σ_i ω_i y_i,     y_i in the simplex,

where the row loss ``f_i`` is collision cross-entropy ``-ln σ_i·y_i`` or Shannon's
``-Σ_k y_ik ln σ_ik``, and the separable coupling ``Φ`` is a Kullback-Leibler divergence to the
prior ``u`` times the fairness ``λ``. The solvers need of a coupling its value, its slope, its
curvature and its conjugate; an objective is nothing more than the two names put together. Vectors
are float64 arrays of shape ``(K,)``: whatever has K entries lives on the CPU.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import logsumexp, softmax, xlogy

Vector = NDArray[np.float64]


_TINY = np.finfo(np.float64).tiny


@dataclass(frozen=True)
class ReverseKL:
    """``λ KL(u ‖ ȳ)``, the fairness term of (11): infinite as soon as a class is empty."""

    prior: Vector
    fairness: float

    def value(self, mean_label: Vector) -> float:
        """Return ``λ Σ u ln(u/ȳ)``; classes with ``u = 0`` count nothing."""
        if self.fairness == 0:
            return 0.0
        terms = xlogy(self.prior, self.prior) - xlogy(self.prior, mean_label)
        return self.fairness * float(terms.sum())

    def multipliers(self, mean_label: Vector) -> Vector:
        """Return ``w = -Φ'(ȳ) = λ u/ȳ``, what a mean label proposes; 0 where ``u = 0``."""
        return self._over(mean_label)

    def curvature(self, mean_label: Vector) -> Vector:
        """Return ``Φ''(ȳ) = λ u/ȳ²``, the diagonal of the Hessian; 0 where ``u = 0``."""
        return self._over(mean_label**2)

    def conjugate(self, multipliers: Vector) -> float:
        """Return ``sup_a [-w·a - Φ(a)]``: ``-λ (1 + Σ u ln(w/λ))``, and 0 when ``λ = 0``."""
        if self.fairness == 0:
            return 0.0
        # ln w - ln λ, not ln(w/λ): the quotient overflows for a tiny λ.
        logs = xlogy(self.prior, multipliers) - self.prior * np.log(self.fairness)
        return -self.fairness * (1 + float(logs.sum()))

    def proposal(self, multipliers: Vector) -> Vector:
        """Return where that is attained, ``ȳ = λ u/w``; 0 where ``u = 0`` or ``λ = 0``."""
        return self._over(multipliers)

    def stiffness(self, multipliers: Vector) -> Vector:
        """Return minus the derivative of the proposal, ``diag(λ u/w²)``, ``(K, K)``."""
        return np.diag(self._over(multipliers**2))

    def bounded(self, multipliers: Vector) -> bool:
        """Whether the conjugate is finite: ``w > 0``, or 0 where ``λ u = 0``."""
        positive = multipliers > 0
        if positive.all():
            return True
        free = self.fairness * self.prior == 0
        return bool((positive | (free & (multipliers == 0))).all())

    def divergence(self, mean_label: Vector, multipliers: Vector) -> float:
        """Return ``Φ(ȳ) + w·ȳ + conjugate(w)``, at least 0: what Fenchel's inequality leaves open.

        That is ``Σ λ u (t - 1 - ln t)`` for ``t = w ȳ/(λ u)``, and ``w ȳ`` where ``λ u = 0``.
        """
        if not (self.bounded(multipliers) and (mean_label >= 0).all()):
            return float("inf")
        wanted, given = self.fairness * self.prior, multipliers * mean_label
        ratio = np.divide(given, wanted, out=np.zeros_like(given), where=wanted > 0)
        return float((given - wanted - xlogy(wanted, ratio)).sum())

    def _over(self, below: Vector) -> Vector:
        """Return ``λ u/below``: 0 where ``λ u = 0``, infinite for 1/0."""
        above = self.fairness * self.prior
        with np.errstate(divide="ignore"):
            return np.divide(above, below, out=np.zeros_like(above), where=above > 0)


@dataclass(frozen=True)
class ForwardKL:
    """``λ KL(ȳ ‖ u)``, the fairness term of (10) and (5): a class may stay empty."""

    prior: Vector
    fairness: float

    def value(self, mean_label: Vector) -> float:
        """Return ``λ Σ ȳ ln(ȳ/u)``; infinite where ``ȳ > 0 = u``, if ``λ > 0``."""
        if self.fairness == 0:
            return 0.0
        terms = xlogy(mean_label, mean_label) - xlogy(mean_label, self.prior)
        return self.fairness * float(terms.sum())

    def multipliers(self, mean_label: Vector) -> Vector:
        """Return ``w = -λ (ln(ȳ/u) + 1)``; finite for every mean label."""
        if self.fairness == 0:
            return np.zeros_like(self.prior)
        return -self.fairness * (np.log(np.maximum(mean_label, _TINY) / self.prior) + 1)

    def curvature(self, mean_label: Vector) -> Vector:
        """Return ``λ/ȳ``."""
        return self.fairness / mean_label

    def conjugate(self, multipliers: Vector) -> float:
        """Return ``λ ln Σ u e^(-w/λ)``, the conjugate over the simplex."""
        if self.fairness == 0:
            return float((-multipliers).max())
        level = float(logsumexp(self._exponents(multipliers)))
        return self.fairness * level - float(multipliers.min())

    def proposal(self, multipliers: Vector) -> Vector:
        """Return ``ȳ ∝ u e^(-w/λ)``; with ``λ = 0`` whatever is cheapest, ``u``."""
        if self.fairness == 0:
            return self.prior
        share: Vector = softmax(self._exponents(multipliers))
        return share

    def stiffness(self, multipliers: Vector) -> Vector:
        """Return ``(diag(ȳ) - ȳ ȳᵀ)/λ``."""
        if self.fairness == 0:
            return np.zeros((len(self.prior), len(self.prior)))
        share = self.proposal(multipliers)
        return (np.diag(share) - np.outer(share, share)) / self.fairness

    def bounded(self, multipliers: Vector) -> bool:
        """Whether every ``w`` is finite."""
        return bool(np.isfinite(multipliers).all())

    def divergence(self, mean_label: Vector, multipliers: Vector) -> float:
        """Return ``Φ(ȳ) + w·ȳ + conjugate(w)``."""
        if not (self.bounded(multipliers) and (mean_label >= 0).all()):
            return float("inf")
        own = self.value(mean_label) + self.conjugate(multipliers)
        return own + float(multipliers @ mean_label)

    def _exponents(self, multipliers: Vector) -> Vector:
        """Return ``ln u - (w - min w)/λ``, so that a tiny λ leaves the limit and not 0 · ∞."""
        with np.errstate(over="ignore"):
            below: Vector = (multipliers - multipliers.min()) / self.fairness
        return np.log(self.prior) - below


Coupling = ReverseKL | ForwardKL


@dataclass(frozen=True)
class Objective:
    """A named sum of a row loss and a coupling."""

    name: str
    formula: str
    collision: bool  # the row loss: collision cross-entropy, or Shannon's
    coupling: type[Coupling]


OBJECTIVES: dict[str, Objective] = {
    "cce+": Objective("cce+", "mean H₂(y, σ) + λ KL(u ‖ ȳ)  (11)", True, ReverseKL),
    "cce": Objective("cce", "mean H₂(y, σ) + λ KL(ȳ ‖ u)  (10)", True, ForwardKL),
    "ce+kl": Objective("ce+kl", "mean H(y, σ) + λ KL(ȳ ‖ u)  (5)", False, ForwardKL),
}
