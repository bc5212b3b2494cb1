"""One pseudo-label problem: its data, its objective and its certified lower bound.

    minimize  Σ_i ω_i f_i(y_i) + Φ(ȳ)   over soft labels y_i in the simplex

For any multipliers ``w``, weak duality bounds the minimum from below (MATH: the certificate),

    bound(w) = Σ_i ω_i g_i(w) - w·held - conjugate(w),   g_i(w) = min_y [f_i(y) - w·y],

and ``w = -Φ'(ȳ)`` of any feasible labels is a good choice. Objective minus bound is a duality
gap: the stopping rule of every solver.

What is decided beforehand leaves the problem here and is put back at the end, so that no solver has
to know of it: rows with a known class only add ``held`` to the mean label and a constant to the
loss, and classes that the prior forbids stay empty.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from coincide._checks import UNKNOWN
from coincide.pseudolabels.objectives import OBJECTIVES, Coupling, ForwardKL, Objective, Vector
from coincide.pseudolabels.rows import NewtonRows, TorchPasses, row_parts, weighted_sum
from coincide.pseudolabels.rows.shared import NoRows, SharedRows, Sums, sum_together


@dataclass(frozen=True)
class Problem:
    """The free rows of a pseudo-label problem and what the known rows contribute.

    Attributes
    ----------
    probs : Tensor of shape (M, K)
        Predictions of the free rows, float32 or float64.
    weights : Tensor of shape (M,)
        Row weights ``ω``, float64; with the mass of the known rows they sum to 1.
    objective : Objective
    coupling : Coupling
        That of the objective, for the prior and the fairness.
    passes : TorchPasses
        Over the rows.
    held : array of shape (K,), float64
        What the known rows add to the mean label.
    held_loss : float
        What the known rows add to the mean row loss.
    guess : array of shape (K,), float64, optional
        Multipliers of a similar problem, where a solver of the dual starts.
    sums : Sums, optional
        Over the processes that hold the other rows.
    """

    probs: Tensor
    weights: Tensor
    objective: Objective
    coupling: Coupling
    passes: TorchPasses
    held: Vector
    held_loss: float = 0.0
    guess: Vector | None = None
    sums: Sums | None = None

    @property
    def prior(self) -> Vector:
        """``u``, ``(K,)``."""
        return self.coupling.prior

    @property
    def n_classes(self) -> int:
        """``K``."""
        return len(self.coupling.prior)

    def summed(self, *arrays: Vector) -> Sequence[Vector]:
        """Return the sums of arrays over the processes that hold rows."""
        return arrays if self.sums is None else sum_together(self.sums, *arrays)

    def mass(self) -> float:
        """Return the share of the free rows of all processes."""
        return float(self.summed(np.array(float(self.weights.sum())))[0])

    def entries(self) -> float:
        """Return the number of row-class entries of all processes."""
        return float(self.summed(np.array(float(self.probs.numel())))[0])

    def uniform_labels(self) -> Tensor:
        """Return labels of ``1/K`` everywhere, float64, one number in memory."""
        one = self.probs.new_full((1, 1), 1 / self.probs.shape[1], dtype=torch.float64)
        return one.expand(self.probs.shape)

    @cached_property
    def newton_input(self) -> Tensor:
        """What the interior point reads: ``σ``; under Shannon's loss ``ln σ``, float64.

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
        least_prior = float(np.log(self.prior[self.prior > 0]).min())
        return logs.clamp_(min=lowest - 10 * (1 + self.coupling.fairness * (1 - least_prior)))

    def newton_rows(self) -> NewtonRows:
        """Return the interior point's passes over the rows of all processes."""
        own = self._own_newton_rows() if len(self.probs) else NoRows(self.n_classes)
        return own if self.sums is None else SharedRows(own, self.sums)

    def _own_newton_rows(self) -> NewtonRows:
        """Return the passes over the rows of this process."""
        collision = self.objective.collision
        return self.passes.newton_rows(
            self.newton_input, self.weights, self.n_classes, collision=collision
        )

    def at_rows(self, vector: Vector) -> Tensor:
        """Return a K-vector as it stands beside the entries of ``probs``."""
        return torch.from_numpy(vector).to(self.probs.device)

    def mean_label(self, labels: Tensor) -> Vector:
        """Return ``ȳ``, known rows included."""
        free: Vector = weighted_sum(self.weights, labels).cpu().numpy()
        return self.summed(free)[0] + self.held

    def admissible(self, labels: Tensor) -> Tensor:
        """Return labels of finite loss: under Shannon's, none where the prediction is 0."""
        if self.objective.collision or bool((self.probs > 0).all()):
            return labels
        kept = torch.where(self.probs > 0, labels, 0.0)
        mass = kept.sum(1, keepdim=True)
        return torch.where(mass > 0, kept / mass, self.probs.to(labels))

    def descent(self, labels: Tensor) -> Tensor:
        """Return minus the gradient of the row losses, in the type of the labels."""
        if not self.objective.collision:
            return self.newton_input.to(labels)
        probs = self.probs.to(labels)
        coincidence: Tensor = torch.linalg.vecdot(probs, labels)
        return probs / coincidence[:, None]

    def free_sums(self, labels: Tensor) -> tuple[Vector, Vector]:
        """Return ``Σ_i ω_i f_i(y_i)`` and ``Σ_i ω_i y_i`` over the free rows of this process."""
        collision = self.objective.collision
        return self.passes.summed_labels(self.probs, self.weights, labels, collision=collision)

    def value(self, labels: Tensor) -> float:
        """Return the objective at ``labels``."""
        loss, free = self.summed(*self.free_sums(labels))
        return float(loss) + self.coupling.value(free + self.held) + self.held_loss

    def lower_bound(self, multipliers: Vector) -> float:
        """Return ``bound(w)``: no labels have a smaller objective."""
        own = sum(self._dual_value(multipliers, part) for part in row_parts(self.probs))
        free = float(self.summed(np.array(own))[0])
        held = float(multipliers @ self.held)
        return free - held - self.coupling.conjugate(multipliers) + self.held_loss

    def _dual_value(self, multipliers: Vector, part: slice) -> float:
        """Return ``Σ_i ω_i g_i(w)`` over some free rows."""
        probs, weights = self.probs[part], self.weights[part]
        if not self.objective.collision:  # g = -max_k(ln σ_k + w_k)
            w = torch.from_numpy(multipliers).to(probs.device)
            return -float(weights @ (probs.double().log() + w).amax(1))
        answer = self.passes.minimizers(probs).minimize(multipliers)
        return float(self.passes.summed_answer(answer, weights, self.n_classes)[1])


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
        multipliers = problem.coupling.multipliers(problem.mean_label(labels))
    bound = float("-inf")
    if np.isfinite(multipliers).all():
        bound = problem.lower_bound(multipliers)
    return Certificate(problem.value(labels), bound)


@dataclass(frozen=True)
class Reduction:
    """The free part of a problem, and the way back to all rows and classes."""

    problem: Problem
    known: Tensor | None  # (M,) class ids, -1 where free
    free: Tensor | None  # (M,) bool; None: every row
    classes: Tensor | None  # (K,) bool; None: every class
    n_classes: int

    def restrict(self, labels: Tensor) -> Tensor:
        """Return the free part of full labels, its rows summing to 1 again."""
        if self.free is not None:
            labels = labels[self.free]
        if self.classes is not None:
            labels = labels[:, self.classes]
            mass = labels.sum(1, keepdim=True)
            labels = torch.where(mass > 0, labels / mass, 1 / labels.shape[1])
        return labels

    def expand(self, labels: Tensor) -> Tensor:
        """Return full labels: the free ones in place, the known rows one-hot."""
        if self.classes is not None:
            wide = labels.new_zeros(labels.shape[0], self.n_classes)
            wide[:, self.classes] = labels
            labels = wide
        if self.known is None or self.free is None:
            return labels
        full = labels.new_zeros(self.known.shape[0], self.n_classes)
        full[self.free] = labels
        rows = (~self.free).nonzero()[:, 0]
        full[rows, self.known[rows]] = 1
        return full

    def expand_vector(self, vector: Vector) -> Vector:
        """Return a K-vector of all classes; 0 for the forbidden ones."""
        if self.classes is None:
            return vector
        wide: Vector = np.zeros(self.n_classes)
        wide[self.classes.cpu().numpy()] = vector
        return wide


def reduce_problem(
    probs: Tensor,
    *,
    prior: Vector,
    fairness: float,
    objective: str,
    passes: TorchPasses,
    known: Tensor | None = None,
    weights: Tensor | None = None,
    guess: Vector | None = None,
    sums: Sums | None = None,
) -> Reduction:
    """Return the problem over the free rows and the allowed classes.

    Parameters
    ----------
    probs : Tensor of shape (M, K), float32 or float64
    prior : array of shape (K,), float64
    fairness : float
    objective : str
        A key of ``OBJECTIVES``.
    passes : TorchPasses
        Over the rows.
    known : Tensor of shape (M,), int64, optional
        Class ids; -1 where free.
    weights : Tensor of shape (M,), optional
        Non-negative, not all zero.
    guess : array of shape (K,), float64, optional
        Multipliers to start from.
    sums : Sums, optional
        Over the processes that hold the other rows.

    Raises
    ------
    ValueError
        If a known row or a whole prediction lies on classes that the prior forbids.
    """
    n_rows, n_classes = probs.shape
    shares = _shares(n_rows, probs, weights, sums)
    held: Vector = np.zeros(n_classes)
    held_loss = 0.0
    free = None
    if known is not None:
        free = known == UNKNOWN
        rows = (~free).nonzero()[:, 0]
        ids, mass = known[rows], shares[rows].double()
        np.add.at(held, ids.cpu().numpy(), mass.cpu().numpy())
        held_loss = float(mass @ -probs[rows, ids].double().log())
        probs, shares = probs[free], shares[free]
    if sums is not None:
        totals = sums.sum(np.append(held, held_loss))
        held, held_loss = totals[:-1], float(totals[-1])
    classes = None
    forbidden = prior == 0
    named = OBJECTIVES[objective]
    if named.coupling is ForwardKL and fairness > 0 and forbidden.any():
        if (held[forbidden] > 0).any():
            raise ValueError(
                "The 'known' parameter names a class whose prior is 0: the objective is infinite."
            )
        classes = torch.from_numpy(~forbidden).to(probs.device)
        probs, prior, held = probs[:, classes], prior[~forbidden], held[~forbidden]
        guess = None if guess is None else guess[~forbidden]
        stranded = probs.amax(1) <= 0 if probs.numel() else probs.new_zeros(0, dtype=torch.bool)
        if bool(stranded.any()):
            row = int(stranded.nonzero()[0, 0])
            if free is not None:
                row = int(free.nonzero()[row, 0])
            raise ValueError(
                f"Row {row} of the predictions is 0 in every class that the prior allows: the"
                " objective is infinite."
            )
    problem = Problem(
        probs.contiguous(),
        shares,
        named,
        named.coupling(prior, fairness),
        passes,
        held,
        held_loss,
        guess,
        sums,
    )
    return Reduction(problem, known, free, classes, n_classes)


def _shares(n_rows: int, probs: Tensor, weights: Tensor | None, sums: Sums | None) -> Tensor:
    """Return every row's share of the weight of all rows, float64."""
    mass = probs.new_ones(n_rows, dtype=torch.float64) if weights is None else weights.double()
    own = np.array([float(mass.sum())])
    whole = own if sums is None else sums.sum(own)
    return mass / float(whole[0])
