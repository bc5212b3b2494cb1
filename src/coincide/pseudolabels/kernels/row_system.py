"""The coupling of few rows over many classes in PyTorch: two unknowns a row, for any device.

See :class:`coincide.pseudolabels.kernels.contract.RowSystem`. A class that belongs to one row alone
almost cancels what that row has; so what the others have of it is summed without that row, never
subtracted.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from coincide.pseudolabels.kernels.contract import Vector

_ENTRIES_PER_BLOCK = 1 << 17


class DenseRowSystem:
    """The system of rows with all classes each; unknowns ``β`` of all rows, then ``γ``.

    It goes over blocks of classes, and keeps one array of the size of its input.

    Parameters
    ----------
    d, q : Tensor of shape (R, K), float64
        Of the contract; ``q`` is zero at every row's leading class.
    weights : Tensor of shape (R,), float64
    lead : Tensor of shape (R, 1), int64
    """

    def __init__(self, d: Tensor, q: Tensor, weights: Tensor, lead: Tensor) -> None:
        self._weighted, self._q = d * weights[:, None], q
        self._weights, self._lead = weights, lead
        # Nothing is asked of a row without weight: its unknowns are to be 0.
        self._idle = (weights == 0).to(weights)
        self.mass: Vector = self._weighted.sum(0).cpu().numpy()

    def _blocks(self) -> Iterator[tuple[slice, Tensor, Tensor]]:
        """Yield some classes, ``ω d`` of them and ``q``."""
        n_rows, n_classes = self._q.shape
        size = max(1, _ENTRIES_PER_BLOCK // n_rows)
        for first in range(0, n_classes, size):
            part = slice(first, first + size)
            yield part, self._weighted[:, part], self._q[:, part]

    def _at_classes(self, vector: Vector) -> Tensor:
        return torch.from_numpy(vector).to(self._q)

    def apply(self, vector: Vector) -> Vector:
        """Return ``(Σ_i ω_i P_i) vector``."""
        v = self._at_classes(vector)
        start = v[self._lead]
        mass, spread, curved, moved, turned = self._q.new_zeros(5, len(self._weights))
        mass += self._idle
        curved += self._weights + self._idle
        for part, own, q in self._blocks():
            bent, relative = own * q, v[part] - start
            mass += own.sum(1)
            spread += bent.sum(1)
            curved += torch.linalg.vecdot(bent, q)
            moved += torch.linalg.vecdot(own, relative)
            turned += torch.linalg.vecdot(bent, relative)
        # Each row's own two equations, for β and γ.
        beta = (moved - spread * turned / curved) / (mass - spread * spread / curved)
        gamma = (turned - spread * beta) / curved
        product = torch.empty_like(v)
        for part, own, q in self._blocks():
            left = (v[part] - start - beta[:, None]).addcmul_(q, gamma[:, None], value=-1)
            product[part] = left.mul_(own).sum(0)
        answer: Vector = product.cpu().numpy()
        return answer

    def assemble(self, curvature: Vector) -> Vector:
        """Return the system, ``(2R, 2R)``."""
        h, total = self._at_classes(curvature), self._at_classes(self.mass)
        size = len(self._weights)
        system = self._q.new_zeros(2 * size, 2 * size)
        level, both, curved = self._q.new_zeros(3, size)
        level += self._idle
        curved += self._weights + self._idle
        for part, mass, q in self._blocks():
            soft = 1 + h[part] * total[part]
            pair = torch.cat((mass, mass * q))
            system.addmm_(pair * (h[part] / soft), pair.T, alpha=-1)
            own = (_beside(mass, total[part]) * h[part] + 1).mul_(mass).div_(soft)
            bent = own * q
            level += own.sum(1)
            both += bent.sum(1)
            curved += torch.linalg.vecdot(bent, q)
        system.diagonal().copy_(torch.cat((level, curved)))
        system.diagonal(size).copy_(both)
        system.diagonal(-size).copy_(both)
        matrix: Vector = system.cpu().numpy()
        return matrix

    def gather(self, vector: Vector) -> Vector:
        """Return ``Σ_k ω_i d_ik vector_k`` and ``Σ_k ω_i e_ik vector_k`` of the rows, ``(2R,)``."""
        v, sums = self._at_classes(vector), self._q.new_zeros(2, len(self._weights))
        for part, mass, q in self._blocks():
            moved = mass * v[part]
            sums[0] += moved.sum(1)
            sums[1] += torch.linalg.vecdot(moved, q)
        gathered: Vector = sums.flatten().cpu().numpy()
        return gathered

    def scatter(self, levels: Vector) -> Vector:
        """Return ``Σ_i ω_i (d_i β_i + e_i γ_i)``, ``(K,)``: :meth:`gather` transposed."""
        beta, gamma = self._at_classes(levels).view(2, -1, 1)
        spread = self._q.new_empty(self._q.shape[1])
        for part, mass, q in self._blocks():
            spread[part] = torch.addcmul(beta, q, gamma).mul_(mass).sum(0)
        scattered: Vector = spread.cpu().numpy()
        return scattered


def _beside(mass: Tensor, total: Tensor) -> Tensor:
    """Return what the other rows have of every class, ``(R, n)``."""
    top = mass.argmax(0, keepdim=True)
    beside_top = mass.scatter(0, top, 0.0).sum(0, keepdim=True)
    return (total - mass).scatter_(0, top, beside_top)
