"""What a solver is, and the one loop that runs every solver.

A solver improves labels step by step and states as data what it can solve. The loop asks for the
certificate as soon as the solver itself expects a small enough gap, and stops when the certified
gap is small. A new solver is one new file and one entry in ``SOLVERS`` (``solve.py``).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor

from coincide.pseudolabels.problem import Certificate, Problem, certify


class State(Protocol):
    """What a solver carries from step to step."""

    expected_gap: float
    stalled: bool

    @property
    def labels(self) -> Tensor:
        """The current labels, ``(M, K)``."""
        ...


class Solver(Protocol):
    """A way to improve labels.

    ``expected_gap`` of its state is the solver's own estimate of the gap; a solver that has none
    leaves it at 0 and is certified every ``check_every`` steps.
    """

    @property
    def name(self) -> str:
        """The name users choose it by."""
        ...

    @property
    def objectives(self) -> Sequence[str]:
        """The names of the objectives it can solve."""
        ...

    @property
    def max_iter(self) -> int:
        """How many steps it takes at most, unless told otherwise."""
        ...

    @property
    def check_every(self) -> int:
        """How many steps lie between two certificates."""
        ...

    def start(self, problem: Problem, labels: Tensor | None) -> Any:
        """Return the first state, from given labels if there are any."""
        ...

    def step(self, problem: Problem, state: Any) -> Any:
        """Return an improved state, or one marked as stalled when nothing more can be done."""
        ...


@dataclass(frozen=True)
class Outcome:
    """Where the loop stopped."""

    labels: Tensor
    n_iter: int
    converged: bool
    certificate: Certificate | None


def run_solver(
    solver: Solver,
    problem: Problem,
    labels: Tensor | None = None,
    *,
    tol: float,
    max_iter: int,
    certified: bool = True,
) -> Outcome:
    """Step until the gap is at most ``tol · max(1, |objective|)``, or ``max_iter`` steps.

    Parameters
    ----------
    solver, problem
        A pair that fits: the problem's objective is among the solver's.
    labels : Tensor of shape (M, K), optional
        A warm start; when it is good enough already no step is taken.
    tol : float
    max_iter : int
    certified : bool
        Whether to stop on the certified gap, or to believe the solver's own estimate and save
        the passes that a certificate takes (inside a training step).
    """
    state: State = solver.start(problem, labels)
    certificate = certify(problem, state.labels) if certified and labels is not None else None
    n_iter = 0
    done = certificate is not None and certificate.within(tol)
    while not done and not state.stalled and n_iter < max_iter:
        state = solver.step(problem, state)
        n_iter += 1
        last = state.stalled or n_iter == max_iter
        promising = state.expected_gap <= tol and n_iter % solver.check_every == 0
        if not certified:
            done = promising
        elif promising or last:
            certificate = certify(problem, state.labels)
            done = certificate.within(tol)
    if certified and certificate is None:
        certificate = certify(problem, state.labels)
        done = certificate.within(tol)
    return Outcome(state.labels, n_iter, done, certificate)
