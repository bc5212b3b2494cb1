"""What a backend computes row by row, so that the interior point can stay one short loop.

Every row ``i`` of the Newton system has the Hessian ``A_i = diag(ζ_i/y_i) + q_i q_iᵀ`` on the
tangent space of the simplex. With ``d = y/ζ``, ``e = d ∘ q``, ``κ = Σe/(1 + q·e)``, ``b = d - κe``
its inverse there is the projection

    P r = d ∘ (r - β - γ q),   β = (d·r - κ e·r)/Σb,   γ = e·r/(1 + q·e) - κβ.

Adding a constant to ``q`` or to ``r`` changes nothing on the tangent space. Every backend
subtracts the entry of the row's leading class (its largest label): then the large ``d`` of that
class meets exact zeros instead of cancelling, and the gap reaches 1e-12 instead of 1e-5.

The predictor ``ρ = Δy/y`` of an entry changes its product ``y ζ`` to ``-y ζ ρ (1 + ρ)`` where its
linear model says 0, which the corrector takes back. Far outside ``-1 < ρ < 0`` the predictor
foresees nothing; there the correction is limited,

    ζ min(ρ (1 + ρ), MOST_CORRECTION),

which saves a fifth of the iterations where predictions are sharp and rows few to a class.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

Vector = NDArray[np.float64]

MOST_CORRECTION = 10.0


class StepArrays(NamedTuple):
    """The iterate: labels ``y`` and their dual slacks ``ζ``, both positive, ``(M, K)``."""

    y: Tensor
    zeta: Tensor


class Factors(NamedTuple):
    """Sums over the rows after factoring their Hessians.

    ``gram`` has the entries of ``-Σ_i ω_i P_i`` above the diagonal, ``(K, K)``; the others are not
    meant to be used (the rows of ``Σ P_i`` sum to 0).
    ``gradient`` is ``Σ_i ω_i P_i g_i`` with ``g`` minus the gradient of the row loss,
    ``mean_label`` is ``Σ_i ω_i y_i``, and ``complementarity`` is ``Σ_i ω_i y_i·ζ_i``.
    """

    gram: Vector
    gradient: Vector
    mean_label: Vector
    complementarity: float


class Prediction(NamedTuple):
    """The affine direction, summed: ``ratio = Δy/y``; ``Δζ/ζ = -1 - ratio``.

    ``first`` and ``second`` are ``Σ ω y ζ ratio`` and ``Σ ω y ζ ratio²``; ``center`` is
    ``Σ ω P (1/y)``, ``correction`` is ``Σ ω P (ζ min(ratio (1 + ratio), MOST_CORRECTION))``.
    """

    low: float
    high: float
    first: float
    second: float
    center: Vector
    correction: Vector


class Extents(NamedTuple):
    """The smallest entries of ``Δy/y`` and ``Δζ/ζ`` along the corrected direction."""

    primal: float
    dual: float


class Minimizers(NamedTuple):
    """Labels that minimize ``f_i(y) - w·y`` in every row: on one class, or split between two.

    ``values`` are the minima ``g_i(w)``, float64; ``share`` is the label of class ``steep``, and
    ``flat`` has the rest. All of shape ``(M,)``.
    """

    values: Tensor
    steep: Tensor
    flat: Tensor
    share: Tensor


class RowMinimizers(Protocol):
    """The search for the minimizing labels of all rows, warm from one call to the next."""

    def minimize(self, multipliers: Vector) -> Minimizers:
        """Return the minimizers for ``w``, ``(K,)``, finite."""
        ...


class NewtonRows(Protocol):
    """An iterate of the interior point, and the four passes of a step over its rows, in order."""

    def load(self, labels: Tensor, slacks: Tensor) -> StepArrays:
        """Take the first iterate; its tensors are the passes' own from here on."""
        ...

    def factor(self) -> Factors:
        """Factor every row's Hessian and sum what the coupling needs."""
        ...

    def predict(self, shift: Vector) -> Prediction:
        """Find the affine direction for the right-hand side ``g + shift``."""
        ...

    def correct(self, shift: Vector, target: float) -> Extents:
        """Find the corrected direction, centered on ``y ζ = target``."""
        ...

    def advance(self, primal: float, dual: float) -> StepArrays:
        """Take steps of these lengths along the corrected direction, in the labels and slacks."""
        ...
