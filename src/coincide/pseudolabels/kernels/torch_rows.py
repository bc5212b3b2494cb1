"""The row kernels in PyTorch: the reference, for any device.

See :mod:`coincide.pseudolabels.kernels` for the contract.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from coincide.pseudolabels.kernels.contract import (
    MOST_BEND,
    Extents,
    Factors,
    Prediction,
    RowSystem,
    StepArrays,
    Vector,
)
from coincide.pseudolabels.kernels.row_system import DenseRowSystem

vecdot = torch.linalg.vecdot


@dataclass
class _Rows:
    """What every row's inverse needs: ``P r = d ∘ (r - β - q γ)`` for ``r`` zero at ``lead``."""

    lead: Tensor  # (M, 1) the class with the largest label
    gradient: Tensor  # (M, K) minus the gradient of the row loss, zero at lead
    q: Tensor | None  # (M, K) its rank-one curvature, zero at lead; None for a linear row loss
    d: Tensor
    e: Tensor | None
    denominator: Tensor | float
    kappa: Tensor | float
    total: Tensor

    def relative(self, r: Tensor) -> Tensor:
        """Subtract the leading class's entry: the projection ignores row constants."""
        return r - r.gather(1, self.lead)

    def scalars(self, r: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return ``β`` and ``γ``."""
        dr = vecdot(self.d, r)
        if self.e is None:
            return dr / self.total, None
        er = vecdot(self.e, r)
        beta = (dr - self.kappa * er) / self.total
        return beta, er / self.denominator - self.kappa * beta

    def project(self, r: Tensor) -> Tensor:
        """Return ``P r / d``."""
        beta, gamma = self.scalars(r)
        out = r - beta[:, None]
        if gamma is not None and self.q is not None:
            out.addcmul_(self.q, gamma[:, None], value=-1)
        return out


class TorchRows:
    """Row kernels of the interior point in plain tensor operations, in float64."""

    by_class = False

    def __init__(
        self, probs: Tensor, weights: Tensor, *, collision: bool, apart: bool = False
    ) -> None:
        self._apart = apart
        self.probs = probs.double()
        self.weights = weights.double()
        self.collision = collision
        self._rows: _Rows | None = None

    def load(self, labels: Tensor, slacks: Tensor) -> StepArrays:
        """Take the first iterate; its tensors are the kernels' own from here on."""
        self._state = StepArrays(labels, slacks)
        return self._state

    def _gradient(self, labels: Tensor) -> Tensor:
        """Return minus the gradient of the row losses, ``(M, K)``."""
        if not self.collision:
            return self.probs
        coincidence: Tensor = vecdot(self.probs, labels)
        return self.probs / coincidence[:, None]

    def factor(self) -> Factors:
        """Factor every row's Hessian and sum what the coupling needs."""
        y, zeta = self._state
        lead = y.argmax(1, keepdim=True)
        gradient = self._gradient(y)
        gradient = gradient - gradient.gather(1, lead)
        d = y / zeta
        if self.collision:
            q = gradient
            e = d * q
            denominator = 1 + vecdot(e, q)
            spread = e.sum(1)
            kappa = spread / denominator
            total = d.sum(1) - kappa * spread
            self._rows = _Rows(lead, gradient, q, d, e, denominator, kappa, total)
        else:
            total = d.sum(1)
            self._rows = _Rows(lead, gradient, None, d, None, 1.0, 0.0, total)
        pull = self._summed(self._rows.project(gradient))
        complementarity = float(self.weights @ vecdot(y, zeta))
        mean_label = self._sum(y).double().cpu().numpy()
        gram = self._system(self._rows) if self._apart else self._couple(self._rows)
        return Factors(gram, pull, mean_label, complementarity)

    def _couple(self, rows: _Rows) -> Vector:
        """Return minus ``Σ_i ω_i P_i`` but for its diagonal, ``(K, K)``."""
        b, gram = rows.d, torch.zeros((), dtype=rows.d.dtype, device=rows.d.device)
        if rows.e is not None:
            curved = torch.as_tensor(self.weights / rows.denominator).sqrt()
            gram = self._gram(rows.e * curved[:, None])
            b = b - rows.e * torch.as_tensor(rows.kappa)[:, None]
        gram = gram + self._gram(b * (self.weights / rows.total).sqrt()[:, None])
        total: Vector = gram.double().cpu().numpy()
        return total

    def _system(self, rows: _Rows) -> RowSystem:
        """Return the same row by row."""
        assert rows.q is not None
        return DenseRowSystem(rows.d, rows.q, self.weights, rows.lead)

    def _summed(self, projected: Tensor) -> Vector:
        """Return ``Σ_i ω_i d_i ∘ projected_i``."""
        assert self._rows is not None
        vector: Vector = self._sum(self._rows.d * projected).double().cpu().numpy()
        return vector

    def _sum(self, entries: Tensor) -> Tensor:
        """Return ``Σ_i ω_i entries_i``, ``(K,)``."""
        return self.weights @ entries

    def _gram(self, entries: Tensor) -> Tensor:
        """Return ``Σ_i entries_i entries_iᵀ``, ``(K, K)``."""
        return entries.T @ entries

    def _cast(self, shift: Vector) -> Tensor:
        """Return a K-vector in the rows' precision; constants are free and cost digits."""
        return torch.from_numpy(shift - shift.max()).to(self.probs)

    def predict(self, shift: Vector) -> Prediction:
        """Find the affine direction ``Δy/y`` for the right-hand side ``gradient + shift``."""
        assert self._rows is not None
        y, zeta = self._state
        r = self._rows.relative(self._rows.gradient + self._cast(shift))
        ratio = self._rows.project(r) / zeta
        self._ratio = ratio
        low, high = torch.aminmax(ratio)
        product = y * zeta
        first = float(self.weights @ vecdot(product, ratio))
        second = float(self.weights @ vecdot(product, ratio * ratio))
        center = self._summed(self._rows.project(self._rows.relative(1 / y)))
        self._bend = zeta * (ratio * (1 + ratio)).clamp_max(MOST_BEND)
        bend = self._summed(self._rows.project(self._rows.relative(self._bend)))
        return Prediction(float(low), float(high), first, second, center, bend)

    def correct(self, shift: Vector, target: float) -> Extents:
        """Find the corrected direction, centered on ``y ζ = target``."""
        assert self._rows is not None
        y, zeta = self._state
        r = self._rows.gradient + self._cast(shift) + target / y + self._bend
        self._primal = self._rows.project(self._rows.relative(r)) / zeta
        self._dual = target / (y * zeta) + self._bend / zeta - 1 - self._primal
        return Extents(float(self._primal.min()), float(self._dual.min()))

    def advance(self, primal: float, dual: float) -> StepArrays:
        """Take steps of these lengths along the corrected direction, in the labels and slacks."""
        y, zeta = self._state
        y = y * (1 + primal * self._primal)
        zeta = zeta * (1 + dual * self._dual)
        self._state = StepArrays(y / y.sum(1, keepdim=True), zeta)
        return self._state


class CandidateRows(TorchRows):
    """The same over a few candidate classes a row: entry ``(i, c)`` is class ``classes[i, c]``.

    The row loss is collision cross-entropy.

    Parameters
    ----------
    probs : Tensor of shape (M, C)
    weights : Tensor of shape (M,)
    classes : Tensor of shape (M, C), int64
        Different within a row.
    n_classes : int
        K.
    """

    def __init__(
        self,
        probs: Tensor,
        weights: Tensor,
        classes: Tensor,
        n_classes: int,
        *,
        apart: bool = False,
    ) -> None:
        super().__init__(probs, weights, collision=True, apart=apart)
        self._classes = classes
        self._n_classes = n_classes
        if not apart:
            self._pairs = (classes[:, :, None] * n_classes + classes[:, None, :]).flatten()

    def _system(self, rows: _Rows) -> RowSystem:
        assert rows.q is not None
        empty = rows.d.new_zeros(len(rows.d), self._n_classes)
        d, q = (empty.scatter(1, self._classes, entries) for entries in (rows.d, rows.q))
        return DenseRowSystem(d, q, self.weights, self._classes.gather(1, rows.lead))

    def _sum(self, entries: Tensor) -> Tensor:
        weighted = self.weights[:, None] * entries
        return torch.bincount(self._classes.flatten(), weighted.flatten(), self._n_classes)

    def _gram(self, entries: Tensor) -> Tensor:
        products = (entries[:, :, None] * entries[:, None, :]).flatten()
        size = self._n_classes
        return torch.bincount(self._pairs, products, size * size).view(size, size)

    def _cast(self, shift: Vector) -> Tensor:
        return super()._cast(shift)[self._classes]
