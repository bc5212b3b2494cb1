"""The classes that a row may end in, near given multipliers: a far smaller problem.

An optimal label has at most two classes (ties aside), and most rows have one. At multipliers near
the optimum, class ``k`` of row ``i`` can matter only if its line ``σ_ik t + w_k`` nearly reaches
the row's envelope at the row's best ``t``. Rows with one candidate are settled; the others keep
theirs, and the interior point solves for those entries alone.

Where rows are few to a class, no set is right at once. Two things keep one from misleading the
next: every class has enough rows to choose from, and what was in use or is near stays in. The
interior point starts on each near what is known by then: the rows' answer, or the last labels.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from coincide.pseudolabels.dual import Point
from coincide.pseudolabels.kernels import (
    Minimizers,
    RowKernels,
    StepArrays,
    candidate_kernels,
    near_candidates,
)
from coincide.pseudolabels.kernels.candidates import Pairs, nearest_rows, still_near
from coincide.pseudolabels.kernels.shared_rows import NoRows
from coincide.pseudolabels.objectives import Vector
from coincide.pseudolabels.problem import Problem

_MOST_ADDED = 32  # candidates of a row beside its nearest, and
_MOST_ADDED_EACH = 32  # as many more for each class to a row
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

    def own_kernels(self) -> RowKernels:
        """Return the kernels for the candidates of this process."""
        if not len(self.rows):
            return NoRows(len(self.prior))
        return candidate_kernels(
            self.backend,
            self.probs,
            self.weights,
            self.classes,
            len(self.prior),
            apart=self.apart,
        )

    @property
    def can_move(self) -> bool:
        """Whether some row is open and every class of the prior has mass, or can get it."""
        weighty = (self.weights > 0).double()[:, None].expand_as(self.classes).flatten()
        candidates = torch.bincount(self.classes.flatten(), weighty, len(self.prior)).double()
        (reached,) = self.summed(candidates.cpu().numpy())
        return bool(reached.any() and ((reached + self.held > 0) | (self.prior == 0)).all())

    def at_rows(self, vector: Vector) -> Tensor:
        """Return a K-vector as it stands beside the candidates."""
        return torch.from_numpy(vector).to(self.probs)[self.classes]

    def free_sums(self, labels: Tensor) -> tuple[Vector, Vector]:
        """Return the mean loss of the open rows of this process and their mean label."""
        return super().free_sums(labels)[0], self._free_mean_label(labels)

    def mean_label(self, labels: Tensor) -> Vector:
        """Return ``ȳ``, settled and known rows included."""
        return self.summed(self._free_mean_label(labels))[0] + self.held

    def _free_mean_label(self, labels: Tensor) -> Vector:
        """Return what the open rows of this process add to ``ȳ``."""
        weighted = (self.weights[:, None] * labels).flatten()
        return torch.bincount(self.classes.flatten(), weighted, len(self.prior)).cpu().numpy()

    def candidates(self, labels: Tensor) -> Pairs:
        """Return the candidates of all M rows, the settled too; infinitely near those in use.

        Where classes are many to a row no row has much of some: of each what is most of it, too.
        """
        alone = self.closed.nonzero().squeeze(1)
        rows = torch.cat((alone, self.rows.repeat_interleave(self.classes.shape[1])))
        classes = torch.cat((self.settled[alone], self.classes.flatten()))
        own, flat = self.classes.flatten(), labels.flatten()
        used = flat > _USED
        if self.apart:
            mass = (self.weights[:, None] * labels).flatten()
            largest = mass.new_zeros(len(self.prior)).scatter_reduce(0, own, mass, "amax")
            used |= mass >= largest[own]
        used = torch.cat((torch.ones_like(alone, dtype=torch.bool), used))
        far = torch.full_like(rows, torch.inf, dtype=torch.float64)
        return Pairs(rows, classes, far.masked_fill(used, -torch.inf))

    @property
    def closed(self) -> Tensor:
        """Which of all M rows are settled."""
        closed = torch.ones_like(self.settled, dtype=torch.bool)
        closed[self.rows] = False
        return closed

    def expand(self, labels: Tensor, dtype: torch.dtype) -> Tensor:
        """Return the labels of all rows, ``(M, K)``."""
        full = torch.zeros(
            len(self.settled), len(self.prior), dtype=dtype, device=self.settled.device
        )
        full.scatter_(1, self.settled[:, None], 1.0)
        full[self.rows, self.settled[self.rows]] = 0
        full[self.rows[:, None], self.classes] = labels.to(dtype)
        return full


def first_working_set(
    problem: Problem, point: Point, slack: float, most: int, spare: float = 0.0
) -> WorkingSet:
    """Return the rows with a second class within ``slack`` of their envelope, and those classes.

    The rows' own choice may leave a class with too few rows: then multipliers would have to rise
    far to make up for it, and say nothing about the problem. Such a class chooses the rows nearest
    to it.

    Parameters
    ----------
    problem : Problem
        Of collision cross-entropy.
    point : Point
        Multipliers, and the rows' answer to them.
    slack : float
        In units of the row loss.
    most : int
        Candidates that a row chooses: the nearest.
    spare : float, optional
        How many more rows than it asks for a class needs, for each row that is in the wrong class.
    """
    settled, rows, classes = _nearest_to_rows(problem, point, slack, most)
    counts = _wanted_rows(problem, point, (settled, rows, classes), spare)
    added = _nearest_to_classes(problem, point, counts)
    return _restrict(problem, *_add(problem, point, settled, (rows, classes), added), settled)


def next_working_set(
    problem: Problem, point: Point, slack: float, most: int, kept: Pairs
) -> WorkingSet:
    """Return what :func:`first_working_set` does, and what is still near of the last working set.

    What the last labels use is kept however far it is, so that the optimum is hardly worse.

    Parameters
    ----------
    problem, point, slack, most
        As in :func:`first_working_set`.
    kept : Pairs
        The candidates of the last working set.
    """
    settled, rows, classes = _nearest_to_rows(problem, point, slack, most)
    added = still_near(problem.probs, point.multipliers, point.rows, kept, slack)
    return _restrict(problem, *_add(problem, point, settled, (rows, classes), added), settled)


def _nearest_to_rows(
    problem: Problem, point: Point, slack: float, most: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the class that every row would be settled in, the open rows and their candidates."""
    answer = point.rows
    settled = torch.where(answer.share >= 0.5, answer.steep, answer.flat)
    bounds = 1, min(most, len(problem.prior))
    rows, classes = _nearest(problem, point, slice(None), slack, bounds)
    width = _widest(problem, classes.shape[1])
    if width > classes.shape[1]:
        rows, classes = _nearest(problem, point, slice(None), slack, (width, width))
    return settled, rows, classes


def _widest(problem: Problem, width: int) -> int:
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
        The same problem in float64, or a working set of it.
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
    probs = problem.probs
    coincidence = share * probs[rows, steep] + (1 - share) * probs[rows, flat]
    lines = working.probs / coincidence
    lines += working.at_rows(point.multipliers - point.multipliers.max())
    slacks = lines.amax(1, keepdim=True) - lines
    if last is None:
        labels = share * (classes == steep) + (1 - share) * (classes == flat)
    else:
        labels = _look_up(*last, rows[:, 0], classes)
    labels = torch.maximum(labels, target / slacks.clamp_min(target**0.5))
    labels /= labels.sum(1, keepdim=True)
    return StepArrays(labels, torch.maximum(slacks, target / labels))


def _look_up(last: WorkingSet, labels: Tensor, rows: Tensor, classes: Tensor) -> Tensor:
    """Return the labels on a working set at other candidates; 0 for those that had none."""
    place = torch.full_like(last.settled, -1)
    place[last.rows] = torch.arange(len(last.rows), device=place.device)
    place = place[rows]
    opened = place >= 0
    wanted, known, values = classes[opened], last.classes[place[opened]], labels[place[opened]]
    found = (classes == last.settled[rows, None]).to(labels)
    kept = torch.zeros_like(wanted, dtype=labels.dtype)
    for same, value in zip(known.T, values.T, strict=True):
        kept += torch.where(wanted == same[:, None], value[:, None], 0.0)
    found[opened] = kept
    return found


def _nearest(
    problem: Problem,
    point: Point,
    among: Tensor | slice,
    slack: float,
    bounds: tuple[int, int],
) -> tuple[Tensor, Tensor]:
    """Return the rows with several classes near and those classes, at least and at most so many."""
    least, most = bounds
    probs = problem.probs[among]
    if not len(probs):
        none = torch.zeros_like(probs, dtype=torch.int64)
        return none[:, 0], none[:, :least]
    return near_candidates(
        problem.backend,
        probs,
        point.multipliers,
        Minimizers(*(part[among] for part in point.rows)),
        slack=slack,
        most=most,
        least=least,
    )


def _wanted_rows(
    problem: Problem, point: Point, chosen: tuple[Tensor, Tensor, Tensor], spare: float | None
) -> Vector:
    """Return from how many rows each class is to choose; 0 where the rows' choice is enough."""
    settled, rows, classes = chosen
    weights, n_classes = problem.weights.double(), len(problem.prior)
    closed = weights.clone()
    closed[rows] = 0
    candidates = weights[rows, None].expand_as(classes).flatten()
    held, rows_held, reached, size = problem.summed(
        torch.bincount(settled, closed, n_classes).double().cpu().numpy(),
        torch.bincount(settled, minlength=n_classes).double().cpu().numpy(),
        torch.bincount(classes.flatten(), candidates, n_classes).double().cpu().numpy(),
        np.array([float(weights.sum()), len(weights)]),
    )
    row = size[0] / size[1]
    asked = problem.objective.coupling.proposal(point.multipliers, problem.prior, problem.fairness)
    wanted = np.maximum(asked - problem.held, 0)
    misplaced = np.abs(point.slope)
    wanted += spare * (misplaced + misplaced.mean()) / 2
    enough = (held + reached >= wanted) & ((reached > 0) | (problem.prior == 0))
    # At least one that is not settled in the class.
    return np.where(enough, 0, np.maximum(np.ceil(wanted / row), rows_held + 1))


def _nearest_to_classes(problem: Problem, point: Point, counts: Vector) -> Pairs:
    """Return the rows nearest to every class, so many over all processes."""
    rows = (problem.weights > 0).nonzero().squeeze(1)
    if len(rows) == len(problem.probs):
        own = nearest_rows(problem.probs, point.multipliers, point.rows, counts)
    else:  # rows without weight give no class any mass
        answer = Minimizers(*(part[rows] for part in point.rows))
        own = nearest_rows(problem.probs[rows], point.multipliers, answer, counts)
        own = own._replace(rows=rows[own.rows])
    if problem.sums is None:
        return own
    classes, distances = own.classes.cpu().numpy(), own.distances.cpu().numpy()
    high = np.full_like(counts, -problem.sums.least(-float(distances.max(initial=0.0))))
    low = np.full_like(counts, -1.0)
    for _ in range(_BISECTIONS):
        level = (low + high) / 2
        within = np.bincount(classes[distances <= level[classes]], minlength=len(counts))
        enough = problem.sums.sum(within.astype(np.float64)) >= counts
        low, high = np.where(enough, low, level), np.where(enough, level, high)
    near = torch.from_numpy(distances <= high[classes]).to(own.rows.device)
    return Pairs(*(part[near] for part in own))


def _add(
    problem: Problem,
    point: Point,
    settled: Tensor,
    nearest: tuple[Tensor, Tensor],
    added: Pairs,
) -> tuple[Tensor, Tensor]:
    """Add candidates, nearest first, and pad the rows with their next nearest to one width.

    The width is the same on every process.
    """
    rows, classes = nearest
    found = settled[:, None].repeat(1, classes.shape[1])
    found[rows] = classes
    row, pair, rank = _ranked(added, found, len(problem.prior))
    opened = torch.zeros_like(settled, dtype=torch.bool)
    opened[rows] = opened[row] = True
    open_rows = opened.nonzero().squeeze(1)
    more = int(rank.max()) + 1 if len(rank) else 0
    width = min(_widest(problem, classes.shape[1] + more), len(problem.prior))
    if not len(rank) and width == classes.shape[1]:
        return nearest
    _, classes = _nearest(problem, point, open_rows, np.inf, (width, width))
    return open_rows, _put(classes, nearest[1].shape[1], torch.searchsorted(open_rows, row), pair)


def _put(classes: Tensor, first: int, rows: Tensor, added: Tensor) -> Tensor:
    """Put classes in the place of a row's farthest, never of its first few or of each other."""
    match = classes[rows] == added[:, None]
    present = match.any(1)
    taken = torch.zeros_like(classes, dtype=torch.int8)
    taken[:, :first] = 1
    taken[rows[present], match[present].to(torch.int8).argmax(1)] = 1
    farthest = classes.shape[1] - 1 - taken.flip(1).argsort(stable=True, dim=1)
    rows, added = rows[~present], added[~present]
    classes[rows, farthest[rows, _count_within(rows)]] = added
    return classes


def _count_within(rows: Tensor) -> Tensor:
    """Return how many equal entries stand before each, in a sorted list of rows."""
    return torch.arange(len(rows), device=rows.device) - torch.searchsorted(rows, rows)


def _ranked(added: Pairs, found: Tensor, n_classes: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return rows, classes and ranks by distance within a row of what is not among ``found``."""
    new = (found[added.rows] != added.classes[:, None]).all(1)
    rows, classes, distances = (part[new] for part in added)
    order = distances.argsort(stable=True)
    order = order[rows[order].argsort(stable=True)]
    rows, classes = rows[order], classes[order]
    rank = _count_within(rows)
    few = rank < _MOST_ADDED + _MOST_ADDED_EACH * n_classes / max(1, len(found))
    return rows[few], classes[few], rank[few]


def _restrict(problem: Problem, rows: Tensor, classes: Tensor, settled: Tensor) -> WorkingSet:
    """Move the settled rows into what is held; keep the candidates of the others."""
    weights = problem.weights.double()
    classes = classes.sort(1, descending=True).values
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
