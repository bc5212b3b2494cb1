"""The passes over the rows in PyTorch: the reference, for any device.

See :mod:`coincide.pseudolabels.rows.contract` for the mathematics.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from coincide.pseudolabels.rows.contract import (
    MOST_CORRECTION,
    Extents,
    Factors,
    NewtonRows,
    Prediction,
    RowMinimizers,
    StepArrays,
    Vector,
)
from coincide.pseudolabels.rows.sums import summed_labels
from coincide.pseudolabels.rows.torch_dual import (
    TorchMinimizers,
    answer_curvature,
    laplacian,
    near_candidates,
    summed_answer,
)

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
    """The interior point's passes in plain tensor operations, in float64.

    Parameters
    ----------
    rows : Tensor of shape (M, C)
        Probabilities for collision cross-entropy, their logarithms for Shannon's.
    weights : Tensor of shape (M,)
    n_classes : int
        K.
    collision : bool
        Which of the two row losses.
    classes : Tensor of shape (M, C), int64, optional
        Entry ``(i, c)`` is class ``classes[i, c]``, descending within a row; by default ``c``.
        For collision cross-entropy alone.
    """

    def __init__(
        self,
        rows: Tensor,
        weights: Tensor,
        n_classes: int,
        *,
        collision: bool,
        classes: Tensor | None = None,
    ) -> None:
        self._probs = rows.double()
        self._weights = weights.double()
        self._n_classes = n_classes
        self._collision = collision
        self._classes = classes
        self._rows: _Rows | None = None
        if classes is not None:
            self._pairs = (classes[:, :, None] * n_classes + classes[:, None, :]).flatten()

    def load(self, labels: Tensor, slacks: Tensor) -> StepArrays:
        """Take the first iterate; its tensors are the passes' own from here on."""
        self._state = StepArrays(labels.contiguous(), slacks.contiguous())
        return self._state

    def _gradient(self, labels: Tensor) -> Tensor:
        """Return minus the gradient of the row losses, ``(M, C)``."""
        if not self._collision:
            return self._probs
        coincidence: Tensor = vecdot(self._probs, labels)
        return self._probs / coincidence[:, None]

    def factor(self) -> Factors:
        """Factor every row's Hessian and sum what the coupling needs."""
        y, zeta = self._state
        lead = y.argmax(1, keepdim=True)
        gradient = self._gradient(y)
        gradient = gradient - gradient.gather(1, lead)
        d = y / zeta
        if self._collision:
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
        projected = self._sum(d * self._rows.project(gradient))
        complementarity = float(self._weights @ vecdot(y, zeta))
        return Factors(self._couple(self._rows), projected, self._sum(y), complementarity)

    def _couple(self, rows: _Rows) -> Vector:
        """Return minus ``Σ_i ω_i P_i`` but for its diagonal, ``(K, K)``."""
        b, gram = rows.d, torch.zeros((), dtype=rows.d.dtype, device=rows.d.device)
        if rows.e is not None:
            curved = torch.as_tensor(self._weights / rows.denominator).sqrt()
            gram = self._gram(rows.e * curved[:, None])
            b = b - rows.e * torch.as_tensor(rows.kappa)[:, None]
        gram = gram + self._gram(b * (self._weights / rows.total).sqrt()[:, None])
        total: Vector = gram.cpu().numpy()
        return total

    def _sum(self, entries: Tensor) -> Vector:
        """Return ``Σ_i ω_i entries_i`` by class, ``(K,)``."""
        if self._classes is None:
            total = self._weights @ entries
        else:
            weighted = self._weights[:, None] * entries
            total = torch.bincount(self._classes.flatten(), weighted.flatten(), self._n_classes)
        vector: Vector = total.cpu().numpy()
        return vector

    def _gram(self, entries: Tensor) -> Tensor:
        """Return ``Σ_i entries_i entries_iᵀ`` by class, ``(K, K)``."""
        if self._classes is None:
            return entries.T @ entries
        products = (entries[:, :, None] * entries[:, None, :]).flatten()
        size = self._n_classes
        return torch.bincount(self._pairs, products, size * size).view(size, size)

    def _spread(self, shift: Vector) -> Tensor:
        """Return a K-vector as it stands beside the entries; constants are free and cost digits."""
        vector = torch.from_numpy(shift - shift.max()).to(self._probs)
        return vector if self._classes is None else vector[self._classes]

    def predict(self, shift: Vector) -> Prediction:
        """Find the affine direction ``Δy/y`` for the right-hand side ``gradient + shift``."""
        assert self._rows is not None
        y, zeta = self._state
        rows = self._rows
        ratio = rows.project(rows.relative(rows.gradient + self._spread(shift))) / zeta
        low, high = torch.aminmax(ratio)
        product = y * zeta
        first = float(self._weights @ vecdot(product, ratio))
        second = float(self._weights @ vecdot(product, ratio * ratio))
        center = self._sum(rows.d * rows.project(rows.relative(1 / y)))
        self._correction = zeta * (ratio * (1 + ratio)).clamp_max(MOST_CORRECTION)
        correction = self._sum(rows.d * rows.project(rows.relative(self._correction)))
        return Prediction(float(low), float(high), first, second, center, correction)

    def correct(self, shift: Vector, target: float) -> Extents:
        """Find the corrected direction, centered on ``y ζ = target``."""
        assert self._rows is not None
        y, zeta = self._state
        r = self._rows.gradient + self._spread(shift) + target / y + self._correction
        self._primal = self._rows.project(self._rows.relative(r)) / zeta
        self._dual = target / (y * zeta) + self._correction / zeta - 1 - self._primal
        return Extents(float(self._primal.min()), float(self._dual.min()))

    def advance(self, primal: float, dual: float) -> StepArrays:
        """Take steps of these lengths along the corrected direction, in the labels and slacks."""
        y, zeta = self._state
        y = y * (1 + primal * self._primal)
        zeta = zeta * (1 + dual * self._dual)
        self._state = StepArrays(y / y.sum(1, keepdim=True), zeta)
        return self._state


class TorchPasses:
    """All passes in plain tensor operations: what another backend has to have, too."""

    name = "torch"
    newton_rows: Callable[..., NewtonRows] = TorchRows
    minimizers: Callable[[Tensor], RowMinimizers] = TorchMinimizers
    summed_answer = staticmethod(summed_answer)
    answer_curvature = staticmethod(answer_curvature)
    laplacian = staticmethod(laplacian)
    near_candidates = staticmethod(near_candidates)
    summed_labels = staticmethod(summed_labels)
