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

    bend = ζ min(ρ (1 + ρ), MOST_BEND),

which saves a fifth of the iterations where predictions are sharp and rows few to a class.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

Vector = NDArray[np.float64]

MOST_BEND = 10.0


class StepArrays(NamedTuple):
    """The iterate: labels ``y`` and their dual slacks ``ζ``, both positive, ``(M, K)``."""

    y: Tensor
    zeta: Tensor


class RowSystem(Protocol):
    """``Σ_i ω_i P_i`` row by row, for rows so few that ``2R`` unknowns are fewer than K.

    In ``(diag(1/h) + Σ_i ω_i P_i) s = r`` the classes stand alone once ``β_i`` and ``γ_i`` of
    ``P_i s`` are unknowns, too. Without the classes, what is left is the system

        Σ_k [ω_i d_ik u_ik u_ikᵀ δ_ij - ω_i ω_j d_ik d_jk u_ik u_jkᵀ h_k/(1 + h_k Σ_i ω_i d_ik)]

    with ``u = (1, q)``, and ``ω_i`` added where ``γ_i`` meets itself; positive definite. It is good
    until the next step. ``mass`` is ``Σ_i ω_i d_i``, ``(K,)``.
    """

    mass: Vector

    def apply(self, vector: Vector) -> Vector:
        """Return ``(Σ_i ω_i P_i) vector``, ``(K,)``."""
        ...

    def assemble(self, curvature: Vector) -> Vector:
        """Return the lower triangle of the system for ``h``, ``(2R, 2R)``."""
        ...

    def gather(self, vector: Vector) -> Vector:
        """Return ``Σ_k ω_i d_ik u_ik vector_k`` for every row, ``(2R,)``."""
        ...

    def scatter(self, levels: Vector) -> Vector:
        """Return ``Σ_i ω_i d_ik u_ik·levels_i`` for every class, ``(K,)``."""
        ...


class Factors(NamedTuple):
    """Sums over the rows after factoring their Hessians.

    ``gram`` has the entries of ``-Σ_i ω_i P_i`` above the diagonal, ``(K, K)``; the others are not
    meant to be used (the rows of ``Σ P_i`` sum to 0). Few rows may be given instead as they are.
    ``pull`` is ``Σ_i ω_i P_i g_i`` with ``g`` minus the gradient of the row loss, ``mean_label`` is
    ``Σ_i ω_i y_i``, and ``complementarity`` is ``Σ_i ω_i y_i·ζ_i``.
    """

    gram: Vector | RowSystem
    pull: Vector
    mean_label: Vector
    complementarity: float


class Prediction(NamedTuple):
    """The affine direction, summed: ``ratio = Δy/y``; ``Δζ/ζ = -1 - ratio``.

    ``first`` and ``second`` are ``Σ ω y ζ ratio`` and ``Σ ω y ζ ratio²``; ``center`` is
    ``Σ ω P (1/y)`` and ``bend`` is ``Σ ω P (ζ min(ratio (1 + ratio), MOST_BEND))``, both ``(K,)``.
    """

    low: float
    high: float
    first: float
    second: float
    center: Vector
    bend: Vector


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


class AnswerKernels(Protocol):
    """What the coupling needs of the rows' minimizing labels; weights are float64."""

    def summed_answer(
        self, answer: Minimizers, weights: Tensor, n_classes: int
    ) -> tuple[Vector, Vector]:
        """Return the mean label ``Σ_i ω_i y_i``, ``(K,)``, and the mean value ``Σ_i ω_i g_i``."""
        ...

    def answer_curvature(self, answer: Minimizers, weights: Tensor, multipliers: Vector) -> Vector:
        """Return minus the second derivative of ``Σ_i ω_i g_i(w)``, ``(K, K)``.

        A row that is split between ``k`` and ``l`` moves mass at the rate ``1/(w_k - w_l)²``,
        whatever its predictions are; the others do not move.
        """
        ...

    def laplacian(self, steep: Tensor, flat: Tensor, weights: Tensor, n_classes: int) -> Vector:
        """Return the Laplacian of a graph of the classes, ``(K, K)``; its edges are ``(N,)``."""
        ...


class RowKernels(Protocol):
    """The iterate, and the four passes of an iteration over its rows, in this order.

    ``by_class`` says that the iterate is taken without a copy if it lies class by class, else row
    by row.
    """

    by_class: bool

    def load(self, labels: Tensor, slacks: Tensor) -> StepArrays:
        """Take the first iterate; its tensors are the kernels' own from here on."""
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
