"""The classes that a row may end in, near given multipliers: a far smaller problem.

An optimal label has at most two classes (ties aside), and most rows have one. At multipliers near
the optimum, class ``k`` of row ``i`` can matter only if its line ``σ_ik t + w_k`` nearly reaches
the row's envelope at the row's best ``t``. Rows with one candidate are settled; the others keep
theirs, and the interior point solves for those entries alone.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from coincide.pseudolabels.dual import Point
from coincide.pseudolabels.kernels import RowKernels, candidate_kernels, near_candidates
from coincide.pseudolabels.kernels.shared_rows import NoRows
from coincide.pseudolabels.objectives import Vector
from coincide.pseudolabels.problem import Problem

_LEAST_SLACK, _WIDER = 1e-6, 10.0


@dataclass(frozen=True, kw_only=True)
class WorkingSet(Problem):
    """The open rows of a problem, each with its candidate classes.

    Attributes
    ----------
    probs : Tensor of shape (R, C), float64
        Predictions of the candidates.
    classes : Tensor of shape (R, C), int64
        The candidates.
    rows : Tensor of shape (R,), int64
        Where the open rows stand among all M.
    settled : Tensor of shape (M,), int64
        The class of every settled row.
    """

    classes: Tensor
    rows: Tensor
    settled: Tensor

    def own_kernels(self) -> RowKernels:
        """Return the kernels for the candidates of this process."""
        if not len(self.rows):
            return NoRows(len(self.prior))
        return candidate_kernels(
            self.backend, self.probs, self.weights, self.classes, len(self.prior)
        )

    @property
    def can_move(self) -> bool:
        """Whether some row is open and every class of the prior has mass, or can get it."""
        candidates = torch.bincount(self.classes.flatten(), minlength=len(self.prior)).double()
        (reached,) = self.summed(candidates.cpu().numpy())
        return bool(reached.any() and ((reached + self.held > 0) | (self.prior == 0)).all())

    def at_rows(self, vector: Vector) -> Tensor:
        """Return a K-vector as it stands beside the candidates."""
        return torch.from_numpy(vector).to(self.probs)[self.classes]

    def mean_label(self, labels: Tensor) -> Vector:
        """Return ``ȳ``, settled and known rows included."""
        weighted = (self.weights[:, None] * labels).flatten()
        open_rows = torch.bincount(self.classes.flatten(), weighted, len(self.prior)).double()
        return self.summed(open_rows.cpu().numpy())[0] + self.held

    def expand(self, labels: Tensor, dtype: torch.dtype) -> Tensor:
        """Return the labels of all rows, ``(M, K)``."""
        full = torch.zeros(
            len(self.settled), len(self.prior), dtype=dtype, device=self.settled.device
        )
        full.scatter_(1, self.settled[:, None], 1.0)
        full[self.rows, self.settled[self.rows]] = 0
        full[self.rows[:, None], self.classes] = labels.to(dtype)
        return full


def working_set(problem: Problem, point: Point, slack: float, most: int) -> WorkingSet:
    """Return the rows with a second class within ``slack`` of their envelope.

    Where no row has one, or some class would stay empty at an infinite loss, the slack grows and
    the candidates double until the working set can move.

    Parameters
    ----------
    problem : Problem
        Of collision cross-entropy.
    point : Point
        Multipliers, and the rows' answer to them.
    slack : float
        In units of the row loss.
    most : int
        Candidates a row may have: the nearest.
    """
    answer, classes = point.rows, problem.probs.shape[1]
    settled = torch.where(answer.share >= 0.5, answer.steep, answer.flat)
    while True:
        most = min(most, classes)
        rows, candidates = _nearest(problem, point, slack, most)
        found = _restrict(problem, rows, candidates, settled)
        if found.can_move or (most == classes and slack == np.inf):
            return found
        slack, most = _WIDER * max(_LEAST_SLACK, slack), 2 * most


def _nearest(problem: Problem, point: Point, slack: float, most: int) -> tuple[Tensor, Tensor]:
    """Return the open rows and their candidates, as many of them on every process."""

    def search(least: int) -> tuple[Tensor, Tensor]:
        if not len(problem.probs):
            none = torch.zeros_like(problem.probs, dtype=torch.int64)
            return none[:, 0], none[:, :least]
        return near_candidates(
            problem.backend,
            problem.probs,
            point.multipliers,
            point.rows,
            slack=slack,
            most=most,
            least=least,
        )

    rows, classes = search(1)
    if problem.sums is None:
        return rows, classes
    widest = int(-problem.sums.least(-classes.shape[1]))
    return (rows, classes) if classes.shape[1] == widest else search(widest)


def _restrict(problem: Problem, rows: Tensor, classes: Tensor, settled: Tensor) -> WorkingSet:
    """Move the settled rows into what is held; keep the candidates of the others."""
    weights = problem.weights.double()
    closed = torch.ones_like(settled, dtype=torch.bool)
    closed[rows] = False
    mass = torch.where(closed, weights, 0.0)
    losses = -problem.probs.gather(1, settled[:, None]).squeeze(1).double().log()
    held, held_loss = problem.summed(
        torch.bincount(settled, mass, len(problem.prior)).double().cpu().numpy(),
        (mass[closed] @ losses[closed]).cpu().numpy(),
    )
    return WorkingSet(
        probs=problem.probs[rows[:, None], classes].double(),
        weights=weights[rows],
        prior=problem.prior,
        fairness=problem.fairness,
        objective=problem.objective,
        backend=problem.backend,
        held=problem.held + held,
        held_loss=problem.held_loss + float(held_loss),
        sums=problem.sums,
        classes=classes,
        rows=rows,
        settled=settled,
    )
