"""The classes that a row may end in, near given multipliers: a far smaller problem.

An optimal label has at most two classes (ties aside), and most rows have one. At multipliers near
the optimum, class ``k`` of row ``i`` can matter only if its line ``σ_ik t + w_k`` nearly reaches
the row's envelope at the row's best ``t``. Rows with one such candidate are settled; the others
keep theirs, and the interior point solves for those entries alone.

Where rows are few to a class, no set is right at once. Two things keep one from misleading the
next: every class has enough rows to choose from, and what the last labels use stays in. The
interior point starts on each set near what is known by then: the rows' answer, or the last labels.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from coincide.pseudolabels.dual import Point
from coincide.pseudolabels.objectives import Vector
from coincide.pseudolabels.problem import Problem
from coincide.pseudolabels.rows import Minimizers, NewtonRows, StepArrays
from coincide.pseudolabels.rows.shared import Sums
from coincide.pseudolabels.rows.torch_dual import nearest_rows

_USED = 1e-3  # a label from here on keeps its class a candidate
_BISECTIONS = 50


@dataclass(frozen=True, kw_only=True)
class WorkingSet(Problem):
    """The open rows of a problem, each with its candidate classes.

    Attributes
    ----------
    probs : Tensor of shape (R, C), float64
        Predictions of the candidates.
    classes : Tensor of shape (R, C), int64
        The candidates, descending within a row.
    rows : Tensor of shape (R,), int64
        Where the open rows stand among all M.
    settled : Tensor of shape (M,), int64
        The class of every settled row.
    """

    classes: Tensor
    rows: Tensor
    settled: Tensor

    def _own_newton_rows(self) -> NewtonRows:
        """Return the passes over the candidates of this process."""
        return self.passes.newton_rows(
            self.probs, self.weights, self.n_classes, collision=True, classes=self.classes
        )

    @property
    def can_move(self) -> bool:
        """Whether some row is open and every class of the prior has mass, or can get it."""
        reached = self.reached
        return bool(reached.any() and ((reached + self.held > 0) | (self.prior == 0)).all())

    @cached_property
    def reached(self) -> Vector:
        """The mass of the rows that each class is a candidate of, ``(K,)``."""
        mass = self.weights[:, None].expand_as(self.classes).flatten()
        own = torch.bincount(self.classes.flatten(), mass, self.n_classes).cpu().numpy()
        return self.summed(own)[0]

    def at_rows(self, vector: Vector) -> Tensor:
        """Return a K-vector as it stands beside the candidates."""
        return super().at_rows(vector)[self.classes]

    def free_sums(self, labels: Tensor) -> tuple[Vector, Vector]:
        """Return the mean loss of the open rows of this process and their mean label."""
        return super().free_sums(labels)[0], self._free_mean_label(labels)

    def mean_label(self, labels: Tensor) -> Vector:
        """Return ``ȳ``, settled and known rows included."""
        return self.summed(self._free_mean_label(labels))[0] + self.held

    def _free_mean_label(self, labels: Tensor) -> Vector:
        """Return what the open rows of this process add to ``ȳ``."""
        weighted = (self.weights[:, None] * labels).flatten()
        return torch.bincount(self.classes.flatten(), weighted, self.n_classes).cpu().numpy()

    def expand(self, labels: Tensor, dtype: torch.dtype) -> Tensor:
        """Return the labels of all rows, ``(M, K)``."""
        shape = len(self.settled), self.n_classes
        full = torch.zeros(shape, dtype=dtype, device=self.settled.device)
        full.scatter_(1, self.settled[:, None], 1.0)
        full[self.rows, self.settled[self.rows]] = 0
        full[self.rows[:, None], self.classes] = labels.to(dtype)
        return full

    def used(self, labels: Tensor) -> Tensor:
        """Return the classes that labels on this set use, ``(M, L)``: at least one of every row."""
        classes = torch.where(labels > _USED, self.classes, self.settled[self.rows, None])
        used = self.settled[:, None].repeat(1, classes.shape[1])
        used[self.rows] = classes
        return used

    def look_up(self, labels: Tensor, rows: Tensor, classes: Tensor) -> Tensor:
        """Return labels on this set at other candidates; 0 for those that had none.

        Parameters
        ----------
        labels : Tensor of shape (R, C)
        rows : Tensor of shape (N,), int64
            Among all M.
        classes : Tensor of shape (N, L), int64
        """
        place = torch.full_like(self.settled, -1)
        place[self.rows] = torch.arange(len(self.rows), device=place.device)
        place = place[rows]
        opened = place >= 0
        wanted, known, values = classes[opened], self.classes[place[opened]], labels[place[opened]]
        found = (classes == self.settled[rows, None]).to(labels)
        kept = torch.zeros_like(wanted, dtype=labels.dtype)
        for same, value in zip(known.T, values.T, strict=True):
            kept += torch.where(wanted == same[:, None], value[:, None], 0.0)
        found[opened] = kept
        return found


def working_set(
    problem: Problem,
    point: Point,
    *,
    slack: float,
    most: int,
    kept: Tensor | None = None,
    within: Vector | None = None,
) -> WorkingSet:
    """Return the rows with several candidates, and those.

    Parameters
    ----------
    problem : Problem
        Of collision cross-entropy.
    point : Point
        Multipliers, and the rows' answer to them.
    slack, most, kept, within
        See :func:`coincide.pseudolabels.rows.torch_dual.near_candidates`.
    """
    answer = point.rows
    settled = torch.where(answer.share >= 0.5, answer.steep, answer.flat)
    kept = settled[:, None] if kept is None else torch.cat((settled[:, None], kept), 1)

    def near(least: int, most: int) -> tuple[Tensor, Tensor]:
        if not len(problem.probs):
            return kept[:, 0], kept[:, :1].expand(-1, least)
        where = problem.probs, point.multipliers, answer
        return problem.passes.near_candidates(
            *where, slack=slack, most=most, least=least, kept=kept, within=within
        )

    rows, classes = near(1, min(most, problem.n_classes))
    width = _largest(problem, classes.shape[1])  # the same on every process
    if width > classes.shape[1]:
        rows, classes = near(width, width)
    classes = classes.sort(1, descending=True).values
    closed = torch.ones_like(settled, dtype=torch.bool)
    closed[rows] = False
    mass = torch.where(closed, problem.weights, 0.0)
    losses = -problem.probs.gather(1, settled[:, None]).squeeze(1).double().log()
    held, held_loss = problem.summed(
        torch.bincount(settled, mass, problem.n_classes).cpu().numpy(),
        (mass[closed] @ losses[closed]).cpu().numpy(),
    )
    return WorkingSet(
        probs=problem.probs[rows[:, None], classes].double(),
        weights=problem.weights[rows],
        objective=problem.objective,
        coupling=problem.coupling,
        passes=problem.passes,
        held=problem.held + held,
        held_loss=problem.held_loss + float(held_loss),
        sums=problem.sums,
        classes=classes,
        rows=rows,
        settled=settled,
    )


def enough_rows(
    problem: Problem, point: Point, working: WorkingSet, spare: float
) -> tuple[Vector, int]:
    """Return how near a class has to be to every row that it needs, and to how many in a row.

    The rows' own choice may leave a class with too few: then multipliers would have to rise far to
    make up for it, and say nothing about the problem.

    Parameters
    ----------
    problem : Problem
    point : Point
    working : WorkingSet
        The rows' own choice.
    spare : float
        How many rows more than it asks for a class needs, for each that is in the wrong class.

    Returns
    -------
    within : array of shape (K,)
        Negative where the rows' own choice is enough.
    most : int
        Classes that come first in a row.
    """
    rows = (problem.weights > 0).nonzero().squeeze(1)
    row = problem.mass() / float(problem.summed(np.array(float(len(rows))))[0])
    misplaced = np.abs(point.slope)
    wanted = np.maximum(problem.coupling.proposal(point.multipliers) - problem.held, 0)
    wanted += spare * (misplaced + misplaced.mean()) / 2
    settled = working.held - problem.held
    enough = (settled + working.reached >= wanted) & (working.reached > 0)
    # At least one row that is not settled in the class.
    counts = np.maximum(np.ceil(wanted / row), np.ceil(settled / row) + 1)
    counts[enough | (problem.prior == 0)] = 0
    answer = Minimizers(*(part[rows] for part in point.rows))
    found = nearest_rows(problem.probs[rows], point.multipliers, answer, counts)
    places, classes, distances = (part.cpu().numpy() for part in found)
    within = np.full(problem.n_classes, -1.0)
    np.maximum.at(within, classes, distances)
    if problem.sums is not None:
        within = _level(problem.sums, classes, distances, counts)
    near = distances <= within[classes]
    return within, _largest(problem, int(np.bincount(places[near]).max(initial=0)))


def _level(sums: Sums, classes: NDArray[np.int64], distances: Vector, counts: Vector) -> Vector:
    """Return for every class the distance within which all processes have so many rows together."""
    low = np.full_like(counts, -1.0)
    high = np.where(counts > 0, -sums.least(-float(distances.max(initial=0.0))), low)
    for _ in range(_BISECTIONS):
        level = (low + high) / 2
        within = np.bincount(classes[distances <= level[classes]], minlength=len(counts))
        enough = sums.sum(within.astype(np.float64)) >= counts
        low, high = np.where(enough, low, level), np.where(enough, level, high)
    return high


def _largest(problem: Problem, width: int) -> int:
    """Return the largest width of any process."""
    return width if problem.sums is None else int(-problem.sums.least(-width))


def start_near(
    problem: Problem,
    working: Problem,
    point: Point,
    target: float,
    last: tuple[WorkingSet, Tensor] | None = None,
) -> StepArrays:
    """Return an iterate of the interior point near a point of the dual.

    Its slacks are how far the lines lie below the rows' envelopes, its labels those of the rows'
    answer, or the last ones: they hold the balance of the classes better. Both rise as far as
    ``y ζ >= target`` asks: an iterate closer to the boundary than to the optimum would hardly move.

    Parameters
    ----------
    problem : Problem
        The problem of the point.
    working : Problem
        The same problem, or a working set of it.
    point : Point
    target : float
        For every ``y ζ``.
    last : (WorkingSet, Tensor of shape (R, C)), optional
        Another working set and its labels.
    """
    if isinstance(working, WorkingSet):
        rows, classes = working.rows[:, None], working.classes
    else:
        rows, classes = (
            torch.arange(size, device=working.probs.device) for size in working.probs.shape
        )
        rows, classes = rows[:, None], classes[None]
    steep, flat, share = (part[rows] for part in point.rows[1:])
    low, high = (problem.probs[rows, own].double() for own in (flat, steep))
    lines = working.probs.double() / torch.lerp(low, high, share)
    lines += working.at_rows(point.multipliers - point.multipliers.max())
    slacks = lines.amax(1, keepdim=True) - lines
    if last is None:
        labels = share * (classes == steep) + (1 - share) * (classes == flat)
    else:
        labels = last[0].look_up(last[1], rows[:, 0], classes.expand(len(rows), -1))
    labels = torch.maximum(labels, target / slacks.clamp_min(target**0.5))
    labels /= labels.sum(1, keepdim=True)
    return StepArrays(labels, torch.maximum(slacks, target / labels))
