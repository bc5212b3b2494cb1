"""The coupling of few rows over many classes in PyTorch: two unknowns a row, for any device.

See :class:`coincide.pseudolabels.kernels.contract.RowSystem`. A class that belongs to one row alone
almost cancels what that row has; so what the others have of it is summed without that row, never
subtracted.
"""

from __future__ import annotations

import torch
from torch import Tensor

from coincide.pseudolabels.kernels.contract import Vector


class DenseRowSystem:
    """The system of rows with all classes each; unknowns ``β`` of all rows, then ``γ``.

    Parameters
    ----------
    d, q : Tensor of shape (R, K), float64
        Of the contract; ``q`` is zero at every row's leading class.
    weights : Tensor of shape (R,), float64
    lead : Tensor of shape (R, 1), int64
    """

    def __init__(self, d: Tensor, q: Tensor, weights: Tensor, lead: Tensor) -> None:
        self._q, self._weights, self._lead = q, weights, lead
        self._weighted = torch.stack((weights[:, None] * d, weights[:, None] * d * q))
        self._total = self._weighted[0].sum(0)
        self.mass: Vector = self._total.cpu().numpy()

    def _at_classes(self, vector: Vector) -> Tensor:
        return torch.from_numpy(vector).to(self._q)

    def apply(self, vector: Vector) -> Vector:
        """Return ``(Σ_i ω_i P_i) vector``."""
        mass, bent = self._weighted
        v = self._at_classes(vector)
        relative = v - v[self._lead]
        spread, curved = bent.sum(1), self._weights + (bent * self._q).sum(1)
        moved, turned = (mass * relative).sum(1), (bent * relative).sum(1)
        # Each row's own two equations, for β and γ.
        beta = (moved - spread * turned / curved) / (mass.sum(1) - spread * spread / curved)
        gamma = (turned - spread * beta) / curved
        relative -= torch.addcmul(beta[:, None], self._q, gamma[:, None])
        product: Vector = (mass * relative).sum(0).cpu().numpy()
        return product

    def assemble(self, curvature: Vector) -> Vector:
        """Return the system, ``(2R, 2R)``."""
        mass, h, size = self._weighted[0], self._at_classes(curvature), len(self._weights)
        soft = 1 + h * self._total
        flat = self._weighted.flatten(0, 1)
        system = (flat * -(h / soft)) @ flat.T
        own = mass * ((1 + h * self._beside()) / soft)
        bent = own * self._q
        system.diagonal().copy_(torch.cat((own.sum(1), self._weights + (bent * self._q).sum(1))))
        both = bent.sum(1)
        system.diagonal(size).copy_(both)
        system.diagonal(-size).copy_(both)
        matrix: Vector = system.cpu().numpy()
        return matrix

    def _beside(self) -> Tensor:
        """Return what the other rows have of every class, ``(R, K)``."""
        mass = self._weighted[0]
        top = mass.argmax(0, keepdim=True)
        beside_top = mass.scatter(0, top, 0.0).sum(0, keepdim=True)
        return (self._total - mass).scatter(0, top, beside_top)

    def gather(self, vector: Vector) -> Vector:
        """Return ``Σ_k ω_i d_ik vector_k`` and ``Σ_k ω_i e_ik vector_k`` of the rows, ``(2R,)``."""
        gathered: Vector = (self._weighted @ self._at_classes(vector)).flatten().cpu().numpy()
        return gathered

    def scatter(self, levels: Vector) -> Vector:
        """Return ``Σ_i ω_i (d_i β_i + e_i γ_i)``, ``(K,)``: :meth:`gather` transposed."""
        spread: Vector = (self._at_classes(levels) @ self._weighted.flatten(0, 1)).cpu().numpy()
        return spread
