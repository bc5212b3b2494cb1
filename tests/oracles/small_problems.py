"""What the tests of the solvers' parts have in common: problems, points of their dual, backends."""

from __future__ import annotations

import numpy as np
import torch

from coincide.pseudolabels.dual import Point, evaluate
from coincide.pseudolabels.interior_point import InteriorPoint, InteriorPointState
from coincide.pseudolabels.problem import Problem, reduce_problem
from coincide.pseudolabels.rows import TorchPasses, compiled_passes
from coincide.pseudolabels.rows.shared import Sums
from coincide.pseudolabels.working_set import WorkingSet, start_near
from problems import Array

# By name: the passes over the rows, and the device that the rows are on.
PASSES = {"torch": (TorchPasses(), "cpu"), "numba": (compiled_passes(), "cpu")}
if torch.cuda.is_available():
    PASSES["gpu"] = (TorchPasses(), "cuda")


def on_device(array: Array, backend: str, dtype: torch.dtype | None = None) -> torch.Tensor:
    """Return an array as a tensor where the backend's rows are."""
    return torch.from_numpy(array).to(PASSES[backend][1], dtype)


def problem_of(
    probs: Array,
    *,
    fairness: float = 1.0,
    objective: str = "cce+",
    backend: str = "torch",
    dtype: torch.dtype = torch.float64,
    prior: Array | None = None,
    weights: Array | None = None,
    known: Array | None = None,
    guess: Array | None = None,
    sums: Sums | None = None,
) -> Problem:
    """Return the problem over the free rows; the prior is uniform unless given."""
    n_classes = probs.shape[1]
    return reduce_problem(
        on_device(probs, backend, dtype),
        prior=np.full(n_classes, 1 / n_classes) if prior is None else prior,
        fairness=fairness,
        objective=objective,
        passes=PASSES[backend][0],
        weights=None if weights is None else on_device(weights, backend),
        known=None if known is None else on_device(known, backend),
        guess=guess,
        sums=sums,
    ).problem


def indifferent(problem: Problem) -> Array:
    """Return the multipliers that the prior proposes."""
    return problem.coupling.multipliers(problem.prior)


def point_at(problem: Problem, multipliers: Array | None = None) -> Point:
    """Return the point of the dual at some multipliers, by default at those of the prior."""
    multipliers = indifferent(problem) if multipliers is None else multipliers
    return evaluate(problem, problem.passes.minimizers(problem.probs), multipliers)


def solve_working_set(problem: Problem, working: WorkingSet, tol: float) -> InteriorPointState:
    """Start from the prior's multipliers and step to a gap of ``tol``, or as near as it gets."""
    point = point_at(problem)
    rows = working.newton_rows()
    arrays = rows.load(*start_near(problem, working, point, 0.2 * max(point.off, 1e-3)))
    state = InteriorPointState(arrays, 0.0, point.multipliers, rows, tol, working.mass())
    return stepped(working, state, tol)


def stepped(problem: Problem, state: InteriorPointState, tol: float) -> InteriorPointState:
    """Step until the interior point expects a gap of ``tol``, or as near as it gets."""
    for _ in range(200):
        if state.stalled or state.expected_gap <= tol:
            break
        state = InteriorPoint().step(problem, state)
    return state
