"""One pseudo-label problem: its data, its objective and its certified lower bound.

    minimize  Σ_i ω_i f_i(y_i) + Φ(ȳ)   over soft labels y_i in the simplex

For any multipliers ``w``, weak duality bounds the minimum from below (MATH: the certificate),

    bound(w) = Σ_i ω_i g_i(w) - w·held - conjugate(w),   g_i(w) = min_y [f_i(y) - w·y],

and ``w = -Φ'(ȳ)`` of any feasible labels is a good choice. Objective minus bound is a duality
gap: the stopping rule of every solver. Rows whose class is known stay fixed: they only add
``held`` to the mean label and a constant to the loss.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from coincide.pseudolabels.kernels import (
    RowKernels,
    answer_kernels,
    pays_apart,
    row_kernels,
    row_minimizers,
    row_parts,
    summed_labels,
    weighted_sum,
)
from coincide.pseudolabels.kernels.shared_rows import NoRows, SharedRows, Sums, sum_together
from coincide.pseudolabels.objectives import Objective, Vector


@dataclass(frozen=True)
class Problem:
    """The free rows of a pseudo-label problem and what the known rows contribute.

    Attributes
    ----------
    probs : Tensor of shape (M, K)
        Predictions of the free rows, float32 or float64.
    weights : Tensor of shape (M,)
        Row weights ``ω``, float64; with the mass of the known rows they sum to 1.
    prior : array of shape (K,), float64
    fairness : float
    objective : Objective
    backend : str
        The row kernels to use.
    held : array of shape (K,), float64
        What the known rows add to the mean label.
    held_loss : float
        What the known rows add to the mean row loss.
    guess : array of shape (K,), float64, optional
        Multipliers of a similar problem, where a solver of the dual starts.
    sums : Sums, optional
        Over the processes that hold the other rows.
    precision : torch.dtype, optional
        Of the labels and the arithmetic of EM; that of ``probs`` by default.
    """

    probs: Tensor
    weights: Tensor
    prior: Vector
    fairness: float
    objective: Objective
    backend: str
    held: Vector
    held_loss: float = 0.0
    guess: Vector | None = None
    sums: Sums | None = None
    precision: torch.dtype | None = None

    def summed(self, *arrays: Vector) -> Sequence[Vector]:
        """Return the sums of arrays over the processes that hold rows."""
        return arrays if self.sums is None else sum_together(self.sums, *arrays)

    def mass(self) -> float:
        """Return the share of the free rows of all processes."""
        return float(self.summed(np.array(float(self.weights.sum(dtype=torch.float64))))[0])

    def entries(self) -> float:
        """Return the number of row-class entries of all processes."""
        return float(self.summed(np.array(float(self.probs.numel())))[0])

    def to(self, dtype: torch.dtype) -> Problem:
        """Return the problem with its rows in another precision."""
        if self.probs.dtype == dtype and self.precision is None:
            return self
        return dataclasses.replace(self, probs=self.probs.to(dtype), precision=None)

    def uniform_labels(self) -> Tensor:
        """Return labels of ``1/K`` everywhere, one number in memory."""
        dtype = self.precision or self.probs.dtype
        one = self.probs.new_full((1, 1), 1 / self.probs.shape[1], dtype=dtype)
        return one.expand(self.probs.shape)

    @cached_property
    def kernel_rows(self) -> Tensor:
        """What the interior point's kernels read: ``σ``; under Shannon's loss ``ln σ``, float64.

        There ``σ = 0`` gets a cost that no fairness can outweigh.
        """
        if self.objective.collision:
            return self.probs
        logs = torch.empty_like(self.probs, dtype=torch.float64)
        lowest = float("inf")
        for part in row_parts(self.probs):
            own = torch.log(self.probs[part].double(), out=logs[part])
            if own.numel():
                lowest = min(lowest, float(own.masked_fill(own == -torch.inf, torch.inf).min()))
        if self.sums is not None:
            lowest = self.sums.least(lowest)
        reach = self.fairness * (1 - float(np.log(self.prior[self.prior > 0]).min()))
        return logs.clamp_(min=lowest - 10 * (1 + reach))

    def kernels(self) -> RowKernels:
        """Return the interior point's kernels for these rows."""
        own = self.own_kernels()
        return own if self.sums is None else SharedRows(own, self.sums)

    def own_kernels(self) -> RowKernels:
        """Return the kernels for the rows of this process."""
        rows = self.kernel_rows
        if not len(rows):
            return NoRows(len(self.prior))
        collision = self.objective.collision
        return row_kernels(self.backend, rows, self.weights, collision=collision, apart=self.apart)

    @property
    def unknowns(self) -> int:
        """The unknowns of the dense system that couples the rows: two a row, or one a class."""
        return 2 * len(self.probs) if self.apart else len(self.prior)

    @cached_property
    def apart(self) -> bool:
        """Whether the kernels give the coupling row by row, for the rows are few and all here."""
        few = pays_apart(len(self.probs), len(self.prior))
        return few and self.sums is None and self.objective.collision

    def at_rows(self, vector: Vector) -> Tensor:
        """Return a K-vector as it stands beside the entries of ``probs``."""
        return torch.from_numpy(vector).to(self.probs)

    def mean_label(self, labels: Tensor) -> Vector:
        """Return ``ȳ``, known rows included."""
        free: Vector = weighted_sum(self.weights, labels).cpu().numpy()
        return self.summed(free)[0] + self.held

    def multipliers(self, mean_label: Vector) -> Vector:
        """Return ``w = -Φ'(ȳ)``."""
        return self.objective.coupling.multipliers(mean_label, self.prior, self.fairness)

    def curvature(self, mean_label: Vector) -> Vector:
        """Return ``Φ''(ȳ)``."""
        return self.objective.coupling.curvature(mean_label, self.prior, self.fairness)

    def coupling_gap(self, mean_label: Vector, multipliers: Vector) -> float:
        """Return ``Φ(ȳ) + w·ȳ + conjugate(w)``, what Fenchel's inequality leaves open."""
        coupling = self.objective.coupling
        return coupling.divergence(mean_label, multipliers, self.prior, self.fairness)

    def bounded_by(self, multipliers: Vector) -> bool:
        """Whether multipliers give a finite lower bound."""
        return self.objective.coupling.bounded(multipliers, self.prior, self.fairness)

    def admissible(self, labels: Tensor) -> Tensor:
        """Return labels of finite loss: under Shannon's, none where the prediction is 0."""
        if self.objective.collision or bool((self.probs > 0).all()):
            return labels
        kept = torch.where(self.probs > 0, labels, 0.0)
        mass = kept.sum(1, keepdim=True)
        return torch.where(mass > 0, kept / mass, self.probs)

    def descent(self, labels: Tensor) -> Tensor:
        """Return minus the gradient of the row losses."""
        if not self.objective.collision:
            return self.kernel_rows.to(self.probs)
        coincidence: Tensor = torch.linalg.vecdot(self.probs, labels)
        return self.probs / coincidence[:, None]

    def free_sums(self, labels: Tensor) -> tuple[Vector, Vector]:
        """Return ``Σ_i ω_i f_i(y_i)`` and ``Σ_i ω_i y_i`` over the free rows of this process."""
        collision = self.objective.collision
        return summed_labels(self.backend, self.probs, self.weights, labels, collision=collision)

    def value(self, labels: Tensor) -> float:
        """Return the objective at ``labels``."""
        loss, free = self.summed(*self.free_sums(labels))
        fairness = self.objective.coupling.value(free + self.held, self.prior, self.fairness)
        return float(loss) + fairness + self.held_loss

    def lower_bound(self, multipliers: Vector) -> float:
        """Return ``bound(w)``: no labels have a smaller objective."""
        own = sum(self._dual_value(multipliers, part) for part in row_parts(self.probs))
        free = float(self.summed(np.array(own))[0])
        conjugate = self.objective.coupling.conjugate(multipliers, self.prior, self.fairness)
        return free - float(multipliers @ self.held) - conjugate + self.held_loss

    def _dual_value(self, multipliers: Vector, part: slice) -> float:
        """Return ``Σ_i ω_i g_i(w)`` over some free rows."""
        probs, weights = self.probs[part], self.weights[part].double()
        if not self.objective.collision:  # g = -max_k(ln σ_k + w_k)
            w = torch.from_numpy(multipliers).to(probs.device)
            return -float(weights @ (probs.double().log() + w).amax(1))
        answer = row_minimizers(self.backend, probs).minimize(multipliers)
        kernels = answer_kernels(self.backend)
        return float(kernels.summed_answer(answer, weights, len(multipliers))[1])


class Certificate(NamedTuple):
    """An objective, a lower bound on its minimum, and the gap between them."""

    objective: float
    lower_bound: float

    @property
    def gap(self) -> float:
        """Objective minus lower bound: 0 at an exact optimum, up to rounding."""
        if self.objective == self.lower_bound:  # both infinite: no labels are better
            return 0.0
        return self.objective - self.lower_bound

    def within(self, tol: float) -> bool:
        """Whether ``gap <= tol · max(1, |objective|)``."""
        scale = max(1.0, abs(self.objective)) if math.isfinite(self.objective) else 1.0
        return self.gap <= tol * scale


def certify(problem: Problem, labels: Tensor, multipliers: Vector | None = None) -> Certificate:
    """Return the objective at ``labels`` and a lower bound.

    The bound comes from the given multipliers, else from those that the labels propose.
    """
    if multipliers is None:
        multipliers = problem.multipliers(problem.mean_label(labels))
    bound = float("-inf")
    if np.isfinite(multipliers).all():
        bound = problem.lower_bound(multipliers)
    return Certificate(problem.value(labels), bound)
