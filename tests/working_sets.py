"""The interior point on a working set alone, for the tests of what it is made of."""

from __future__ import annotations

from coincide.pseudolabels.dual import evaluate
from coincide.pseudolabels.interior_point import InteriorPoint, InteriorPointState
from coincide.pseudolabels.kernels import row_minimizers
from coincide.pseudolabels.problem import Problem
from coincide.pseudolabels.working_set import WorkingSet, start_near


def solve_working_set(problem: Problem, working: WorkingSet, tol: float) -> InteriorPointState:
    """Start from equal multipliers and step to a gap of ``tol``, or as near as it gets."""
    search = row_minimizers(problem.backend, problem.probs)
    point = evaluate(problem, search, problem.multipliers(problem.prior))
    arrays = start_near(problem, working, point, 0.2 * max(point.off, 1e-3))
    kernels = working.kernels()
    state = InteriorPointState(
        kernels.load(*arrays), 0.0, point.multipliers, kernels, tol, working.mass()
    )
    for _ in range(200):
        state = InteriorPoint().step(working, state)
        if state.stalled or state.expected_gap <= tol:
            break
    return state
